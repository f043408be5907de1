"""Class prototypes: streamed, mergeable means of features by label.

Means are held in float32, 4 bytes a class and value. What a batch adds to a class's mean is summed
without rounding errors and added once, so that they are right to a relative 1e-6 however the data
are batched or merged, and to float32's last digits in one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float, Int

from grood_jax.support import checks

LARGEST = 1e28
"""Larger features than this are refused: sums of 2³¹ of them might overflow float32."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassMeans:
    """Means and counts of values by class.

    Attributes:
      means: (C, ...) float32; zeros for classes with no sample.
      counts: samples seen of each class, (C,) int32.
    """

    means: Float[Array, "c ..."]
    counts: Int[Array, " c"]


def empty_means(num_classes: int, shape: Sequence[int]) -> ClassMeans:
    """Means of no values, which have the given shape."""
    means = jnp.zeros((num_classes, *shape), jnp.float32)
    return ClassMeans(means, counts=jnp.zeros(num_classes, jnp.int32))


def _two_sum(
    a: Float[Array, "*s"], b: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    # Knuth's branch-free exact sum: a + b = total + error. XLA does not reassociate.
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


_Carry = tuple[ClassMeans, Array, Array, Array]
"""The means, and of the class at hand: its mean before, what is added to it, and its error."""


def _accumulate(
    seen: ClassMeans,
    values: Float[Array, "b ..."],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"] | None = None,
) -> ClassMeans:
    """Adds a batch to the means; rows with ``valid`` False are left out.

    Args:
      seen: the means so far (donated).
      values: (B, ...) float32.
      labels: their classes, (B,) int.
      valid: which rows count; all by default.
    """
    counted = jnp.ones(labels.shape, bool) if valid is None else valid
    if values[:1].size == 0:
        # Nothing to add, but there is to count.
        return replace(seen, counts=seen.counts.at[labels].add(counted.astype(jnp.int32)))
    # A class's rows one after the other: what they add is summed beside its mean of before.
    order = jnp.argsort(labels)
    first = jnp.diff(labels[order], prepend=-1) != 0
    zeros = jnp.zeros(values.shape[1:], jnp.float32)

    def add(carry: _Carry, place: tuple[Array, Array]) -> tuple[_Carry, None]:
        (row, begins), (so_far, *run) = place, carry
        label, counts = labels[row], counted[row]
        before, total, error = (
            jnp.where(begins, anew, old)
            for anew, old in zip((so_far.means[label], zeros, zeros), run, strict=True)
        )
        moved = jnp.where(counts, values[row].astype(jnp.float32) - before, 0.0)
        total, lost = _two_sum(total, moved)
        error += lost
        count = so_far.counts[label] + counts.astype(jnp.int32)
        mean = before + (total + error) / jnp.maximum(count, 1)
        means = jax.lax.dynamic_update_index_in_dim(so_far.means, mean, label, axis=0)
        return (ClassMeans(means, so_far.counts.at[label].set(count)), before, total, error), None

    return jax.lax.scan(add, (seen, zeros, zeros, zeros), (order, first))[0][0]


accumulate = jax.jit(_accumulate, donate_argnums=0)


@jax.jit
def merge(first: ClassMeans, second: ClassMeans) -> ClassMeans:
    """The means over the union of two disjoint parts of the data."""
    counts = first.counts + second.counts
    share = second.counts / jnp.maximum(counts, 1)
    share = share.reshape(-1, *(1,) * (first.means.ndim - 1))
    # Where one has none of a class, it is the other's to the last bit.
    means = first.means + (second.means - first.means) * share
    return ClassMeans(jnp.where(share == 1, second.means, means), counts)


def class_prototypes(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    num_classes: int,
) -> tuple[Float[Array, "c ..."], Int[Array, " c"]]:
    """The mean of ``features`` by label, and how many samples each class has.

    Args:
      features: (N, ...).
      labels: (N,) integers in [0, num_classes).
      num_classes: C.

    Returns:
      Prototypes, (C, ...) float32, zeros for an absent class; counts, (C,) int32.

    Raises:
      TypeError: features that are no real numbers, labels or num_classes that are no integers.
      ValueError: shapes that do not fit, a label out of range, NaN, infinite features or features
        beyond 1e28, or more classes than there is memory for.

    Examples:
      >>> from grood_jax import class_prototypes
      >>> prototypes, counts = class_prototypes([[0, 0], [2, 2], [5, 1]], [0, 0, 1], num_classes=2)
      >>> print(prototypes)
      [[1. 1.]
       [5. 1.]]
      >>> print(counts)
      [2 1]
    """
    checks.at_least("num_classes", num_classes, 1, 2**31 - 1)
    values = checks.shaped("features", features, ("N", "..."))
    values = checks.finite("features", values, LARGEST)
    classes = checks.classes("labels", labels, num_classes, (values.shape[0],))
    with checks.room("prototypes", (num_classes, *values.shape[1:])):
        empty = empty_means(num_classes, values.shape[1:])
    seen = jax.jit(_accumulate)(empty, values, classes)
    return seen.means, seen.counts


def require_classes(
    what: str,
    counts: Int[Array | np.ndarray, " c"],
    present: Sequence[int] | None = None,
    advice: str = "",
) -> None:
    """Raises ValueError naming the classes, of those that must be present, with no sample.

    Also where ``present`` holds what is no class. The advice ends the message.
    """
    empty, expected = empty_classes(counts, present)
    if len(empty):
        raise ValueError(
            f"labels: no {what} of class {written(empty)} ({len(empty)} of {expected} classes); "
            f"expected at least one of each{advice}"
        )


def written(classes: Int[np.ndarray, " e"]) -> str:
    """The first twenty classes, for a message."""
    return ", ".join(map(str, classes[:20])) + (", …" if len(classes) > 20 else "")


def empty_classes(
    counts: Int[Array | np.ndarray, " c"], present: Sequence[int] | None = None
) -> tuple[Int[np.ndarray, " e"], int]:
    """The classes without a sample, and of how many.

    Raises:
      ValueError: ``present`` holds what is no class.
    """
    seen = np.asarray(counts)
    if present is not None:
        checks.classes("present_classes", present, len(seen), ("P",))
    expected = np.arange(len(seen)) if present is None else np.asarray(present)
    return expected[seen[expected] == 0], len(expected)
