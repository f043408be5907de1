"""State dicts as NumPy arrays, without PyTorch and without running what their files ask for."""

import io
import math
import pickle
import pickletools
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from grood_jax.models.torch import safetensors as safetensors_files
from grood_jax.support import checks
from grood_jax.support.errors import UserError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Under which of these a training program keeps the state dict, beside epochs and the like."""

_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "_orig_mod.")
"""What is put before all names by `torch.nn.DataParallel`, by the attribute of a training program's
module that holds the network, as in Lightning, and by `torch.compile`."""


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict.

    Both formats of ``torch.save`` are read, the pickle of before torch 1.6 and the zip since, and
    safetensors. Of a file that wraps a state dict, only the state dict is read; entries that are no
    tensors are left out, whatever they are (NumPy scalars, an argparse.Namespace, an optimizer):
    their classes are neither imported nor run. Prefixes that all names have in common are taken
    off: ``module.`` of `torch.nn.DataParallel`, ``model.``, ``net.``, ``network.`` and
    ``backbone.`` of training programs, ``_orig_mod.`` of `torch.compile`.

    Args:
      path: a file written by ``torch.save(model.state_dict(), path)``, mostly .pt, .pth or .th, by
        Lightning (.ckpt), or by ``safetensors.torch.save_file`` (.safetensors). What it is is told
        by its content.

    Returns:
      The arrays by name, read-only, in the file's shapes and dtypes (bfloat16 included).

    Raises:
      TypeError: ``path`` is none.
      UserError: the file cannot be opened, is no state dict, is cut short or damaged, or holds
        no tensors but objects of other classes (none is ever imported).

    References:
      The formats: torch/serialization.py, `_legacy_save` and `_save`; for safetensors
      `grood_jax.models.torch.safetensors`.
    """
    path = checks.path("path", path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read: {why}") from error
    try:
        if content[:4] == b"PK\x03\x04":
            return _without_prefixes(_read_zip(content))
        if safetensors_files.recognizes(content):
            return _without_prefixes(safetensors_files.arrays(content))
        return _without_prefixes(_read_legacy(content))
    except (_Refused, safetensors_files.Malformed) as error:
        problem = str(error)
    except Exception as error:
        # Damaged pickles and zips raise whatever their readers stumble over.
        problem = f"it is damaged or cut short ({type(error).__name__}: {error})"
    raise UserError(
        f"{path} is no readable PyTorch state dict: {problem}; expected what "
        "torch.save(model.state_dict(), path) or safetensors.torch.save_file writes"
    )


class _Refused(Exception):
    """Why a file is not read."""


class _Storage(NamedTuple):
    """Where a tensor's elements lie; the bytes are looked up later."""

    key: str
    kind: str
    size: int


class _Tensor(NamedTuple):
    """A tensor as the pickle describes it, unchecked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


# What a pickle may call are objects without attributes, and what it may make are tuples: so its
# BUILD instruction can set nothing on either.
class _StorageType(NamedTuple):
    kind: str


class _Foreign:
    """Stands for an object whose class is none of a state dict's: nothing is imported or run.

    It has no contents and can be given none: a pickle's instructions to make one, to call it, to
    set its state or to add to it all leave it as it is.
    """

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> "_Foreign":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "_Foreign":
        return self

    def __setstate__(self, state: Any) -> None:
        del state

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value

    def append(self, item: Any) -> None:
        del item

    def extend(self, items: Any) -> None:
        del items

    def add(self, item: Any) -> None:
        del item


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, offset, shape, strides)


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
} | {("torch", kind): _StorageType(kind) for kind in _DTYPES}


class _Unpickler(pickle.Unpickler):
    """Makes containers, numbers, strings and descriptions of tensors, and nothing else."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self.foreign: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """Looks up the explicit list, and imports nothing; whatever else is asked for is inert."""
        if (module, name) not in _ALLOWED:
            self.foreign = self.foreign or [f"{module}.{name}"[:200]]
            return _Foreign
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Notes a storage, to be looked up when the pickle has been read."""
        match pid:
            case ("storage", _StorageType(kind), str(key), str(), int(size)) | (
                "storage",
                _StorageType(kind),
                str(key),
                str(),
                int(size),
                None,
            ):
                return self.storages.setdefault(key, _Storage(key, kind, size))
        self.require_none_foreign()
        raise _Refused(f"it refers to {reprlib.repr(pid)}, which is no storage of a tensor")

    def require_none_foreign(self) -> None:
        """Refuses what was found no use of, if something in it stands for a class of others."""
        for name in self.foreign:
            raise _Refused(
                f"it asks for {name!r}, which is no part of a state dict, and which is not run"
            )


def _unpickle(content: bytes, start: int = 0) -> tuple[Any, int, dict[str, _Storage]]:
    """The object pickled at ``start``, where its pickle ends, and the storages it names."""
    stream = io.BytesIO(content)
    stream.seek(start)
    for opcode, argument, _ in pickletools.genops(stream):
        # The memo is a table: one damaged index could ask for gigabytes of it.
        if "PUT" in opcode.name and (argument is None or not 0 <= argument <= len(content)):
            raise _Refused(f"it is damaged (memo index {argument})")
    end = stream.tell()
    unpickler = _Unpickler(content[start:end])
    loaded = unpickler.load()
    if not _holds_tensors(loaded):
        unpickler.require_none_foreign()
    return loaded, end, unpickler.storages


def _holds_tensors(loaded: Any) -> bool:
    """Whether there is a tensor where `_tensors` looks for some."""
    if not isinstance(loaded, dict):
        return False
    inner = [dict.get(loaded, key) for key in _WRAPPERS]
    dicts = [loaded, *(entry for entry in inner if isinstance(entry, dict))]
    return any(isinstance(value, _Tensor) for entry in dicts for value in dict.values(entry))


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    if content[:1] != b"\x80":
        raise _Refused(
            f"it begins with {content[:8]!r}, neither a zip nor a pickle nor safetensors"
        )
    magic, position, _ = _unpickle(content)
    if magic != _MAGIC:
        raise _Refused(f"it is a pickle of a {type(magic).__name__}, not PyTorch's")
    version, position, _ = _unpickle(content, position)
    if version != _VERSION:
        raise _Refused(f"it has version {reprlib.repr(version)}; expected {_VERSION}")
    system, position, _ = _unpickle(content, position)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("it was written on a big-endian machine")
    loaded, position, storages = _unpickle(content, position)
    keys, position, _ = _unpickle(content, position)
    blocks: dict[str, memoryview] = {}
    for key in keys:
        if key not in storages:
            raise _Refused(f"it lists storage {reprlib.repr(key)}, which no tensor has")
        storage = storages[key]
        # A count of elements stands before each storage.
        start = position + 8
        count = int.from_bytes(content[position:start], "little")
        position = start + storage.size * _DTYPES[storage.kind].itemsize
        if count != storage.size or not start <= position <= len(content):
            raise _Refused(
                f"it is damaged or cut short: storage {key} of {storage.size} elements ends at "
                f"byte {position} of {len(content)}, and its count says {count}"
            )
        blocks[key] = memoryview(content)[start:position]
    arrays = {}
    for name, tensor in _tensors(loaded).items():
        key = tensor.storage.key
        if key not in blocks:
            raise _Refused(f"storage {reprlib.repr(key)} of tensor {name} is missing")
        arrays[name] = _array(name, tensor, blocks[key])
    return arrays


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        roots = [name[: -len("data.pkl")] for name in archive.namelist() if _is_object(name)]
        if len(roots) != 1:
            raise _Refused(f"it is a zip with {len(roots)} files data.pkl")
        (root,) = roots
        order = f"{root}byteorder"
        if order in archive.namelist() and _member(archive, order) != b"little":
            raise _Refused("it was written on a big-endian machine")
        loaded, _, _ = _unpickle(_member(archive, f"{root}data.pkl"))
        blocks: dict[str, bytes] = {}
        arrays = {}
        for name, tensor in _tensors(loaded).items():
            key = tensor.storage.key
            if key not in blocks:
                blocks[key] = _member(archive, f"{root}data/{key}")
            arrays[name] = _array(name, tensor, blocks[key])
        return arrays


def _is_object(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    # PyTorch never compresses; a compressed member might unpack to any size.
    if info.compress_type != zipfile.ZIP_STORED:
        raise _Refused(f"its part {name} is compressed")
    return archive.read(info)


def _tensors(loaded: Any) -> dict[str, _Tensor]:
    """The tensors of the state dict, found where training programs keep it."""
    if not isinstance(loaded, dict):
        raise _Refused(f"it holds a {type(loaded).__name__}, not a dict of tensors")
    wrapped = [dict.get(loaded, key) for key in _WRAPPERS]
    entries = next((entry for entry in wrapped if isinstance(entry, dict)), loaded)
    # dict's own method: a pickle may put an attribute `items` on an OrderedDict.
    tensors = {
        name: value
        for name, value in dict.items(entries)
        if isinstance(name, str) and isinstance(value, _Tensor)
    }
    if not tensors:
        raise _Refused(f"it holds no tensors, only {reprlib.repr(list(entries))}")
    for name, tensor in tensors.items():
        if not isinstance(tensor.storage, _Storage):
            raise _Refused(f"tensor {name} has no storage")
    return tensors


def _array(name: str, tensor: _Tensor, block: bytes | memoryview) -> np.ndarray:
    """The tensor's elements as a read-only view of its storage's bytes."""
    storage, offset, shape, strides = tensor
    dtype = _DTYPES[storage.kind]
    if len(block) != storage.size * dtype.itemsize:
        raise _Refused(
            f"the storage of tensor {name} has {len(block)} bytes; expected {storage.size} of "
            f"{dtype.itemsize}"
        )
    for what, numbers in (("offset", (offset,)), ("shape", shape), ("strides", strides)):
        if not isinstance(numbers, tuple) or not all(
            isinstance(number, int) and number >= 0 for number in numbers
        ):
            raise _Refused(f"tensor {name} has {what} {reprlib.repr(numbers)}")
    if len(shape) != len(strides):
        raise _Refused(f"tensor {name} has shape {shape} and strides {strides}")
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= storage.size:
        raise _Refused(
            f"tensor {name} of shape {shape} reaches element {last} of a storage of {storage.size}"
        )
    return np.lib.stride_tricks.as_strided(
        np.frombuffer(block, dtype)[offset:],
        shape,
        [step * dtype.itemsize for step in strides],
        writeable=False,
    )


def _without_prefixes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = dict(arrays)
    # One may stand before another.
    while prefix := next(
        (p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None
    ):
        tensors = {name[len(prefix) :]: array for name, array in tensors.items()}
    return tensors
