"""Residual: the features' part outside the principal subspace (arXiv 2203.10807)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import ResidualSpace, residual_norm, residual_space
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks


def residual(*, dim: int | None = None) -> Detector:
    """Residual; the score is ``‖Rᵀ(h − u)‖₂``, the feature part of `vim`.

    ``u = −pinv(Wᵀ) b`` is where the class head's logits vanish, and ``R`` holds all but the ``dim``
    leading eigenvectors of ``Σ_i (h_i − u)(h_i − u)ᵀ`` over the training samples. OpenOOD v1.5
    takes them from the validation set, and the negative of the norm.

    Args:
      dim: the dimension of the principal subspace. None: 1000 if the features have D ≥ 2048
        columns and 512 if D ≥ 768, as ViM's authors; D // 2 below, where 512 leaves little or
        nothing. OpenOOD's default is 512.

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

    def fit(training: Training, key: Array) -> ResidualSpace:
        del key
        return residual_space("residual", training, dim)

    def score(state: ResidualSpace, outputs: Outputs) -> Float[Array, " b"]:
        return residual_norm(state, jnp.asarray(outputs.features))

    return Detector("residual", fit, score, {"dim": dim}, head=True, logits=False)
