"""``.npz`` files read in bounded memory, whatever their headers promise."""

import math
import zipfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

MAX_UNPACKED = 2**31
"""Bytes of compressed arrays, which must be unpacked whole."""


def names_of(archive: zipfile.ZipFile) -> list[str]:
    """The arrays of a file, in order."""
    return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


def read(stream: BinaryIO, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file of ``numpy.savez``: those named, or all.

    Raises:
      ValueError: it is none, or would unpack to more than `MAX_UNPACKED` bytes.
      KeyError: an array is not there.
    """
    with opened(stream) as archive:
        wanted = names_of(archive) if names is None else names
        require_room(archive, wanted)
        return {name: array_of(archive, name) for name in wanted}


def opened(stream: BinaryIO) -> zipfile.ZipFile:
    """The archive that the file is.

    Raises:
      ValueError: it is none.
    """
    try:
        return zipfile.ZipFile(stream)
    except zipfile.BadZipFile as error:
        raise ValueError("it is no .npz file, as numpy.savez writes it") from error


def require_room(archive: zipfile.ZipFile, names: Sequence[str]) -> None:
    """Raises ValueError unless the compressed ones of these arrays unpack to `MAX_UNPACKED`."""
    members = [archive.getinfo(f"{name}.npy") for name in names]
    unpacked = sum(m.file_size for m in members if m.compress_type != zipfile.ZIP_STORED)
    if unpacked > MAX_UNPACKED:
        raise ValueError(
            f"{', '.join(names)[:80]} is compressed and unpacks to {unpacked} bytes; expected at "
            f"most {MAX_UNPACKED} (numpy.savez writes it uncompressed)"
        )


def array_of(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, read whole; memory is taken only for what is there.

    Raises:
      ValueError, KeyError: as `layout_of`.
    """
    layout_of(archive, name)
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def layout_of(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """An array's shape, whether columns come first, its dtype, and at which byte it starts.

    Raises:
      ValueError: it holds Python objects, or has another length than its header promises.
      KeyError: it is not there.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    held, promised = member.file_size - start, math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or held != promised:
        raise ValueError(f"{name} has {held} bytes; its shape {shape} has {promised}"[:200])
    return shape, fortran, dtype, start


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"its array has format {version}; expected 1.0 or 2.0")
    return read_header(stream)
