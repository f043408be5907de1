"""Pytrees as JSON and arrays by name: what a fitted detector is on disk, without pickle."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax.support.errors import UserError
from grood_jax.support.moved import current_name

Arrays = dict[str, np.ndarray]


def take_apart(name: str, value: Any) -> tuple[Any, Arrays]:
    """Describes a value in JSON's types; its arrays stand apart.

    Args:
      name: what the names of the arrays begin with.
      value: arrays of JAX or NumPy, None, numbers, strings, and tuples, lists, dictionaries with
        strings as keys and frozen dataclasses of such.

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
        if isinstance(part, np.ndarray | np.generic) and np.asarray(part).dtype != object:
            arrays[path] = np.asarray(part)
            return {"array": path, "on": "host"}
        if isinstance(part, jax.Array) and not jnp.issubdtype(part.dtype, jax.dtypes.prng_key):
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


def _class(name: str) -> type:
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(current_name(module))
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if not _rebuildable(found):
        raise UserError(
            f"{name} is not known here; import the package that has it, and register its detector "
            "with grood_jax.detectors.register"
        )
    return found


def _rebuildable(kind: Any) -> bool:
    """Whether its instances are nothing but their fields."""
    return (
        isinstance(kind, type)
        and dataclasses.is_dataclass(kind)
        and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        and all(field.init for field in dataclasses.fields(kind))
        and "<locals>" not in kind.__qualname__
    )
