"""The classifier's accuracy, and what it usually means where it is no better than chance."""

import math
import warnings

import numpy as np
from jaxtyping import Float, Int

from grood_jax.support import checks
from grood_jax.support.errors import UserError


def accuracy(name: str, logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    """The share of samples whose largest logit is that of their label; warns where it is chance.

    Args:
      name: what messages call the set.
      logits: of the classifier.
      labels: classes.

    Raises:
      UserError: a label is no class.
    """
    try:
        labels = checks.labels(name, labels, logits.shape[1])
    except ValueError as error:
        raise UserError(str(error)) from error
    right = int((np.asarray(logits).argmax(axis=1) == labels).sum())
    warn_of_chance(name, right, len(labels), logits.shape[1])
    return right / len(labels) if len(labels) else math.nan


def warn_of_chance(name: str, right: int, count: int, num_classes: int) -> bool:
    """Warns where an accuracy is no better than guessing; returns whether it did.

    Guessing is right in one of C cases, give or take its deviation; a network that is right thrice
    as often, and in less than half of all cases, is hardly better. Of few samples nothing is said.

    Args:
      name: of the set.
      right: samples whose class was found.
      count: samples.
      num_classes: C.
    """
    chance = 1 / num_classes
    deviation = math.sqrt(chance * (1 - chance) / max(1, count))
    poor = count >= FEW and right / count < max(chance + 2 * deviation, min(0.5, 3 * chance))
    if poor:
        warnings.warn(
            f"the classifier is right on {right / count:.3f} of {name} (chance: {chance:.3f}). "
            "That usually means images prepared otherwise than in its training (values of 0 to 255 "
            "or 0 to 1 that were not normalised, another mean or deviation), labels in another "
            "order or shuffled, a network that is not trained, in training mode, or cut into "
            "stages that do not belong together",
            stacklevel=2,
        )
    return poor


FEW = 20
"""Samples of which chance may make anything."""
