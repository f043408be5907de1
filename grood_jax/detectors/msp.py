"""The maximum softmax probability, the baseline of the field."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors.base import Detector, Training


def msp() -> Detector:
    """Maximum softmax probability; the score is ``1 − max softmax(z)``.

    Nothing is fitted. The published score is the probability itself, higher for ID.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1), higher for more OOD.

    References:
      Hendrycks and Gimpel, arXiv 1610.02136, section 2.
    """

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        # 1 − p as the sum of the others' probabilities: near 1, p has no digits left.
        shifted = outputs.logits - outputs.logits.max(axis=1, keepdims=True)
        exponentials = jnp.exp(shifted)
        winner = jax.nn.one_hot(shifted.argmax(axis=1), shifted.shape[1], dtype=bool)
        return jnp.where(winner, 0.0, exponentials).sum(axis=1) / exponentials.sum(axis=1)

    return Detector("msp", fit, score)
