"""What a pass has made so far, on disk: a pass that was ended is taken up again."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grood_jax.passes.memo import Arrays
from grood_jax.storage import packed
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.manifest import Manifest

KIND = "part of outputs"


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
    _failed: list[str] = field(default_factory=list, repr=False)

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
        """Writes a part; where that fails, one line says so and no further one is tried."""
        if self._failed:
            return
        about = {**self.about, "part": dict(facts)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            packed.write(self._path(name), KIND, about, arrays)
        except OSError as error:
            self._failed.append(name)
            self.say(f"cache: {self._path(name)} could not be written ({error}); going on without")

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
