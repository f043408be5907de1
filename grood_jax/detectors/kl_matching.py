"""KL matching: divergence from the nearest class's typical softmax."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._probabilities import log_probabilities
from grood_jax.detectors._statistics import TINY, class_means, single
from grood_jax.detectors.base import Detector, Training


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KLMatchingState:
    """A fitted KL matching.

    Attributes:
      log_templates: logarithms of the mean probabilities of each class that is predicted for some
        training sample, (T, C) float32.
    """

    log_templates: Float[Array, "t c"]


def kl_matching() -> Detector:
    """KL matching; the score is ``min_d Σ_c p_c log(p_c / q_dc)`` with ``p = softmax(z)``.

    The template ``q_d`` is the mean of p over the training samples predicted as class d, not over
    those labelled so; a class that is never predicted has no template and takes no part. OpenOOD
    v1.5 and the paper group so too, but on a validation set of the training classes, which
    there is none of here. Template probabilities below float32's smallest (1e-38) count as that:
    the score is finite.

    Returns:
      The detector; its scores are (B,) float32, not negative, higher for more OOD.

    References:
      Hendrycks et al., arXiv 1911.11132 (KL matching). OpenOOD v1.5 has the other sign.
    """

    def fit(training: Training, key: Array) -> KLMatchingState:
        del key
        logits = jnp.asarray(training.outputs.logits)
        classes = logits.shape[1]
        probabilities, predicted = _predicted(logits)
        templates, counts = class_means(probabilities, predicted, classes)
        return KLMatchingState(single(_logarithms(templates)[counts > 0]))

    def score(state: KLMatchingState, outputs: Outputs) -> Float[Array, " b"]:
        log_p = log_probabilities(outputs.logits)
        p = jnp.exp(log_p)
        cross = jnp.matmul(p, -state.log_templates.T, precision=lax.Precision.HIGHEST)
        return jnp.maximum((p * log_p).sum(axis=1) + cross.min(axis=1), 0.0)

    return Detector("kl_matching", fit, score)


@jax.jit
def _predicted(logits: Float[Array, "n c"]) -> tuple[Float[Array, "n c"], Int[Array, " n"]]:
    return jax.nn.softmax(logits, axis=1), logits.argmax(axis=1)


def _logarithms(templates: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    """Own class apart, as one less the others: near 1 it has no digits left for a logarithm."""
    own = np.eye(len(templates), dtype=bool)
    others = np.where(own, 0.0, templates).sum(axis=1, keepdims=True)
    return np.where(own, np.log1p(-others), np.log(np.maximum(templates, TINY)))
