"""A network's outputs on disk, so that a second evaluation runs no network."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from grood_jax.passes.memo import Arrays, Form
from grood_jax.support import manifest as manifests
from grood_jax.support import npz
from grood_jax.support.files import open_regular, written_whole

T = TypeVar("T")

KIND = "outputs"

MANIFEST = "manifest"
"""The array of a file that is its manifest, as text."""


@dataclass(frozen=True)
class OutputsCache:
    """A `grood_jax.passes.memo.Memo` that keeps arrays in ``.npz`` files.

    A file is used only if it is whole (checksums are those of its arrays) and about just what is
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
        everything = json.loads(key)
        path = self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        held = self._read(path, everything)
        if all(name in held or f"{name} 0" in held for name in form.names):
            return form.from_arrays(held)
        results = make()
        self._write(path, everything, held | form.to_arrays(results))
        return results

    def _read(self, path: Path, about: dict[str, Any]) -> Arrays:
        if not path.exists():
            return {}
        try:
            # Opened here: NumPy leaves a broken file open.
            with open_regular(path) as stream:
                arrays = npz.read(stream)
            if MANIFEST not in arrays:
                self.say(f"cache: {path} was written by an earlier version; it is made anew")
                return {}
            contents = json.loads(str(arrays.pop(MANIFEST)[()]))
            manifest = manifests.read(contents, KIND, str(path))
            layouts = manifest.arrays[KIND]
            # Files of NumPy do not know low precision by name.
            arrays = {
                name: a.view(layouts[name].dtype) if a.dtype.kind == "V" else a
                for name, a in arrays.items()
            }
            manifest.check(KIND, arrays)
        except Exception as error:
            # NumPy and zipfile raise whatever their layers raise on a broken file.
            self.say(f"cache: {path} is damaged ({error}); it is made anew")
            return {}
        if manifest.about != about:
            self.say(f"cache: {path} is about something else; it is made anew")
            return {}
        return arrays

    def _write(self, path: Path, about: dict[str, Any], arrays: Arrays) -> None:
        manifest = json.dumps(manifests.write(KIND, about, {KIND: arrays}))
        contents: dict[str, Any] = {MANIFEST: np.array(manifest), **arrays}
        try:
            with written_whole(path) as unfinished:
                np.savez(unfinished, **contents)
        except OSError as error:
            self.say(f"cache: {path} could not be written ({error}); going on without")
