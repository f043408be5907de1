"""The command line that makes an OOD set of folders: ``python -m grood_jax.data.convert``.

For sets that tensorflow-datasets does not have. TensorFlow is not needed.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from grood_jax.cli import command
from grood_jax.data.folders import files_in
from grood_jax.data.preprocessing import decode
from grood_jax.data.tfds import default_data_dir, quiet_tfds
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.progress import says, tell

DESCRIPTION = """Makes a prepared set (ArrayRecord, as tensorflow-datasets has it) of folders of
images, without labels. The images are stored as they are and resized when they are read."""


@dataclass(frozen=True)
class ConvertConfig:
    """Which images, and what they are to be called.

    Attributes:
      name: of the set, such as tiny_imagenet_32.
      test: folder of the test images, searched with all its subfolders.
      validation: folder of held-out images, likewise, if there are any.
      data_dir: the folder of all prepared sets (default: that of tensorflow-datasets).
    """

    name: str = tyro.MISSING
    test: Path = tyro.MISSING
    validation: Path | None = None
    data_dir: Path | None = None


@says
def run(config: ConvertConfig, *, say: Callable[[str], None] = print) -> Path:
    """Writes the set.

    Args:
      config: which images.
      say: takes lines of progress.

    Returns:
      The folder of the prepared set.

    Raises:
      UserError: a folder holds no images, a file cannot be decoded, or the set is there already.
    """
    folders = {"test": config.test, "validation": config.validation}
    files = {n: _images(folder, say) for n, folder in folders.items() if folder is not None}
    folder = (config.data_dir or default_data_dir()).expanduser() / config.name / "1.0.0"
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another name, or remove it")
    with quiet_tfds() as tfds, contextlib.redirect_stdout(sys.stderr):
        tfds.disable_progress_bar()
        _builder(tfds, config.name, files, folder.parents[1]).download_and_prepare()
    say(f"{', '.join(f'{len(paths)} {name}' for name, paths in files.items())} images, {folder}")
    return folder


def _images(folder: Path, say: Callable[[str], None]) -> list[Path]:
    # Of any name: one that is no image is an error.
    files = files_in(folder, ("",))
    if not files.paths:
        raise UserError(f"{folder} holds no files; expected a folder of images")
    for line in files.complaints(folder):
        say(line)
    return [folder / path for path in files.paths]


def _builder(tfds: Any, set_name: str, files: Mapping[str, Sequence[Path]], data_dir: Path) -> Any:
    def read(path: Path) -> bytes:
        encoded = path.read_bytes()
        try:
            decode(encoded, 1, 3)
        except Exception as error:
            # Pillow's many decoders raise whatever they meet.
            raise UserError(f"{path} is no image that can be read: {first_line(error)}") from error
        return encoded

    class Folders(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = set_name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {split: self._generate_examples(paths) for split, paths in files.items()}

        def _generate_examples(self, paths: Sequence[Path]) -> Iterator[tuple[int, Any]]:
            for index, path in enumerate(paths):
                yield index, {"image": read(path)}

    return Folders(data_dir=str(data_dir), file_format="array_record")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(ConvertConfig(), "grood_jax.data.convert", DESCRIPTION, argv)
    return command.status(lambda: run(config, say=tell))
