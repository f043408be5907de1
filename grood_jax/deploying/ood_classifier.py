"""What an application deploys: a classifier that says which inputs it does not know."""

import functools
import math
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from grood_jax import detectors
from grood_jax.backbone.backbone import Backbone, require_backbone
from grood_jax.backbone.outputs import Outputs
from grood_jax.conformal import calibration as conformal
from grood_jax.conformal.calibration import Calibration
from grood_jax.data import Batch, Preprocessing
from grood_jax.data.given import Door, Given, door, pictures_of
from grood_jax.deploying import answering, exporting
from grood_jax.deploying.answering import Parts
from grood_jax.deploying.exporting import Score
from grood_jax.detectors import Detector
from grood_jax.evaluation import fitting, heads
from grood_jax.evaluation.evaluating import noise_as
from grood_jax.evaluation.fitting import FittedAll
from grood_jax.passes import processes
from grood_jax.passes.forward import (
    Labelled,
    TrainingBatches,
    extract_labelled,
)
from grood_jax.passes.memo import Memo, make_anew
from grood_jax.passes.processes import Processes
from grood_jax.passes.training_pass import TrainingPass
from grood_jax.storage import checkpoints, saving
from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart

PREDICTED_AT_ONCE = 256
"""Images that are scored at once; fewer are padded to a power of two, so that little compiles."""

REFERENCES = 2000
"""Training samples kept to show which are near."""

KIND = "OOD_classifier"
HOW_TO_MAKE = "make one with OODClassifier.save or python -m grood_jax.fit"

HELD_OUT = 0.1
"""The share of the training images that set the threshold where no others are given."""

Images = Any
"""Arrays (B, H, W, C), or pictures in a list; one that Pillow has has neither shape nor dtype."""

__all__ = ["OODClassifier", "Prediction", "References"]


@dataclass(frozen=True)
class Prediction:
    """Answers for B images.

    Attributes:
      label: the predicted class, (B,) int32.
      score: higher for more OOD, (B,) float32.
      is_ood: whether the image is taken for OOD, (B,).
      p_value: the share of the ID distribution that looks at least as OOD, (B,) float32.
    """

    label: Int[np.ndarray, " b"]
    score: Float[np.ndarray, " b"]
    is_ood: Bool[np.ndarray, " b"]
    p_value: Float[np.ndarray, " b"]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.label)

    def __repr__(self) -> str:
        """All of a few answers; the first and the last of many."""
        parts = []
        for name, array in vars(self).items():
            text = np.array2string(
                array, precision=4, separator=", ", threshold=8, max_line_width=10**6
            )
            parts.append(f"{name}={text}")
        return f"Prediction({', '.join(parts)})"


@dataclass(frozen=True)
class References:
    """Some training samples, spaced evenly over the training set.

    Attributes:
      features: penultimate features, (M, D) float32.
      labels: their classes, (M,) int32.
    """

    features: Float[np.ndarray, "m d"]
    labels: Int[np.ndarray, " m"]


