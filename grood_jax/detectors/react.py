"""ReAct: rectified activations."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, percentile_of, shaped_head
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"percentile": (85.0, 90.0, 95.0, 99.0)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReactState:
    """A fitted ReAct.

    Attributes:
      head: the class head.
      ceiling: ``c``, what features are clipped at, () float32.
    """

    head: Head
    ceiling: Float[Array, ""]


def react(*, percentile: float | int = 90.0) -> Detector:
    """Energy of clipped features; the score is ``−logsumexp(Wᵀ min(h, c) + b)``.

    ``c`` is one number, the percentile over all features of all training samples, found without
    sorting or copying them. OpenOOD v1.5 takes it over its ID validation set instead.

    Args:
      percentile: of the training features, in [0, 100]; 90 in the paper and in OpenOOD.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` warns where more
      than a tenth of the training features are negative, as those of ViT and Swin are.

    Raises:
      ValueError: ``percentile`` outside its range.
      TypeError: ``percentile`` is no number.

    References:
      Sun, Guo and Li, arXiv 2111.12797, section 3.
    """
    percentile = checks.percent("percentile", percentile)

    def fit(training: Training, key: Array) -> ReactState:
        del key
        head = shaped_head("react", training)
        found = percentile_of(jnp.asarray(training.outputs.features), percentile)
        return ReactState(head, jnp.float32(found))

    def score(state: ReactState, outputs: Outputs) -> Float[Array, " b"]:
        return energy(jnp.minimum(jnp.asarray(outputs.features), state.ceiling), state.head)

    return Detector("react", fit, score, {"percentile": percentile}, head=True, grid=GRID)
