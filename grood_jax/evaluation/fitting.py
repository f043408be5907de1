"""Fits and scores detectors, all of them on the same forward passes."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.backbone import Backbone, require_backbone
from grood_jax.backbone.outputs import Mix, Need, Outputs
from grood_jax.data import Batch
from grood_jax.data.builtin import raw_noise
from grood_jax.detectors import Detector, MixedTraining, Noise, OODSource, Training, Validation
from grood_jax.evaluation.accuracy import warn_of_chance
from grood_jax.passes.devices import on_one
from grood_jax.passes.forward import (
    Labelled,
    TrainingBatches,
    extract,
    extract_labelled,
    require_needs,
)
from grood_jax.passes.memo import Memo, make_anew
from grood_jax.passes.training_pass import TrainingPass, run_training_set
from grood_jax.support import checks
from grood_jax.support.errors import UserError

NOISE_ROWS = 100
"""Noise images in a batch."""

SCORE_ROWS = 1024
"""Rows scored at once; the last block is padded, so that each detector compiles once."""

__all__ = [
    "Fitted",
    "FittedAll",
    "Fitter",
    "all_needs",
    "TrainingBatches",
    "extract",
    "extract_labelled",
    "fit_all",
    "fit_detectors",
    "from_outputs",
    "prepare",
    "score",
    "unmet",
]


@dataclass(frozen=True)
class Fitted:
    """A detector with its state and the time that `Detector.fit` took.

    Attributes:
      detector: the detector.
      state: what `Detector.fit` gave; None in the other processes, where one has it.
      seconds: how long that took.
      owner: the process that fitted it and scores with it; None where all did.
    """

    detector: Detector
    state: Any
    seconds: float
    owner: int | None = None


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
    def needs(self) -> tuple[Need, ...]:
        """What scoring needs beside features and logits."""
        return all_needs(fitted.detector for fitted in self.detectors.values())


@dataclass(frozen=True)
class Fitter:
    """All that detectors are fitted on, computed once; see `prepare`.

    Attributes:
      seen: the pass over the training set.
      ood: outputs of what stands for "not in distribution", by what detectors ask for.
      head: the class head's weights and bias, if a detector asks for them.
      key: randomness.
      id_validation: outputs of ID validation images and their labels, if a detector asks for them
        and there are any.
      fits: what was fitted last of each name, which the next may share.
    """

    seen: TrainingPass
    ood: Mapping[OODSource, Outputs]
    head: tuple[Array, Array] | None
    key: Array
    id_validation: tuple[Outputs, Array] | None = None
    fits: dict[str, Fitted] = field(default_factory=dict)

    def fit(self, name: str, detector: Detector) -> Fitted:
        """Fits a detector that `prepare` was told of.

        Args:
          name: decides the detector's own randomness.
          detector: the detector. Where the last of the same name had the same `Detector.fit_key`,
            its state is taken.

        Raises:
          ValueError: what the detector's fit raises: an empty class, NaN features, …
        """
        # The last one alone: of many banks at once there may be no memory.
        last = self.fits.pop(name, None)
        if last is not None and last.detector.fit_key == detector.fit_key:
            self.fits[name] = last
            return replace(last, detector=detector)
        del last
        # By name, so that a detector's result does not depend on which others are fitted.
        own_key = jax.random.fold_in(self.key, zlib.crc32(name.encode()))
        mixed = None
        if detector.rows is not None:
            mix = next(need for need in detector.needs if isinstance(need, Mix))
            rows = detector.rows(Training(self.seen.outputs, self.seen.labels), own_key)
            mixed = self.seen.mixed_copies(np.asarray(rows), mix)
        training = Training(
            self.seen.outputs,
            self.seen.labels,
            self._stand_ins(detector),
            mixed,
            self.head if detector.head else None,
            self.id_validation if detector.id_validation else None,
        )
        start = time.perf_counter()
        state = jax.block_until_ready(detector.fit(training, own_key))
        fitted = Fitted(detector, state, time.perf_counter() - start)
        if detector.fit_key is not None:
            self.fits[name] = fitted
        return fitted

    def _stand_ins(self, detector: Detector) -> Outputs | tuple[Outputs | None, ...] | None:
        """What stands for "not in distribution", in the form in which the detector asks for it."""
        found = tuple(self.ood.get(source) for source in detector.ood_sources)
        return found if isinstance(detector.ood, tuple) else next(iter(found), None)


def prepare(
    backbone: Backbone,
    train: TrainingBatches,
    detectors: Iterable[tuple[str, Detector]],
    *,
    key: Array,
    noise: Callable[[int, Array], Iterable[Batch]] | None = None,
    validation: Callable[[], Iterable[Batch]] | None = None,
    id_validation: Callable[[], Labelled] | None = None,
    memo: Memo = make_anew,
) -> Fitter:
    """Computes what detectors are fitted on: one pass over the training set, and what they ask for.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      detectors: all that will be fitted, with names for messages.
      key: randomness: which samples are mixed, noise images, each detector's own.
      noise: ``(count, key) -> batches`` of noise images, normalised as the data are.
      validation: gives batches of held-out OOD images.
      id_validation: gives outputs and labels of ID images that neither the network was trained on
        nor scores are judged by; asked only where a detector is better fitted with them.
      memo: remembers the results of each pass, or has them made.

    Raises:
      UserError: a detector asks for noise or validation images and there are none, or for what
        the backbone cannot give.
      ValueError: labels that are no classes, or outputs that are not finite.
    """
    if require_backbone(backbone).wanted_head is not None:
        raise UserError(f"{backbone} has no head yet; fit one with grood_jax.fit_head")
    sample_key, noise_key, fit_key = jax.random.split(checks.key("key", key), 3)
    detectors = tuple(detectors)
    sources = _available_sources(detectors, noise, validation)
    head = _class_head(backbone, detectors)
    named = {
        need: name
        for name, detector in reversed(detectors)
        for need in (*detector.needs, *detector.fit_needs)
    }
    if not all(isinstance(need, Mix) for need in named):
        require_needs(backbone, named, next(iter(train(None))).images)
    mixes = any(isinstance(need, Mix) for need in named)
    early = mixes or any(isinstance(source, MixedTraining) for source in sources)
    fit_needs = tuple(sorted({need for _, d in detectors for need in d.fit_needs}))
    seen = run_training_set(backbone, train, early=early, needs=fit_needs, memo=memo)
    logits = checks.placed(seen.outputs.logits)
    right = int((np.asarray(logits).argmax(axis=1) == np.asarray(seen.labels)).sum())
    warn_of_chance("the training set", right, *logits.shape)

    def outputs_of(batches: Iterable[Batch], about: Mapping[str, Any]) -> Outputs:
        return extract_labelled(backbone, batches, memo=memo, about=about)[0]

    def stand_in(source: OODSource) -> Outputs:
        if isinstance(source, MixedTraining):
            return seen.mixed_samples(source, sample_key)
        if isinstance(source, Noise) and source.raw:
            shape = next(iter(train(None))).images.shape[1:]
            bits = np.asarray(jax.random.key_data(noise_key)).tolist()
            about = {"set": "raw noise", "images": source.images, "key": bits}
            return outputs_of(_raw_noise(source.images, noise_key, shape), about)
        if isinstance(source, Noise) and noise is not None:
            bits = np.asarray(jax.random.key_data(noise_key)).tolist()
            about = {"set": "noise", "images": source.images, "key": bits}
            return outputs_of(noise(source.images, noise_key), about)
        if isinstance(source, Validation) and validation is not None:
            return outputs_of(validation(), {"set": "held-out OOD images"})
        raise TypeError(f"ood source is {source!r}; expected one of {OODSource}")

    ood = {
        source: jax.tree.map(checks.placed, stand_in(source))
        for source in sorted(sources, key=repr)
    }
    held_in = None
    if id_validation is not None and any(detector.id_validation for _, detector in detectors):
        held_in = jax.tree.map(checks.placed, id_validation())
    return Fitter(seen, ood, head, fit_key, held_in)


def from_outputs(
    outputs: Outputs,
    labels: Int[np.ndarray, " m"],
    head: tuple[Any, Any] | None,
    *,
    key: Array,
    id_validation: Labelled | None = None,
) -> Fitter:
    """What `prepare` computes, of a training set's outputs that are there already.

    For detectors that need neither images nor what stands for OOD ones.

    Args:
      outputs: of the training set.
      labels: its classes.
      head: the class head's weights (D, C) and bias (C,), if it is known.
      key: as for `prepare`: the same gives the same randomness.
      id_validation: outputs and labels of ID images that the network was not trained on.
    """

    def no_images(*given: Any) -> Any:
        raise UserError("there are no images, only a network's outputs")

    backbone = Backbone.from_functions({}, no_images, no_images)
    on_device = Outputs(checks.placed(outputs.features), checks.placed(outputs.logits))
    seen = TrainingPass(backbone, no_images, on_device, checks.placed(labels), None)
    right = int((np.asarray(outputs.logits).argmax(axis=1) == labels).sum())
    warn_of_chance("the training set", right, *outputs.logits.shape)
    layer = None if head is None else (checks.placed(head[0]), checks.placed(head[1]))
    held_in = None if id_validation is None else jax.tree.map(checks.placed, id_validation)
    fit_key = jax.random.split(checks.key("key", key), 3)[2]
    return Fitter(seen, {}, layer, fit_key, id_validation=held_in)


def unmet(
    backbone: Backbone,
    name: str,
    detector: Detector,
    images: Any,
    *,
    noise: Any = None,
    validation: Any = None,
) -> str | None:
    """Why `prepare` would refuse a detector; None where it would not.

    Args:
      backbone: the classifier.
      name: of the detector, for the reason.
      detector: the detector.
      images: some images as the network takes them; their shape and dtype count.
      noise: as for `prepare`, like the next.
      validation: likewise.
    """
    needs = dict.fromkeys((*detector.needs, *detector.fit_needs), name)
    try:
        _available_sources([(name, detector)], noise, validation)
        _class_head(backbone, [(name, detector)])
        require_needs(backbone, needs, images)
    except UserError as error:
        return str(error)
    return None


def _raw_noise(count: int, key: Array, shape: tuple[int, ...]) -> Iterator[Batch]:
    """Batches of noise that enters the network as it is."""
    if len(shape) != 3:
        raise UserError(
            f"ood_prototype 'raw-noise' needs images (H, W, C), and one has shape {shape}; choose "
            "'mixup' or 'prototype-mean'"
        )
    images = raw_noise(count, int(jax.random.bits(key)), (shape[0], shape[1]), shape[2])
    for start in range(0, count, NOISE_ROWS):
        part = images[start : start + NOISE_ROWS]
        yield Batch(part, np.full(len(part), -1, np.int32), np.ones(len(part), bool))


def _available_sources(
    detectors: Sequence[tuple[str, Detector]], noise: Any, validation: Any
) -> set[OODSource]:
    """What stands for OOD; refuses, before anything is computed, what is needed and not given."""
    wanted = {(source, d.makes_do) for _, d in detectors for source in d.ood_sources}
    lacking = [
        source
        for source, makes_do in wanted
        if not makes_do and not _given(source, noise, validation)
    ]
    if any(isinstance(source, Validation) for source in lacking):
        raise UserError(
            "ood_prototype 'validation' needs held-out OOD images, and there are none; choose "
            "'mixup', 'noise' or 'prototype-mean', or give a validation set"
        )
    if lacking:
        raise UserError("ood_prototype 'noise' needs noise images; give `noise`")
    return {source for source, _ in wanted if _given(source, noise, validation)}


def _given(source: OODSource, noise: Any, validation: Any) -> bool:
    """Whether there is what a source of OOD images is made of."""
    if isinstance(source, Validation):
        return validation is not None
    return not isinstance(source, Noise) or source.raw or noise is not None


def _class_head(
    backbone: Backbone, detectors: Sequence[tuple[str, Detector]]
) -> tuple[Array, Array] | None:
    """The class head's weights and bias, if detectors need it."""
    wanting = [(name, detector) for name, detector in detectors if detector.head]
    needing = [name for name, detector in wanting if not detector.makes_do]
    if not wanting or (backbone.head is None and not needing):
        return None
    if backbone.head is None:
        raise UserError(
            f"{needing[0]} needs the class head, and the backbone has none; make it of a model "
            "whose last layer is called `head`, or give `head` to Backbone.from_functions"
        )
    return on_one(backbone.head(backbone.arrays))


