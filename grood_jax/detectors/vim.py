"""ViM: the residual as a logit of one more class (arXiv 2203.10807)."""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import (
    EPSILON,
    MOMENT_ROWS,
    ResidualSpace,
    residual_norm,
    residual_space,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ViMState:
    """A fitted ViM.

    Attributes:
      space: what the principal subspace leaves.
      alpha: what the residual's norm is multiplied by, () float32.
      shift: the share of each sample's mean logit that is subtracted from its logits, 0 or 1,
        () float32.
    """

    space: ResidualSpace
    alpha: Float[Array, ""]
    shift: Float[Array, ""]


def vim(*, dim: int | None = None) -> Detector:
    """Virtual-logit matching; the score is ``α ‖Rᵀ(h − u)‖₂ − log Σ_c exp z_c``.

    ``u`` and ``R`` are as in `residual`, and ``α`` is the mean over the training samples of the
    largest logit, divided by that of the residual's norm. The paper's score is the softmax
    probability of the virtual logit ``α ‖Rᵀ(h − u)‖``, which is the sigmoid of this one and
    saturates; this is the negative of OpenOOD v1.5's.

    The largest logits are taken to be positive, as a softmax head trained in the usual way has
    them. Where their mean is not (adding a constant to all logits leaves the softmax as it is), α
    would not be either, and the larger the residual the lower the score. Then each sample's mean
    logit is subtracted from its logits first, in ``α`` and in the score, and a warning says so:
    the largest is above 0 again, and no constant matters.

    Args:
      dim: the dimension of the principal subspace. None: 1000 if the features have D ≥ 2048
        columns and 512 if D ≥ 768, as the authors; D // 2 below, where 512 leaves little or
        nothing. OpenOOD's default is 256.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      without a class head, and where ``dim`` is D or more.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      Wang, Li, Feng and Zhang, arXiv 2203.10807, section 4.
    """
    if dim is not None:
        checks.at_least("dim", dim, 1)

    def fit(training: Training, key: Array) -> ViMState:
        del key
        space = residual_space("vim", training, dim)
        norms = _norms(space, jnp.asarray(training.outputs.features))
        residuals, lengths = (np.asarray(each, np.float64).mean() for each in norms)
        logits = np.asarray(training.outputs.logits, np.float64)
        largest, center = logits.max(axis=1).mean(), logits.mean()
        shift = 0.0 if largest > 0 else 1.0
        if shift:
            warnings.warn(
                f"vim: the largest logits of the training samples are {largest:.3g} in the mean, "
                "not above 0; each sample's mean logit is subtracted from its logits first",
                stacklevel=2,
            )
        largest -= shift * center
        # Training features within the principal subspace leave only what rounding makes of 0.
        least = max(EPSILON * lengths, float(np.finfo(np.float32).tiny))
        return ViMState(space, jnp.float32(largest / max(residuals, least)), jnp.float32(shift))

    def score(state: ViMState, outputs: Outputs) -> Float[Array, " b"]:
        virtual = state.alpha * residual_norm(state.space, jnp.asarray(outputs.features))
        logits = jnp.asarray(outputs.logits)
        mean = jnp.where(state.shift > 0, state.shift * logits.mean(axis=1), 0.0)
        return virtual + mean - jax.nn.logsumexp(logits, axis=1)

    return Detector("vim", fit, score, {"dim": dim}, head=True, grid={"dim": (None, 256, 1000)})


@jax.jit
def _norms(
    space: ResidualSpace, features: Float[Array, "n d"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The norms of the residuals and of all of ``h − u``, a block of samples at a time."""

    def norms(feature: Float[Array, " d"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        return residual_norm(space, feature[None, :])[0], jnp.linalg.norm(feature - space.origin)

    return jax.lax.map(norms, features, batch_size=MOMENT_ROWS)
