"""WeiPer: histograms of features and of perturbed logits against their training means."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import product, single, training_features, unit_rows
from grood_jax.detectors.base import Detector, Training, require_head
from grood_jax.support import checks

GRID = {"feature_weight": (0.1, 1.0, 2.5, 4.0), "msp_weight": (0.1, 0.25, 1.0, 2.5, 5.0)}

FLOOR, PERTURBED_FLOOR = 0.01, 0.025
"""What the authors add to each bin of the two histograms: no bin is empty."""

VALUES = 2**24
"""Perturbed logits that fitting holds at once."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Histogram:
    """The mean histogram of training samples.

    Attributes:
      low: the smallest value of all training samples, () float32.
      high: the largest, () float32.
      share: the mean share of a sample's values in each of n bins of equal width, (n,) float32.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    share: Float[Array, " n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeiperState:
    """A fitted WeiPer.

    Attributes:
      weights: of the r perturbed heads side by side, (D, r C) float32.
      bias: of the class head, (C,) float32.
      features: of the features.
      perturbed: of the perturbed logits.
    """

    weights: Float[Array, "d rc"]
    bias: Float[Array, " c"]
    features: Histogram
    perturbed: Histogram


def weiper(
    *,
    feature_weight: float | int = 2.5,
    msp_weight: float | int = 0.1,
    distance: float | int = 1.8,
    repeats: int = 100,
    bins: int = 100,
    smoothing: int = 4,
    smoothing_perturbed: int = 15,
) -> Detector:
    """WeiPer + KLD; the score is ``K(p_h, q_h) + λ₁ K(p_w, q_w) − λ₂ MSP_w``.

    ``q_h`` is the histogram of a sample's own D features, ``q_w`` that of its logits through r
    class heads whose weights are perturbed, ``w_c + δ ‖w_c‖ n`` with random unit vectors n and the
    same bias. Bins have equal widths between the least and the largest value of all training
    samples; what lies outside is in no bin. ``p`` is the mean of the training samples' histograms.
    ``q`` is smoothed by a moving average, its ends repeated, both get a constant in each bin (0.01,
    perturbed 0.025) and are normalised, and ``K(p, q) = Σ (p − q)(log p − log q)``. ``MSP_w`` is
    the mean of the perturbed heads' maximum softmax probabilities.

    This is the authors' code, a fork of OpenOOD; OpenOOD itself has no WeiPer. There the largest
    training value lies outside all bins, here in the last. The state has r times the class head's
    weights: 800 MB for a ResNet-50 on ImageNet.

    Args:
      feature_weight: λ₁, the weight of the perturbed logits' divergence.
      msp_weight: λ₂, the weight of the maximum probability.
      distance: δ, the length of a perturbation in lengths of the class's weights.
      repeats: r, how many perturbed heads.
      bins: of each histogram.
      smoothing: bins averaged over, of features; at most ``bins``.
      smoothing_perturbed: of perturbed logits. The defaults are the authors' for CIFAR-10 with
        ResNet-18; theirs for CIFAR-100 are λ₁ 0.1, λ₂ 1, δ 2.4, 4 and 40 bins averaged over, for
        ImageNet with ResNet-50 2.5, 0.25, 2.4, 40 and 15. They search 3600 combinations;
        ``grid`` has those of λ₁ and λ₂, for which nothing is fitted anew.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      without a class head.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range.

    References:
      Granz, Heurich and Landgraf, WeiPer: OOD Detection using Weight Perturbations of Class
      Projections, arXiv 2405.17164 (NeurIPS 2024), and the authors' code. OpenOOD's leaderboard of
      July 2025 has AUROC 90.54 near and 93.12 far for CIFAR-10, 81.37 and 79.01 for CIFAR-100
      (ResNet-18), 80.05 and 95.54 for ImageNet-1K (ResNet-50), 75.00 and 90.32 (ViT-B/16).
    """
    first = checks.number("feature_weight", feature_weight)
    second = checks.number("msp_weight", msp_weight)
    length = checks.positive("distance", distance)
    checks.at_least("repeats", repeats, 1)
    checks.at_least("bins", bins, 1)
    checks.at_least("smoothing", smoothing, 1, bins)
    checks.at_least("smoothing_perturbed", smoothing_perturbed, 1, bins)

    def fit(training: Training, key: Array) -> WeiperState:
        weights, bias = map(jnp.asarray, require_head("weiper", training))
        features = training_features(training)
        several = perturbed_heads(weights, length, repeats, key)
        return WeiperState(
            several,
            bias,
            _mean_histogram(features, None, bins),
            _mean_histogram(features, (several, bias), bins),
        )

    def score(state: WeiperState, outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        logits = _logits(features, state.weights, state.bias)
        largest = jax.nn.softmax(logits.reshape(len(logits), repeats, -1), axis=2).max(axis=2)
        return (
            _divergence(state.features, features, smoothing, FLOOR)
            + first * _divergence(state.perturbed, logits, smoothing_perturbed, PERTURBED_FLOOR)
            - second * largest.mean(axis=1)
        )

    options = {
        "feature_weight": feature_weight,
        "msp_weight": msp_weight,
        "distance": distance,
        "repeats": repeats,
        "bins": bins,
        "smoothing": smoothing,
        "smoothing_perturbed": smoothing_perturbed,
    }
    fit_key = (length, repeats, bins)
    return Detector("weiper", fit, score, options, head=True, grid=GRID, fit_key=fit_key)


@partial(jax.jit, static_argnames=("distance", "repeats"))
def perturbed_heads(
    weights: Float[Array, "d c"], distance: float, repeats: int, key: Array
) -> Float[Array, "d rc"]:
    """Heads ``w_c + distance ‖w_c‖ n`` with random unit vectors n, side by side, (D, r C)."""
    width, classes = weights.shape
    noise = unit_rows(jax.random.normal(key, (repeats * classes, width)))
    lengths = distance * jnp.linalg.norm(weights, axis=0)
    return jnp.tile(weights, (1, repeats)) + noise.T * jnp.tile(lengths, repeats)[None, :]


def _logits(
    features: Float[Array, "b d"], weights: Float[Array, "d rc"], bias: Float[Array, " c"]
) -> Float[Array, "b rc"]:
    return product(features, weights) + jnp.tile(bias, weights.shape[1] // len(bias))[None, :]


def _counts(
    values: Float[Array, "b m"], low: Float[Array, ""], high: Float[Array, ""], bins: int
) -> Float[Array, "b n"]:
    """How many of each row's values lie in bins from low to high."""
    width = jnp.where(high > low, high - low, 1.0)
    places = jnp.minimum(jnp.floor((values - low) / width * bins), bins - 1).astype(jnp.int32)
    inside = (values >= low) & (values <= high)
    rows = jnp.arange(len(values))[:, None]
    counts = jnp.zeros((len(values), bins + 1)).at[rows, jnp.where(inside, places, bins)].add(1.0)
    return counts[:, :bins]


