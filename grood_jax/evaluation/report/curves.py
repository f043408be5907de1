"""The numbers behind histograms and ROC curves."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from grood_jax.maths.metrics import RECALL

BINS = 40
POINTS = 200
"""Points that are left of a ROC curve at most; more cannot be seen, and would fill the page."""

BEYOND = 3
"""How far a histogram goes beyond most ID scores, in widths of their range."""


@dataclass(frozen=True)
class Curve:
    """A ROC curve, OOD being positive, with the point where 95 % of the OOD samples are found.

    Attributes:
      false_positive: shares of ID samples taken for OOD, (P,), increasing.
      true_positive: shares of OOD samples taken for OOD, (P,), increasing.
      fpr95: the first false-positive rate whose true-positive rate reaches 0.95.
      tpr95: that true-positive rate.
      threshold: the score from which samples are taken for OOD there.
    """

    false_positive: Float[np.ndarray, " p"]
    true_positive: Float[np.ndarray, " p"]
    fpr95: float
    tpr95: float
    threshold: float


def roc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> Curve:
    """The ROC curve of scores that are higher for OOD samples, by scikit-learn.

    Args:
      inside: scores of ID samples, (N,).
      outside: scores of OOD samples, (M,).
    """
    from sklearn.metrics import roc_curve

    is_ood = np.concatenate([np.zeros(len(inside), bool), np.ones(len(outside), bool)])
    scores = np.concatenate([inside, outside]).astype(np.float64)
    # Every threshold, as in `grood_jax.maths.metrics`: the first that reaches 0.95 is one of them.
    false_positive, true_positive, thresholds = roc_curve(is_ood, scores, drop_intermediate=False)
    reached = int(np.argmax(true_positive >= RECALL))
    kept = np.union1d(_thinned(false_positive + true_positive, POINTS - 1), [reached])
    return Curve(
        false_positive[kept],
        true_positive[kept],
        float(false_positive[reached]),
        float(true_positive[reached]),
        float(thresholds[reached]),
    )


def _thinned(lengths: Float[np.ndarray, " p"], count: int) -> Int[np.ndarray, " k"]:
    """At most ``count`` indices, evenly spaced along a curve of these lengths; first and last."""
    if len(lengths) <= count:
        return np.arange(len(lengths))
    wanted = np.linspace(lengths[0], lengths[-1], count)
    chosen = np.searchsorted(lengths, wanted)
    chosen[0], chosen[-1] = 0, len(lengths) - 1
    return np.unique(chosen)


def bin_edges(
    inside: Float[np.ndarray, " n"], every: Iterable[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " e"]:
    """Edges of bins in which ID scores can be told apart, however far away others lie.

    Args:
      inside: ID scores.
      every: scores of all sets, ID and OOD.

    Returns:
      ``BINS + 1`` edges, (E,) float64; scores beyond belong to the outermost bins.
    """
    sets = [np.asarray(scores, np.float64) for scores in every]
    least, most = min(float(s.min()) for s in sets), max(float(s.max()) for s in sets)
    low, high = (float(q) for q in np.quantile(np.asarray(inside, np.float64), [0.01, 0.99]))
    if high > low:
        width = BEYOND * (high - low)
        least, most = max(least, low - width), min(most, high + width)
    # Where all scores are equal, or as good as that, bins must still have a width.
    margin = max(abs(least), abs(most), 1e-12) * 1e-6
    if most - least < margin:
        least, most = least - margin, most + margin
    return np.linspace(least, most, BINS + 1)


def bin_shares(
    scores: Float[np.ndarray, " n"], edges: Float[np.ndarray, " e"]
) -> Float[np.ndarray, " b"]:
    """The share of the scores in each bin, with those beyond in the outermost ones; sums to 1."""
    within = np.clip(np.asarray(scores, np.float64), edges[0], edges[-1])
    return np.histogram(within, edges)[0] / len(scores)