@dataclass(frozen=True, eq=False)
class OODClassifier:
    """A classifier, a fitted detector, and what the detector's scores mean; immutable.

    Made by `fit` or `load`.

    Attributes:
      backbone: the classifier.
      detector: the detector.
      state: its fitted state.
      early_prototypes: class means of the activations at the cut, where the detector mixes at
        scoring.
      held_out_scores: scores of the N calibration images, (N,) float32.
      held_out_classes: their predicted classes, (N,) int32.
      references: some training samples.
      image_shape: of one image, (H, W, C).
      target_tpr: the share of ID images that are to be taken for ID.
      per_class: whether that holds within each predicted class.
      preprocessing: how bytes and files are brought to the network, if that was said.
    """

    backbone: Backbone
    detector: Detector
    state: Any
    early_prototypes: Float[Array, "c ..."] | None
    held_out_scores: Float[np.ndarray, " n"]
    held_out_classes: Int[np.ndarray, " n"]
    references: References
    image_shape: tuple[int, ...]
    num_classes: int
    target_tpr: float
    per_class: bool
    preprocessing: Preprocessing | None = None

    def __repr__(self) -> str:
        """One line: what it is made of, and how it was calibrated."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.detector.options.items())
        return (
            f"OODClassifier({self.detector.name}({options})"[:200]
            + f", {self.backbone}, {self.num_classes} classes, images {self.image_shape}, "
            f"calibrated on {len(self.held_out_scores)}, target_tpr={self.target_tpr:g}, "
            f"per_class={self.per_class})"
        )

    @classmethod
    def fit(
        cls,
        backbone: Backbone,
        train_batches: Any,
        *,
        detector: Detector | None = None,
        calibration: Any = None,
        key: Array,
        target_tpr: float = 0.95,
        per_class: bool = False,
        preprocessing: Any = None,
        noise: Callable[[int, Array], Iterable[Batch]] | None = None,
        validation: Any = None,
        id_validation: Any = None,
        memo: Memo = make_anew,
    ) -> "OODClassifier":
        """Fits a detector and sets its threshold.

        A new ID image is taken for ID with a probability of at least ``target_tpr``, on average
        over calibration sets, whatever the network and the detector (split conformal prediction,
        see `grood_jax.conformal.calibration`).

        After ``jax.distributed.initialize`` all processes must call it, with the same arguments and
        data: each runs the network over its share of the images, and all have the same classifier.

        Args:
          backbone: the classifier.
          train_batches: training images with their classes, in any form that `grood_jax.evaluate`
            takes: a pair of arrays, a list of such pairs, a folder, … Normalised, or bytes and
            files, which need ``preprocessing``. Or a function as
            `grood_jax.evaluation.fitting.fit_detectors` takes it.
          detector: the detector, `grood_jax.detectors.grood()` for example. None:
            `grood_jax.detectors.auto()`, which looks at the training outputs and combines detectors
            whose premises they meet; ``classifier.detector.explain(classifier.state)`` says which.
          calibration: ID images on which neither the network nor the detector was trained, in the
            same forms; labels are not needed. None: a share of `HELD_OUT` of the training images
            is held out of the detector's fit, with a warning: the network knows these, and what is
            promised holds for images that it knows.
          key: randomness.
          target_tpr: the share of ID images that are to be taken for ID, in (0, 1).
          per_class: keep it within each predicted class (Mondrian). A class with too few
            calibration images then flags nothing.
          preprocessing: how bytes and files are brought to the network: (mean, std, size), of
            values scaled to [0, 1], or a `grood_jax.Preprocessing`. It is kept, so that `predict`
            takes files and pictures too.
          noise: as for `grood_jax.evaluation.fitting.prepare`; by default made as the images are
            prepared, where that is known.
          validation: held-out OOD images, as the other sets, or a function that gives batches.
          id_validation: labelled ID images, as the other sets, for detectors that are better
            fitted with what the network was not trained on, `temperature_scaling` for example;
            none of ``calibration``'s, or what is promised does not hold.
          memo: remembers what the network makes of the training images, or has it made: a
            `grood_jax.storage.cache.OutputsCache`, which is about just these images and network.

        Raises:
          TypeError: an argument of the wrong type; ``train_batches`` can be read only once.
          UserError: the detector needs what the backbone cannot give; too few calibration images;
            another process failed, or was given something else.
          ValueError: what the detector's fit raises; NaN; shapes that differ.
        """
        opener = door(backbone, preprocessing)
        checks.key("key", key)
        _checked_rate(target_tpr)
        checks.flag("per_class", per_class)
        if detector is None:
            detector = detectors.auto()
        if not isinstance(detector, Detector):
            raise TypeError(
                f"detector is {detector!r}; expected a Detector, as detectors.create makes it"
            )
        if not isinstance(memo, Memo):
            raise TypeError(f"memo is {memo!r}; expected a grood_jax.storage.cache.OutputsCache")
        crew = processes.met()
        with crew.together():
            made = cls._fitted(
                crew,
                opener,
                train_batches,
                detector,
                calibration,
                key,
                (float(target_tpr), bool(per_class)),
                noise,
                validation,
                id_validation,
                memo,
            )
        _require_enough(made)
        return made

    @classmethod
    def _fitted(
        cls,
        crew: Processes,
        opener: Door,
        train_batches: Any,
        detector: Detector,
        calibration: Any,
        key: Array,
        kept: tuple[float, bool],
        noise: Callable[[int, Array], Iterable[Batch]] | None,
        validation: Any,
        id_validation: Any,
        memo: Memo,
    ) -> "OODClassifier":
        """What `fit` makes; of several processes each reads its share, and all have the whole."""
        place = crew.index, crew.count
        train = opener.open("train_batches", train_batches, labels=True, again=True).shared(*place)
        if crew.count > 1:
            crew.require_same(_facts(opener, train, detector, key, kept))
        read: TrainingBatches = train.read
        if calibration is None:
            read, calibration = _divided(train, key, kept[0])
        network = heads.completed(opener.backbone, read, [(detector.name, detector)])
        opener = replace(opener, backbone=network, accepted={})
        fitter = fitting.prepare(
            network,
            read,
            [(detector.name, detector)],
            key=key,
            noise=noise or noise_as(opener, train),
            validation=_function_of(opener, validation, crew),
            id_validation=_outputs_of(opener, id_validation, train.classes, crew),
            memo=crew.agreed(memo),
        )
        fitted = fitting.fit_all(fitter, {detector.name: detector})
        held_out = opener.open("calibration", calibration, labels=False).shared(*place)
        scores, predicted = _held_out(fitted, detector, network, held_out)
        return cls(
            network,
            detector,
            fitted.detectors[detector.name].state,
            fitted.early_prototypes,
            scores,
            predicted,
            _references(fitter.seen),
            held_out.shape,
            fitter.seen.outputs.logits.shape[1],
            *kept,
            opener.preprocessing,
        )

    @functools.cached_property
    def calibration(self) -> Calibration:
        """The calibration images' scores, by predicted class if ``per_class``."""
        # It may be asked for first while `answers` is being compiled.
        with jax.ensure_compile_time_eval():
            if self.per_class:
                return conformal.calibrate(
                    self.held_out_scores, self.held_out_classes, self.num_classes
                )
            return conformal.calibrate(self.held_out_scores)

    @property
    def thresholds(self) -> Float[np.ndarray, "*c"]:
        """Scores beyond which images are taken for OOD: one, (), or one a class, (C,)."""
        return np.asarray(self._parts.thresholds)

    def with_target(
        self, target_tpr: float | None = None, *, per_class: bool | None = None
    ) -> "OODClassifier":
        """The same with another rate, or with a threshold of another kind; nothing is refitted.

        Raises:
          TypeError, ValueError, UserError: as `fit`.
        """
        made = replace(
            self,
            target_tpr=self.target_tpr if target_tpr is None else _checked_rate(target_tpr),
            per_class=self.per_class if per_class is None else checks.flag("per_class", per_class),
        )
        _require_enough(made)
        return made

    def predict(self, images: Images) -> Prediction:
        """Classes, scores and decisions for images.

        Args:
          images: normalised as the network takes them, (B, H, W, C) floating-point; B may be 0. Or
            bytes from 0 to 255, where the backbone knows how to normalise them. Or, where the
            classifier has a ``preprocessing``, a list of paths, encoded images, pictures of
            Pillow's or arrays of bytes (H, W, C), of any size; or one of them.

        Raises:
          TypeError: ``images`` are not floating-point.
          ValueError: another shape, NaN or infinities, or values so large that the network's
            outputs are not finite.
        """
        return self._answered(images)[0]

    def discoveries(self, images: Images, rate: float) -> Prediction:
        """As `predict`, with a decision on the batch as a whole.

        Of the images taken for OOD at most a share ``rate`` is expected to be ID
        (Benjamini–Hochberg over the p-values, `grood_jax.conformal.calibration.false_discovery`).

        Args:
          images: as for `predict`.
          rate: the false discovery rate, in (0, 1).

        Raises:
          TypeError, ValueError: as `predict`, and for a rate out of range.
        """
        prediction = self.predict(images)
        chosen = conformal.false_discovery(prediction.p_value, rate)
        return replace(prediction, is_ood=np.asarray(chosen, bool))

    def nearest(
        self, images: Images, k: int = 5
    ) -> tuple[Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
        """Classes of the training samples nearest in feature space, and how far they are.

        Of at most `REFERENCES` samples, spaced evenly over the training set.

        Args:
          images: as for `predict`.
          k: how many.

        Returns:
          Classes (B, k) int32 and Euclidean distances (B, k) float32, ascending.

        Raises:
          TypeError, ValueError: as `predict`, and for k out of range.
        """
        return self.predict_and_nearest(images, k)[1:]

    def predict_and_nearest(
        self, images: Images, k: int = 5
    ) -> tuple[Prediction, Int[np.ndarray, "b k"], Float[np.ndarray, "b k"]]:
        """What `predict` and `nearest` say of the same images, of which the network runs once.

        Raises:
          TypeError, ValueError: as `nearest`.
        """
        count = len(self.references.labels)
        if checks.at_least("k", k, 1) > count:
            raise ValueError(f"k is {k}; expected at most {count}, the samples kept")
        prediction, features = self._answered(images)
        near = [_nearest(part, self._placed_references, k) for part in features]
        distances, places = (
            np.concatenate([np.asarray(part) for part in parts])[: len(prediction)]
            for parts in zip(*near, strict=True)
        )
        return prediction, self.references.labels[places], distances

    def save(self, path: str | Path) -> None:
        """Writes all but the classifier into a directory, in place of an earlier one.

        Killed at any moment, it leaves the earlier one or the new one whole. Of several processes
        the first writes, and the others do not wait for it
        (``jax.experimental.multihost_utils.sync_global_devices`` does).

        Raises:
          TypeError: ``path`` is none.
          UserError: the directory cannot be written to or holds something else, or the detector
            is not known by name.
        """
        directory = checks.path("path", path)
        arrays, about = self.take_apart()
        if processes.leads():
            saving.save(directory, KIND, arrays, about)

    @classmethod
    def load(cls, path: str | Path, backbone: Backbone) -> "OODClassifier":
        """Reads what `save` wrote; scores have the same bits as those of what was saved.

        Args:
          path: the directory.
          backbone: the classifier that it was fitted on.

        Raises:
          TypeError: ``path`` is none, or ``backbone``.
          UserError: there is none, it is damaged, of a newer format, of another classifier, or of
            a detector that is not known here.
        """
        directory = checks.path("path", path)
        require_backbone(backbone)
        about, arrays = saving.load(directory, KIND, HOW_TO_MAKE)
        return cls.put_together(directory, about, arrays, backbone)

    def export(
        self,
        path: str | Path,
        image_shape: Sequence[int] | None = None,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> None:
        """Writes network, detector and threshold as one file that needs only jax to run.

        It is read with ``jax.export.deserialize(bytearray(Path(path).read_bytes()))``; its
        ``call`` takes normalised float32 images (B, H, W, C), B at least 1, and gives what
        `answers` does, without the features.

        Args:
          path: of the file, replaced whole or not at all.
          image_shape: of one image, (H, W, C); by default that of the calibration images.
          platforms: where it is to run.

        Raises:
          UserError: the detector reads rows on the host, which no file can; the package
            flatbuffers is missing; or the file cannot be written.
          ValueError: an unknown platform, or an image shape that the network does not take.
        """
        shape = self.image_shape if image_shape is None else tuple(image_shape)
        if len(shape) != len(self.image_shape):
            raise ValueError(f"image_shape is {shape}; expected one like {self.image_shape}")
        for side in shape:
            checks.at_least("image_shape", side, 1)
        if not self.detector.compiled:
            raise UserError(
                f"{self.detector.name} reads rows that lie on the host, which no exported file "
                "can; fit it with bank_dtype 'float32'"
            )
        score = exporting.in_blocks(self.detector.score)

        def answers(images: Float[Array, "b ..."]) -> dict[str, Array]:
            answered = self.answers(images, score)
            return {field.name: answered[field.name] for field in fields(Prediction)}

        exporting.export(answers, Path(path), shape, platforms)

    def answers(
        self, images: Shaped[Array, "b ..."], score: Score | None = None
    ) -> dict[str, Array]:
        """`predict` as a pure function of JAX arrays, without its checks; may be compiled.

        An image for which the network's outputs are not finite has a NaN score and p-value, and
        is taken for OOD.

        Args:
          images: normalised as the network takes them, (B, H, W, C) float32.
          score: what to use in place of the detector's own ``score``.

        Returns:
          label (B,) int32, score (B,) float32, is_ood (B,) bool, p_value (B,) float32; and
          features (B, D) float32.
        """
        return answering.answers(self._parts, images, score or self._score, self.detector.needs)

    def take_apart(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and a description in JSON's types, without the classifier.

        Raises:
          UserError: the detector is not known by name, or its state cannot be saved.
        """
        name = self.detector.name
        try:
            detectors.rebuild(name, self.detector.options)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"detector {name!r} could not be loaded again ({error}); make it known with "
                "grood_jax.detectors.register, and let Detector.options be what its factory takes"
            ) from error
        parts = {
            "options": dict(self.detector.options),
            "state": self.state,
            "early_prototypes": self.early_prototypes,
            "held_out_scores": self.held_out_scores,
            "held_out_classes": self.held_out_classes,
            "references": self.references,
            "fitted_head": self.backbone.fitted_head,
        }
        arrays: dict[str, np.ndarray] = {}
        described = {}
        for part, value in parts.items():
            described[part], own = take_apart(part, value)
            arrays |= own
        about = {
            "detector": name,
            "parts": described,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "target_tpr": self.target_tpr,
            "per_class": self.per_class,
            "preprocessing": None if self.preprocessing is None else asdict(self.preprocessing),
            "model": checkpoints.fingerprint_of(self.backbone.given_arrays),
        }
        return arrays, about

    @classmethod
    def put_together(
        cls, path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray], backbone: Backbone
    ) -> "OODClassifier":
        """What `take_apart` took apart; ``path`` is for messages.

        Raises:
          UserError: another classifier, a detector that is not known here, or a description that
            is none of `take_apart`'s.
        """
        fingerprint = checkpoints.fingerprint_of(require_backbone(backbone).given_arrays)
        with manifests.described("classifier", path):
            if fingerprint != about["model"]:
                raise UserError(
                    f"what lies in {path} was fitted on the classifier {about['model'][:12]}…; "
                    f"the backbone given is {fingerprint[:12]}…"
                )
            parts = {part: put_together(value, arrays) for part, value in about["parts"].items()}
            try:
                detector = detectors.rebuild(about["detector"], parts.pop("options"))
            except ValueError as error:
                raise UserError(
                    f"the detector saved in {path} is not known here: {error}"
                ) from error
            prepare = _preprocessing(about.get("preprocessing"))
            head = parts.pop("fitted_head", None)
            if head is not None and backbone.wanted_head is not None:
                backbone = backbone.with_head(*head)
            made = cls(
                backbone=door(backbone, prepare).backbone,
                detector=detector,
                preprocessing=prepare,
                image_shape=tuple(checks.at_least("side", n, 1) for n in about["image_shape"]),
                num_classes=checks.at_least("num_classes", about["num_classes"], 1),
                target_tpr=_checked_rate(about["target_tpr"]),
                per_class=checks.flag("per_class", about["per_class"]),
                **parts,
            )
            _require_enough(made)
            return made

    def _answered(self, images: Images) -> tuple[Prediction, list[Float[Array, "_ d"]]]:
        """`answers` for any number of images, checked; features in parts, the last one padded."""
        if self.preprocessing is not None:
            images = pictures_of(images, self.preprocessing)
        given = np.asarray(checks.array_of("images", images))
        expected = f"normalised images (B, {', '.join(map(str, self.image_shape))})"
        as_bytes = given.dtype == np.uint8 and self.backbone.takes_bytes
        if not as_bytes and not jnp.issubdtype(given.dtype, jnp.floating):
            raise TypeError(
                f"images has dtype {given.dtype}; expected floating-point numbers, {expected}"
            )
        if given.ndim < 1 or given.shape[1:] != self.image_shape:
            raise ValueError(f"images has shape {given.shape}; expected {expected}")
        if not as_bytes:
            with checks.room("images", given.shape), np.errstate(over="ignore"):
                given = given.astype(np.float32)
                bad = ~np.isfinite(given).all(axis=tuple(range(1, given.ndim)))
            _refuse("images holds NaN or infinite values", bad)
        packed, features = [], []
        # No image at all is one part, so that what comes back has its types and shapes.
        for start in range(0, max(len(given), 1), PREDICTED_AT_ONCE):
            part = given[start : start + PREDICTED_AT_ONCE]
            padded = _padded(part) if len(part) else np.zeros((1, *self.image_shape), given.dtype)
            numbers, own = self._program(padded)
            packed.append(np.asarray(numbers)[:, : len(part)])
            features.append(own)
        prediction = Prediction(**answering.unpacked(np.concatenate(packed, axis=1)))
        _refuse("the network's outputs are NaN or infinite", np.isnan(prediction.score))
        return prediction, features

    @functools.cached_property
    def _program(self) -> Callable[[np.ndarray], tuple[Array, Array]]:
        """From images to what `answering.unpacked` takes, and to features."""
        if self.detector.compiled:
            return answering.program(self._parts, self.detector.score, self.detector.needs)
        return lambda images: _packed(self.answers(jnp.asarray(images)))

    @functools.cached_property
    def _parts(self) -> Parts:
        with jax.ensure_compile_time_eval():
            thresholds = conformal.threshold(self.calibration, self.target_tpr)
        return Parts(self.backbone, self.early_prototypes, self.state, self.calibration, thresholds)

    @functools.cached_property
    def _score(self) -> Score:
        return jax.jit(self.detector.score) if self.detector.compiled else self.detector.score

    @functools.cached_property
    def _placed_references(self) -> Float[Array, "m d"]:
        return jnp.asarray(self.references.features)


_packed = jax.jit(answering.packed)


def _divided(train: Given, key: Array, target_tpr: float) -> tuple[TrainingBatches, Any]:
    """What is left to fit on when some training images are held out, and these."""
    count = train.count()
    drawn = np.asarray(jax.random.permutation(jax.random.fold_in(key, 1), count))
    held = max(1, round(HELD_OUT * count))
    held_out, rest = np.sort(drawn[:held]), np.sort(drawn[held:])
    warnings.warn(
        f"calibration is None: {held} of {count} training images, drawn at random, are held out of "
        f"the detector's fit and set the threshold. The network was trained on them and is surer "
        f"of them than of new ones: of new ID images fewer than {target_tpr:g} may be taken for "
        "ID. Give calibration images that it was not trained on",
        stacklevel=4,
    )
    return lambda rows: train.read(rest if rows is None else rest[rows]), train.read(held_out)


def _facts(
    opener: Door, train: Given, detector: Detector, key: Array, kept: tuple[float, bool]
) -> dict[str, Any]:
    """What several processes must have in common."""
    first = next(iter(train.read(np.arange(1))))
    return {
        "classifier": checkpoints.fingerprint_of(opener.backbone.given_arrays),
        "detector": detector.name,
        "options of the detector": dict(detector.options),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "target_tpr and per_class": kept,
        "shape of train_batches": [train.count(), *train.shape],
        "first of train_batches": zlib.crc32(np.ascontiguousarray(first.images[:1]).data),
    }


def _outputs_of(
    opener: Door, id_validation: Any, classes: tuple[str, ...], crew: Processes
) -> Callable[[], Labelled] | None:
    """What gives outputs and labels of ID validation images, if there are any."""
    if id_validation is None:
        return None
    found = opener.open("id_validation", id_validation, labels=True, classes=classes)
    found = found.shared(crew.index, crew.count)
    return lambda: extract_labelled(opener.backbone, found.read(None))


def _references(seen: TrainingPass) -> References:
    kept = np.linspace(0, len(seen.labels) - 1, min(len(seen.labels), REFERENCES)).astype(np.int64)
    return References(np.asarray(seen.outputs.features[kept]), np.asarray(seen.labels[kept]))


def _function_of(
    opener: Door, validation: Any, crew: Processes
) -> Callable[[], Iterable[Batch]] | None:
    """What gives batches of held-out OOD images, if there are any."""
    if validation is None or (callable(validation) and not isinstance(validation, Iterable)):
        return validation
    found = opener.open("validation", validation, labels=False, again=True)
    found = found.shared(crew.index, crew.count)
    return lambda: found.read(None)


def _held_out(
    fitted: FittedAll, detector: Detector, backbone: Backbone, calibration: Given
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Scores and predicted classes of the calibration images."""
    outputs, _ = extract_labelled(
        backbone,
        calibration.read(None),
        needs=detector.needs,
        early_prototypes=fitted.early_prototypes,
    )
    scores = fitting.score(detector, fitted.detectors[detector.name].state, outputs)
    if not (_finite_rows(outputs) & ~np.isnan(scores)).all():
        raise ValueError(
            "calibration: the network's outputs or the detector's scores are NaN or infinite "
            f"for some of {len(scores)} images; expected finite numbers"
        )
    return scores, np.asarray(outputs.logits).argmax(axis=1).astype(np.int32)


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    features: Float[Array, "b d"], references: Float[Array, "m d"], k: int
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    def of_one(feature: Float[Array, " d"]) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
        distances = jnp.linalg.norm(references - feature[None, :], axis=1)
        nearest, places = jax.lax.top_k(-distances, k)
        return -nearest, places

    return jax.lax.map(of_one, features)


def _finite_rows(outputs: Outputs) -> Bool[np.ndarray, " n"]:
    parts = (np.asarray(outputs.features), np.asarray(outputs.logits))
    return np.logical_and(*(np.isfinite(part).all(axis=1) for part in parts))


def _refuse(what: str, bad: Bool[np.ndarray, " b"]) -> None:
    if bad.any():
        raise ValueError(
            f"{what} for {bad.sum()} of {len(bad)} images, the first at index {bad.argmax()}; "
            "expected finite numbers"
        )


def _preprocessing(saved: Any) -> Preprocessing | None:
    """What `OODClassifier.take_apart` wrote of it; versions before wrote nothing."""
    if saved is None:
        return None
    parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    return Preprocessing(**parts)


def _checked_rate(target_tpr: float) -> float:
    rate = checks.fraction("target_tpr", target_tpr)
    if rate in (0, 1):
        raise ValueError(f"target_tpr is {target_tpr}; expected a number in (0, 1)")
    return rate


def _require_enough(made: OODClassifier) -> None:
    if not np.isfinite(made.thresholds).any():
        rate = made.target_tpr
        raise UserError(
            f"calibration has {len(made.held_out_scores)} images; a target_tpr of {rate:g} needs "
            f"at least {math.ceil(rate / (1 - rate) - 1e-9)}"
            + (" of one predicted class" if made.per_class else "")
        )


def _padded(array: np.ndarray) -> np.ndarray:
    """With the last row repeated, up to a power of two."""
    missing = (1 << (len(array) - 1).bit_length()) - len(array)
    if not missing:
        return array
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")
