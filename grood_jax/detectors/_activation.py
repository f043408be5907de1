"""What the detectors have in common that shape the features before the class head."""

import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grood_jax.detectors.base import Training, require_head

LARGEST_EXPONENT = 64.0
LARGEST_SUBNORMAL = 0x007FFFFF

NEGATIVE = 0.1
"""The share of negative features beyond which they are not what a ReLU leaves."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Head:
    """A class head, as the state of a detector.

    Attributes:
      weights: (D, C) float32.
      bias: (C,) float32.
    """

    weights: Float[Array, "d c"]
    bias: Float[Array, " c"]


def head_of(name: str, training: Training) -> Head:
    """The class head of the training outputs; see `require_head` for what it raises."""
    return Head(*map(jnp.asarray, require_head(name, training)))


def shaped_head(name: str, training: Training) -> Head:
    """`head_of`, for detectors that shape activations as a ReLU leaves them.

    Warns where features are negative, as those of transformers: percentiles and sums of such are
    no measure of how active a sample is.
    """
    share = negative_share(training)
    if share > NEGATIVE:
        warnings.warn(
            f"{name} shapes activations that are not negative, and {share:.0%} of the training "
            "features are; expected those that follow a ReLU (transformers have others, for which "
            "detectors of logits or distances are made)",
            stacklevel=2,
        )
    return head_of(name, training)


def negative_share(training: Training) -> float:
    """The share of the training features that is negative."""
    features = np.asarray(training.outputs.features)
    return float(np.count_nonzero(features < 0) / max(features.size, 1))


def energy(features: Float[Array, "b d"], head: Head) -> Float[Array, " b"]:
    """``−logsumexp`` of the head's logits of these features, (B,)."""
    logits = jnp.matmul(features, head.weights, precision=jax.lax.Precision.HIGHEST)
    return -jax.nn.logsumexp(logits + head.bias[None, :], axis=1)


def strongest(features: Float[Array, "b d"], percentile: float) -> Bool[Array, "b d"]:
    """Where each row's ``D − round(D·percentile/100)`` largest features are, at least one.

    Among equal features the first are taken.
    """
    width = features.shape[1]
    count = max(1, width - round(width * percentile / 100))
    places = jax.lax.top_k(features, count)[1]
    rows = jnp.arange(len(features))[:, None]
    return jnp.zeros(features.shape, bool).at[rows, places].set(True)


def sharpening(features: Float[Array, "b d"], kept: Bool[Array, "b d"]) -> Float[Array, "b 1"]:
    """``exp(s1/s2)`` of each row: s1 the sum of all its features, s2 of those kept."""
    whole = features.sum(axis=1, keepdims=True)
    part = jnp.where(kept, features, 0.0).sum(axis=1, keepdims=True)
    ratio = whole / jnp.where(part == 0.0, 1.0, part)
    # Beyond, float32 logits would overflow; with a 64th of the features kept it is not reached.
    return jnp.exp(jnp.minimum(ratio, LARGEST_EXPONENT))


def percentile_of(values: Float[Array, "n d"], percentile: float) -> float:
    """The percentile of all the values, interpolated linearly as `numpy.percentile` does.

    Neither sorted nor copied: finite float32 numbers are ordered as their bits are, so that the
    number of a given rank is found by bisection in at most 32 passes that count.

    Raises:
      ValueError: there are no values.
    """
    if values.size == 0:
        raise ValueError(f"training features have shape {values.shape}; expected at least one row")
    place = percentile / 100 * (values.size - 1)
    rank = int(place)
    low, high = _order(values.min()), _order(values.max())
    while low < high:
        middle = (low + high) // 2
        if _count(values, _number(middle)) > rank:
            high = middle
        else:
            low = middle + 1
    value = _number(low)
    if place == rank or _count(values, value) > rank + 1:
        return float(value)
    return float(value) + (place - rank) * (float(_next(values, value)) - float(value))


def _order(value: Float[Array, ""]) -> int:
    """The place of a number among all float32 numbers, from the negative ones up; 0 for zero.

    Subnormal numbers are zero too: XLA may compare them so.
    """
    bits = int(np.asarray(value, np.float32).view(np.int32))
    place = max((bits & 0x7FFFFFFF) - LARGEST_SUBNORMAL, 0)
    return place if bits >= 0 else -place


def _number(order: int) -> np.float32:
    """The number at a place of that order."""
    if order == 0:
        return np.float32(0.0)
    size = np.int32(abs(order) + LARGEST_SUBNORMAL).view(np.float32)
    return size if order > 0 else -size


def _count(values: Float[Array, "n d"], limit: np.float32) -> int:
    # By row first: all together may be more than int32 holds.
    return int(np.asarray(_counts(values, limit)).sum(dtype=np.int64))


@jax.jit
def _counts(values: Float[Array, "n d"], limit: Float[Array, ""]) -> Int[Array, " n"]:
    return jnp.sum(values <= limit, axis=1, dtype=jnp.int32)


@jax.jit
def _next(values: Float[Array, "n d"], limit: Float[Array, ""]) -> Float[Array, ""]:
    """The least value above the limit."""
    return jnp.min(jnp.where(values > limit, values, jnp.inf))
