"""NCI: nearness to the predicted class's weights (arXiv 2311.01479)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import feature_mean, training_features, unit_rows
from grood_jax.detectors.base import Detector, Training, require_head
from grood_jax.support import checks

GRID = {"alpha": (1e-4, 1e-3, 1e-2, 1e-1)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NCIState:
    """A fitted NCI.

    Attributes:
      mean: of the training features, (D,) float32.
      weights: of the class head, by class, (C, D) float32.
    """

    mean: Float[Array, " d"]
    weights: Float[Array, "c d"]


def nci(*, alpha: float = 1e-4) -> Detector:
    """Neural-collapse-inspired detection; the score is ``−w_ŷ·(h − μ) / ‖h − μ‖₂ − α ‖h‖₁``.

    ``μ`` is the mean of all training features and ``w_ŷ`` the class head's weights of the predicted
    class, which are not normalised: the first term is the cosine times their norm. The second one
    filters out features near the origin. The paper, and OpenOOD's code, by the authors, have the
    negative of this. The paper's first versions call it NC-OOD.

    Args:
      alpha: the weight of the filter, in [0, 1]; 0 for none. OpenOOD's default; it chooses among
        1e-4, 1e-3, 1e-2 and 1e-1 on validation data.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD; the first term is 0 where h is
      μ. Its ``fit`` raises ValueError without a class head.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      Liu and Qin, Detecting out-of-distribution through the lens of neural collapse, arXiv
      2311.01479 (CVPR 2025).
    """
    checks.fraction("alpha", alpha)

    def fit(training: Training, key: Array) -> NCIState:
        del key
        weights, _ = require_head("nci", training)
        return NCIState(feature_mean(training_features(training)), jnp.asarray(weights).T)

    def score(state: NCIState, outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        directions = unit_rows(features - state.mean[None, :])
        own = state.weights[outputs.logits.argmax(axis=1)]
        nearness = jnp.sum(own * directions, axis=1)
        return -nearness - alpha * jnp.abs(features).sum(axis=1)

    return Detector("nci", fit, score, {"alpha": alpha}, head=True, grid=GRID, fit_key="nci")