def fit_detectors(
    backbone: Backbone,
    train: TrainingBatches,
    detectors: Mapping[str, Detector],
    *,
    key: Array,
    noise: Callable[[int, Array], Iterable[Batch]] | None = None,
    validation: Callable[[], Iterable[Batch]] | None = None,
    id_validation: Callable[[], Labelled] | None = None,
    memo: Memo = make_anew,
) -> FittedAll:
    """Fits detectors on one pass over the training set, plus one over the samples that are mixed.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      detectors: detectors by the name that the result has them under.
      key: randomness.
      noise: as for `prepare`.
      validation: as for `prepare`.
      id_validation: as for `prepare`.
      memo: as for `prepare`.

    Returns:
      The fitted detectors.

    Raises:
      UserError: as `prepare`.
      ValueError: what a detector's fit raises: an empty class, NaN features, …
    """
    fitter = prepare(
        backbone,
        train,
        detectors.items(),
        key=key,
        noise=noise,
        validation=validation,
        id_validation=id_validation,
        memo=memo,
    )
    return fit_all(fitter, detectors)


def fit_all(fitter: Fitter, detectors: Mapping[str, Detector]) -> FittedAll:
    """Fits detectors that `prepare` was told of; raises as `Fitter.fit`."""
    return collected(fitter, {name: fitter.fit(name, own) for name, own in detectors.items()})


