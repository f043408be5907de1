"""Directories that hold arrays and a manifest, checked when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.storage import checkpoints
from grood_jax.support import provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.structures import Arrays

FORMAT = 1
"""Of the directory; to be raised when an older grood-jax could not read it."""


def save(directory: Path, kind: str, arrays: Arrays, about: Mapping[str, Any]) -> None:
    """Writes arrays and a manifest, in place of what was saved there before.

    Killed at any moment, it leaves what was there before or what is new, whole.

    Args:
      directory: where to; made if it is not there.
      kind: what it is, in a word; a directory of another kind is not overwritten.
      arrays: arrays by name.
      about: the rest, in JSON's types.

    Raises:
      UserError: the directory cannot be written to, or holds something else.
    """
    import orbax.checkpoint as ocp

    directory = checkpoints.place(directory)
    require_directory("path", directory)
    latest = checkpoints.latest_step(directory)
    if latest is not None and not (directory / str(latest) / kind).is_dir():
        raise UserError(f"{directory} holds a checkpoint that is no {kind}; choose another path")
    manifest = {
        "format": FORMAT,
        "versions": provenance.versions(),
        "about": dict(about),
        "arrays": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in arrays.items()
        },
        "checksums": {name: _checksum(array) for name, array in arrays.items()},
    }
    manifest["checksum"] = _manifest_checksum(manifest)
    items = {
        kind: ocp.args.JsonSave(manifest),
        "arrays": ocp.args.StandardSave(_stored(arrays)),
    }
    with checkpoints.manager(directory, kept=1) as opened:
        opened.save(0 if latest is None else latest + 1, args=ocp.args.Composite(**items))


def load(directory: Path, kind: str, how_to_make: str) -> tuple[dict[str, Any], Arrays]:
    """Reads what `save` wrote: what it is about, and the arrays.

    Args:
      directory: where it lies.
      kind: what it must be.
      how_to_make: what to do where there is none.

    Raises:
      UserError: there is none, it is of another kind, of a newer format, incomplete, or not what
        was saved.
    """
    directory = checkpoints.place(directory)
    step = checkpoints.latest_step(directory)
    if step is None:
        raise UserError(f"there is no {kind} in {directory}; {how_to_make}")
    if not (directory / str(step) / kind).is_dir():
        raise UserError(f"{directory} holds a checkpoint that is no {kind}")
    with checkpoints.manager(directory, kept=1) as opened:
        manifest = checkpoints.restore(opened, directory, step, kind)
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if not isinstance(found, int):
            raise UserError(f"the {kind} in {directory} is damaged: its manifest has no format")
        # The checksum says that it is as it was written, not by whom.
        with checkpoints.described(f"the {kind} in {directory}"):
            if found > FORMAT:
                version = manifest.get("versions", {}).get("grood-jax", "a newer version")
                raise UserError(
                    f"the {kind} in {directory} has format {found}, of grood-jax {version}; this "
                    f"one reads up to {FORMAT}: upgrade it"
                )
            if manifest.get("checksum") != _manifest_checksum(manifest):
                raise UserError(f"the {kind} in {directory} is damaged: its manifest was altered")
            like = {
                name: np.empty(layout["shape"], np.dtype(layout["dtype"]))
                for name, layout in manifest["arrays"].items()
            }
            about, checksums = dict(manifest["about"]), dict(manifest["checksums"])
        arrays = checkpoints.restore(opened, directory, step, "arrays", _stored(like))
    arrays = {name: np.asarray(arrays.get(name, empty)) for name, empty in like.items()}
    for name, array in arrays.items():
        if _checksum(array) != checksums.get(name):
            raise UserError(
                f"the {kind} in {directory} is damaged: the array {name} is not what was saved"
            )
    return about, arrays


def _stored(arrays: Arrays) -> Arrays:
    # Orbax stores no array without elements; the manifest tells what they were. Of nothing it
    # stores nothing at all, so there is always one.
    return {name: a for name, a in arrays.items() if a.size} or {"none": np.zeros(1, np.int8)}


def _checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _manifest_checksum(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
