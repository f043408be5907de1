"""Images in folders: as OpenOOD lists them, or in a folder for each class."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import UnreadableImage
from grood_jax.data.tfds import first_line
from grood_jax.support.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
"""Of image files in a folder."""

LOOKED_FOR = 64
"""Files of a list whose presence is checked before the work begins."""


@dataclass(frozen=True)
class FolderSet:
    """A set of image files, each read when it is asked for.

    Attributes:
      name: the set's name in its benchmark.
      source: where it came from, for the results.
      root: the folder that paths start from.
      paths: of the files.
      labels: (N,) int32, −1 where there is none.
      preprocessing: the size and channels that images are brought to.
    """

    name: str
    source: str
    root: Path
    paths: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.paths)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices.

        Raises:
          UnreadableImage: a file cannot be read, or is no whole image.
        """
        images = np.empty((len(indices), *self.preprocessing.shape), np.uint8)
        for place, row in enumerate(indices):
            path = self.root / self.paths[row]
            try:
                images[place] = self.preprocessing.decode(path.read_bytes())
            except (OSError, ValueError) as error:
                why = isinstance(error, OSError) and error.strerror or first_line(error)
                raise UnreadableImage(f"{self.name}: {path} cannot be read: {why}") from error
        return images, self.labels[indices]


@dataclass(frozen=True)
class ImageListSource:
    """A list of image files with labels, as OpenOOD's ``benchmark_imglist`` holds them.

    Each line is a path and a label with a space in between; −1 is no label.

    Attributes:
      imglist: the list, relative to the data directory.
      images: the folder that paths in the list start from, likewise.

    References:
      OpenOOD v1.5, openood/datasets/imglist_dataset.py.
    """

    imglist: str
    images: str
    kind: ClassVar[str] = "openood"

    @property
    def place(self) -> str:
        """Where it is looked for."""
        return f"{self.imglist} with images"

    def open(self, name: str, data_dir: Path, preprocessing: Preprocessing) -> FolderSet | None:
        """Opens the list, or returns None if it or the folder of its images is not there.

        Args:
          name: the set's name in its benchmark.
          data_dir: the folder of lists and images.
          preprocessing: the size and channels wanted.

        Raises:
          UserError: a line is not of that form, the list is empty, or images are missing.
        """
        listing, root = data_dir / self.imglist, data_dir / self.images
        if not listing.is_file():
            return None
        content = listing.read_bytes()
        paths, labels = _parse(listing, content)
        # OpenOOD's lists come for all benchmarks at once, its images set by set.
        if not (root / PurePath(paths[0]).parts[0]).exists():
            return None
        rows = np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_FOR)).astype(np.int64)
        absent = [paths[row] for row in rows if not (root / paths[row]).is_file()]
        if absent:
            raise UserError(
                f"{listing} lists images that are missing: {root / absent[0]} ({len(absent)} of "
                f"{len(rows)} looked for)"
            )
        source = f"openood:{self.imglist}@{hashlib.sha256(content).hexdigest()[:12]}"
        return FolderSet(name, source, root, paths, labels, preprocessing)


@dataclass(frozen=True)
class FolderSource:
    """All images in a folder, with a subfolder for each class where there are classes.

    Attributes:
      folder: relative to the data directory.
      classes: names of subfolders in the order of the labels; empty for images without labels.
    """

    folder: str
    classes: tuple[str, ...] = ()
    kind: ClassVar[str] = "folder"

    @property
    def place(self) -> str:
        """Where it is looked for."""
        return self.folder

    def open(self, name: str, data_dir: Path, preprocessing: Preprocessing) -> FolderSet | None:
        """Opens the folder, or returns None if it is not there.

        Args:
          name: the set's name in its benchmark.
          data_dir: where the folder lies.
          preprocessing: the size and channels wanted.

        Raises:
          UserError: there are no images in it, or a subfolder that is no class.
        """
        root = data_dir / self.folder
        if not root.is_dir():
            return None
        paths = tuple(sorted(_images_in(root)))
        if not paths:
            raise UserError(f"{root} holds no images ({', '.join(SUFFIXES)})")
        labels = np.full(len(paths), -1, np.int32)
        if self.classes:
            folders = [PurePath(path).parts[0] for path in paths]
            known = {folder: label for label, folder in enumerate(self.classes)}
            strange = sorted(set(folders) - set(known))
            if strange:
                raise UserError(
                    f"{root / strange[0]} is no class; expected folders {', '.join(self.classes)}"
                )
            labels[:] = [known[folder] for folder in folders]
        return FolderSet(name, f"folder:{self.folder}", root, paths, labels, preprocessing)


def _images_in(root: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(folder, file), root)
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES)
    ]


def _parse(listing: Path, content: bytes) -> tuple[tuple[str, ...], Int[np.ndarray, " n"]]:
    paths: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(os.fsdecode(content).splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        try:
            labels.append(int(label))
        except ValueError:
            path = ""
        if not path or os.path.isabs(path) or not -1 <= labels[-1] < 2**31:
            raise UserError(
                f"{listing}, line {number} is {line[:100]!r}; expected a relative path and a label"
            )
        paths.append(path)
    if not paths:
        raise UserError(f"{listing} lists no images")
    return tuple(paths), np.asarray(labels, np.int32)
