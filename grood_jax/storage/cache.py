"""A network's outputs on disk, so that a second evaluation runs no network."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from grood_jax.passes.memo import Arrays, Form
from grood_jax.storage.checkpoints import fingerprint_of
from grood_jax.support.files import written_whole

T = TypeVar("T")


@dataclass(frozen=True)
class OutputsCache:
    """A `grood_jax.passes.memo.Memo` that keeps arrays in ``.npz`` files.

    A file is used only if it is whole (its checksum is that of its arrays) and about just what is
    asked for. Arrays that it lacks are made, and join it.

    Attributes:
      directory: where the files lie.
      about: what all entries depend on: the network, its preprocessing, versions.
      say: takes lines on files that could not be used or written.
    """

    directory: Path
    about: Mapping[str, Any]
    say: Callable[[str], None]

    def __call__(self, about: Mapping[str, Any], form: Form[T], make: Callable[[], T]) -> T:
        """Results of an earlier call about the same, or else what ``make`` returns.

        Args:
          about: what decides them, in JSON's types.
          form: how they are arrays.
          make: computes them.
        """
        key = json.dumps({**self.about, **about}, sort_keys=True)
        path = self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        held = self._read(path, key)
        if all(name in held or f"{name} 0" in held for name in form.names):
            return form.from_arrays(held)
        results = make()
        self._write(path, key, held | form.to_arrays(results))
        return results

    def _read(self, path: Path, key: str) -> Arrays:
        if not path.exists():
            return {}
        try:
            # Opened here: NumPy leaves a broken file open.
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = dict(file)
            about, fingerprint = (str(arrays.pop(name)) for name in ("about", "fingerprint"))
        except Exception as error:
            # NumPy and zipfile raise whatever their layers raise on a broken file.
            self.say(f"cache: {path} is damaged ({error}); it is made anew")
            return {}
        if about != key or fingerprint != fingerprint_of(arrays):
            self.say(f"cache: {path} is not what was saved; it is made anew")
            return {}
        return arrays

    def _write(self, path: Path, key: str, arrays: Arrays) -> None:
        contents: dict[str, Any] = {"about": key, "fingerprint": fingerprint_of(arrays)}
        try:
            with written_whole(path) as unfinished:
                np.savez(unfinished, **contents | arrays)
        except OSError as error:
            self.say(f"cache: {path} could not be written ({error}); going on without")
