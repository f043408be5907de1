"""What a set of images is, and sets held in memory."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.support.errors import UserError


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
        # Spaced over the whole set: many sets are stored class by class. The product outgrows
        # the 32 bits of row numbers that come from JAX.
        spaced = np.asarray(indices, np.int64) * len(self.full) // len(self)
        return self.full.read(spaced)


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
