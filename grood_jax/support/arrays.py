"""Checks of arrays at the public doors; called by way of `grood_jax.support.checks`."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def shaped(name: str, array: Any, shape: Sequence[int | str]) -> jax.Array:
    """Returns ``array`` as a float32 JAX array after checking its rank, sizes and dtype.

    Args:
      name: the argument's name, for the message.
      array: anything that NumPy can read as an array of real numbers.
      shape: per axis a size, or a word for an axis of any size; a leading ``"..."`` stands for
        any number of axes.

    Raises:
      TypeError: the array's dtype is not a real number.
      ValueError: its shape differs from ``shape``, or it does not fit into memory.
    """
    array = array_of(name, array)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    open_ended = len(shape) > 0 and shape[-1] == "..."
    wanted = tuple(shape[:-1]) if open_ended else tuple(shape)
    given = tuple(array.shape)
    rank_fits = len(given) >= len(wanted) if open_ended else len(given) == len(wanted)
    if not rank_fits or any(
        isinstance(want, int) and have != want for have, want in zip(given, wanted, strict=False)
    ):
        raise ValueError(f"{name} has shape {given}; expected {_written(shape)}")
    with room(name, given):
        if isinstance(array, np.ndarray):
            # JAX would first wrap int64 to int32; what float32 cannot hold is infinite, for
            # `finite`.
            with np.errstate(over="ignore"):
                # A copy: JAX would share the caller's memory, and the caller may write into it.
                array = array.astype(np.float32)
        return jnp.asarray(array, jnp.float32)


@contextlib.contextmanager
def room(name: str, shape: Sequence[Any]) -> Iterator[None]:
    """Raises ValueError where there is no memory for an array.

    A shape may be gigantic and yet cost its owner nothing: views repeat what they show.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"{name} has shape {tuple(shape)}; expected an array that fits into memory"
        ) from error


def finite(name: str, array: jax.Array, limit: float | None = None) -> jax.Array:
    """Returns ``array``; raises ValueError if it holds NaN or infinities. Tracers pass.

    With a ``limit``, magnitudes beyond it are refused too.
    """
    if isinstance(array, jax.core.Tracer):
        return array
    if in_host_memory(array):
        values = np.asarray(array)
        largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))
    else:
        # An array may be concrete while something else is traced.
        with jax.ensure_compile_time_eval():
            largest = float(_largest(array))
    if not math.isfinite(largest):
        bad = np.argwhere(~np.isfinite(np.asarray(array)))
        raise ValueError(
            f"{name} holds {len(bad)} values that are NaN or infinite, the first at index "
            f"{tuple(int(i) for i in bad[0])}; expected finite numbers"
        )
    if limit is not None and largest > limit:
        raise ValueError(
            f"{name} holds values up to {largest:.3g}; expected at most {limit:.0e} "
            "(rescale them: float32 would overflow)"
        )
    return array


@jax.jit
def _largest(array: jax.Array) -> jax.Array:
    """The largest magnitude, 0 of nothing; NaN where there is one."""
    return jnp.max(jnp.abs(array), initial=0.0)


def classes(name: str, labels: Any, count: int, shape: Sequence[Any]) -> jax.Array:
    """Returns ``labels`` as int32 after checking dtype, shape and that all lie in [0, count).

    Sizes may also be symbols, where an export leaves them open; they are not checked.

    Raises:
      TypeError: the labels are not integers.
      ValueError: their shape differs from ``shape``, or one lies outside [0, count).
    """
    array = array_of(name, labels)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    if array.ndim != len(shape) or any(
        isinstance(want, int) and have != want
        for have, want in zip(array.shape, shape, strict=False)
    ):
        raise ValueError(f"{name} has shape {tuple(array.shape)}; expected {_written(shape)}")
    if not isinstance(array, jax.core.Tracer) and array.size:
        # By NumPy, which compiles nothing.
        values = np.asarray(array)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= count:
            outside = low if low < 0 else high
            raise ValueError(f"{name} holds {outside}; expected classes from 0 to {count - 1}")
    return jnp.asarray(array, jnp.int32)


def placed(array: Any) -> jax.Array:
    """An array on the device. `jax.numpy.asarray` compiles a program for each shape of NumPy's."""
    return jax.device_put(array) if isinstance(array, np.ndarray) else jnp.asarray(array)


def in_host_memory(array: Any) -> bool:
    """Whether NumPy reads an array where it lies: nothing is moved, and no program compiled."""
    if isinstance(array, np.ndarray):
        return True
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return False
    devices = list(array.devices())
    return len(devices) == 1 and devices[0].platform == "cpu"


def rows(array: jax.Array | np.ndarray, chosen: Any) -> jax.Array:
    """Some rows of an array, (N, ...)."""
    if in_host_memory(array):
        return placed(np.asarray(array)[np.asarray(chosen)])
    return _rows(array, chosen)


@jax.jit
def _rows(array: jax.Array, chosen: jax.Array) -> jax.Array:
    """By one program: ``array[chosen]`` compiles seven."""
    return array[chosen]


def array_of(name: str, array: Any) -> Any:
    """``array`` as it is if it is a JAX array, else as NumPy reads it."""
    if isinstance(array, jax.Array):
        return array
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"{name} is no array: {error}") from error


def _written(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def key(name: str, value: Any) -> Any:
    """Returns ``value``; raises TypeError unless it is one random key, of whichever style.

    Tracers pass as what they stand for.
    """
    dtype: Any = getattr(value, "dtype", None)
    shape = getattr(value, "shape", None)
    if isinstance(value, jax.Array | np.ndarray) and shape is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            fits = shape == ()
        else:
            # Keys of the old style, of threefry's or rbg's size.
            fits = dtype == jnp.uint32 and shape in ((2,), (4,))
        if fits:
            return value
    described = repr(value)[:40] if shape is None else f"of dtype {dtype} and shape {shape}"
    raise TypeError(f"{name} is {described}; expected a random key, as jax.random.key(0) makes it")
