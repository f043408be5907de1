"""Answers as JSON has them; it knows no infinity."""

import math
from typing import Any

import numpy as np

from grood_jax.deploying.serving.batching import Answer
from grood_jax.deploying.serving.servable import Servable

BINS = 40


def predictions(answer: Answer, names: tuple[str, ...], nearest: int) -> list[dict[str, Any]]:
    """What is answered of each image.

    Args:
      answer: label, score, p-value, verdict; classes and distances of neighbours where wanted.
      names: of the classes.
      nearest: how many neighbours are wanted.
    """
    answered = []
    for label, score, p_value, is_ood, *neighbors in zip(*answer, strict=True):
        one: dict[str, Any] = {
            "class": int(label),
            "name": names[label],
            "score": number(score),
            "p_value": number(p_value),
            "is_ood": bool(is_ood),
        }
        if nearest:
            classes, distances = neighbors
            one["nearest"] = [
                {"class": int(near), "name": names[near], "distance": number(distance)}
                for near, distance in zip(classes[:nearest], distances[:nearest], strict=True)
            ]
        answered.append(one)
    return answered


def calibration(model: Servable) -> dict[str, Any]:
    """The histogram of the calibration scores, the thresholds and the classes.

    There is one threshold for all or one for each predicted class, null where it is infinite.
    """
    scores = np.asarray(model.calibration_scores(), np.float64)
    counts, edges = np.histogram(scores[np.isfinite(scores)], BINS)
    return {
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "thresholds": [number(threshold) for threshold in np.atleast_1d(model.thresholds())],
        "class_names": list(model.class_names),
    }


def number(value: float | np.floating) -> float | None:
    """As a float; None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None
