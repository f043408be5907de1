"""What the detectors have in common that shape the features before the class head."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from grood_jax.detectors.base import Training, require_head

LARGEST_EXPONENT = 64.0

PART = 2**17
"""Numbers that are compared at once where ranks are counted."""

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
    places = jax.lax.top_k(features, _kept(features, percentile))[1]
    rows = jnp.arange(len(features))[:, None]
    return jnp.zeros(features.shape, bool).at[rows, places].set(True)


def sum_of_strongest(features: Float[Array, "b d"], percentile: float) -> Float[Array, "b 1"]:
    """The sum of each row's largest features, as many as `strongest` keeps."""
    largest = jax.lax.top_k(features, _kept(features, percentile))[0]
    return largest.sum(axis=1, keepdims=True)


def _kept(features: Float[Array, "b d"], percentile: float) -> int:
    width = features.shape[1]
    return max(1, width - round(width * percentile / 100))


def sharpening(features: Float[Array, "b d"], part: Float[Array, "b 1"]) -> Float[Array, "b 1"]:
    """``exp(s1/s2)`` of each row: s1 the sum of all its features, s2 that of those kept."""
    whole = features.sum(axis=1, keepdims=True)
    ratio = whole / jnp.where(part == 0.0, 1.0, part)
    # Beyond, float32 logits would overflow; with a 64th of the features kept it is not reached.
    return jnp.exp(jnp.minimum(ratio, LARGEST_EXPONENT))


def percentile_of(values: Float[Array, "n d"], percentile: float) -> float:
    """The percentile of all the values, interpolated linearly as `numpy.percentile` does.

    Neither sorted nor copied: finite float32 numbers are ordered as their bits are, so that the
    number of a given rank is found by bisection in at most 32 passes that count, on the host.

    Raises:
      ValueError: there are no values.
    """
    if values.size == 0:
        raise ValueError(f"training features have shape {values.shape}; expected at least one row")
    numbers = np.asarray(values).reshape(-1)
    place = percentile / 100 * (numbers.size - 1)
    rank = int(place)
    low, high = _order(numbers.min()), _order(numbers.max())
    while low < high:
        middle = (low + high) // 2
        if _count(numbers, _number(middle)) > rank:
            high = middle
        else:
            low = middle + 1
    value = _number(low)
    if place == rank or _count(numbers, value) > rank + 1:
        return float(value)
    above = min(float(part[part > value].min(initial=np.inf)) for part in _parts(numbers))
    return float(value) + (place - rank) * (above - float(value))


def _order(value: np.float32) -> int:
    """The place of a number among all float32 numbers, from the negative ones up; 0 for zero."""
    bits = int(value.view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _number(order: int) -> np.float32:
    """The number at a place of that order."""
    size = np.int32(abs(order)).view(np.float32)
    return size if order >= 0 else -size


def _parts(numbers: Float[np.ndarray, " m"]) -> Iterator[Float[np.ndarray, " p"]]:
    """Some numbers at a time, which stay in a CPU's cache."""
    return (numbers[start : start + PART] for start in range(0, len(numbers), PART))


def _count(numbers: Float[np.ndarray, " m"], limit: np.float32) -> int:
    return sum(int(np.count_nonzero(part <= limit)) for part in _parts(numbers))
