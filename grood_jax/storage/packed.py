"""Arrays and their manifest in one ``.npz`` file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.support import manifest as manifests
from grood_jax.support import npz
from grood_jax.support.files import open_regular, written_whole
from grood_jax.support.manifest import Manifest
from grood_jax.support.structures import Arrays

MANIFEST = "manifest"
"""The array of a file that is its manifest, as text."""


class NoManifest(Exception):
    """A file of arrays without a manifest."""


def write(path: Path, kind: str, about: Mapping[str, Any], arrays: Arrays) -> None:
    """Writes a file whole, in place of the one that is there.

    Args:
      path: the file.
      kind: what it is, for its manifest.
      about: what else that says, in JSON's types.
      arrays: by name; none is called "manifest".

    Raises:
      OSError: it cannot be written.
    """
    manifest = json.dumps(manifests.write(kind, about, {kind: arrays}))
    contents: dict[str, Any] = {MANIFEST: np.array(manifest), **arrays}
    with written_whole(path) as unfinished:
        np.savez(unfinished, **contents)


def read(path: Path, kind: str) -> tuple[Manifest, Arrays]:
    """What `write` wrote, checked.

    Raises:
      Exception: whatever NumPy's and zipfile's layers raise on a broken file; UserError where it is
        of another kind, or not as it was written; NoManifest where it has none.
    """
    # Opened here: NumPy leaves a broken file open.
    with open_regular(path) as stream:
        arrays = npz.read(stream)
    manifest = _manifest(arrays, kind, path)
    layouts = manifest.arrays[kind]
    # Files of NumPy do not know low precision by name.
    arrays = {
        name: array.view(layouts[name].dtype) if array.dtype.kind == "V" else array
        for name, array in arrays.items()
        if name != MANIFEST
    }
    manifest.check(kind, arrays)
    return manifest, arrays


def manifest_of(path: Path, kind: str) -> Manifest:
    """The manifest alone; raises as `read`, where that is broken."""
    with open_regular(path) as stream:
        return _manifest(npz.read(stream, (MANIFEST,)), kind, path)


def _manifest(arrays: Arrays, kind: str, path: Path) -> Manifest:
    if MANIFEST not in arrays:
        raise NoManifest(f"{path} has no manifest")
    return manifests.read(json.loads(str(arrays[MANIFEST][()])), kind, str(path))
