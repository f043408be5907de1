"""The maximum softmax probability at a temperature fitted on ID validation outputs."""

import math
import warnings
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors.base import Detector, Training
from grood_jax.detectors.msp import msp
from grood_jax.support import checks

LIMIT = 10.0
"""Temperatures are sought from 1 / LIMIT to LIMIT."""

STEPS, TOLERANCE = 60, 1e-6
"""Steps of the search at most, and the step in log T at which it ends."""

NO_VALIDATION = (
    "temperature_scaling takes its temperature from the training outputs, there being no ID "
    "validation outputs: of samples that the network was trained on it comes out too low, and the "
    "scores are often worse than msp's. Give labelled images of neither training nor test "
    "(id_validation; on the command line a benchmark that has an ID validation set, or --search), "
    "or the temperature itself"
)

_Search = tuple[Array, Array, Array, Array, Array]
"""Steps done, the bracket's ends, −log T, and how far it moved last."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TemperatureState:
    """A fitted temperature.

    Attributes:
      temperature: T, () float32.
    """

    temperature: Float[Array, ""]


def temperature_scaling(*, temperature: float | None = None) -> Detector:
    """Temperature scaling; the score is ``1 − max softmax(z / T)``.

    T minimises the mean negative log-likelihood of the labels of ID validation outputs
    (`Training.id_validation`), as in the paper and in OpenOOD. Where there are none, the training
    outputs take their place, with a warning: the network is surer of samples that it was trained
    on than it should be of others, T comes out too low, often below 1, and the scores are often
    worse than those of `msp`. Holding out some of the training outputs would not mend that.

    T is sought from 0.1 to 10; where the likelihood has no maximum in between (it has none at all
    where every sample is classified right, being the higher the lower T), T stays 1.

    Args:
      temperature: a fixed T; nothing is fitted then.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1), higher for more OOD.

    Raises:
      TypeError: a temperature that is no number.
      ValueError: a temperature that is not positive and finite.

    References:
      Guo et al., arXiv 1706.04599, section 4.2. The score as in OpenOOD v1.5, which fits with 50
      steps of L-BFGS from T = 1.5.
    """
    fixed = None if temperature is None else checks.positive("temperature", temperature)
    plain = msp()

    def fit(training: Training, key: Array) -> TemperatureState:
        del key
        if fixed is not None:
            return TemperatureState(jnp.float32(fixed))
        if training.id_validation is None:
            warnings.warn(NO_VALIDATION, stacklevel=2)
        outputs, labels = training.id_validation or (training.outputs, training.labels)
        return TemperatureState(_most_likely_temperature(jnp.asarray(outputs.logits), labels))

    def score(state: TemperatureState, outputs: Outputs) -> Float[Array, " b"]:
        return plain.score((), replace(outputs, logits=outputs.logits / state.temperature))

    return Detector(
        "temperature_scaling", fit, score, {"temperature": fixed}, id_validation=fixed is None
    )


@jax.jit
def _most_likely_temperature(logits: Float[Array, "n c"], labels: Int[Array, " n"]) -> Array:
    """Newton's method on ``u = −log T``, kept within a bracket that each step narrows.

    The likelihood is concave in 1 / T, so its slope has at most one zero.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    true = jnp.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]

    def slopes(u: Array) -> tuple[Array, Array]:
        """First derivative of the mean loss by 1 / T, and the second times 1 / T."""
        probabilities = jax.nn.softmax(jnp.exp(u) * shifted, axis=1)
        mean = (probabilities * shifted).sum(axis=1)
        variance = (probabilities * (shifted - mean[:, None]) ** 2).sum(axis=1)
        return (mean - true).mean(), jnp.exp(u) * variance.mean()

    def unfinished(state: _Search) -> Array:
        step, moved = state[0], state[4]
        return (step < STEPS) & (moved > TOLERANCE)

    def improve(state: _Search) -> _Search:
        step, low, high, u, _ = state
        slope, curvature = slopes(u)
        low, high = jnp.where(slope < 0, u, low), jnp.where(slope < 0, high, u)
        newton = u - slope / curvature
        inside = (newton > low) & (newton < high)  # False for NaN
        target = jnp.where(inside, newton, (low + high) / 2)
        return step + 1, low, high, target, jnp.abs(target - u)

    bound = jnp.float32(math.log(LIMIT))
    start = (jnp.int32(0), -bound, bound, jnp.float32(0.0), jnp.float32(jnp.inf))
    u = lax.while_loop(unfinished, improve, start)[3]
    turns = (slopes(-bound)[0] < 0) & (slopes(bound)[0] > 0)
    return jnp.where(turns, jnp.exp(-u), 1.0)
