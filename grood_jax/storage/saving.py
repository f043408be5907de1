"""Directories of one thing each, which a later save replaces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grood_jax.storage import containers
from grood_jax.support import manifest as manifests
from grood_jax.support.files import require_directory
from grood_jax.support.structures import Arrays

GROUP = "arrays"


def save(directory: str | Path, kind: str, arrays: Arrays, about: Mapping[str, Any]) -> None:
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
    directory = containers.place(directory)
    require_directory("path", directory)
    latest = containers.latest_step(directory)
    if latest is not None and (held := containers.kind_in(directory, latest)) != kind:
        raise manifests.another(held, kind, directory)
    step = 0 if latest is None else latest + 1
    with containers.manager(directory, kept=1) as opened:
        containers.save(opened, step, kind, about, {GROUP: arrays})


def load(directory: str | Path, kind: str, how_to_make: str) -> tuple[dict[str, Any], Arrays]:
    """Reads what `save` wrote: what it is about, and the arrays.

    Args:
      directory: where it lies.
      kind: what it must be.
      how_to_make: what to do where there is none.

    Raises:
      UserError: there is none, it is of another kind, of a newer format, incomplete, or not what
        was saved.
    """
    container = containers.open_latest(directory, kind, how_to_make)
    return dict(container.manifest.about), container.read(GROUP)
