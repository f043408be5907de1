"""One forward pass for all detectors: features and logits kept, early class sums on the way."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grood_jax import checks
from grood_jax.backbone import Backbone
from grood_jax.data import Batch
from grood_jax.detectors import Detector, MixedTraining, Noise, OODSource, Training, Validation
from grood_jax.errors import UserError
from grood_jax.mixup import mix_with_prototypes, other_classes
from grood_jax.outputs import Mix, Outputs
from grood_jax.prototypes import ClassSums, accumulate, class_sums, means

SCORE_ROWS = 1024
"""Rows scored at once; the last block is padded, so that each detector compiles once."""

TrainingBatches = Callable[[np.ndarray | None], Iterable[Batch]]
"""Batches of the training rows given, in that order; of all rows for None."""


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


@partial(jax.jit, static_argnames="mixes")
def _forward(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."] | None,
    mixes: tuple[Mix, ...],
) -> Outputs:
    hidden = backbone.hidden(images)
    outputs = backbone.finish(hidden)
    if not mixes:
        return outputs
    if early_prototypes is None:
        raise ValueError("early_prototypes is None; expected (C, ...), what is mixed in")
    mixed = {}
    for mix in mixes:
        targets = other_classes(outputs.logits, mix.classes, _classes(mix.present))
        mixed[mix] = _mixed_features(backbone, hidden, early_prototypes, targets, mix.weight)
    return Outputs(outputs.features, outputs.logits, mixed)


@partial(jax.jit, donate_argnames="sums")
def _forward_and_sum(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    sums: ClassSums,
) -> tuple[Outputs, ClassSums]:
    hidden = backbone.hidden(images)
    return backbone.finish(hidden), accumulate(sums, hidden, labels, valid)


@jax.jit
def _forward_mixed(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, " b"],
    weight: Float[Array, ""],
) -> Outputs:
    hidden = backbone.hidden(images)
    return backbone.finish(mix_with_prototypes(hidden, early_prototypes, targets, weight))


@jax.jit
def _late_only(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, "b k"],
    weight: Float[Array, ""],
) -> Float[Array, "b k d"]:
    hidden = backbone.hidden(images)
    return _mixed_features(backbone, hidden, early_prototypes, targets, weight)


def _mixed_features(
    backbone: Backbone,
    hidden: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, "b k"],
    weight: float | Float[Array, ""],
) -> Float[Array, "b k d"]:
    """Features of mixed copies, one class at a time: memory stays at one batch of activations."""

    def one_class(target: Int[Array, " b"]) -> Float[Array, "b d"]:
        mixed = mix_with_prototypes(hidden, early_prototypes, target, weight)
        return backbone.finish(mixed).features

    return jax.lax.map(one_class, targets.T).transpose(1, 0, 2)


def _classes(present: tuple[int, ...]) -> Int[Array, " p"] | None:
    return jnp.asarray(present, jnp.int32) if present else None


def extract(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    mixes: tuple[Mix, ...] = (),
    early_prototypes: Float[Array, "c ..."] | None = None,
) -> Outputs:
    """Runs the network once over the batches.

    Args:
      backbone: the classifier.
      batches: padded batches of one shape.
      mixes: the mixed copies to compute as well.
      early_prototypes: what is mixed in, (C, ...).

    Returns:
      Outputs of the valid rows in order, as NumPy arrays.

    Raises:
      ValueError: there is no batch.
    """
    parts = [
        _take(_forward(backbone, batch.images, early_prototypes, mixes), batch.valid)
        for batch in batches
    ]
    return _join(parts)


def _take(tree: Any, valid: np.ndarray) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[valid], tree)


def _join(parts: Sequence[Any]) -> Any:
    if not parts:
        raise ValueError("batches is empty; expected at least one batch")
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


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
    needs_early = any(d.mix is not None for d in detectors.values()) or any(
        isinstance(source, MixedTraining) for source in sources
    )
    outputs, labels, early = _training_pass(backbone, train(None), needs_early)
    ood = {
        source: _ood_outputs(
            source, backbone, train, outputs, early, (sample_key, noise_key), noise, validation
        )
        for source in sorted(sources, key=repr)
    }
    training = Training(outputs, labels)
    fitted = {}
    for index, (name, detector) in enumerate(detectors.items()):
        own_key = jax.random.fold_in(fit_key, index)
        mixed = None
        if detector.mix is not None and detector.rows is not None:
            rows = np.asarray(detector.rows(training, own_key))
            mixed = _mixed_rows(backbone, train, outputs, early, rows, detector.mix)
        start = time.perf_counter()
        state = detector.fit(
            Training(outputs, labels, ood[detector.ood] if detector.ood else None, mixed), own_key
        )
        jax.block_until_ready(state)
        fitted[name] = Fitted(detector, state, time.perf_counter() - start)
    scoring = any(detector.mix is not None for detector in detectors.values())
    return FittedAll(fitted, early if scoring else None)


def _training_pass(
    backbone: Backbone, batches: Iterable[Batch], needs_early: bool
) -> tuple[Outputs, Int[Array, " n"], Float[Array, "c ..."] | None]:
    parts, labels = [], []
    sums: ClassSums | None = None
    for batch in batches:
        if needs_early:
            if sums is None:
                hidden = jax.eval_shape(backbone.hidden, batch.images)
                logits = jax.eval_shape(backbone, batch.images).logits
                sums = class_sums(logits.shape[1], hidden.shape[1:])
                checks.classes("labels", batch.labels[batch.valid], logits.shape[1], ("N",))
            outputs, sums = _forward_and_sum(
                backbone, batch.images, batch.labels, batch.valid, sums
            )
        else:
            outputs = _forward(backbone, batch.images, None, ())
        parts.append(_take(outputs, batch.valid))
        labels.append(batch.labels[batch.valid])
    outputs = _join(parts)
    classes = checks.classes(
        "labels", np.concatenate(labels), outputs.logits.shape[1], (len(outputs.logits),)
    )
    checks.finite("features of the training set", jnp.asarray(outputs.features))
    checks.finite("logits of the training set", jnp.asarray(outputs.logits))
    return jax.tree.map(jnp.asarray, outputs), classes, None if sums is None else means(sums)


def _ood_outputs(
    source: OODSource,
    backbone: Backbone,
    train: TrainingBatches,
    outputs: Outputs,
    early: Float[Array, "c ..."] | None,
    keys: tuple[Array, Array],
    noise: Callable[[int, Array], Iterable[Batch]] | None,
    validation: Callable[[], Iterable[Batch]] | None,
) -> Outputs:
    if isinstance(source, MixedTraining):
        count = len(outputs.logits)
        rows = np.sort(np.asarray(jax.random.permutation(keys[0], count))[: source.samples])
        targets = other_classes(outputs.logits[rows], 1, _classes(source.present))[:, 0]
        return _mixed_pass(backbone, train, early, rows, targets, source.weight, _forward_mixed)
    if isinstance(source, Noise) and noise is not None:
        return extract(backbone, noise(source.images, keys[1]))
    if isinstance(source, Validation) and validation is not None:
        return extract(backbone, validation())
    raise TypeError(f"ood source is {source!r}; expected one of {OODSource}")


def _mixed_rows(
    backbone: Backbone,
    train: TrainingBatches,
    outputs: Outputs,
    early: Float[Array, "c ..."] | None,
    rows: np.ndarray,
    mix: Mix,
) -> Float[Array, "r k d"]:
    targets = other_classes(outputs.logits[rows], mix.classes, _classes(mix.present))
    return _mixed_pass(backbone, train, early, rows, targets, mix.weight, _late_only)


def _mixed_pass(
    backbone: Backbone,
    train: TrainingBatches,
    early: Float[Array, "c ..."] | None,
    rows: np.ndarray,
    targets: Int[Array, "r ..."],
    weight: float,
    run: Callable[..., Any],
) -> Any:
    """Runs the network over some training rows, mixed with the early prototypes of targets."""
    parts, start = [], 0
    chosen = np.asarray(targets)
    for batch in train(rows):
        count = int(batch.valid.sum())
        padded = np.zeros((len(batch.valid), *chosen.shape[1:]), np.int32)
        padded[batch.valid] = chosen[start : start + count]
        result = run(backbone, batch.images, early, padded, jnp.float32(weight))
        parts.append(_take(result, batch.valid))
        start += count
    return jax.tree.map(jnp.asarray, _join(parts))


def score(detector: Detector, state: Any, outputs: Outputs) -> Float[np.ndarray, " n"]:
    """Scores of a detector for any number of rows, in blocks of one shape.

    Args:
      detector: the detector.
      state: its fitted state.
      outputs: outputs of N samples.

    Returns:
      Scores, (N,) float32, higher for more OOD.
    """
    compiled = jax.jit(detector.score)
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
