"""ASH: activation shaping."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, shaped_head, sharpening, strongest
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"percentile": (65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0)}


def ash(*, variant: Literal["s", "p", "b"] = "b", percentile: float | int = 90.0) -> Detector:
    """Energy of pruned features; the score is ``−logsumexp(Wᵀ f(h) + b)``.

    ``f`` keeps each sample's ``k = D − round(D·percentile/100)`` largest features, at least one,
    and makes the others zero. With s1 the sum of the features before and s2 after, ``"s"``
    multiplies what is kept by ``exp(s1/s2)``, ``"p"`` leaves it, and ``"b"`` sets it to ``s1/k``.
    Among equal features the first are kept (torch's choice is unspecified): with many zeros that
    matters to ``"b"``.

    It is applied to the pooled penultimate features, as in OpenOOD v1.5, whose maps are 1 × 1
    there. They should not be negative; the exponent is capped at 64, where float32 would overflow.

    Args:
      variant: ``"b"`` binarises, the one in OpenOOD; ``"s"`` scales, the default of the authors'
        code; ``"p"`` prunes.
      percentile: the share of features pruned, in [0, 100]; 90 in OpenOOD, for ``"b"``, and in the
        authors' configurations, for ``"s"``. The best value differs by variant and data.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` warns where more
      than a tenth of the training features are negative, as those of ViT and Swin are.

    Raises:
      ValueError: an option outside its range.
      TypeError: ``percentile`` is no number.

    References:
      Djurisic, Bozanic, Ashok and Liu, arXiv 2209.09858, algorithms 1 to 3.
    """
    checks.choice("variant", variant, ("s", "p", "b"))
    percentile = checks.percent("percentile", percentile)

    def fit(training: Training, key: Array) -> Head:
        del key
        return shaped_head("ash", training)

    def score(state: Head, outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        kept = strongest(features, percentile)
        shaped = jnp.where(kept, features, 0.0)
        if variant == "s":
            shaped = shaped * sharpening(features, shaped.sum(axis=1, keepdims=True))
        elif variant == "b":
            fill = features.sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)
            shaped = jnp.where(kept, fill, 0.0)
        return energy(shaped, state)

    return Detector(
        "ash",
        fit,
        score,
        {"variant": variant, "percentile": percentile},
        head=True,
        grid=GRID,
        fit_key="ash",
    )
