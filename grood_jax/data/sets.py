"""What a set of images is, and sets held in memory."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.support.errors import UserError

CHEAP = 2**28
"""Bytes of a set's files up to which its fingerprint is of their content unless asked otherwise."""

SAMPLED = 16
"""Images that stand for a set where processes ask whether they have the same."""

PIECE = 256
"""Images whose labels are read at once."""


class UnreadableImage(UserError):
    """An image that cannot be read, named with its place; others of its set may be readable."""


@runtime_checkable
class ImageSet(Protocol):
    """A set of labelled images with random access, at the size that the network takes."""

    @property
    def name(self) -> str:
        """The set's name in its benchmark."""
        ...

    @property
    def source(self) -> str:
        """Where it came from, for the results."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices; label −1 where there is none.

        Several threads may read at the same time.

        Raises:
          UnreadableImage: an image cannot be read.
        """
        ...


@dataclass(frozen=True)
class Fingerprint:
    """What tells sets apart, down to each image and label.

    Attributes:
      checksum: a SHA-256, hexadecimal.
      of: what it is of: all content; or, of large files, names, sizes and times of change. Labels
        are in either.
    """

    checksum: str
    of: Literal["content", "files"]


@runtime_checkable
class Fingerprinted(Protocol):
    """A set that has a fingerprint without its images being decoded."""

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """The fingerprint; of all content on request, however much that is."""
        ...


def fingerprint_of_files(
    files: Iterable[Path], about: bytes, content: bool = False, root: Path | None = None
) -> Fingerprint:
    """The fingerprint of files: of their content if it is asked for, or no more than `CHEAP`.

    Args:
      files: the files; one that is missing is told from one that is there.
      about: what else the set consists of: labels.
      content: read them, however large they are.
      root: names count from there.
    """
    digest = hashlib.sha256(about)
    found: list[tuple[Path, os.stat_result | None]] = []
    for path in files:
        try:
            found.append((path, path.stat()))
        except (OSError, ValueError):
            found.append((path, None))
    whole = content or sum(facts.st_size for _, facts in found if facts is not None) <= CHEAP
    for path, facts in found:
        name = os.path.relpath(path, root) if root is not None else path.name
        size = None if facts is None else facts.st_size
        digest.update(f"\0{name!r} {size}".encode())
        if facts is None:
            continue
        if not whole:
            digest.update(f" {facts.st_mtime_ns}".encode())
            continue
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            digest.update(f" {error.errno}".encode())
    return Fingerprint(digest.hexdigest(), "content" if whole else "files")


def fingerprint_of_part(full: Fingerprint, part: bytes) -> Fingerprint:
    """The fingerprint of a part of a set."""
    checksum = hashlib.sha256(full.checksum.encode() + part).hexdigest()
    return Fingerprint(checksum, full.of)


def array_bytes(array: np.ndarray) -> bytes:
    """An array's dtype, shape and SHA-256."""
    digest = hashlib.sha256()
    for start in range(0, len(array), step := max(1, CHEAP // max(1, array[:1].nbytes))):
        digest.update(np.ascontiguousarray(array[start : start + step]).data)
    return f"{array.dtype.str} {array.shape} {digest.hexdigest()}".encode()


def fingerprint(images: ImageSet, content: bool = False) -> Fingerprint:
    """The set's own fingerprint; where it has none, that of all its images, as they are read.

    Args:
      images: the set.
      content: of all content, however much that is.
    """
    if isinstance(images, Fingerprinted):
        return images.fingerprint(content)
    return Fingerprint(_content(images, range(len(images))), "content")


def sample_checksum(images: ImageSet) -> str:
    """A checksum of a few images with their labels, evenly spaced: tells most sets apart, fast."""
    spaced = np.linspace(0, len(images) - 1, min(SAMPLED, len(images)))
    return _content(images, spaced.astype(np.int64).tolist())[:16]


def _content(images: ImageSet, rows: Sequence[int]) -> str:
    """A SHA-256 of images and labels as they are read."""
    digest = hashlib.sha256(str(len(rows)).encode())
    for row in rows:
        try:
            pixels, labels = images.read(np.array([row]))
        except UnreadableImage:
            digest.update(b"unreadable")
        else:
            digest.update(array_bytes(np.asarray(pixels)) + array_bytes(np.asarray(labels)))
    return digest.hexdigest()


@dataclass(frozen=True)
class ArraySet:
    """A set held in memory."""

    name: str
    source: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices."""
        return self.images[indices], self.labels[indices]

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of all images and labels."""
        del content
        contents = array_bytes(self.images) + array_bytes(self.labels)
        return Fingerprint(hashlib.sha256(contents).hexdigest(), "content")


@dataclass(frozen=True)
class LimitedSet:
    """At most ``limit`` images of another set, evenly spaced through it."""

    full: ImageSet
    limit: int
    name: str = field(init=False)
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.full.name)
        object.__setattr__(self, "source", f"{self.full.source} ({len(self)} of {len(self.full)})")

    def __len__(self) -> int:
        """How many images there are."""
        return min(self.limit, len(self.full))

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices."""
        return self.full.read(self.spaced(indices))

    def spaced(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The rows of the whole set."""
        # Spaced over the whole set: many sets are stored class by class. The product outgrows
        # the 32 bits of row numbers that come from JAX.
        return np.asarray(indices, np.int64) * len(self.full) // len(self)

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of the whole set, and how much of it this is."""
        return fingerprint_of_part(fingerprint(self.full, content), f"{len(self)}".encode())


@dataclass(frozen=True)
class PartOfSet:
    """Some rows of another set."""

    full: ImageSet
    rows: Int[np.ndarray, " n"]
    part: str
    name: str = field(init=False)
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.full.name)
        object.__setattr__(self, "source", f"{self.full.source} ({self.part})")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.rows)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices."""
        return self.full.read(self.rows[indices])

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of the whole set, and which part of it this is."""
        rows = array_bytes(np.asarray(self.rows, np.int64))
        return fingerprint_of_part(fingerprint(self.full, content), rows)


def labels_of(images: ImageSet, rows: Int[np.ndarray, " n"] | None = None) -> np.ndarray:
    """The labels of a set, or of some of its rows; images are decoded only where it needs them.

    Args:
      images: the set.
      rows: which; all by default.

    Returns:
      (N,) integers, −1 where there is none.

    Raises:
      UnreadableImage: labels are read with the images, and one of these cannot be.
    """
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    if isinstance(images, LimitedSet):
        return labels_of(images.full, images.spaced(rows))
    if isinstance(images, PartOfSet):
        return labels_of(images.full, images.rows[rows])
    known = getattr(images, "labels", None)
    if known is not None:
        return np.asarray(known)[rows]
    read = getattr(images, "read_labels", None) or (lambda part: images.read(part)[1])
    pieces = [read(rows[start : start + PIECE]) for start in range(0, len(rows), PIECE)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
