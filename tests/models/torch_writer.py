"""Writes files as torch.save does, honest and dishonest ones, without PyTorch."""

import io
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

KINDS = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
MAGIC = 0x1950A86A20F9469CFC6C


@dataclass
class Global:
    """What a pickle imports."""

    module: str
    name: str


@dataclass
class Call:
    """What a pickle calls."""

    function: Any
    arguments: tuple[Any, ...]


@dataclass
class Build:
    """An object whose state the pickle sets."""

    target: Any
    state: Any


@dataclass
class Persistent:
    """A reference out of the pickle."""

    pid: Any


@dataclass
class Raw:
    """Opcodes as they are."""

    code: bytes


@dataclass
class Storage:
    """A storage, and what the pickle and the file claim about it where that is not the truth."""

    key: str
    elements: np.ndarray
    size: int | None = None
    count: int | None = None


def tensor(
    storage: Storage,
    offset: Any = 0,
    shape: Any = None,
    strides: Any = None,
    function: str = "_rebuild_tensor_v2",
) -> Call:
    """A tensor over a storage; all of it by default."""
    shape = (storage.elements.size,) if shape is None else shape
    strides = (1,) * len(shape) if strides is None else strides
    rest = () if function == "_rebuild_tensor" else (False, Ordered({}))
    return Call(Global("torch._utils", function), (storage, offset, shape, strides, *rest))


def contiguous(storage: Storage, shape: tuple[int, ...]) -> Call:
    """A tensor in the order of its storage."""
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return tensor(storage, 0, shape, strides)


@dataclass
class Ordered:
    """A collections.OrderedDict as PyTorch's state dicts are."""

    entries: dict[str, Any]


def emit(value: Any, views: bool = False) -> bytes:
    """The opcodes of a value, protocol 2; ``views`` for storages as the legacy format has them."""

    def inner(*values: Any) -> bytes:
        return b"".join(emit(value, views) for value in values)

    def items(entries: dict[Any, Any]) -> bytes:
        return b"(" + b"".join(inner(*entry) for entry in entries.items()) + b"u"

    match value:
        case Raw(code):
            return code
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return inner(function, arguments) + b"R"
        case Build(target, state):
            return inner(target, state) + b"b"
        case Persistent(pid):
            return inner(pid) + b"Q"
        case Storage(key, elements, size):
            size = elements.size if size is None else size
            pid = ("storage", Global("torch", KINDS[elements.dtype]), key, "cpu", size)
            return inner(Persistent((*pid, None) if views else pid))
        case Ordered(entries):
            return inner(Call(Global("collections", "OrderedDict"), ())) + items(entries)
        case dict():
            return b"}" + items(value)
        case list():
            return b"](" + inner(*value) + b"e"
        case tuple():
            return b"(" + inner(*value) + b"t"
        case _:
            return pickle.dumps(value, protocol=2)[2:-1]


def pickled(value: Any, views: bool = False) -> bytes:
    """A whole pickle."""
    return b"\x80\x02" + emit(value, views) + b"."


def legacy(value: Any, storages: list[Storage], little_endian: bool = True) -> bytes:
    """The format of before torch 1.6: five pickles, then the storages."""
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    keys = [storage.key for storage in storages]
    stream = b"".join(pickled(part, True) for part in (MAGIC, 1001, system, value, keys))
    for storage in storages:
        count = storage.elements.size if storage.count is None else storage.count
        stream += count.to_bytes(8, "little", signed=True) + storage.elements.tobytes()
    return stream


def zipped(
    value: Any,
    storages: list[Storage],
    little_endian: bool = True,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The format since torch 1.6."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", "little" if little_endian else "big")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.elements.tobytes())
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def write_state(path: Path, state: dict[str, np.ndarray], form: Any = legacy) -> Path:
    """Writes a state dict of arrays."""
    storages = [Storage(str(i), np.ravel(array)) for i, array in enumerate(state.values())]
    entries = {
        name: contiguous(storage, array.shape)
        for (name, array), storage in zip(state.items(), storages, strict=True)
    }
    path.write_bytes(form(Ordered(entries), storages))
    return path
