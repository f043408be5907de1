"""What everything that is kept on disk says of itself, and what is said when it does not hold.

A manifest is one object of JSON: the format's number, the kind of thing, the versions that wrote
it, what it is about, dtype, shape and checksum of each array, and a checksum of all that.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grood_jax.support import provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import read_text, written_whole
from grood_jax.support.structures import Arrays, is_key, storable

FORMAT = 2
"""Of all manifests; to be raised when an older grood-jax could not read what is written now.

Format 1, of 0.1.0, was five formats; `grood_jax.storage.earlier` and
`grood_jax.conformal.drift` read what it wrote.
"""


_GROUP = "values"


@dataclass(frozen=True)
class Layout:
    """What an array is, without the array.

    Attributes:
      dtype: its dtype.
      shape: its shape.
      checksum: its `fingerprint_of`, under its name.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    checksum: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read, and found to be as it was written.

    Attributes:
      kind: what it is of, in a word or two.
      place: where it lies, for messages.
      about: what else is said, in JSON's types.
      arrays: layouts by name, group by group.
    """

    kind: str
    place: str
    about: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, Layout]]

    def check(self, group: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises UserError unless the arrays of a group are those that were saved."""
        for name, layout in self.arrays[group].items():
            if name not in arrays or checksum(name, arrays[name]) != layout.checksum:
                raise self.damaged(f"the array {name} is not what was saved")

    def damaged(self, why: str) -> UserError:
        """The error of something that is not as it was written."""
        return damaged(self.kind, self.place, why)


def fingerprint_of(arrays: Any) -> str:
    """A SHA-256 over names, shapes, dtypes and bytes of a pytree of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(storable(value) if is_key(value) else value)
        dtype = value.dtype if is_key(value) else array.dtype
        digest.update(f"{jax.tree_util.keystr(path)} {dtype} {array.shape}".encode())
        # Not of a copy: outputs of a large set fill half the memory.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def checksum(name: str, array: np.ndarray) -> str:
    """The `fingerprint_of` one array under its name."""
    return fingerprint_of({name: array})


def write(kind: str, about: Mapping[str, Any], groups: Mapping[str, Arrays]) -> dict[str, Any]:
    """A manifest in JSON's types, for `read`.

    Args:
      kind: what it is of.
      about: what else to say, in JSON's types.
      groups: all arrays by name, group by group.
    """
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "versions": provenance.versions(),
        "about": dict(about),
        "arrays": {
            group: {
                name: {
                    "dtype": str(array.dtype),
                    "shape": list(array.shape),
                    "checksum": checksum(name, array),
                }
                for name, array in arrays.items()
            }
            for group, arrays in groups.items()
        },
    }
    return manifest | {"checksum": checksum_of(manifest)}


def read(contents: Any, kind: str, place: str) -> Manifest:
    """What `write` wrote, or whatever else stands in its place, checked.

    Args:
      contents: JSON.
      kind: what it must be of.
      place: where it lies, for messages.

    Raises:
      UserError: it is of another kind or of a newer format, or it was altered.
    """
    require_format(contents, kind, place, FORMAT)
    # The checksum says that it is as it was written, not by whom.
    with described(kind, place):
        if contents.get("checksum") != checksum_of(contents):
            raise damaged(kind, place, "its manifest was altered")
        if contents["kind"] != kind:
            raise another(contents["kind"], kind, place)
        arrays = {
            group: {
                name: Layout(
                    np.dtype(layout["dtype"]), _shape(layout["shape"]), str(layout["checksum"])
                )
                for name, layout in layouts.items()
            }
            for group, layouts in contents["arrays"].items()
        }
        return Manifest(kind, place, dict(contents["about"]), arrays)


def write_file(path: Path, kind: str, about: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes a few small arrays as one file of JSON, in place of the one that is there.

    Raises:
      UserError: it cannot be written, or what is there is no regular file.
    """
    contents = write(kind, about, {_GROUP: arrays})
    contents["values"] = {name: array.tolist() for name, array in arrays.items()}
    contents["checksum"] = checksum_of(contents)
    text = json.dumps(contents) + "\n"
    try:
        if path.exists() and not path.is_file():
            # To replace a device or a pipe would take it from everybody.
            raise UserError(f"{path} is no regular file; choose another path")
        with written_whole(path) as unfinished:
            unfinished.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        # A path with a zero byte.
        raise UserError(f"{str(path)!r} cannot be written: {error}") from error


def read_file(path: Path, kind: str, how_to_make: str) -> dict[str, Any]:
    """The JSON of a file of `write_file`, for `values_of`; nothing but its format is checked.

    Raises:
      UserError: there is no such file, it is no JSON, or its format is newer.
    """
    try:
        contents = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise absent(kind, path, how_to_make) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(kind, path, "it is no JSON") from error
    require_format(contents, kind, str(path), FORMAT)
    return contents


def values_of(contents: dict[str, Any], kind: str, place: str) -> tuple[Manifest, Arrays]:
    """What `write_file` wrote, checked.

    Raises:
      UserError: as `read`; or the arrays are not those that were saved.
    """
    manifest = read(contents, kind, place)
    with described(kind, place):
        values = contents["values"]
        arrays = {
            name: np.array(values[name], layout.dtype)
            for name, layout in manifest.arrays[_GROUP].items()
        }
        manifest.check(_GROUP, arrays)
    return manifest, arrays


def require_format(contents: Any, kind: str, place: str, newest: int) -> int:
    """The number of a manifest's format.

    Raises:
      UserError: there is none, or it is newer than ``newest``.
    """
    number = contents.get("format") if isinstance(contents, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise damaged(kind, place, "its manifest has no format")
    if number > newest:
        with described(kind, place):
            version = contents.get("versions", {}).get("grood-jax", "a newer version")
        raise UserError(
            f"the {kind} in {place} has format {number}, of grood-jax {version}; this one reads up "
            f"to {newest}: upgrade it"
        )
    return number


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """The checksum of a manifest, of all but itself."""
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def absent(kind: str, place: Any, how_to_make: str) -> UserError:
    """The error of a place where there is none."""
    return UserError(f"there is no {kind} in {place}; {how_to_make}")


def damaged(kind: str, place: Any, why: str) -> UserError:
    """The error of something that is not as it was written."""
    return UserError(f"the {kind} in {place} is damaged: {why}"[:500])


def another(held: Any, kind: str, place: Any) -> UserError:
    """The error of a place that holds something else."""
    return UserError(f"{place} holds {_article(str(held)[:40])}; expected {_article(kind)}")


@contextlib.contextmanager
def described(kind: str, place: Any) -> Iterator[None]:
    """Raises UserError for whatever a description that was altered makes its readers raise."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise damaged(
            kind, place, f"{type(error).__name__} ({error}), or another version wrote it"
        ) from error


def _shape(saved: Any) -> tuple[int, ...]:
    shape = tuple(saved)
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"a shape is {saved}")
    return shape


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"
