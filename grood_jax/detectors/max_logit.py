"""The maximum logit."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors.base import Detector, Training


def max_logit() -> Detector:
    """Maximum logit; the score is ``−max z``.

    Nothing is fitted.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD.

    References:
      Hendrycks et al., arXiv 1911.11132 (MaxLogit). OpenOOD v1.5 has the other sign, higher for
      ID.
    """

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        return -jnp.asarray(outputs.logits).max(axis=1)

    return Detector("max_logit", fit, score)
