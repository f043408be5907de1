"""Fits and scores detectors, all of them on the same forward passes."""

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone import Backbone
from grood_jax.data import Batch
from grood_jax.detectors import Detector, MixedTraining, Noise, OODSource, Training, Validation
from grood_jax.errors import UserError
from grood_jax.forward import TrainingBatches, extract, run_training_set
from grood_jax.outputs import Mix, Outputs

SCORE_ROWS = 1024
"""Rows scored at once; the last block is padded, so that each detector compiles once."""

__all__ = ["Fitted", "FittedAll", "TrainingBatches", "extract", "fit_detectors", "score"]


@dataclass(frozen=True)
class Fitted:
    """A detector with its state and the time that `Detector.fit` took."""

    detector: Detector
    state: Any
    seconds: float


@dataclass(frozen=True)
class FittedAll:
    """Fitted detectors and what scoring needs beside them.

    Attributes:
      detectors: by the names given.
      early_prototypes: class means of the activations at the cut, (C, ...) float32; None where
        no detector asks for mixed copies at scoring.
    """

    detectors: dict[str, Fitted]
    early_prototypes: Float[Array, "c ..."] | None

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The mixed copies that scoring needs."""
        found = {fitted.detector.mix for fitted in self.detectors.values()}
        return tuple(sorted(mix for mix in found if mix is not None))


def fit_detectors(
    backbone: Backbone,
    train: TrainingBatches,
    detectors: Mapping[str, Detector],
    *,
    key: Array,
    noise: Callable[[int, Array], Iterable[Batch]] | None = None,
    validation: Callable[[], Iterable[Batch]] | None = None,
) -> FittedAll:
    """Fits detectors on one pass over the training set, plus one over the samples that are mixed.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      detectors: detectors by the name that the result has them under.
      key: randomness: which samples are mixed, noise images, each detector's own.
      noise: ``(count, key) -> batches`` of noise images, normalised as the data are.
      validation: gives batches of held-out OOD images.

    Returns:
      The fitted detectors.

    Raises:
      UserError: a detector asks for noise or validation images and there are none.
      ValueError: what a detector's fit raises: an empty class, NaN features, …
    """
    sample_key, noise_key, fit_key = jax.random.split(key, 3)
    sources = {d.ood for d in detectors.values() if d.ood is not None}
    if validation is None and any(isinstance(source, Validation) for source in sources):
        raise UserError(
            "ood_prototype 'validation' needs held-out OOD images, and there are none; choose "
            "'mixup', 'noise' or 'prototype-mean', or give a validation set"
        )
    if noise is None and any(isinstance(source, Noise) for source in sources):
        raise UserError("ood_prototype 'noise' needs noise images; give `noise`")
    head = None
    needing_head = [name for name, detector in detectors.items() if detector.head]
    if needing_head:
        if backbone.head is None:
            raise UserError(
                f"{needing_head[0]} needs the class head, and the backbone has none; make it of a "
                "model whose last layer is called `head`, or give `head` to "
                "Backbone.from_functions"
            )
        head = backbone.head(backbone.arrays)
    needs_early = any(d.mix is not None for d in detectors.values()) or any(
        isinstance(source, MixedTraining) for source in sources
    )
    seen = run_training_set(backbone, train, early=needs_early)

    def stand_in(source: OODSource) -> Outputs:
        if isinstance(source, MixedTraining):
            return seen.mixed_samples(source, sample_key)
        if isinstance(source, Noise) and noise is not None:
            return extract(backbone, noise(source.images, noise_key))
        if isinstance(source, Validation) and validation is not None:
            return extract(backbone, validation())
        raise TypeError(f"ood source is {source!r}; expected one of {OODSource}")

    ood = {
        source: jax.tree.map(jnp.asarray, stand_in(source)) for source in sorted(sources, key=repr)
    }
    fitted = {}
    for name, detector in detectors.items():
        # By name, so that a detector's result does not depend on which others are fitted.
        own_key = jax.random.fold_in(fit_key, zlib.crc32(name.encode()))
        mixed = None
        if detector.mix is not None and detector.rows is not None:
            rows = np.asarray(detector.rows(Training(seen.outputs, seen.labels), own_key))
            mixed = seen.mixed_copies(rows, detector.mix)
        training = Training(
            seen.outputs,
            seen.labels,
            None if detector.ood is None else ood[detector.ood],
            mixed,
            head if detector.head else None,
        )
        start = time.perf_counter()
        state = jax.block_until_ready(detector.fit(training, own_key))
        fitted[name] = Fitted(detector, state, time.perf_counter() - start)
    scoring = any(detector.mix is not None for detector in detectors.values())
    return FittedAll(fitted, seen.early_prototypes if scoring else None)


def score(detector: Detector, state: Any, outputs: Outputs) -> Float[np.ndarray, " n"]:
    """Scores of a detector for any number of rows, in blocks of one shape.

    Args:
      detector: the detector.
      state: its fitted state.
      outputs: outputs of N samples.

    Returns:
      Scores, (N,) float32, higher for more OOD.

    Raises:
      ValueError: the detector needs mixed copies that ``outputs`` does not have.
    """
    if detector.mix is not None and detector.mix not in outputs.mixed:
        raise ValueError(
            f"outputs.mixed has no {detector.mix}; expected it (give `extract` the mixes and "
            "early_prototypes of the fitted detectors)"
        )
    compiled = jax.jit(detector.score) if detector.compiled else detector.score
    count = len(outputs.logits)
    parts = []
    for start in range(0, count, SCORE_ROWS):

        def block(array: Any, start: int = start) -> np.ndarray:
            rows = np.asarray(array[start : start + SCORE_ROWS])
            padding = [(0, SCORE_ROWS - len(rows))] + [(0, 0)] * (rows.ndim - 1)
            return np.pad(rows, padding, mode="edge")

        scores = np.asarray(compiled(state, jax.tree.map(block, outputs)))
        parts.append(scores[: count - start])
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)
