"""Directories of arrays with a manifest: written whole or not at all, checked when they are read.

Orbax holds the arrays, one numbered step after another. A step is written beside the others and
then renamed: a reader finds all of it or none.
"""

import contextlib
import gc
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grood_jax.storage import earlier
from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.files import read_text
from grood_jax.support.manifest import Manifest
from grood_jax.support.structures import Arrays

KEPT = 2
"""Steps kept of a training run: the newest, and the one before."""

MANIFEST = "manifest"
"""The item of a step that holds its manifest; its other items hold groups of arrays."""

ABANDONED_SECONDS = 0.5
"""How long reads may still be under way when another read has failed."""


@dataclass(frozen=True)
class Container:
    """A step of a directory; its manifest has been read, and arrays are when they are asked for.

    Attributes:
      directory: where it lies.
      step: its number.
      manifest: what it says of itself.
    """

    directory: Path
    step: int
    manifest: Manifest

    def read(self, group: str) -> Arrays:
        """A group of arrays by name, checked.

        Raises:
          UserError: there is no such group, or it is not what was saved.
        """
        layouts = self.manifest.arrays.get(group)
        if layouts is None:
            raise self.manifest.damaged(f"it has no {group}")
        with manifests.described(self.manifest.kind, self.manifest.place):
            like = {name: np.empty(a.shape, a.dtype) for name, a in layouts.items()}
        stored = restore(self.directory, self.step, group, _stored(like), self.manifest.kind)
        arrays = {name: np.asarray(stored.get(name, empty)) for name, empty in like.items()}
        self.manifest.check(group, arrays)
        return arrays


def place(directory: str | Path) -> Path:
    """The directory's absolute path.

    Raises:
      TypeError: it is no path.
      UserError: no directory can lie there, or none that orbax could write to.
    """
    path = checks.path("directory", directory)
    try:
        absolute = path.expanduser().resolve()
        str(absolute).encode()
        # Raises where no file system could hold such a name.
        absolute.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{str(directory)!r} is the path of no directory: {error}") from error
    return absolute


def latest_step(directory: str | Path) -> int | None:
    """The number of the newest whole step in the directory, if there is one."""
    try:
        names = os.listdir(place(directory))
    except OSError:
        return None
    steps = [int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,18}", name)]
    return max((n for n in steps if (place(directory) / str(n)).is_dir()), default=None)


def open_latest(directory: str | Path, kind: str, how_to_make: str) -> Container:
    """Opens the newest step of a directory; reads its manifest, and no array.

    Args:
      directory: where it lies.
      kind: what it must be.
      how_to_make: what to do where there is none.

    Raises:
      UserError: there is none, it is of another kind or of a newer format, or its manifest is
        missing or altered.
    """
    step = latest_step(directory)
    if step is None:
        raise manifests.absent(kind, directory, how_to_make)
    return open_step(place(directory), step, kind)


def open_step(directory: Path, step: int, kind: str) -> Container:
    """As `open_latest`, of a step that is there."""
    old = None if _has_manifest(directory, step) else earlier.kind_of(_items(directory, step))
    if old is not None and old != kind:
        raise manifests.another(old, kind, directory)
    contents = _read_json(directory, step, earlier.item_of(old) if old else MANIFEST, kind)
    read = earlier.manifest_of if old else manifests.read
    return Container(directory, step, read(contents, kind, str(directory)))


def kind_in(directory: Path, step: int) -> str:
    """What a step is of, by its own word; nothing is checked."""
    if not _has_manifest(directory, step):
        return earlier.kind_of(_items(directory, step)) or "checkpoint of something else"
    contents = _read_json(directory, step, MANIFEST, "checkpoint")
    return str(contents.get("kind")) if isinstance(contents, dict) else "damaged checkpoint"


def _has_manifest(directory: Path, step: int) -> bool:
    return (directory / str(step) / MANIFEST).is_dir()


def _items(directory: Path, step: int) -> set[str]:
    return {path.name for path in (directory / str(step)).iterdir() if path.is_dir()}


def require_unused(directory: str | Path) -> Path:
    """Refuses a directory that is in use, or makes it.

    Raises:
      UserError: it holds a step already, or cannot be made.
    """
    absolute = place(directory)
    if latest_step(absolute) is not None:
        raise UserError(f"{directory} holds a checkpoint already; choose another directory")
    try:
        absolute.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made: {error.strerror}") from error
    return absolute


@contextlib.contextmanager
def manager(directory: str | Path, kept: int = KEPT) -> Iterator[Any]:
    """An orbax manager that writes steps into the directory, and removes old ones."""
    import orbax.checkpoint as ocp

    with _quiet():
        several: dict[str, Any] = {}
        if jax.process_count() > 1:
            # Each of several processes reads, or one writes, without waiting for the others.
            place(directory).mkdir(parents=True, exist_ok=True)
            several = {"create": False, "multiprocessing_options": _alone()}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=kept, enable_async_checkpointing=False, **several
        )
        with ocp.CheckpointManager(place(directory), options=options) as opened:
            yield opened


def save(
    opened: Any, step: int, kind: str, about: Mapping[str, Any], groups: Mapping[str, Arrays]
) -> None:
    """Writes one step: all of it or, when killed, nothing.

    Args:
      opened: from `manager`.
      step: its number.
      kind: what it is, in a word or two.
      about: what else to say of it, in JSON's types.
      groups: arrays by name, group by group; each group can be read alone.
    """
    import orbax.checkpoint as ocp

    items: dict[str, Any] = {
        group: ocp.args.StandardSave(_stored(arrays)) for group, arrays in groups.items()
    }
    items[MANIFEST] = ocp.args.JsonSave(manifests.write(kind, about, groups))
    opened.save(step, args=ocp.args.Composite(**items))


def _read_json(directory: Path, step: int, item: str, kind: str) -> Any:
    try:
        return json.loads(read_text(directory / str(step) / item / "metadata"))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise manifests.damaged(kind, directory, f"its {item} cannot be read ({why})") from error


def restore(directory: Path, step: int, item: str, like: Any, kind: str) -> Any:
    """Reads the arrays of an item of a step; ``like`` are NumPy's, of their dtypes and shapes.

    Raises:
      UserError: it is not there, or damaged.
    """
    import orbax.checkpoint as ocp

    options = {"multiprocessing_options": _alone()} if jax.process_count() > 1 else {}
    try:
        with (
            _quiet(),
            _abandoned_reads(),
            ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options) as reader,
        ):
            return reader.restore(
                place(directory) / str(step) / item, args=ocp.args.StandardRestore(like)
            )
    except Exception as error:
        # Orbax and tensorstore raise whatever their layers raise on a missing or broken file.
        line = first_line(error).split(" See full ")[0]
        raise manifests.damaged(kind, directory, f"its {item} cannot be read ({line})") from error


def _stored(arrays: Arrays) -> Arrays:
    # Orbax stores no array without elements; the manifest tells what they were. Of nothing it
    # stores nothing at all, so there is always one.
    return {name: a for name, a in arrays.items() if a.size} or {"none": np.zeros(1, np.int8)}


def _alone() -> Any:
    """Options by which a process waits for no other."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


@contextlib.contextmanager
def _abandoned_reads() -> Iterator[None]:
    """Waits for reads that tensorstore has under way when another one fails.

    They report to an event loop that orbax has closed by then, and Python would print that.
    """
    before = sys.unraisablehook

    def others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = others
    try:
        yield
    except Exception:
        time.sleep(ABANDONED_SECONDS)
        gc.collect()
        raise
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