def collected(fitter: Fitter, fitted: dict[str, Fitted]) -> FittedAll:
    """What a fitter has fitted, by name, with what scoring needs beside it."""
    mixes = any(isinstance(need, Mix) for own in fitted.values() for need in own.detector.needs)
    return FittedAll(fitted, fitter.seen.early_prototypes if mixes else None)


def all_needs(detectors: Iterable[Detector]) -> tuple[Need, ...]:
    """What scoring with any of the detectors needs beside features and logits."""
    return tuple(sorted({need for detector in detectors for need in detector.needs}))


def score(detector: Detector, state: Any, outputs: Outputs) -> Float[np.ndarray, "n *v"]:
    """Scores of a detector for any number of rows, in blocks of one shape.

    Args:
      detector: the detector.
      state: its fitted state.
      outputs: outputs of N samples.

    Returns:
      Scores, (N,) float32, higher for more OOD; (N, V) where the detector scores V values of an
      option together.

    Raises:
      ValueError: the detector needs what ``outputs`` does not have.
    """
    for need in detector.needs:
        if need not in outputs.extra:
            raise ValueError(
                f"outputs.extra has no {need}; expected it (give `extract` the needs and "
                "early_prototypes of the fitted detectors)"
            )
    # Only what it needs: any other array would be copied to the device for nothing.
    own = {need: outputs.extra[need] for need in detector.needs}
    outputs = Outputs(outputs.features, outputs.logits, own)
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
