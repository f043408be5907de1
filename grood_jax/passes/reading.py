"""Reading sets of images as an evaluation does, with what could not be read."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from grood_jax import benchmarks
from grood_jax.data import ArraySet, Batch, ImageSet, Preprocessing, batches, builtin
from grood_jax.data.sets import UnreadableImage
from grood_jax.passes.forward import TrainingBatches
from grood_jax.passes.processes import Processes


@dataclass(frozen=True)
class BadImages:
    """Images that could not be read, by their sets and rows, with what was wrong."""

    found: dict[str, dict[int, str]] = field(default_factory=dict)

    def of(self, images: ImageSet) -> dict[int, str]:
        """Those of a set."""
        return self.found.setdefault(_title(images), {})


def _title(images: ImageSet) -> str:
    """What tells the sets of one evaluation apart."""
    return f"{images.name} of {images.source}"


@dataclass(frozen=True)
class Reader:
    """Batches of sets of images, as a network takes them; of several processes, each its share.

    Attributes:
      preprocessing: normalisation.
      batch_size: rows in each batch.
      progress: shows bars on stderr.
      workers: threads that read; None for the default.
      bad: gathers images that cannot be read, and are left out; None where they end the run.
      crew: the processes that read together.
      as_bytes: leaves normalising to the backbone, in the compiled pass.
    """

    preprocessing: Preprocessing
    batch_size: int
    progress: bool
    workers: int | None = None
    bad: BadImages | None = None
    crew: Processes = Processes()
    as_bytes: bool = False
    _identities: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __call__(
        self, images: ImageSet, name: str, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Batches of a set; of some rows, in their order."""
        chosen = np.arange(len(images)) if rows is None else rows
        return self.crew.share(partial(self._own, images, name), chosen)

    def training(self, images: ImageSet) -> TrainingBatches:
        """Batches of a training set, and again of some of its images that could be read."""
        passed = self.bad is None

        def whole(name: str, rows: np.ndarray) -> Iterable[Batch]:
            nonlocal passed
            yield from self._own(images, name, rows)
            passed = True

        def read(rows: np.ndarray | None) -> Iterable[Batch]:
            everything = np.arange(len(images))
            if rows is None:
                return self.crew.share(partial(whole, "training set"), everything)
            if not passed:
                # Where the network's outputs were recalled, no image has been read yet.
                looking = partial(whole, "looking for unreadable images")
                for _ in self.crew.share(looking, everything):
                    pass
            return self(images, "mix-up", self.readable(images)[rows])

        return read

    def noise(self, count: int, key: Array) -> Iterable[Batch]:
        """Batches of blurred noise."""
        seed = int(jax.random.bits(key))
        size, channels = self.preprocessing.image_size, self.preprocessing.channels
        pixels = builtin.blurred_noise(count, seed, size, channels)
        labels = np.full(count, -1, np.int32)
        return self(ArraySet("noise", "built in", pixels, labels), "noise")

    def identity(self, images: ImageSet) -> dict[str, Any]:
        """What tells sets of images apart."""
        title = _title(images)
        if title not in self._identities:
            # Whatever cannot be read here is met again, and counted then.
            ignore = None if self.bad is None else lambda *_: None
            self._identities[title] = benchmarks.identity(images, ignore)
        return self._identities[title]

    def described(self, images: ImageSet) -> dict[str, Any]:
        """A set's source, size and fingerprint, for the results."""
        found = self.identity(images)
        known = {"source": images.source, "n": len(images), "fingerprint": found["checksum"]}
        return known if self.bad is None else known | {"unreadable": len(self._bad_rows(images))}

    def readable(self, images: ImageSet) -> np.ndarray:
        """Rows that could be read, as far as they were; all processes must ask at the same time."""
        return np.setdiff1d(np.arange(len(images)), self._bad_rows(images))

    def complaints(self) -> list[str]:
        """What was left out, in lines."""
        found = {} if self.bad is None else self.bad.found
        return [
            f"left out {len(rows)} unreadable images of {name}: {next(iter(rows.values()))}"
            + (", …" if len(rows) > 1 else "")
            for name, rows in found.items()
            if rows
        ]

    def _bad_rows(self, images: ImageSet) -> np.ndarray:
        """Rows that could not be read, in any process; all must ask at the same time."""
        own = [] if self.bad is None else sorted(self.bad.of(images))
        return np.unique(self.crew.gathered(np.array(own, np.int32)))

    def _own(self, images: ImageSet, name: str, rows: np.ndarray) -> Iterable[Batch]:
        """This process's batches."""
        found = None if self.bad is None else self.bad.of(images)

        def note(place: int, error: UnreadableImage) -> None:
            assert found is not None
            found[int(rows[place])] = str(error)

        return batches(
            images,
            self.preprocessing,
            batch_size=self.batch_size,
            indices=rows,
            description=name if self.progress else None,
            workers=self.workers,
            on_unreadable=None if found is None else note,
            normalize=not self.as_bytes,
        )
