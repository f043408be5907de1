"""Checks at the public doors: what was found, what was expected, under which name."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def shaped(name: str, array: Any, shape: Sequence[int | str]) -> jax.Array:
    """Returns ``array`` as a float32 JAX array after checking its rank, sizes and dtype.

    Args:
      name: the argument's name, for the message.
      array: anything that NumPy can read as an array of real numbers.
      shape: per axis a size, or a word for an axis of any size; a leading ``"..."`` stands for
        any number of axes.

    Raises:
      TypeError: the array's dtype is not a real number.
      ValueError: its shape differs from ``shape``.
    """
    array = _numeric(name, array)
    open_ended = len(shape) > 0 and shape[-1] == "..."
    wanted = tuple(shape[:-1]) if open_ended else tuple(shape)
    found = tuple(array.shape)
    rank_fits = len(found) >= len(wanted) if open_ended else len(found) == len(wanted)
    if not rank_fits or any(
        isinstance(want, int) and have != want for have, want in zip(found, wanted, strict=False)
    ):
        expected = ", ".join(str(axis) for axis in shape)
        raise ValueError(f"{name} has shape {found}; expected ({expected})")
    return array.astype(jnp.float32)


def finite(name: str, array: jax.Array) -> jax.Array:
    """Returns ``array``; raises ValueError if it holds NaN or infinities. Tracers pass."""
    if isinstance(array, jax.core.Tracer) or bool(jnp.isfinite(array).all()):
        return array
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    raise ValueError(
        f"{name} holds {len(bad)} values that are NaN or infinite, the first at index "
        f"{tuple(int(i) for i in bad[0])}; expected finite numbers"
    )


def classes(name: str, labels: ArrayLike, count: int, shape: Sequence[int | str]) -> jax.Array:
    """Returns ``labels`` as int32 after checking dtype, shape and that all lie in [0, count).

    Raises:
      TypeError: the labels are not integers.
      ValueError: their shape differs from ``shape``, or one lies outside [0, count).
    """
    array = jnp.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    if array.ndim != len(shape) or any(
        isinstance(want, int) and have != want
        for have, want in zip(array.shape, shape, strict=False)
    ):
        expected = ", ".join(str(axis) for axis in shape)
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected ({expected})")
    if not isinstance(array, jax.core.Tracer) and array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= count:
            found = low if low < 0 else high
            raise ValueError(f"{name} holds {found}; expected classes from 0 to {count - 1}")
    return array.astype(jnp.int32)


def at_least(name: str, value: int, low: int) -> int:
    """Returns ``value``; raises TypeError unless it is an integer, ValueError if below ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an integer of at least {low}")
    if value < low:
        raise ValueError(f"{name} is {value}; expected at least {low}")
    return int(value)


def fraction(name: str, value: float, *, zero: bool = True) -> float:
    """Returns ``value``; raises ValueError unless it lies in [0, 1], or (0, 1] without ``zero``."""
    if not (0 <= value <= 1) or (value == 0 and not zero):
        interval = "[0, 1]" if zero else "(0, 1]"
        raise ValueError(f"{name} is {value}; expected a number in {interval}")
    return float(value)


def choice(name: str, value: str, options: Sequence[str]) -> str:
    """Returns ``value``; raises ValueError, with the nearest option, unless it is one of them."""
    import difflib

    if value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}{hint}")


def _numeric(name: str, array: Any) -> jax.Array:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        array = np.asarray(array)
        dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {dtype}; expected real numbers")
    return jnp.asarray(array)
