"""LTS: logits scaled by how much of a sample's activation lies in few features."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import sum_of_strongest
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}


def lts(*, percentile: float | int = 85.0) -> Detector:
    """Energy of scaled logits; the score is ``−logsumexp(S z)``, ``S = (s1/s2)²``.

    s1 is the sum of a sample's features, negative ones taken as 0, and s2 that of its
    ``D − round(D·percentile/100)`` largest, at least one. It is `scale` with a square in the place
    of the exponential, applied to the logits, bias included, so that no class head is needed and
    nothing is fitted. S is 1 where no feature is positive. OpenOOD v1.5 has no LTS; the authors'
    code has the negative of this.

    Args:
      percentile: the share of features left out of s2, in [0, 100]. The authors' code has no value
        of its own: its configurations are those of SCALE, 85 for ImageNet with ResNet-50 and 95 for
        CIFAR-10 with DenseNet-100. ``grid`` is that of `scale` in OpenOOD.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD.

    Raises:
      TypeError: ``percentile`` is no number.
      ValueError: ``percentile`` outside its range.

    References:
      Djurisic, Liu and Nikolić, Logit Scaling for Out-of-Distribution Detection, arXiv 2409.01175,
      and the authors' code.
    """
    percentile = checks.percent("percentile", percentile)

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        features = jnp.maximum(jnp.asarray(outputs.features), 0.0)
        # In units of the largest: a sum of huge features leaves float32.
        largest = features.max(axis=1, keepdims=True)
        features = features / jnp.where(largest > 0, largest, 1.0)
        part, whole = sum_of_strongest(features, percentile), features.sum(axis=1, keepdims=True)
        ratio = jnp.where(part > 0, whole / jnp.where(part > 0, part, 1.0), 1.0)
        return -jax.nn.logsumexp(ratio**2 * jnp.asarray(outputs.logits), axis=1)

    return Detector("lts", fit, score, {"percentile": percentile}, grid=GRID, fit_key="lts")
