"""Images in folders: as OpenOOD lists them, or in a folder for each class."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.data import pictures
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import (
    Fingerprint,
    UnreadableImage,
    array_bytes,
    fingerprint_of_files,
)
from grood_jax.support.errors import UserError, first_line

SHOWN = 3
"""Files that a message names of those that are left out."""

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
      left_out: what lies in the folder and is not in the set, in lines for the user.
    """

    name: str
    source: str
    root: Path
    paths: tuple[str, ...]
    labels: Int[np.ndarray, " n"]
    preprocessing: Preprocessing
    left_out: tuple[str, ...] = ()

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
                images[place] = self.preprocessing.decode(
                    path.read_bytes(), formats=pictures.file_formats()
                )
            except (OSError, ValueError) as error:
                why = isinstance(error, OSError) and error.strerror or first_line(error)
                raise UnreadableImage(f"{self.name}: {path} cannot be read: {why}") from error
        return images, self.labels[indices]

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of all files and labels."""
        files = (self.root / path for path in self.paths)
        return fingerprint_of_files(files, array_bytes(self.labels), content, self.root)


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
            require_absent(listing, "file")
            return None
        content = listing.read_bytes()
        paths, labels, lines = _parse(listing, content)
        # OpenOOD's lists come for all benchmarks at once, its images set by set.
        if not any((root / top).exists() for top in {PurePath(path).parts[0] for path in paths}):
            return None
        rows = np.linspace(0, len(paths) - 1, min(len(paths), LOOKED_FOR)).astype(np.int64)
        absent = [row for row in rows if not (root / paths[row]).is_file()]
        if absent:
            raise UserError(
                f"{listing} lists images that are missing: {root / paths[absent[0]]} "
                f"({len(absent)} of {len(rows)} looked for; this one stands in line "
                f"{lines[absent[0]]})"
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
            require_absent(root, "folder")
            return None
        files = files_in(root, pictures.suffixes())
        paths, left_out = files.paths, files.complaints(root)
        if not paths:
            why = "".join(f"; {line}" for line in left_out)
            raise UserError(f"{root} holds no images ({', '.join(pictures.suffixes())}){why}")
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
        return FolderSet(
            name, f"folder:{self.folder}", root, paths, labels, preprocessing, left_out
        )


@dataclass(frozen=True)
class Files:
    """The files in a folder and all its subfolders.

    Attributes:
      paths: of the wanted files, from the folder, in order.
      left_out: what is not among them, by the reason.
    """

    paths: tuple[str, ...]
    left_out: dict[str, list[str]]

    def complaints(self, root: Path) -> tuple[str, ...]:
        """What is left out, in lines."""
        return tuple(
            f"left out of {root}: {len(paths)} {why} ({', '.join(sorted(paths)[:SHOWN])}"
            + (", …)" if len(paths) > SHOWN else ")")
            for why, paths in self.left_out.items()
        )


OTHERS, AGAIN = "that are no images by their names", "folders that links name again"
"""Why things are left out of which nothing is lost; for any other reason, something may be."""


def files_in(root: Path, suffixes: Sequence[str]) -> Files:
    """Looks for files in a folder, its subfolders, and folders elsewhere that links in it name.

    Each folder is looked through once: a link to one that is, its own folder or one above it, is
    left out. So are links to nothing and what is no regular file; hidden files without a word,
    unless their names are wanted.

    Args:
      root: the folder.
      suffixes: of the names wanted, lower case.
    """
    paths: list[str] = []
    left_out: dict[str, list[str]] = {}
    top = os.path.realpath(root)
    seen: set[str] = set()
    folders, links = [""], list[str]()
    while folders or links:
        # What lies here comes before what links name.
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(os.path.join(root, folder))
        if real in seen or top.startswith(os.path.join(real, "")):
            left_out.setdefault(AGAIN, []).append(folder)
            continue
        seen.add(real)
        try:
            names = sorted(os.listdir(real))
        except OSError as error:
            why = f"folders that cannot be read: {error.strerror}"
            left_out.setdefault(why, []).append(folder or ".")
            continue
        for name in names:
            path = os.path.join(folder, name)
            place = os.path.join(real, name)
            if os.path.isdir(place):
                (links if os.path.islink(place) else folders).append(path)
            elif not os.path.exists(place):
                left_out.setdefault("links to nothing", []).append(path)
            elif not os.path.isfile(place):
                left_out.setdefault("that are no regular files", []).append(path)
            elif name.lower().endswith(tuple(suffixes)):
                paths.append(path)
            elif not name.startswith("."):
                left_out.setdefault(OTHERS, []).append(path)
    return Files(tuple(sorted(paths)), left_out)


def require_absent(path: Path, kind: str) -> None:
    """Refuses what lies where a set is looked for, and is not of its kind: it is not missing.

    Raises:
      UserError: something is there.
    """
    if os.path.lexists(path):
        is_link = path.is_symlink() and not path.exists()
        raise UserError(f"{path} is {'a link to nothing' if is_link else f'no {kind}'}")


def _parse(
    listing: Path, content: bytes
) -> tuple[tuple[str, ...], Int[np.ndarray, " n"], list[int]]:
    """Paths, labels, and the lines that they stand in."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{listing} is text in UTF-16; expected UTF-8")
    paths: list[str] = []
    labels: list[int] = []
    lines: list[int] = []
    # Windows programs put a byte-order mark before UTF-8.
    text = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf"))
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")
        try:
            labels.append(int(label))
        except ValueError:
            path = ""
        quoted = path[:1] in ("'", '"') and path[-1:] == path[:1]
        if not path or quoted or os.path.isabs(path) or not -1 <= labels[-1] < 2**31:
            hint = ", without quotation marks" if line.strip()[:1] in ("'", '"') else ""
            raise UserError(
                f"{listing}, line {number} is {line[:100]!r}; expected a relative path and a "
                f"label{hint}"
            )
        paths.append(path)
        lines.append(number)
    if not paths:
        raise UserError(f"{listing} lists no images")
    return tuple(paths), np.asarray(labels, np.int32), lines
