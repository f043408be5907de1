"""OOD metrics as the OpenOOD v1.5 protocol has them, by counts at every threshold."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from grood_jax.support import checks

RECALL = 0.95
"""The true-positive rate at which the false-positive rate is told."""


def ood_metrics(id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> dict[str, float]:
    """AUROC, FPR@95 and both AUPRs of scores that are higher for OOD samples.

    OOD is the positive class of ``auroc``, ``fpr95`` and ``aupr_out``; ID that of ``aupr_in``.
    ``fpr95`` is the false-positive rate at the first threshold whose true-positive rate reaches
    0.95. OpenOOD's tag v1.5 has ID as the positive class there, its main branch OOD since August
    2023. Where scores are duplicated its FPR@95 may be higher: its curve drops collinear points,
    and with them thresholds; all are kept here. AUPR is the area under the precision-recall curve
    by the trapezoidal rule.

    Args:
      id_scores: scores of in-distribution samples, (N,).
      ood_scores: scores of out-of-distribution samples, (M,).

    Returns:
      ``{"auroc", "fpr95", "aupr_in", "aupr_out"}``, fractions in [0, 1].

    Raises:
      TypeError: scores that are no real numbers.
      ValueError: an empty, misshapen, NaN or infinite argument.

    References:
      OpenOOD v1.5, arXiv 2306.09301; Davis and Goadrich 2006 for AUPR.

    Examples:
      >>> from grood_jax import ood_metrics
      >>> found = ood_metrics(id_scores=[0, 1, 2, 3], ood_scores=[2.5, 4, 5, 6])
      >>> found["auroc"], found["fpr95"]
      (0.9375, 0.25)
    """
    inside, outside = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    false_positives, true_positives, _ = roc_counts(inside, outside)
    # Counts are exact, and so is twice the area under them.
    twice = (np.diff(false_positives) * (true_positives[1:] + true_positives[:-1])).sum()
    reached = np.argmax(true_positives / len(outside) >= RECALL)
    return {
        "auroc": float(twice / 2 / (len(inside) * len(outside))),
        "fpr95": float(false_positives[reached] / len(inside)),
        "aupr_in": _area_of_precision(-outside, -inside),
        "aupr_out": _area_of_precision(inside, outside),
    }


def roc_counts(
    negatives: Float[np.ndarray, " n"], positives: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
    """How many samples reach each threshold: that of infinity, then every score, descending.

    Every one is kept: dropping collinear points would move the first that reaches a rate.

    Args:
      negatives: finite scores, (N,).
      positives: finite scores, (M,), higher by rights.

    Returns:
      False positives, true positives and thresholds, (P,) float64.
    """
    scores = np.concatenate([negatives, positives]).astype(np.float64)
    is_positive = np.arange(len(scores)) >= len(negatives)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(is_positive[order], dtype=np.float64)[last]
    return (
        np.append(0.0, 1 + last - true),
        np.append(0.0, true),
        np.append(np.inf, scores[last]),
    )


def _area_of_precision(
    negatives: Float[np.ndarray, " n"], positives: Float[np.ndarray, " m"]
) -> float:
    """The area under the precision-recall curve; its precision is 1 where its recall is 0."""
    false, true, _ = roc_counts(negatives, positives)
    precision = np.append(1.0, true[1:] / (true[1:] + false[1:]))
    area = np.trapezoid(precision, true) / len(positives)
    # The sum of the trapezoids may round to just above 1.
    return min(float(area), 1.0)


def _scores(name: str, scores: npt.ArrayLike) -> Float[np.ndarray, " n"]:
    array = np.asarray(checks.array_of(name, scores))
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected (N,) with N at least 1")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        # bfloat16 and its kind are no NumPy floats.
        array = np.asarray(checks.shaped(name, scores, ("N",)))
    # What float64 cannot hold is infinite.
    with checks.room(name, array.shape), np.errstate(over="ignore"):
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} holds {count} NaN or infinite values; expected finite scores")
    return array
