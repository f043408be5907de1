"""DICE: directed sparsification of the class head."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, head_of, percentile_of
from grood_jax.detectors.base import Detector, Training
from grood_jax.maths.prototypes import class_prototypes
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
        features = jnp.asarray(training.outputs.features)
        # As one class: the sum's digits do not depend on how many rows there are.
        mean = class_prototypes(features, jnp.zeros(len(features), jnp.int32), 1)[0][0]
        contributions = mean[:, None] * head.weights
        kept = contributions > percentile_of(contributions, p)
        return Head(jnp.where(kept, head.weights, 0.0), head.bias)

    def score(state: Head, outputs: Outputs) -> Float[Array, " b"]:
        return energy(jnp.asarray(outputs.features), state)

    return Detector("dice", fit, score, {"p": p}, head=True)
