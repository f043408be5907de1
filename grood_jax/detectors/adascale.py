"""AdaSCALE: scaling by a percentile that follows how far features shift (arXiv 2503.08023)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Nudged, Outputs
from grood_jax.detectors._activation import LARGEST_EXPONENT, Head, energy, head_of
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"percentiles": tuple(combinations((*np.arange(60.0, 100.0, 5.0).tolist(), 99.0), 2))}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaScaleState:
    """A fitted AdaSCALE detector.

    Attributes:
      shifts: Q' of the training samples in ascending order, (N,) float32.
      head: the class head, for the variant of the activations.
    """

    shifts: Float[Array, " n"]
    head: Head | None


def adascale(
    *,
    variant: Literal["a", "l"] = "a",
    percentiles: Sequence[float | int] = (60.0, 85.0),
    shift_share: float | int = 1.0,
    correction_share: float | int = 5.0,
    shift_weight: float | int = 10.0,
    pixel_share: float = 0.05,
    step: float | int = 0.5,
) -> Detector:
    """AdaSCALE; the score is ``−logsumexp(Wᵀ e^r h + b)``, in variant L ``−logsumexp(r² z)``.

    ``r = s1/s2`` as in `scale`, with s1 the sum of a sample's positive features and s2 of its
    largest, but how many are left out of s2 differs between samples: a share of
    ``p = p_min + (1 − F(Q')) (p_max − p_min)`` percent. ``Q' = λ Q + C`` is large for OOD samples:
    ``Q`` sums how far the ``k1`` % largest features shift, and ``C`` the positive features at the
    ``k2`` % largest's places, when the image is moved where it matters least to its class
    (`grood_jax.maths.perturbation.nudge`); ``F`` is the share of training samples whose Q' is no
    larger. A second forward pass and a backward pass of each image, of training images too.

    ``F`` is of the training samples here; OpenOOD v1.5 and the authors take 5000 held-out ID
    images. In OpenOOD k1 and k2 have each other's names, values and all: its ``k1: 5`` is
    `correction_share`. The authors swapped them in November 2025 for the paper's sake (an erratum
    in the README), but in their code for ``F`` only, not for the samples scored; here both are as
    in the paper, and the numbers those of OpenOOD. At least one feature is taken in each sum, and
    where no feature is positive r is 1. Features should not be negative: those of ViT and Swin are,
    and no scaling means much there.

    The authors' repository reports for variants A and L on OpenOOD v1.5 a mean AUROC of 0.8442 and
    0.8427 near and 0.9727 and 0.9728 far for ResNet-50 on ImageNet-1K, 0.8104 and 0.8054, 0.8184
    and 0.8338 for CIFAR-100, and 0.8392 and 0.7499, 0.8800 and 0.7902 for CIFAR-10.

    Args:
      variant: ``"a"`` scales activations, ``"l"`` logits, which needs no class head.
      percentiles: ``(p_min, p_max)``, in (0, 100); 60 is the authors' p_min, and p_max is what they
        tune.
      shift_share: k1, in percent of the features; 1, like the next as in the authors' README.
      correction_share: k2, in percent of the features; 5.
      shift_weight: λ; 10.
      pixel_share: the share of an image's numbers that are moved; 0.05.
      step: how far, in units of the normalised images; 0.5.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. It needs a backbone that has
      gradients.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range, or percentiles that do not ascend.

    References:
      Regmi, arXiv 2503.08023, and the README of its repository sudarshanregmi/AdaSCALE.
    """
    checks.choice("variant", variant, ("a", "l"))
    low, high = _checked_percentiles(percentiles)
    shift_share = checks.percent("shift_share", shift_share)
    correction_share = checks.percent("correction_share", correction_share)
    shift_weight = checks.positive("shift_weight", shift_weight)
    need = Nudged(checks.fraction("pixel_share", pixel_share), checks.positive("step", step))

    def shifts(outputs: Outputs) -> Float[Array, " b"]:
        features, moved = jnp.asarray(outputs.features), jnp.asarray(outputs.extra[need])
        shifted = _at_largest(features, jnp.abs(features - moved), shift_share)
        return shift_weight * shifted + _at_largest(features, jax.nn.relu(moved), correction_share)

    def fit(training: Training, key: Array) -> AdaScaleState:
        del key
        head = head_of("adascale", training) if variant == "a" else None
        own = replace(training.outputs, extra={need: training.outputs.extra[need]})
        found = jax.jit(shifts)(own)
        found = checks.finite(f"training.outputs.extra[{need}]", found)
        return AdaScaleState(checks.placed(np.sort(np.asarray(found))), head)

    def score(state: AdaScaleState, outputs: Outputs) -> Float[Array, " b"]:
        below = jnp.searchsorted(state.shifts, shifts(outputs), side="right")
        percentile = low + (1 - below / len(state.shifts)) * (high - low)
        features = jnp.asarray(outputs.features)
        ratio = _ratio(features, percentile)
        if state.head is None:
            return -jax.nn.logsumexp(jnp.asarray(outputs.logits) * ratio**2, axis=1)
        # Beyond, float32 logits would overflow.
        return energy(features * jnp.exp(jnp.minimum(ratio, LARGEST_EXPONENT)), state.head)

    options = {
        "variant": variant,
        "percentiles": (low, high),
        "shift_share": shift_share,
        "correction_share": correction_share,
        "shift_weight": shift_weight,
        "pixel_share": need.share,
        "step": need.step,
    }
    return Detector(
        "adascale",
        fit,
        score,
        options,
        needs=(need,),
        fit_needs=(need,),
        head=variant == "a",
        grid=GRID,
        fit_key=("adascale", variant, shift_share, correction_share, shift_weight, need),
    )


def _checked_percentiles(percentiles: Sequence[float | int]) -> tuple[float, float]:
    values = checks.several("percentiles", percentiles, "two numbers")
    found = tuple(checks.percent("percentiles", value) for value in values)
    if len(found) != 2 or not 0 < found[0] < found[1] < 100:
        raise ValueError(f"percentiles is {percentiles!r}; expected two, 0 < p_min < p_max < 100")
    return found


def _at_largest(
    features: Float[Array, "b d"], values: Float[Array, "b d"], share: float
) -> Float[Array, " b"]:
    """The sum of values at the places of each row's largest features, a share in percent."""
    count = max(1, int(features.shape[1] * share / 100))
    places = jax.lax.top_k(features, count)[1]
    return jnp.take_along_axis(values, places, axis=1).sum(axis=1)


def _ratio(features: Float[Array, "b d"], percentile: Float[Array, " b"]) -> Float[Array, "b 1"]:
    """s1/s2 of each row, whose ``D − round(D·percentile/100)`` largest features s2 sums."""
    width = features.shape[1]
    ordered = jnp.sort(jax.nn.relu(features), axis=1)[:, ::-1]
    count = jnp.maximum(1, width - jnp.round(width * percentile / 100)).astype(jnp.int32)
    kept = jnp.arange(width)[None, :] < count[:, None]
    part = jnp.where(kept, ordered, 0.0).sum(axis=1, keepdims=True)
    whole = ordered.sum(axis=1, keepdims=True)
    return jnp.where(part > 0, whole / jnp.where(part > 0, part, 1.0), 1.0)
