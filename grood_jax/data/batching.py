"""Batches of one shape, decoded ahead of the device."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from grood_jax import checks, progress
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet


@dataclass(frozen=True)
class Batch:
    """Normalised images of a fixed number of rows.

    Attributes:
      images: (B, H, W, C) float32, zeros in padded rows.
      labels: (B,) int32; −1 where a set has no labels, 0 in padded rows.
      valid: (B,) which rows are real.
    """

    images: Float[np.ndarray, "b h w c"]
    labels: Int[np.ndarray, " b"]
    valid: Bool[np.ndarray, " b"]


def batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    indices: Int[np.ndarray, " n"] | None = None,
    description: str | None = None,
) -> Iterator[Batch]:
    """Batches of a set in order, each of ``batch_size`` rows; the last one is padded.

    The next batch is read and normalised in a thread while the caller works on this one.

    Args:
      images: the set.
      preprocessing: normalisation.
      batch_size: rows in each batch.
      indices: which images, in this order; all by default.
      description: shows a progress bar on stderr under this name.

    Raises:
      ValueError: batch_size below 1, or an index outside the set.
    """
    checks.at_least("batch_size", batch_size, 1)
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(images)):
        raise ValueError(
            f"indices run from {chosen.min()} to {chosen.max()}; expected 0 to {len(images) - 1}"
        )
    return _generate(images, preprocessing, batch_size, chosen, description)


def _generate(
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    indices: Int[np.ndarray, " n"],
    description: str | None,
) -> Iterator[Batch]:
    def load(start: int) -> Batch:
        rows = indices[start : start + batch_size]
        pixels, labels = images.read(rows)
        missing = batch_size - len(rows)
        normalized = preprocessing.normalize(pixels)
        return Batch(
            images=np.pad(normalized, ((0, missing), (0, 0), (0, 0), (0, 0))),
            labels=np.pad(labels.astype(np.int32), (0, missing)),
            valid=np.arange(batch_size) < len(rows),
        )

    # One thread: decoding holds the interpreter's lock, and more of them read no faster.
    with (
        progress.bar(len(indices), description or "", shown=description is not None) as bar,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        ahead: Future[Batch] | None = None
        for start in range(0, len(indices), batch_size):
            batch = load(start) if ahead is None else ahead.result()
            after = start + batch_size
            ahead = pool.submit(load, after) if after < len(indices) else None
            yield batch
            bar.update(int(batch.valid.sum()))
