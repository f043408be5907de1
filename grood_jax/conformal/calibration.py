"""From scores to decisions: split conformal p-values, thresholds and discoveries.

Scores of held-out in-distribution samples stand for those to come. If a new sample is exchangeable
with them, whatever the detector and the data, its p-value is valid: ``P(p <= u) <= u``; and the
probability that it is called OOD at a target true-positive rate (the share of ID samples that are
let pass) is at most ``1 - target``. Over draws of N held-out scores without ties, the rate that a
threshold realises has a Beta(k, N + 1 - k) distribution with ``k = ceil((N + 1) target)``; ties
can only raise it.

The network must not have been trained on the held-out samples, nor the detector been fitted on
them. With classes (Mondrian calibration) all this holds within each *predicted* class: the class
must be known when a sample is scored, and its true one is not.

Only the order of scores counts. They are compared as float32, those of held-out and of new samples
alike; infinite scores are in order as any others, and NaN is refused.

References:
  Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Vovk, Conditional
  validity of inductive conformal predictors, arXiv 1209.2673, for the Beta distribution and for
  classes; Bates et al., Testing for outliers with conformal p-values, arXiv 2104.08279.
"""

from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int

from grood_jax.support import checks

MOST_CLASSES = 2**24
"""A larger number of classes is taken for a mistake: memory grows with it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Calibration:
    """Held-out ID scores, made by `calibrate`.

    Attributes:
      scores: (N,) float32, ascending; with classes, one class after the other, each ascending.
      starts: where each class starts, and N: (C + 1,) int32; None without classes.
    """

    scores: Float[Array, " n"]
    starts: Int[Array, " starts"] | None


def calibrate(
    scores: npt.ArrayLike, classes: npt.ArrayLike | None = None, num_classes: int | None = None
) -> Calibration:
    """Keeps the scores of held-out ID samples, on the whole or by predicted class.

    A class may have no held-out sample: its p-values are 1, its threshold is infinite, and no
    sample of it is called OOD.

    Args:
      scores: (N,), higher for more OOD.
      classes: the classes that the network predicts for these samples (not their labels), (N,)
        integers.
      num_classes: C; given together with ``classes``.

    Raises:
      TypeError: scores that are no real numbers, classes or a number of them that are no integers.
      ValueError: no scores, NaN, a shape that does not fit, a class outside [0, C), a C beyond
        `MOST_CLASSES`, or only one of ``classes`` and ``num_classes``.
    """
    values = np.asarray(_numbers("scores", scores))
    if len(values) == 0:
        raise ValueError("scores has shape (0,); expected (N,) with N at least 1")
    if classes is None or num_classes is None:
        if classes is not num_classes:
            missing = "classes" if classes is None else "num_classes"
            raise ValueError(
                f"{missing} is None; expected both classes and num_classes, or neither"
            )
        return Calibration(checks.placed(np.sort(values)), None)
    count = checks.at_least("num_classes", num_classes, 1, MOST_CLASSES)
    groups = np.asarray(checks.classes("classes", classes, count, values.shape))
    order = np.lexsort((values, groups))
    starts = np.searchsorted(groups[order], np.arange(count + 1)).astype(np.int32)
    return Calibration(checks.placed(values[order]), checks.placed(starts))


def conformal_p_values(
    calibration: Calibration, scores: npt.ArrayLike, classes: npt.ArrayLike | None = None
) -> Float[Array, " b"]:
    """How extreme scores are among the held-out ones: ``(1 + #{held-out >= score}) / (n + 1)``.

    With classes, the n held-out samples are those of the sample's predicted class. May be jitted,
    and exported for any batch size; there a score of NaN has the p-value NaN, and classes are not
    checked.

    Args:
      calibration: of `calibrate`.
      scores: (B,), of the same detector.
      classes: the predicted classes, (B,) integers, if there were any at calibration.

    Returns:
      P-values, (B,) float32 in [1/(n + 1), 1]; small for OOD samples. They are rounded: to decide
      at a given rate, `is_ood` is exact.

    Raises:
      TypeError: scores that are no real numbers, or classes that are no integers.
      ValueError: a score of NaN, a shape that does not fit, classes that are missing, not expected
        or out of range.

    Examples:
      >>> from grood_jax.conformal.calibration import calibrate, conformal_p_values
      >>> held_out = calibrate(range(1, 20))
      >>> print(conformal_p_values(held_out, [0, 10, 25]))
      [1.   0.55 0.05]
    """
    return _p_values(calibration, *_checked(calibration, scores, classes))


def threshold(calibration: Calibration, target_tpr: float) -> Float[Array, ""] | Float[Array, " c"]:
    """The score above which samples are called OOD: the k-th smallest of the n held-out ones.

    ``k = ceil((n + 1) target_tpr)``, with the target as it is written in decimals. Where k exceeds
    n, which is for n below ``target_tpr / (1 - target_tpr)``, nothing but an infinite threshold
    could keep the promise.

    Args:
      calibration: of `calibrate`.
      target_tpr: the share of ID samples to be let pass, in (0, 1].

    Returns:
      () float32, or one for each class, (C,).

    Raises:
      TypeError: the target is no number.
      ValueError: it lies outside (0, 1].

    Examples:
      >>> from grood_jax.conformal.calibration import calibrate, threshold
      >>> float(threshold(calibrate(range(1, 20)), target_tpr=0.9))
      18.0
    """
    return _thresholds(calibration, _ranks(calibration, target_tpr))


def is_ood(
    calibration: Calibration,
    scores: npt.ArrayLike,
    target_tpr: float,
    classes: npt.ArrayLike | None = None,
) -> Bool[Array, " b"]:
    """Whether scores lie above the `threshold`: the same as ``p <= 1 - target_tpr``, exactly.

    May be jitted, and exported for any batch size; there a score of NaN is called OOD, and classes
    are not checked.

    Args:
      calibration: of `calibrate`.
      scores: (B,), of the same detector.
      target_tpr: the share of ID samples to be let pass, in (0, 1].
      classes: the predicted classes, (B,) integers, if there were any at calibration.

    Returns:
      (B,) bool.

    Raises:
      TypeError: what is no number, or classes that are no integers.
      ValueError: as with `conformal_p_values` and `threshold`.
    """
    values, groups = _checked(calibration, scores, classes)
    return _above(calibration, _ranks(calibration, target_tpr), values, groups)


def false_discovery(p_values: npt.ArrayLike, rate: float) -> Bool[np.ndarray, " b"]:
    """Picks OOD samples out of a batch such that few of those picked are ID (Benjamini–Hochberg).

    The m p-values are put in order, and the k smallest are picked, with k the largest for which
    the k-th is at most ``k rate / m``. The expected share of ID samples among those picked is at
    most ``rate``: conformal p-values depend on each other through the held-out scores, but
    positively so. The proof assumes scores without ties, and samples independent of each other.

    Args:
      p_values: (B,), of `conformal_p_values`; compared as float32.
      rate: the false discovery rate, in (0, 1].

    Returns:
      Which samples are picked, (B,) bool.

    Raises:
      TypeError: what is no number.
      ValueError: p-values that are NaN or outside [0, 1], a shape other than (B,), or a rate
        outside (0, 1].

    References:
      Benjamini and Hochberg 1995; Bates et al., arXiv 2104.08279, section 2, for conformal
      p-values (they are PRDS).

    Examples:
      >>> from grood_jax.conformal.calibration import false_discovery
      >>> print(false_discovery([0.01, 0.5, 0.04, 0.9], rate=0.1))
      [ True False  True False]
    """
    checks.fraction("rate", rate, zero=False)
    values = np.asarray(_numbers("p_values", p_values))
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise ValueError(f"p_values holds {outside[0]}; expected numbers in [0, 1]")
    count = len(values)
    # Rounded as the p-values are: one that equals its bound exactly stays equal to it.
    bounds = (np.arange(1, count + 1) * float(rate) / max(count, 1)).astype(np.float32)
    ordered = np.sort(values)
    below = np.flatnonzero(ordered <= bounds)
    return values <= (ordered[below[-1]] if len(below) else -1.0)


@jax.jit
def _p_values(
    calibration: Calibration, scores: Float[Array, " b"], groups: Int[Array, " b"]
) -> Float[Array, " b"]:
    starts = jnp.asarray(_starts(calibration))
    first, end = starts[groups], starts[groups + 1]

    def halve(_: Int[Array, ""], span: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = span
        middle = (low + high) // 2
        # A span that is empty stays so.
        right = (low < high) & (calibration.scores[middle] < scores)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    steps = len(calibration.scores).bit_length()
    low, _ = jax.lax.fori_loop(0, steps, halve, (first, end))
    # XLA would multiply by the reciprocal of a size it knows: not quite the same.
    divisor = jax.lax.optimization_barrier(1 + end - first)
    # The search takes NaN for lower than all scores, hence for in-distribution.
    return jnp.where(jnp.isnan(scores), jnp.nan, (1 + end - low) / divisor)


@jax.jit
def _thresholds(
    calibration: Calibration, ranks: Int[Array | np.ndarray, " c"]
) -> Float[Array, ""] | Float[Array, " c"]:
    starts = jnp.asarray(_starts(calibration))
    # Where the rank exceeds the size, any place will do.
    places = jnp.clip(starts[:-1] + ranks - 1, 0, len(calibration.scores) - 1)
    thresholds = jnp.where(ranks <= jnp.diff(starts), calibration.scores[places], jnp.inf)
    return thresholds[0] if calibration.starts is None else thresholds


@jax.jit
def _above(
    calibration: Calibration,
    ranks: Int[Array | np.ndarray, " c"],
    scores: Float[Array, " b"],
    groups: Int[Array, " b"],
) -> Bool[Array, " b"]:
    # Not `scores > …`: NaN must not pass for in-distribution.
    return ~(scores <= jnp.atleast_1d(_thresholds(calibration, ranks))[groups])


def _ranks(calibration: Calibration, target_tpr: float) -> Int[Array | np.ndarray, " c"]:
    """Which of its held-out scores, counted from 1, is each class's threshold."""
    checks.fraction("target_tpr", target_tpr, zero=False)
    # 0.95 is meant, not the nearest binary fraction: 20 * 0.95 must not round up to 20.
    target = Fraction(str(target_tpr))

    def rank(size: int) -> int:
        return -(-(size + 1) * target.numerator // target.denominator)

    starts = _starts(calibration)
    if isinstance(starts, jax.core.Tracer):
        # No integers of the device are wide enough for the product.
        every = np.array([rank(size) for size in range(len(calibration.scores) + 1)], np.int32)
        return jnp.asarray(every)[jnp.diff(starts)]
    return np.array([rank(int(size)) for size in np.diff(starts)], np.int32)


def _starts(calibration: Calibration) -> Int[Array | np.ndarray, " starts"]:
    if calibration.starts is None:
        return np.array([0, len(calibration.scores)], np.int32)
    return calibration.starts


def _checked(
    calibration: Calibration, scores: npt.ArrayLike, classes: npt.ArrayLike | None
) -> tuple[Float[Array, " b"], Int[Array, " b"]]:
    """The scores, and the group of each: its class, or 0 if there are none."""
    values = _numbers("scores", scores)
    if calibration.starts is None:
        if classes is not None:
            raise ValueError("classes are given; expected None, as there were none at calibration")
        return values, jnp.zeros(values.shape, jnp.int32)
    if classes is None:
        raise ValueError("classes is None; expected the predicted classes, as at calibration")
    count = len(calibration.starts) - 1
    return values, checks.classes("classes", classes, count, values.shape)


def _numbers(name: str, array: npt.ArrayLike) -> Float[Array, " n"]:
    """A vector as float32, without NaN unless it is traced."""
    values = checks.shaped(name, array, ("N",))
    if not isinstance(values, jax.core.Tracer):
        bad = np.flatnonzero(np.isnan(np.asarray(values)))
        if len(bad):
            raise ValueError(
                f"{name} holds {len(bad)} values that are NaN, the first at index {bad[0]}; "
                "expected numbers"
            )
    return values
