"""A network's outputs on disk, so that a second evaluation runs no network."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from grood_jax.passes.memo import Arrays, Form
from grood_jax.storage import packed
from grood_jax.storage.parts import PartsFolder

T = TypeVar("T")

KIND = "outputs"


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
        path, everything = self._place(about)
        held = self._read(path, everything)
        if all(name in held or f"{name} 0" in held for name in form.names):
            # A run may have been killed when all was there, and before it removed them.
            self.parts(about).remove_all_of(held)
            return form.from_arrays(held)
        results = make()
        if self._write(path, everything, held | form.to_arrays(results)):
            self.parts(about).remove()
        return results

    def parts(self, about: Mapping[str, Any]) -> PartsFolder:
        """Where parts of the same lie until all of it is there; see `__call__`."""
        path, everything = self._place(about)
        return PartsFolder(path.with_suffix(".parts"), everything, self.say)

    def _place(self, about: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """The file of results, and what it says that they depend on."""
        key = json.dumps({**self.about, **about}, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.directory / f"{name}.npz", json.loads(key)

    def _read(self, path: Path, about: dict[str, Any]) -> Arrays:
        if not path.exists():
            return {}
        try:
            manifest, arrays = packed.read(path, KIND)
        except packed.NoManifest:
            self.say(f"cache: {path} was written by an earlier version; it is made anew")
            return {}
        except Exception as error:
            # NumPy and zipfile raise whatever their layers raise on a broken file.
            self.say(f"cache: {path} is damaged ({error}); it is made anew")
            return {}
        if manifest.about != about:
            self.say(f"cache: {path} is about something else; it is made anew")
            return {}
        return arrays

    def _write(self, path: Path, about: dict[str, Any], arrays: Arrays) -> bool:
        """Whether it could be written."""
        try:
            packed.write(path, KIND, about, arrays)
        except OSError as error:
            self.say(f"cache: {path} could not be written ({error}); going on without")
            return False
        for left in path.parent.glob(f".*.{path.name}"):
            # By a process that was killed while it wrote.
            left.unlink(missing_ok=True)
        return True
