"""Batches of one shape, decoded ahead of the device."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet, UnreadableImage
from grood_jax.support import checks, progress

MOST_ROWS = 2**31 - 1
"""Of a batch."""

AHEAD = 2
"""Batches that are read while the caller works on one."""

PIECE_ROWS = 64
"""Images that a thread reads at once."""

OnUnreadable = Callable[[int, UnreadableImage], None]
"""Takes the row and the error of an image that cannot be read and is left out."""


@dataclass(frozen=True)
class Batch:
    """Images of a fixed number of rows.

    Attributes:
      images: (B, H, W, C), normalised float32 or bytes; zeros in rows that are not valid.
      labels: (B,) int32; −1 where a set has no labels, 0 in rows that are not valid.
      valid: (B,) which rows are real: neither padding nor an image that was left out.
    """

    images: Float[np.ndarray, "b h w c"] | UInt8[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]
    valid: Bool[np.ndarray, " b"]


@dataclass(frozen=True)
class Share:
    """This process's batches of rows that all processes read together, a block each.

    Attributes:
      read: gives batches of rows.
      rows: all rows, in order.
      index: this process's number.
      count: how many processes there are.
    """

    read: Callable[[Int[np.ndarray, " r"]], Iterable[Batch]]
    rows: Int[np.ndarray, " n"]
    index: int
    count: int

    @property
    def block(self) -> slice:
        """Where this process's rows lie among all."""
        start, stop = (len(self.rows) * i // self.count for i in (self.index, self.index + 1))
        return slice(start, stop)

    def __iter__(self) -> Iterator[Batch]:
        own = self.rows[self.block]
        if len(own):
            yield from self.read(own)
            return
        # Others have rows, and what is exchanged must have their shapes.
        yield from self.without_rows()

    def without_rows(self) -> Iterator[Batch]:
        """A batch of which no row is valid; none where there are no rows at all."""
        for batch in self.read(self.rows[:1]):
            yield replace(batch, valid=np.zeros_like(batch.valid))


def default_workers() -> int:
    """As many threads as there are cores for this process, up to 32."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(32, len(usable))


def batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    indices: Int[np.ndarray, " n"] | None = None,
    description: str | None = None,
    workers: int | None = None,
    on_unreadable: OnUnreadable | None = None,
    normalize: bool = True,
) -> Iterator[Batch]:
    """Batches of a set in order, each of ``batch_size`` rows; the last one is padded.

    The next two batches are read, decoded and normalised in threads while the caller works on
    this one: memory holds three of them and no more, however large the set.

    Args:
      images: the set.
      preprocessing: normalisation.
      batch_size: rows in each batch.
      indices: which images, in this order; all by default.
      description: shows a progress bar on stderr under this name.
      workers: threads that read; `default_workers` by default.
      on_unreadable: called, in any thread, with the place in ``indices`` of each image that
        cannot be read, which is then not valid in its batch. By default such an image ends the
        batches with its error.
      normalize: normalise the images; as bytes they are a fourth of the size, and
        `grood_jax.backbone.backbone.Backbone.normalized` does it in the compiled pass.

    Raises:
      TypeError: batch_size, workers or an index is no integer.
      ValueError: batch_size or workers below 1, or an index outside the set.
      UnreadableImage: as it is met, see ``on_unreadable``.
    """
    checks.at_least("batch_size", batch_size, 1, MOST_ROWS)
    workers = default_workers() if workers is None else checks.at_least("workers", workers, 1)
    chosen = np.arange(len(images)) if indices is None else _indices(indices)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(images)):
        raise ValueError(
            f"indices run from {chosen.min()} to {chosen.max()}; expected 0 to {len(images) - 1}"
        )
    return _generate(
        images, preprocessing, batch_size, chosen, description, workers, on_unreadable, normalize
    )


def _indices(given: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Raises unless these are integers (N,); an empty list is of any type."""
    array = np.asarray(checks.array_of("indices", given))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"indices has dtype {array.dtype}; expected integers (N,)")
    if array.ndim != 1:
        raise ValueError(f"indices has shape {array.shape}; expected (N,)")
    return array


