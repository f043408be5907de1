"""DICE: directed sparsification of the class head."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, head_of
from grood_jax.detectors._statistics import feature_mean, single
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks


def dice(*, p: float | int = 90.0) -> Detector:
    """Energy through the weights that matter; the score is ``−logsumexp((M ⊙ W)ᵀ h + b)``.

    A weight's contribution is ``V = mean training feature × weight``, and ``M`` keeps the weights
    whose contribution is strictly above the percentile ``p`` of the whole (D, C) matrix, not of
    each class. That is OpenOOD v1.5; without ties it is the paper's top ``100 − p`` percent.

    Args:
      p: percentile of the contributions, in [0, 100]; the share of weights that is dropped. 90 is
        OpenOOD's default; the paper tunes it by dataset.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD.

    Raises:
      ValueError: ``p`` outside its range.
      TypeError: ``p`` is no number.

    References:
      Sun and Li, arXiv 2111.09805, section 3.
    """
    p = checks.percent("p", p)

    def fit(training: Training, key: Array) -> Head:
        del key
        head = head_of("dice", training)
        weights = np.asarray(head.weights)
        mean = np.asarray(feature_mean(jnp.asarray(training.outputs.features)))
        contributions = mean[:, None] * weights
        kept = contributions > np.percentile(contributions, p)
        return Head(single(np.where(kept, weights, 0)), head.bias)

    def score(state: Head, outputs: Outputs) -> Float[Array, " b"]:
        return energy(jnp.asarray(outputs.features), state)

    return Detector("dice", fit, score, {"p": p}, head=True)