def _mean_histogram(
    features: Float[Array, "n d"],
    head: tuple[Float[Array, "d rc"], Float[Array, " c"]] | None,
    bins: int,
) -> Histogram:
    """Of the features, or of their logits through a head."""
    width = features.shape[1] if head is None else head[0].shape[1]
    low, high, counts = _block_counts(features, head, max(1, VALUES // width), bins)
    total = np.asarray(counts, np.float64).sum(axis=0)
    return Histogram(low, high, single(total / (len(features) * width)))


@partial(jax.jit, static_argnames=("most", "bins"))
def _block_counts(
    features: Float[Array, "n d"],
    head: tuple[Float[Array, "d rc"], Float[Array, " c"]] | None,
    most: int,
    bins: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "g h"]]:
    """The least and the largest value, and of each block of rows how many lie in each bin.

    Up to 2²⁴ values of a block: float32 counts them exactly.
    """
    count, rows = len(features), min(most, len(features))

    def block(number: Int[Array, ""]) -> tuple[Float[Array, "r m"], Bool[Array, " r"]]:
        """Values of some rows, and which rows are in no block before: the last reaches back."""
        start = jnp.minimum(number * rows, count - rows)
        part = lax.dynamic_slice_in_dim(features, start, rows)
        new = start + jnp.arange(rows) >= number * rows
        return part if head is None else _logits(part, *head), new

    def wider(ends: tuple[Array, Array], number: Int[Array, ""]) -> tuple[Any, None]:
        values, _ = block(number)
        return (jnp.minimum(ends[0], values.min()), jnp.maximum(ends[1], values.max())), None

    numbers = jnp.arange(-(-count // rows))
    (low, high), _ = lax.scan(wider, (jnp.float32(jnp.inf), jnp.float32(-jnp.inf)), numbers)

    def counted(number: Int[Array, ""]) -> Float[Array, " h"]:
        values, new = block(number)
        return jnp.where(new[:, None], _counts(values, low, high, bins), 0.0).sum(axis=0)

    return low, high, lax.map(counted, numbers)


def _divergence(
    mean: Histogram, values: Float[Array, "b m"], smoothing: int, floor: float
) -> Float[Array, " b"]:
    """The symmetric divergence of each row's smoothed histogram from the mean one, (B,)."""
    bins = len(mean.share)
    own = _counts(values, mean.low, mean.high, bins) / values.shape[1]
    before = (smoothing - 1) // 2
    padded = jnp.pad(own, ((0, 0), (before, smoothing - 1 - before)), mode="edge")
    shifted = [padded[:, shift : shift + bins] for shift in range(smoothing)]
    smooth = jnp.mean(jnp.stack(shifted), axis=0)
    p, q = mean.share + floor, smooth + floor
    p, q = p / p.sum(), q / q.sum(axis=1, keepdims=True)
    return jnp.sum((p[None, :] - q) * (jnp.log(p)[None, :] - jnp.log(q)), axis=1)
