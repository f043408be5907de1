"""GradNorm: the norm of the gradient with respect to the class head."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors.base import Detector, Training


def gradnorm() -> Detector:
    """Gradient norm of the last layer; the score is ``−‖h‖₁ · Σ_c |softmax(z)_c − 1/C|``.

    That is ``−‖∂ KL(u ‖ softmax(z)) / ∂W‖₁`` for the uniform ``u`` and ``z = Wᵀh + b``, at
    temperature 1: the gradient is the outer product of ``h`` and ``softmax(z) − u``. The norm is
    larger for ID, so the score is its negative. Nothing is fitted. OpenOOD v1.5 sums the
    cross-entropies of all classes where the paper averages them, so that its numbers are C times
    as large.

    Returns:
      The detector; its scores are (B,) float32, at most 0, higher for more OOD.

    References:
      Huang, Geng and Li, arXiv 2110.00218, sections 3 and 5.
    """

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        logits = jnp.asarray(outputs.logits)
        from_uniform = jax.nn.softmax(logits, axis=1) - 1.0 / logits.shape[1]
        return -jnp.abs(outputs.features).sum(axis=1) * jnp.abs(from_uniform).sum(axis=1)

    return Detector("gradnorm", fit, score)
