"""SCALE: scaled activations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, shaped_head, sharpening, sum_of_strongest
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}


def scale(*, percentile: float | int = 85.0) -> Detector:
    """Energy of scaled features; the score is ``−logsumexp(e^r Wᵀ h + b)``.

    ``r = s1/s2``, with s1 the sum of a sample's features and s2 of its
    ``D − round(D·percentile/100)`` largest, at least one; which of equal features are among them
    does not matter. Nothing is pruned, unlike ASH-S. Features should not be negative; r is capped
    at 64, where float32 would overflow.

    Args:
      percentile: the share of features left out of s2, in [0, 100]; 85 in the paper and in
        OpenOOD v1.5's configuration.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` warns where more
      than a tenth of the training features are negative, as those of ViT and Swin are.

    Raises:
      ValueError: ``percentile`` outside its range.
      TypeError: ``percentile`` is no number.

    References:
      Xu, Chen, Franchi and Yao, arXiv 2310.00227: SCALE, not its training method ISH.
    """
    percentile = checks.percent("percentile", percentile)

    def fit(training: Training, key: Array) -> Head:
        del key
        return shaped_head("scale", training)

    def score(state: Head, outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        factor = sharpening(features, sum_of_strongest(features, percentile))
        return energy(features * factor, state)

    return Detector(
        "scale", fit, score, {"percentile": percentile}, head=True, grid=GRID, fit_key="scale"
    )
