"""MCM: maximum concept matching (arXiv 2211.13445)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import product, unit_rows
from grood_jax.detectors.base import Detector, Training, require_head
from grood_jax.detectors.msp import msp
from grood_jax.support import checks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MCMState:
    """A fitted MCM.

    Attributes:
      concepts: a vector of length 1 for each class, (C, D) float32.
    """

    concepts: Float[Array, "c d"]


def mcm(*, temperature: float = 1.0) -> Detector:
    """Maximum concept matching; the score is ``1 − max softmax(s / τ)`` of cosines ``s``.

    ``s_c`` is the cosine of an image's features and the concept of class c: the embedding of its
    name, for an encoder that was given text embeddings (`Backbone.from_encoder` with ``text``), and
    otherwise the class head's weights. Neither the head's own temperature nor its bias counts. The
    published score is the maximum itself, higher for ID.

    Args:
      temperature: τ. The paper has 1 throughout, and shows that it should not be small.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1), higher for more OOD. Its ``fit`` raises
      ValueError without a class head.

    Raises:
      ValueError: a temperature that is not positive and finite.
      TypeError: a temperature that is no number.

    References:
      Ming et al., Delving into out-of-distribution detection with vision-language representations,
      arXiv 2211.13445, section 3.
    """
    temperature = checks.positive("temperature", temperature)
    plain = msp()

    def fit(training: Training, key: Array) -> MCMState:
        del key
        weights, _ = require_head("mcm", training)
        return MCMState(unit_rows(jnp.asarray(weights).T))

    def score(state: MCMState, outputs: Outputs) -> Float[Array, " b"]:
        features = unit_rows(jnp.asarray(outputs.features))
        cosines = product(features, state.concepts.T)
        return plain.score((), replace(outputs, logits=cosines / temperature))

    return Detector("mcm", fit, score, {"temperature": temperature}, head=True, fit_key="mcm")
