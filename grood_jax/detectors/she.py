"""SHE: likeness to a stored pattern of the predicted class."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import correct_means, training_features, unit_rows
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

Metric = Literal["inner_product", "euclidean", "cosine"]


def she(*, metric: Metric = "inner_product") -> Detector:
    """Simplified Hopfield energy; the score is ``−h·S_ŷ``.

    ``S_c`` is the mean feature of the training samples of class c that are classified correctly,
    and ``ŷ`` the sample's own prediction. This is the paper's simplified energy, and OpenOOD v1.5's
    default; the paper's full energy ``−log Σ_i exp(β h·s_i) / β`` over all stored patterns of the
    class is not taken. As published, the features are not normalised.

    Args:
      metric: ``"inner_product"``, the paper's; or, as OpenOOD also has them, ``"euclidean"``:
        ``‖h − S_ŷ‖₂``, and ``"cosine"``: ``−h·S_ŷ / (‖h‖ ‖S_ŷ‖)``, 0 for zero features.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      where a class has no sample; where none of a class is classified correctly, it warns and
      takes the mean of all its samples.

    Raises:
      ValueError: an unknown metric.

    References:
      Zhang et al., Out-of-distribution detection based on in-distribution data patterns
      memorization with modern Hopfield energy, ICLR 2023, section 3 (not on arXiv;
      openreview.net/forum?id=KkazG4lgKL).
    """
    checks.choice("metric", metric, ("inner_product", "euclidean", "cosine"))

    def fit(training: Training, key: Array) -> Float[Array, "c d"]:
        del key
        features, logits = training_features(training), np.asarray(training.outputs.logits)
        labels = np.asarray(training.labels)
        patterns, _ = correct_means("she", features, logits, labels)
        return unit_rows(patterns) if metric == "cosine" else patterns

    def score(state: Float[Array, "c d"], outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        patterns = state[outputs.logits.argmax(axis=1)]
        if metric == "euclidean":
            return jnp.linalg.norm(features - patterns, axis=1)
        if metric == "cosine":
            features = unit_rows(features)
        return -jnp.sum(features * patterns, axis=1)

    return Detector("she", fit, score, {"metric": metric})
