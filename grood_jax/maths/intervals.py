"""How sure an AUROC is: DeLong's variance, and bootstrap samples of the same images.

An AUROC may be a mean over several OOD sets that are told from the same ID samples. DeLong's
variance is a closed form, so it costs one sort; the bootstrap draws images anew, ID samples and
each OOD set by themselves.

References:
  DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837-845; scipy.stats.bootstrap.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from grood_jax.support import checks

DRAWN = 2**22
"""Numbers that a batch of bootstrap samples may hold."""

Scores = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Difference:
    """How much one AUROC is above another, on the same images.

    Attributes:
      value: the difference.
      low: the lower end of its interval.
      high: the upper end.
      p_value: how often chance alone would put the two at least as far apart, two-sided.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class _Ordered:
    """ID scores in order, and for each OOD set how many lie below its scores, and up to them."""

    order: Int[np.ndarray, " n"]
    below: tuple[Int[np.ndarray, " _"], ...]
    upto: tuple[Int[np.ndarray, " _"], ...]


def auroc_interval(
    inside: Scores, outside: Sequence[Scores], level: float = 0.95
) -> tuple[float, float] | None:
    """DeLong's interval of an AUROC, or of the mean AUROC over several OOD sets.

    Args:
      inside: scores of N ID samples, (N,).
      outside: of each of S OOD sets, (M_s,); higher for more OOD.
      level: how often the interval holds the AUROC of the distribution.

    Returns:
      Its ends within [0, 1]; None where a set has fewer than two samples.

    Raises:
      ValueError: no OOD set, or a level out of (0, 1).

    Examples:
      >>> import numpy as np
      >>> from grood_jax.maths.intervals import auroc_interval
      >>> low, high = auroc_interval(np.arange(50.0), [np.arange(50.0) + 30])
      >>> round(low, 3), round(high, 3)
      (0.872, 0.968)
    """
    level = _checked_level(level)
    if min(map(len, (inside, *_required(outside)))) < 2:
        return None
    value, of_inside, of_outside = _components(_ordered(inside, outside), len(inside))
    variance = of_inside.var(ddof=1) / len(inside)
    for own in of_outside:
        variance += own.var(ddof=1) / len(own) / len(of_outside) ** 2
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return max(0.0, value - half), min(1.0, value + half)


