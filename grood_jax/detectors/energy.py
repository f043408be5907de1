"""The free energy of the logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks


def energy(*, temperature: float = 1.0) -> Detector:
    """Free energy; the score is ``−T log Σ_c exp(z_c / T)``.

    Nothing is fitted.

    Args:
      temperature: T; 1 in the paper and in OpenOOD v1.5.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD.

    Raises:
      TypeError: a temperature that is no number.
      ValueError: a temperature that is not positive and finite.

    References:
      Liu et al., arXiv 2010.03759, sections 2 and 3.1: the energy itself. The paper's detector
      and OpenOOD v1.5 (EBO) take its negative, higher for ID.
    """
    temperature = checks.positive("temperature", temperature)

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        scaled = jnp.asarray(outputs.logits) / temperature
        return -temperature * jax.nn.logsumexp(scaled, axis=1)

    return Detector("energy", fit, score, {"temperature": temperature})
