"""Sets of images as arrays in ``.npz`` files."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.data.folders import require_absent
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import (
    CHEAP,
    Fingerprint,
    UnreadableImage,
    array_bytes,
    fingerprint_of_files,
)
from grood_jax.support import npz
from grood_jax.support.errors import UserError, first_line


@dataclass(frozen=True)
class NpzSet:
    """A set of images in one array, on disk or in memory.

    Attributes:
      name: the set's name in its benchmark.
      source: where it came from, for the results.
      images: (N, H, W) or (N, H, W, C) uint8.
      labels: (N,) int32, −1 where there is none.
      preprocessing: the size and channels that images are brought to.
    """

    name: str
    source: str
    images: np.ndarray
    labels: Int[np.ndarray, " n"]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices.

        Raises:
          UnreadableImage: images are too large to be resized.
        """
        shape = self.preprocessing.shape
        if self.images.shape[1:] in (shape, shape[:2] if shape[2] == 1 else shape):
            # Nothing is to be resized, nor converted: all at once.
            return np.asarray(self.images[indices]).reshape(-1, *shape), self.labels[indices]
        images = np.empty((len(indices), *shape), np.uint8)
        for place, row in enumerate(indices):
            try:
                images[place] = self.preprocessing.fit_pixels(np.asarray(self.images[row]))
            except ValueError as error:
                raise UnreadableImage(f"{self.name}: image {row}: {error}") from error
        return images, self.labels[indices]

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of the arrays; of a large file's name, size and time instead of its images."""
        file = getattr(self.images, "filename", None)
        if content or file is None or self.images.nbytes <= CHEAP:
            contents = array_bytes(self.images) + array_bytes(self.labels)
            return Fingerprint(hashlib.sha256(contents).hexdigest(), "content")
        return fingerprint_of_files([Path(file)], array_bytes(self.labels))


@dataclass(frozen=True)
class NpzSource:
    """A file with an array ``images`` of bytes, (N, H, W) or (N, H, W, C), and perhaps ``labels``.

    As ``numpy.savez`` writes it, images stay on disk until they are asked for; a file of
    ``numpy.savez_compressed`` is unpacked into memory.

    Attributes:
      file: relative to the data directory.
    """

    file: str
    kind: ClassVar[str] = "npz"

    @property
    def place(self) -> str:
        """Where it is looked for."""
        return self.file

    def open(self, name: str, data_dir: Path, preprocessing: Preprocessing) -> NpzSet | None:
        """Opens the file, or returns None if it is not there.

        Args:
          name: the set's name in its benchmark.
          data_dir: where the file lies.
          preprocessing: the size and channels wanted.

        Raises:
          UserError: it is no such file.
        """
        path = data_dir / self.file
        if not path.is_file():
            require_absent(path, "file")
            return None
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                images = stored_array(path, archive, "images")
                labels = stored_array(path, archive, "labels") if "labels.npy" in names else None
        except UserError:
            raise
        except Exception as error:
            # NumPy and zipfile raise whatever their layers raise on a broken file.
            why = first_line(error)
            raise UserError(
                f"{path} cannot be read: {why}; expected a file of numpy.savez with an array "
                "'images'"
            ) from error
        channels = images.shape[3] if images.ndim == 4 else 1
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels not in (1, 3):
            raise UserError(
                f"images in {path} has dtype {images.dtype} and shape {images.shape}; expected "
                "uint8, (N, H, W) or (N, H, W, C) with 1 or 3 channels"
            )
        if 0 in images.shape:
            raise UserError(f"images in {path} has shape {images.shape}; expected some pixels")
        if labels is None:
            labels = np.full(len(images), -1, np.int32)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"labels in {path} has dtype {labels.dtype} and shape {labels.shape}; expected "
                f"integers, ({len(images)},)"
            )
        if labels.min() < -1 or labels.max() >= 2**31:
            raise UserError(
                f"labels in {path} run from {labels.min()} to {labels.max()}; expected classes "
                "from 0, or -1 for none"
            )
        return NpzSet(name, f"npz:{self.file}", images, labels.astype(np.int32), preprocessing)


def stored_array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an ``.npz`` file: on disk where it is stored as it is, unpacked where it is not.

    Args:
      path: the file.
      archive: the same, opened.
      name: the array's.

    Raises:
      ValueError: unpacked, it would have more than `grood_jax.support.npz.MAX_UNPACKED` bytes.
      Exception: NumPy and zipfile raise whatever their layers raise on a broken file.
    """
    member = archive.getinfo(f"{name}.npy")
    npz.require_room(archive, [name])
    if member.compress_type != zipfile.ZIP_STORED:
        return npz.array_of(archive, name)
    shape, fortran, dtype, start = npz.layout_of(archive, name)
    with path.open("rb") as file:
        # The member's own header: 30 bytes, whose last four are the lengths of what follows.
        file.seek(member.header_offset + 26)
        lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    offset = member.header_offset + 30 + lengths + start
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
