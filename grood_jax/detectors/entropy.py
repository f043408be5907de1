"""Shannon's entropy of the softmax."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._probabilities import log_probabilities
from grood_jax.detectors.base import Detector, Training


def entropy() -> Detector:
    """Entropy of the softmax; the score is ``−Σ_c p_c log p_c`` with ``p = softmax(z)``, in nats.

    Nothing is fitted. OpenOOD v1.5 has no such postprocessor.

    Returns:
      The detector; its scores are (B,) float32 in [0, log C], higher for more OOD.

    References:
      Macêdo et al., arXiv 1908.05569 (the entropic score, its negative), here for any network.
    """

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        log_p = log_probabilities(outputs.logits)
        return -(jnp.exp(log_p) * log_p).sum(axis=1)

    return Detector("entropy", fit, score)
