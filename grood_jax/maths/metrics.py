"""OOD metrics as the OpenOOD v1.5 protocol has them, computed by scikit-learn."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from grood_jax.support import checks, missing

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
      ModuleNotFoundError: scikit-learn is missing; the message says how to install it.
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
    try:
        from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ood_metrics: {missing.sentence(error)}", name=error.name
        ) from error

    inside, outside = _scores("id_scores", id_scores), _scores("ood_scores", ood_scores)
    scores = np.concatenate([inside, outside])
    is_ood = np.concatenate([np.zeros(len(inside), bool), np.ones(len(outside), bool)])
    # Keep every threshold: dropping collinear points would move the first one that reaches 0.95.
    false_positive, true_positive, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    precision_in, recall_in, _ = precision_recall_curve(~is_ood, -scores)
    precision_out, recall_out, _ = precision_recall_curve(is_ood, scores)
    return {
        "auroc": float(roc_auc_score(is_ood, scores)),
        "fpr95": float(false_positive[np.argmax(true_positive >= RECALL)]),
        # The sum of the trapezoids may round to just above 1.
        "aupr_in": min(float(auc(recall_in, precision_in)), 1.0),
        "aupr_out": min(float(auc(recall_out, precision_out)), 1.0),
    }


def _scores(name: str, scores: npt.ArrayLike) -> Float[np.ndarray, " n"]:
    array = np.asarray(checks.array_of(name, scores))
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected (N,) with N at least 1")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        # bfloat16 and its kind are no NumPy floats, and scikit-learn does not take them.
        array = np.asarray(checks.shaped(name, scores, ("N",)))
    # What float64 cannot hold is infinite.
    with checks.room(name, array.shape), np.errstate(over="ignore"):
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} holds {count} NaN or infinite values; expected finite scores")
    return array
