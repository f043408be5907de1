"""Reading sets of images as an evaluation does, with what could not be read."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from grood_jax import benchmarks
from grood_jax.data import ArraySet, Batch, ImageSet, Preprocessing, Share, batches, builtin
from grood_jax.data.sets import UnreadableImage
from grood_jax.passes.forward import TrainingBatches
from grood_jax.passes.memo import Form, Memo, make_anew
from grood_jax.passes.processes import Processes


@dataclass(frozen=True)
class BadImages:
    """Images that could not be read, by their sets and rows, with what was wrong."""

    found: dict[int, tuple[ImageSet, dict[int, str]]] = field(default_factory=dict)

    def of(self, images: ImageSet) -> dict[int, str]:
        """Those of a set."""
        # By the set itself: two may have the same name and source.
        return self.found.setdefault(id(images), (images, {}))[1]


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
      memo: remembers which images could not be read, as it does what the others gave.
      content: fingerprints are of all content, however much that is.
    """

    preprocessing: Preprocessing
    batch_size: int
    progress: bool
    workers: int | None = None
    bad: BadImages | None = None
    crew: Processes = Processes()
    as_bytes: bool = False
    memo: Memo = make_anew
    content: bool = False
    _identities: dict[int, tuple[ImageSet, dict[str, Any]]] = field(
        default_factory=dict, repr=False
    )
    _looked: dict[int, tuple[ImageSet, np.ndarray]] = field(default_factory=dict, repr=False)

    def __call__(
        self, images: ImageSet, name: str, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Batches of a set; of some rows, in their order."""
        chosen = np.arange(len(images)) if rows is None else rows
        read = partial(self._own, images, name)
        if self.memo is make_anew:
            return self.crew.share(read, chosen)
        # A pass that is taken up again asks for some of the rows.
        return Share(read, chosen, self.crew.index, self.crew.count)

    def training(self, images: ImageSet) -> TrainingBatches:
        """Batches of a training set, and again of some of its images that could be read."""

        def read(rows: np.ndarray | None) -> Iterable[Batch]:
            if rows is None:
                return self(images, "training set")
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
        """What tells sets of images apart; all processes must ask at the same time."""
        key = id(images)
        if key not in self._identities:
            # One process reads all content for it, the others their shares alone.
            found = self.crew.told(lambda: benchmarks.identity(images, content=self.content))
            self._identities[key] = images, found
        return self._identities[key][1]

    def described(self, images: ImageSet) -> dict[str, Any]:
        """A set's source, size and fingerprint, for the results; all processes must ask at once."""
        found = self.identity(images)
        known = {
            "source": images.source,
            "n": len(images),
            "fingerprint": found["checksum"],
            "fingerprint_of": found["checksum of"],
        }
        return known if self.bad is None else known | {"unreadable": len(self._unreadable(images))}

    def readable(self, images: ImageSet) -> np.ndarray:
        """Rows that could be read; all processes must ask at the same time."""
        return np.setdiff1d(np.arange(len(images)), sorted(self._unreadable(images)))

    def complaints(self) -> list[str]:
        """What was left out, in lines."""
        found = {} if self.bad is None else self.bad.found
        return [
            f"left out {len(rows)} unreadable images of {images.name} of {images.source}: "
            + next(iter(rows.values()))
            + (", …" if len(rows) > 1 else "")
            for images, rows in found.values()
            if rows
        ]

    def _unreadable(self, images: ImageSet) -> dict[int, str]:
        """What could not be read, in any process; all must ask at the same time."""
        if self.bad is None:
            return {}
        own = self.bad.of(images)

        def make() -> np.ndarray:
            block = Share(list, np.arange(len(images)), self.crew.index, self.crew.count).block
            looked = self._looked_at(images)
            unseen = np.arange(len(images))[block][~looked[block]]
            if len(unseen):
                # Where a memo gave the network's outputs, no image has been read yet.
                for _ in self._own(images, "looking for unreadable images", unseen):
                    pass
            lines = "".join(json.dumps(pair) + "\n" for pair in sorted(own.items()))
            return self.crew.gathered(np.frombuffer(lines.encode(), np.uint8))

        form = Form(("rows",), lambda array: {"rows": array}, lambda arrays: arrays["rows"])
        about = {"what": "unreadable images", **self.identity(images)}
        lines = self.memo(about, form, make).tobytes().decode()
        own.update((int(row), str(words)) for row, words in map(json.loads, lines.splitlines()))
        return own

    def _looked_at(self, images: ImageSet) -> np.ndarray:
        """Which rows of a set this process has read, or has tried to."""
        return self._looked.setdefault(id(images), (images, np.zeros(len(images), bool)))[1]

    def _own(self, images: ImageSet, name: str, rows: np.ndarray) -> Iterable[Batch]:
        """This process's batches."""
        found = None if self.bad is None else self.bad.of(images)

        def note(place: int, error: UnreadableImage) -> None:
            assert found is not None
            found[int(rows[place])] = str(error)

        yield from batches(
            images,
            self.preprocessing,
            batch_size=self.batch_size,
            indices=rows,
            description=name if self.progress else None,
            workers=self.workers,
            on_unreadable=None if found is None else note,
            normalize=not self.as_bytes,
        )
        self._looked_at(images)[rows] = True
