"""Class prototypes: streamed, mergeable means of features by label.

Sums are held as two float32 words (the value and what rounding left out of it), so that the
mean is right to float32's last digits however the data are batched or merged; a running mean
in float32 is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

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
class ClassSums:
    """Sums and counts of values by class.

    Attributes:
      high: leading part of the sums, (C, ...) float32.
      low: what rounding left out of ``high``, (C, ...) float32.
      counts: samples seen of each class, (C,) int32.
    """

    high: Float[Array, "c ..."]
    low: Float[Array, "c ..."]
    counts: Int[Array, " c"]


def class_sums(num_classes: int, shape: Sequence[int]) -> ClassSums:
    """Empty sums for values of the given shape."""
    # One buffer each: `accumulate` donates them.
    high, low = (jnp.zeros((num_classes, *shape), jnp.float32) for _ in range(2))
    return ClassSums(high, low, counts=jnp.zeros(num_classes, jnp.int32))


def _two_sum(
    a: Float[Array, "*s"], b: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    # Knuth's branch-free exact sum: a + b = total + error. XLA does not reassociate.
    total = a + b
    shadow = total - a
    return total, (a - (total - shadow)) + (b - shadow)


def _accumulate(
    sums: ClassSums,
    values: Float[Array, "b ..."],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"] | None = None,
) -> ClassSums:
    """Adds a batch to the sums; rows with ``valid`` False are left out.

    Args:
      sums: the sums so far (donated).
      values: (B, ...) float32.
      labels: their classes, (B,) int.
      valid: which rows count; all by default.
    """
    seen = jnp.ones(labels.shape, bool) if valid is None else valid
    if values[:1].size == 0:
        # Nothing to add, but there is to count.
        return replace(sums, counts=sums.counts.at[labels].add(seen.astype(jnp.int32)))
    replaced = partial(jax.lax.dynamic_update_index_in_dim, axis=0)

    def add(carry: ClassSums, row: tuple[Array, Array, Array]) -> tuple[ClassSums, None]:
        value, label, counts = row
        value = jnp.where(counts, value, 0.0)
        _, error = _two_sum(carry.high[label], value)
        low = replaced(carry.low, carry.low[label] + error, label)
        # Never true, but it has the compiler read the old sum before it writes the new one in its
        # place: else it copies the sums of all classes for each row.
        first = low[label].ravel()[0]
        again = jnp.where((first != first) & (first == 0), label + 1, label)
        return ClassSums(
            high=replaced(carry.high, carry.high[again] + value, again),
            low=low,
            counts=carry.counts.at[label].add(counts.astype(jnp.int32)),
        ), None

    return jax.lax.scan(add, sums, (values.astype(jnp.float32), labels, seen))[0]


accumulate = jax.jit(_accumulate, donate_argnums=0)


@jax.jit
def merge(first: ClassSums, second: ClassSums) -> ClassSums:
    """The sums over the union of two disjoint parts of the data."""
    high, error = _two_sum(first.high, second.high)
    return ClassSums(high, first.low + second.low + error, first.counts + second.counts)


def means(sums: ClassSums) -> Float[Array, "c ..."]:
    """The class prototypes, (C, ...) float32; zeros for classes with no sample.

    See `require_classes` for the check that there are none.
    """
    counts = jnp.maximum(sums.counts, 1).reshape(-1, *(1,) * (sums.high.ndim - 1))
    return (sums.high + sums.low) / counts


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
        empty = class_sums(num_classes, values.shape[1:])
    sums = jax.jit(_accumulate)(empty, values, classes)
    return means(sums), sums.counts


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