def read_readable(
    images: ImageSet, rows: Int[np.ndarray, " n"], on_unreadable: OnUnreadable | None
) -> tuple[UInt8[np.ndarray, "m h w c"] | None, Int[np.ndarray, " m"], Bool[np.ndarray, " n"]]:
    """The images among the rows that can be read, their labels, and which rows these are.

    Args:
      images: the set.
      rows: indices of images.
      on_unreadable: called with the place in ``rows`` of each image that cannot be read.

    Returns:
      Images, None where there is none; labels; which of the rows they are.

    Raises:
      UnreadableImage: there is one and ``on_unreadable`` is None.
    """
    try:
        return *images.read(rows), np.ones(len(rows), bool)
    except UnreadableImage as error:
        if on_unreadable is None:
            raise
        if len(rows) == 1:
            on_unreadable(0, error)
            return None, np.zeros(0, np.int32), np.zeros(1, bool)
    # One by one: the error does not say which other images are unreadable.
    singles = []
    for place in range(len(rows)):

        def report(_: int, error: UnreadableImage, place: int = place) -> None:
            on_unreadable(place, error)

        singles.append(read_readable(images, rows[place : place + 1], report))
    pixels = [single[0] for single in singles if single[0] is not None]
    return (
        np.concatenate(pixels) if pixels else None,
        np.concatenate([single[1] for single in singles]),
        np.concatenate([single[2] for single in singles]),
    )


def _generate(
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    indices: Int[np.ndarray, " n"],
    description: str | None,
    workers: int,
    on_unreadable: OnUnreadable | None,
    normalize: bool,
) -> Iterator[Batch]:
    piece = min(PIECE_ROWS, -(-batch_size // workers))

    def load(batch: Batch, start: int, first: int) -> None:
        """Fills the rows of a batch from ``first`` on; its own first row is ``indices[start]``."""
        last = min(first + piece, batch_size)
        rows = indices[start + first : min(start + last, len(indices))]

        def report(place: int, error: UnreadableImage) -> None:
            assert on_unreadable is not None
            on_unreadable(start + first + place, error)

        pixels, labels, readable = read_readable(images, rows, report if on_unreadable else None)
        if pixels is not None:
            if pixels.shape[1:] != preprocessing.shape:
                raise ValueError(
                    f"images of {images.name} have shape {pixels.shape[1:]}; expected "
                    f"{preprocessing.shape}, as the preprocessing says"
                )
            places = first + np.flatnonzero(readable)
            batch.images[places] = preprocessing.normalize(pixels) if normalize else pixels
            batch.labels[places] = checks.int32(f"labels of {images.name}", labels)
            batch.valid[places] = True

    def submit(start: int) -> tuple[Batch, list[Future[None]]]:
        batch = Batch(
            images=np.zeros(
                (batch_size, *preprocessing.shape), np.float32 if normalize else np.uint8
            ),
            labels=np.zeros(batch_size, np.int32),
            valid=np.zeros(batch_size, bool),
        )
        count = min(batch_size, len(indices) - start)
        return batch, [pool.submit(load, batch, start, i) for i in range(0, count, piece)]

    pool = ThreadPoolExecutor(workers)
    try:
        with progress.bar(len(indices), description or "", shown=description is not None) as bar:
            starts = iter(range(0, len(indices), batch_size))
            waiting = deque(map(submit, itertools.islice(starts, AHEAD)))
            while waiting:
                batch, pieces = waiting.popleft()
                for part in pieces:
                    part.result()
                waiting.extend(map(submit, itertools.islice(starts, 1)))
                yield batch
                bar.update(int(batch.valid.sum()))
    finally:
        pool.shutdown(cancel_futures=True)
