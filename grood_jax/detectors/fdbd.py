"""fDBD: distance to the decision boundaries (arXiv 2312.11536)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import feature_mean, training_features
from grood_jax.detectors.base import Detector, Training, require_head
from grood_jax.support import checks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FDBDState:
    """A fitted fDBD.

    Attributes:
      mean: of the training features, (D,) float32.
      inverse_gaps: ``1 / ‖w_a − w_b‖``, 0 where the two weights are equal, (C, C) float32.
    """

    mean: Float[Array, " d"]
    inverse_gaps: Float[Array, "c c"]


def fdbd(*, distance_as_normalizer: bool = True) -> Detector:
    """Fast decision boundary distance; the score is ``−mean_{c ≠ ŷ} D_c(h) / ‖h − μ‖₂``.

    ``D_c = |z_ŷ − z_c| / ‖w_ŷ − w_c‖₂`` is the distance of the features to the boundary between the
    predicted class and c, and ``μ`` the mean of all training features. The paper has the negative
    of this; OpenOOD's code, by the authors, has the sum in place of the mean, C − 1 times as much.

    Args:
      distance_as_normalizer: divide by ``‖h − μ‖``, as the paper and OpenOOD by default; else by
        ``‖h‖``, which OpenOOD's sweep also tries.

    Returns:
      The detector; its scores are (B,) float32, at most 0, higher for more OOD; 0 where the
      divisor is 0. Its ``fit`` raises ValueError without a class head.

    Raises:
      TypeError: an option of the wrong type.

    References:
      Liu and Qin, Fast decision boundary based out-of-distribution detector, arXiv 2312.11536,
      section 3.
    """
    checks.flag("distance_as_normalizer", distance_as_normalizer)

    def fit(training: Training, key: Array) -> FDBDState:
        del key
        weights, _ = require_head("fdbd", training)
        return FDBDState(feature_mean(training_features(training)), _inverse_gaps(weights))

    def score(state: FDBDState, outputs: Outputs) -> Float[Array, " b"]:
        features, logits = jnp.asarray(outputs.features), jnp.asarray(outputs.logits)
        behind = logits.max(axis=1, keepdims=True) - logits
        distances = behind * state.inverse_gaps[logits.argmax(axis=1)]
        mean = distances.sum(axis=1) / max(logits.shape[1] - 1, 1)
        origin = state.mean if distance_as_normalizer else jnp.zeros_like(state.mean)
        divisor = jnp.linalg.norm(features - origin[None, :], axis=1)
        return -jnp.where(divisor > 0, mean / jnp.where(divisor > 0, divisor, 1.0), 0.0)

    options = {"distance_as_normalizer": distance_as_normalizer}
    grid = {"distance_as_normalizer": (True, False)}
    return Detector("fdbd", fit, score, options, head=True, grid=grid, fit_key="fdbd")


@jax.jit
def _inverse_gaps(weights: Float[Array, "d c"]) -> Float[Array, "c c"]:
    """One by the distances between all columns, one at a time: no (C, C, D) array of differences.

    Classes with the same weights have no boundary, nor a class with itself: 0.
    """
    rows = weights.T
    gaps = jax.lax.map(lambda row: jnp.linalg.norm(rows - row[None, :], axis=1), rows)
    return jnp.where(gaps > 0, 1.0 / jnp.where(gaps > 0, gaps, 1.0), 0.0)