def bootstrap_interval(
    inside: Scores,
    outside: Sequence[Scores],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The bootstrap's percentile interval of what `auroc_interval` is of.

    Args:
      inside: as for `auroc_interval`, like the next.
      outside: scores of each OOD set.
      level: likewise.
      resamples: how often images are drawn anew.
      seed: of the drawing.

    Raises:
      ValueError: a set of fewer than two samples, no OOD set, or a level out of (0, 1).
    """
    ordered = _ordered(inside, _required(outside))
    sizes = [len(inside), *map(len, outside)]
    found = _resampled(sizes, lambda *rows: _means(ordered, rows), level, resamples, seed)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare_aurocs(
    first: tuple[Scores, Sequence[Scores]],
    second: tuple[Scores, Sequence[Scores]],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """A paired bootstrap of two AUROCs: both are of the same images in each sample drawn.

    Args:
      first: ID scores and those of each OOD set, as for `auroc_interval`.
      second: another detector's, of the same images in the same order.
      level: how often the interval holds the difference.
      resamples: how often images are drawn anew.
      seed: of the drawing.

    Raises:
      ValueError: the sets differ in size or number, or as `bootstrap_interval`.
    """
    sizes, others = ([len(part[0]), *map(len, _required(part[1]))] for part in (first, second))
    if sizes != others:
        raise ValueError(f"first is of sets of {sizes} samples; expected {others}, as second's")
    one, other = _ordered(*first), _ordered(*second)

    def difference(*rows: Int[np.ndarray, "b _"]) -> Float[np.ndarray, " b"]:
        return _means(one, rows) - _means(other, rows)

    found = _resampled(sizes, difference, level, resamples, seed)
    drawn = found.bootstrap_distribution
    # A share of none would claim more than so many samples can tell.
    tail = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    everything = tuple(np.arange(size)[None] for size in sizes)
    return Difference(
        float(difference(*everything)[0]),
        float(found.confidence_interval.low),
        float(found.confidence_interval.high),
        min(1.0, 2 * float(tail) / (1 + len(drawn))),
    )


def _required(outside: Sequence[Scores]) -> Sequence[Scores]:
    if not len(outside):
        raise ValueError("outside is empty; expected scores of at least one OOD set")
    return outside


def _checked_level(level: float) -> float:
    if checks.fraction("level", level) in (0, 1):
        raise ValueError(f"level is {level}; expected a number in (0, 1)")
    return float(level)


def _ordered(inside: Scores, outside: Sequence[Scores]) -> _Ordered:
    order = np.argsort(inside, kind="stable")
    ascending = np.asarray(inside)[order]
    below = (np.searchsorted(ascending, own, "left") for own in outside)
    upto = (np.searchsorted(ascending, own, "right") for own in outside)
    return _Ordered(order, tuple(below), tuple(upto))


def _components(
    ordered: _Ordered, count: int
) -> tuple[float, Float[np.ndarray, " n"], list[Float[np.ndarray, " _"]]]:
    """The mean AUROC, and what each sample adds to it: the ID samples over all sets."""
    of_outside = [
        (below + upto) / 2 / count for below, upto in zip(ordered.below, ordered.upto, strict=True)
    ]
    in_order = np.zeros(count)
    for below, upto in zip(ordered.below, ordered.upto, strict=True):
        # An ID sample at a place loses to all OOD samples with more than so many below them.
        losses = [np.bincount(part, minlength=count + 1).cumsum() for part in (below, upto)]
        beaten = len(below) - (losses[0] + losses[1])[:count] / 2
        in_order += beaten / len(below) / len(ordered.below)
    return float(in_order.mean()), in_order, of_outside


def _means(ordered: _Ordered, rows: Sequence[Int[np.ndarray, "b _"]]) -> Float[np.ndarray, " b"]:
    """Mean AUROCs of B samples drawn: their ID rows, and those of each OOD set."""
    inside, *outside = rows
    repeats, count = inside.shape
    flat = (inside + np.arange(repeats)[:, None] * count).ravel()
    times = np.bincount(flat, minlength=repeats * count).reshape(repeats, count)
    drawn = np.zeros((repeats, count + 1))
    np.cumsum(times[:, ordered.order], axis=1, out=drawn[:, 1:])
    found = np.zeros(repeats)
    for own, below, upto in zip(outside, ordered.below, ordered.upto, strict=True):
        wins = [np.take_along_axis(drawn, part[own], 1).mean(axis=1) for part in (below, upto)]
        found += (wins[0] + wins[1]) / 2 / count
    return found / len(outside)


def _resampled(
    sizes: Sequence[int],
    statistic: Callable[..., Float[np.ndarray, " b"]],
    level: float,
    resamples: int,
    seed: int,
) -> Any:
    """The bootstrap over row numbers, of all sets at once."""
    from scipy import stats

    _checked_level(level)
    if min(sizes) < 2:
        raise ValueError(f"the sets have {sizes} samples; expected at least two in each")

    def along(*rows: Int[np.ndarray, "*b _"], axis: int) -> Float[np.ndarray, "*b"]:
        del axis
        # What is drawn, and once the whole: scipy asks for either.
        found = statistic(*(np.atleast_2d(own) for own in rows))
        return found if rows[0].ndim > 1 else found[0]

    return stats.bootstrap(
        [np.arange(size) for size in sizes],
        along,
        n_resamples=checks.at_least("resamples", resamples, 1),
        batch=max(1, DRAWN // sum(sizes)),
        vectorized=True,
        axis=-1,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(checks.seed("seed", seed)),
    )
