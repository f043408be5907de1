"""Checks at the public doors: what was found, what was expected, under which name."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from grood_jax.support.arrays import array_of, classes, finite, key, placed, room, rows, shaped

__all__ = [
    "array_of",
    "at_least",
    "choice",
    "classes",
    "finite",
    "flag",
    "fraction",
    "key",
    "percent",
    "placed",
    "positive",
    "room",
    "rows",
    "seed",
    "shaped",
]


def __getattr__(name: str) -> Any:
    """Loads the checks of arrays when one is first asked for: they need JAX, numbers do not."""
    if name in __all__:
        from grood_jax.support import arrays

        return getattr(arrays, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def labels(name: str, given: Any, count: int) -> np.ndarray:
    """Returns the labels of a set as int32; raises ValueError unless all are classes.

    The message names the row of the first that is none, and what numbering would explain it.
    """
    array = np.asarray(given)
    bad = np.flatnonzero((array < 0) | (array >= count))
    if len(bad):
        low, high = int(array.min()), int(array.max())
        hint = ""
        if low == high == -1:
            hint = "; the set has no labels"
        elif (low, high) == (1, count):
            hint = "; they seem to be counted from 1"
        raise ValueError(
            f"{name}: label {int(array[bad[0]])} of row {bad[0]} is no class ({len(bad)} of "
            f"{array.size} are none); expected classes from 0 to {count - 1}{hint}"
        )
    return array.astype(np.int32, copy=False)


def int32(name: str, labels: Any) -> np.ndarray:
    """Returns ``labels`` as int32; raises ValueError where one does not fit: it would wrap."""
    array = np.asarray(labels)
    if array.size and array.dtype != np.int32:
        low, high = int(array.min()), int(array.max())
        if low < -(2**31) or high >= 2**31:
            found = low if low < -(2**31) else high
            raise ValueError(f"{name} holds {found}; expected classes from 0, or -1 for none")
    return array.astype(np.int32, copy=False)


def at_least(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns ``value``; raises unless it is an integer from ``low`` up, to ``high`` if given.

    Raises:
      TypeError: it is no integer.
      ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; expected an integer of at least {low}")
    if value < low:
        raise ValueError(f"{name} is {value}; expected at least {low}")
    if high is not None and value > high:
        raise ValueError(f"{name} is {value}; expected at most {high}")
    return int(value)


def seed(name: str, value: Any) -> int:
    """Returns ``value``; raises unless it is an integer from 0 to 2³² − 1.

    Raises:
      TypeError: it is no integer.
      ValueError: it is out of range: JAX would take 2³² for 0.
    """
    return at_least(name, value, 0, 2**32 - 1)


def fraction(name: str, value: Any, *, zero: bool = True) -> float:
    """Returns ``value``; raises unless it lies in [0, 1], or in (0, 1] without ``zero``.

    Raises:
      TypeError: it is no real number.
      ValueError: it lies outside.
    """
    if not (0 <= _number(name, value, "a number between 0 and 1") <= 1) or (
        value == 0 and not zero
    ):
        interval = "[0, 1]" if zero else "(0, 1]"
        raise ValueError(f"{name} is {value}; expected a number in {interval}")
    return float(value)


def percent(name: str, value: Any) -> float:
    """Returns ``value``; raises unless it lies in [0, 100].

    Raises:
      TypeError: it is no real number.
      ValueError: it lies outside.
    """
    if not 0 <= _number(name, value, "a number between 0 and 100") <= 100:
        raise ValueError(f"{name} is {value}; expected a number in [0, 100]")
    return float(value)


def positive(name: str, value: Any) -> float:
    """Returns ``value``; raises unless it is a positive, finite number.

    Raises:
      TypeError: it is no real number.
      ValueError: it is not positive, or not finite.
    """
    if not 0 < _number(name, value, "a positive number") < float("inf"):
        raise ValueError(f"{name} is {value}; expected a positive number")
    return float(value)


def real(name: str, value: Any) -> float:
    """Returns ``value``, which may be NaN or infinite; raises TypeError unless it is a number."""
    return _number(name, value, "a number")


def number(name: str, value: Any) -> float:
    """Returns ``value``; raises unless it is a finite number.

    Raises:
      TypeError: it is no real number.
      ValueError: it is not finite.
    """
    if not math.isfinite(_number(name, value, "a number")):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Returns ``value``; raises TypeError unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def path(name: str, value: Any) -> Path:
    """Returns ``value`` as a path; raises TypeError unless it is a string or a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {value!r}; expected a path")
    return Path(value)


def text(name: str, value: Any) -> str:
    """Returns ``value``; raises TypeError unless it is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; expected a string")
    return value


def several(name: str, value: Any, expected: str) -> Iterable[Any]:
    """Returns ``value``; raises TypeError unless it is iterable, and neither text nor bytes."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    return value


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """Returns ``value``; raises ValueError, with the nearest option, unless it is one of them."""
    import difflib

    if isinstance(value, str) and value in options:
        return value
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} is {value!r}; expected one of {', '.join(options)}{hint}")


def function(name: str, value: str | None) -> str | None:
    """Returns ``value``; raises unless it names a function, or is None.

    Raises:
      ValueError: it does not.
    """
    named = isinstance(value, str) and all(value.rpartition(":")[::2])
    if value is not None and not named:
        raise ValueError(
            f"{name} is {value!r}; expected package.module:function or path/to/file.py:function"
        )
    return value


def _number(name: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name} is {value!r}; expected {expected}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
