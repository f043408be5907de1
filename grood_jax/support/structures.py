"""Pytrees as JSON and arrays by name: what a fitted detector is on disk, without pickle."""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax.support.errors import UserError
from grood_jax.support.moved import current_name

Arrays = dict[str, np.ndarray]

KEYS = ("threefry2x32", "rbg", "unsafe_rbg")
"""JAX's own algorithms of random keys."""


def take_apart(name: str, value: Any) -> tuple[Any, Arrays]:
    """Describes a value in JSON's types; its arrays stand apart.

    Args:
      name: what the names of the arrays begin with.
      value: arrays of JAX or NumPy, random keys, None, numbers, strings, and tuples, lists,
        dictionaries with strings as keys and frozen dataclasses of such.

    Returns:
      The description and the arrays, for `put_together`.

    Raises:
      UserError: the value holds something else; it is named.
    """
    arrays: Arrays = {}

    def describe(path: str, part: Any) -> Any:
        if part is None or isinstance(part, bool | int | str):
            return part
        if isinstance(part, float):
            return {"float": part.hex()}
        if is_key(part) and (kind := _key_kind(part.dtype)) is not None:
            arrays[path] = np.asarray(jax.random.key_data(part))
            return {"array": path, "key": kind}
        if isinstance(part, np.ndarray | np.generic) and _is_plain(part.dtype):
            arrays[path] = storable(part)
            return {"array": path, "on": "host"}
        if isinstance(part, jax.Array) and not is_key(part):
            arrays[path] = np.asarray(part)
            return {"array": path, "on": "device"}
        if type(part) in (tuple, list):
            parts = [describe(f"{path}.{i}", item) for i, item in enumerate(part)]
            return {type(part).__name__: parts}
        if type(part) is dict and all(isinstance(key, str) for key in part):
            return {"dict": {key: describe(f"{path}.{key}", part[key]) for key in part}}
        if _rebuildable(type(part)):
            inner = {
                field.name: describe(f"{path}.{field.name}", getattr(part, field.name))
                for field in dataclasses.fields(part)
            }
            return {"class": f"{type(part).__module__}:{type(part).__qualname__}", "fields": inner}
        raise UserError(
            f"{path} is a {type(part).__name__}, which cannot be saved; expected arrays, numbers, "
            "strings, and tuples, lists, dictionaries and frozen dataclasses of such"
        )

    return describe(name, value), arrays


def put_together(description: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `take_apart` described.

    Only classes that the process has loaded are made, and only frozen dataclasses.

    Raises:
      UserError: a class is not known here, or the description is none of `take_apart`'s.
    """
    if description is None or isinstance(description, bool | int | str):
        return description
    match description:
        case {"float": str(text)}:
            return float.fromhex(text)
        case {"array": str(name), "on": "host" | "device" as place} if name in arrays:
            return jnp.asarray(arrays[name]) if place == "device" else arrays[name]
        case {"array": str(name), "key": str(kind)} if name in arrays:
            return _key(kind, arrays[name])
        case {"tuple": list(parts)}:
            return tuple(put_together(part, arrays) for part in parts)
        case {"list": list(parts)}:
            return [put_together(part, arrays) for part in parts]
        case {"dict": dict(parts)}:
            return {key: put_together(part, arrays) for key, part in parts.items()}
        case {"class": str(name), "fields": dict(parts)}:
            made = _class(name)
            inner = {key: put_together(part, arrays) for key, part in parts.items()}
            try:
                return made(**inner)
            except TypeError as error:
                raise UserError(
                    f"{name} was saved with fields {', '.join(parts) or 'none'}, and here it "
                    f"takes others ({error}); it was saved by another version"
                ) from error
    raise UserError(f"a part of what was saved cannot be read: {str(description)[:80]}")


def storable(leaf: Any) -> np.ndarray:
    """A leaf as an array of numbers: random keys as the integers that they are made of."""
    if is_key(leaf):
        return np.asarray(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    # No file of ours keeps the order of bytes of other machines.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def by_name(tree: Any) -> Arrays:
    """The leaves of a pytree as `storable` arrays, by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): storable(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def from_names(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A pytree of JAX arrays from what `by_name` gave; ``like`` has its structure and dtypes.

    Raises:
      KeyError: a leaf has no array.
    """

    def leaf(path: Any, wanted: Any) -> jax.Array:
        array = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        if is_key(wanted):
            return _key(_key_kind(wanted.dtype) or str(wanted.dtype), array)
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(leaf, like)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX's typed random keys, or stands for one."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _key_kind(dtype: Any) -> str | None:
    """The name of a random key's algorithm; None of one that JAX does not bring along."""
    for name in KEYS:
        if jax.eval_shape(functools.partial(jax.random.key, impl=name), 0).dtype == dtype:
            return name
    return None


def _key(kind: str, data: np.ndarray) -> jax.Array:
    try:
        return jax.random.wrap_key_data(jnp.asarray(data), impl=kind)
    except (TypeError, ValueError) as error:
        raise UserError(f"a random key of {kind[:40]!r} is not known here ({error})") from error


def _is_plain(dtype: np.dtype) -> bool:
    """Whether an array of it is numbers, which can be kept without Python's help."""
    # Low precision is not one of NumPy's own kinds.
    low = dtype.kind == "V" and jnp.issubdtype(dtype, jnp.number)
    # Long doubles are another thing on every machine.
    widest = {"c": 16}.get(dtype.kind, 8)
    return low or (dtype.kind in "biufc" and dtype.itemsize <= widest)


def _class(name: str) -> type:
    module, _, qualified = name.partition(":")
    kind: Any = sys.modules.get(current_name(module))
    for part in qualified.split("."):
        kind = getattr(kind, part, None)
    if not _rebuildable(kind):
        raise UserError(
            f"{name} is not known here; import the package that has it, and register its detector "
            "with grood_jax.detectors.register"
        )
    return kind


def _rebuildable(kind: Any) -> bool:
    """Whether its instances are nothing but their fields."""
    return (
        isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        and all(field.init for field in dataclasses.fields(kind))
        and "<locals>" not in kind.__qualname__
    )
