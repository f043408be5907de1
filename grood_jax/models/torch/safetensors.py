"""Files in the format safetensors as NumPy arrays, with every bound checked.

References:
  The format: README.md of github.com/huggingface/safetensors.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_HEADER = 100_000_000
"""Bytes, as in the package safetensors."""

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class Malformed(Exception):
    """Why a file is not read."""


def recognizes(content: bytes) -> bool:
    """Whether a file begins as one of safetensors does: eight bytes, then a JSON object.

    A pickle may begin with such bytes too, but a brace means the file to be read as JSON.
    """
    return content[8:9] == b"{"


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file by name, read-only views of its bytes.

    Raises:
      Malformed: the file is damaged or cut short, or has arrays of another dtype; or it has none.
    """
    size = int.from_bytes(content[:8], "little")
    if size > min(MAX_HEADER, len(content) - 8):
        raise Malformed(
            f"its header is said to have {size} bytes; expected at most "
            f"{min(MAX_HEADER, len(content) - 8)}"
        )
    try:
        text = content[8 : 8 + size].decode("utf-8")
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise Malformed("its header is no object")
    header.pop("__metadata__", None)
    if not header:
        raise Malformed("it holds no tensors")
    data = memoryview(content)[8 + size :]
    spans = {name: _span(name, about, len(data)) for name, about in header.items()}
    _require_tiles(spans, len(data))
    return {name: _array(name, header[name], data[slice(*spans[name])]) for name in header}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Malformed(f"its header has {reprlib.repr(twice)} twice")
    return by_name


def _span(name: str, about: Any, end: int) -> tuple[int, int]:
    """Where an array's bytes begin and end, within the data."""
    named = f"tensor {reprlib.repr(name)}"
    if not isinstance(about, Mapping) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{named} is described by {reprlib.repr(about)}")
    offsets = about["data_offsets"]
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= end:
        raise Malformed(
            f"{named} has data_offsets {reprlib.repr(offsets)}; expected two within the "
            f"{end} bytes of data"
        )
    return offsets[0], offsets[1]


def _require_tiles(spans: Mapping[str, tuple[int, int]], end: int) -> None:
    """Refuses bytes that belong to two arrays, or to none."""
    reached = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda entry: entry[1]):
        if start != reached:
            what = "overlaps another" if start < reached else "leaves a hole before it"
            raise Malformed(
                f"tensor {reprlib.repr(name)} {what}: it begins at byte {start}, not {reached}"
            )
        reached = stop
    if reached != end:
        raise Malformed(f"its tensors end at byte {reached} of {end} bytes of data")


def _array(name: str, about: Mapping[str, Any], block: memoryview) -> np.ndarray:
    named = f"tensor {reprlib.repr(name)}"
    kind, shape = about["dtype"], about["shape"]
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise Malformed(
            f"{named} has dtype {reprlib.repr(kind)}; expected one of {', '.join(_DTYPES)}"
        )
    if not _counts(shape):
        raise Malformed(f"{named} has shape {reprlib.repr(shape)}")
    if math.prod(shape) * dtype.itemsize != len(block):
        raise Malformed(
            f"{named} of dtype {kind} and shape {reprlib.repr(shape)} has {len(block)} bytes"
        )
    try:
        array = np.frombuffer(block, dtype).reshape(shape)
    except ValueError as error:
        # More axes, or longer ones, than an array can have.
        raise Malformed(f"{named} has shape {reprlib.repr(shape)} ({error})") from error
    array.flags.writeable = False
    return array


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
