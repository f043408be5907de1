"""What a pass has made so far, on disk: a pass that was ended is taken up again."""

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grood_jax.passes.memo import Arrays
from grood_jax.storage import packed
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.manifest import Manifest

KIND = "part of outputs"

SUMS = ("means", "counts")
"""Arrays of sums, which are not kept beside the whole."""


@dataclass(frozen=True)
class PartsFolder:
    """A `grood_jax.passes.memo.Parts` whose parts are ``.npz`` files in a folder of their own.

    Each is written whole or not at all, has checksums, and says what it is about.

    Attributes:
      folder: where they lie; made with the first part.
      about: what decides the results of the pass, in JSON's types.
      say: takes lines.
    """

    folder: Path
    about: Mapping[str, Any]
    say: Callable[[str], None]

    @property
    def there(self) -> bool:
        """Whether there is any."""
        return self.folder.is_dir()

    def names(self) -> list[str]:
        """Names of all parts, in order."""
        found = (path.stem for path in self.folder.glob("*.npz"))
        return sorted(name for name in found if not name.startswith("."))

    def facts(self, name: str) -> Mapping[str, Any]:
        """What was said of a part; its arrays are not looked at.

        Raises:
          UserError: it cannot be read, or is about something else.
        """
        return self._checked(name, lambda path: (packed.manifest_of(path, KIND), {}))[0]

    def read(self, name: str) -> Arrays:
        """The arrays of a part, checked.

        Raises:
          UserError: it cannot be read, was altered, or is about something else.
        """
        return self._checked(name, lambda path: packed.read(path, KIND))[1]

    def write(self, name: str, facts: Mapping[str, Any], arrays: Arrays) -> None:
        """Writes a part, in the place of that of the same name.

        Raises:
          UserError: it cannot be written.
        """
        about = {**self.about, "part": dict(facts)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            packed.write(self._path(name), KIND, about, arrays)
        except OSError as error:
            raise UserError(f"{self._path(name)} could not be written ({error})") from error

    def remove_all_of(self, held: Collection[str]) -> None:
        """Removes all, unless a part has arrays of other names than those that are held."""
        for name in self.names():
            try:
                arrays = packed.manifest_of(self._path(name), KIND).arrays[KIND]
            except Exception:
                # What is damaged is of no use to anybody.
                continue
            if not set(arrays) <= {*held, *SUMS}:
                return
        self.remove()

    def remove(self) -> None:
        """Removes all, with what killed processes left unfinished among them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _checked(
        self, name: str, read: Callable[[Path], tuple[Manifest, Arrays]]
    ) -> tuple[Mapping[str, Any], Arrays]:
        path = self._path(name)
        try:
            manifest, arrays = read(path)
        except Exception as error:
            # NumPy and zipfile raise whatever their layers raise on a broken file.
            raise UserError(f"{path} is damaged ({first_line(error)})") from error
        about = dict(manifest.about)
        facts = about.pop("part", None)
        if facts is None or about != self.about:
            raise UserError(f"{path} is about something else")
        return facts, arrays
