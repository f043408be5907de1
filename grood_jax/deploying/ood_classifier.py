"""What an application deploys: a classifier that says which inputs it does not know."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from grood_jax import detectors
from grood_jax.backbone.backbone import Backbone, require_backbone
from grood_jax.backbone.outputs import Outputs
from grood_jax.conformal import calibration as conformal
from grood_jax.conformal.calibration import Calibration
from grood_jax.data import Batch
from grood_jax.deploying import exporting
from grood_jax.deploying.exporting import Score
from grood_jax.detectors import Detector
from grood_jax.evaluation import fitting, heads
from grood_jax.evaluation.fitting import FittedAll
from grood_jax.passes.forward import TrainingBatches, extract_labelled, network_outputs
from grood_jax.storage import checkpoints, saving
from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart

PREDICTED_AT_ONCE = 256
"""Images that are scored at once; fewer are padded to a power of two, so that little compiles."""

SCORED = (16, 64, PREDICTED_AT_ONCE)
"""Rows that a detector scores at once: searches take seconds to compile, and little to run."""

REFERENCES = 2000
"""Training samples kept to show which are near."""

KIND = "OOD_classifier"
HOW_TO_MAKE = "make one with OODClassifier.save or python -m grood_jax.fit"

LabelledImages = Batch | tuple[Any, Any]
"""Normalised images with their labels, (B, H, W, C) and (B,)."""

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
        train_batches: TrainingBatches | Iterable[LabelledImages],
        *,
        detector: Detector,
        calibration: Iterable[LabelledImages | Any],
        key: Array,
        target_tpr: float = 0.95,
        per_class: bool = False,
        noise: Callable[[int, Array], Iterable[Batch]] | None = None,
        validation: Callable[[], Iterable[Batch]] | None = None,
        id_validation: Iterable[LabelledImages] | None = None,
    ) -> "OODClassifier":
        """Fits a detector and sets its threshold.

        A new ID image is taken for ID with a probability of at least ``target_tpr``, on average
        over calibration sets, whatever the network and the detector (split conformal prediction,
        see `grood_jax.conformal.calibration`).

        Args:
          backbone: the classifier.
          train_batches: labelled training images, as batches `grood_jax.data.Batch` or pairs
            (images (B, H, W, C) normalised, labels (B,)); a list, or anything else that can be
            read twice, for some detectors read some images again. Or a function as
            `grood_jax.evaluation.fitting.fit_detectors` takes it.
          detector: the detector, `grood_jax.detectors.grood()` for example.
          calibration: ID images on which neither the network nor the detector was trained:
            batches, pairs, or images alone.
          key: randomness.
          target_tpr: the share of ID images that are to be taken for ID, in (0, 1).
          per_class: keep it within each predicted class (Mondrian). A class with too few
            calibration images then flags nothing.
          noise: as for `grood_jax.evaluation.fitting.prepare`.
          validation: as for `grood_jax.evaluation.fitting.prepare`.
          id_validation: labelled ID images, as batches or pairs, for detectors that are better
            fitted with what the network was not trained on, `temperature_scaling` for example;
            none of ``calibration``'s, or what is promised does not hold.

        Raises:
          TypeError: an argument of the wrong type; ``train_batches`` can be read only once.
          UserError: the detector needs what the backbone cannot give; too few calibration images.
          ValueError: what the detector's fit raises; NaN; shapes that differ.
        """
        require_backbone(backbone)
        checks.key("key", key)
        _checked_rate(target_tpr)
        checks.flag("per_class", per_class)
        if not isinstance(detector, Detector):
            raise TypeError(
                f"detector is {detector!r}; expected a Detector, as detectors.create makes it"
            )
        checks.several("calibration", calibration, "batches, pairs or images")
        train = _training_batches(train_batches)
        backbone = heads.completed(backbone, train, [(detector.name, detector)])
        fitter = fitting.prepare(
            backbone,
            train,
            [(detector.name, detector)],
            key=key,
            noise=noise,
            validation=validation,
            id_validation=None
            if id_validation is None
            else lambda: extract_labelled(backbone, _batches("id_validation", id_validation)),
        )
        fitted = fitting.fit_all(fitter, {detector.name: detector})
        state = fitted.detectors[detector.name].state
        held_out = _held_out(fitted, detector, backbone, calibration)
        seen = fitter.seen
        count, classes = seen.outputs.logits.shape
        kept = np.linspace(0, count - 1, min(count, REFERENCES)).astype(np.int64)
        made = cls(
            backbone,
            detector,
            state,
            fitted.early_prototypes,
            held_out.scores,
            held_out.classes,
            References(np.asarray(seen.outputs.features[kept]), np.asarray(seen.labels[kept])),
            held_out.image_shape,
            classes,
            float(target_tpr),
            bool(per_class),
        )
        _require_enough(made)
        return made

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
        return np.asarray(conformal.threshold(self.calibration, self.target_tpr), np.float32)

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

    def predict(self, images: Shaped[Any, "b ..."]) -> Prediction:
        """Classes, scores and decisions for images.

        Args:
          images: normalised as the network takes them, (B, H, W, C) floating-point; B may be 0. Or
            bytes from 0 to 255, where the backbone knows how to normalise them.

        Raises:
          TypeError: ``images`` are not floating-point.
          ValueError: another shape, NaN or infinities, or values so large that the network's
            outputs are not finite.
        """
        answers = self._answered(images)
        return Prediction(**{field.name: answers[field.name] for field in fields(Prediction)})

    def discoveries(self, images: Shaped[Any, "b ..."], rate: float) -> Prediction:
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
        self, images: Shaped[Any, "b ..."], k: int = 5
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
        count = len(self.references.labels)
        if checks.at_least("k", k, 1) > count:
            raise ValueError(f"k is {k}; expected at most {count}, the samples kept")
        features = self._answered(images)["features"]
        places, distances = np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        if len(features):
            near = _nearest(
                jnp.asarray(_padded(features)), jnp.asarray(self.references.features), k
            )
            distances, places = (np.asarray(part)[: len(features)] for part in near)
        return self.references.labels[places], distances

    def save(self, path: str | Path) -> None:
        """Writes all but the classifier into a directory, in place of an earlier one.

        Killed at any moment, it leaves the earlier one or the new one whole.

        Raises:
          TypeError: ``path`` is none.
          UserError: the directory cannot be written to or holds something else, or the detector
            is not known by name.
        """
        directory = checks.path("path", path)
        arrays, about = self.take_apart()
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
        outputs = network_outputs(self.backbone, images, self.early_prototypes, self.detector.needs)
        return self._decide(outputs, (score or self._score)(self.state, outputs))

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
            head = parts.pop("fitted_head", None)
            if head is not None and backbone.wanted_head is not None:
                backbone = backbone.with_head(*head)
            made = cls(
                backbone=backbone,
                detector=detector,
                image_shape=tuple(checks.at_least("side", n, 1) for n in about["image_shape"]),
                num_classes=checks.at_least("num_classes", about["num_classes"], 1),
                target_tpr=_checked_rate(about["target_tpr"]),
                per_class=checks.flag("per_class", about["per_class"]),
                **parts,
            )
            _require_enough(made)
            return made

    def _answered(self, images: Shaped[Any, "b ..."]) -> dict[str, np.ndarray]:
        """`answers` for any number of images, checked."""
        given = np.asarray(checks.array_of("images", images))
        expected = f"normalised images (B, {', '.join(map(str, self.image_shape))})"
        as_bytes = given.dtype == np.uint8 and self.backbone.takes_bytes
        if not as_bytes and not jnp.issubdtype(given.dtype, jnp.floating):
            raise TypeError(
                f"images has dtype {given.dtype}; expected floating-point numbers, {expected}"
            )
        if given.ndim < 1 or given.shape[1:] != self.image_shape:
            raise ValueError(f"images has shape {given.shape}; expected {expected}")
        with checks.room("images", given.shape), np.errstate(over="ignore"):
            given = given if as_bytes else given.astype(np.float32)
            bad = ~np.isfinite(given).all(axis=tuple(range(1, given.ndim)))
        _refuse("images holds NaN or infinite values", bad)
        parts = []
        # No image at all is one part, so that what comes back has its types and shapes.
        for start in range(0, max(len(given), 1), PREDICTED_AT_ONCE):
            part = given[start : start + PREDICTED_AT_ONCE]
            padded = _padded(part) if len(part) else np.zeros((1, *self.image_shape), given.dtype)
            answers = self.answers(jnp.asarray(padded))
            parts.append({name: np.asarray(a)[: len(part)] for name, a in answers.items()})
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _refuse("the network's outputs are NaN or infinite", np.isnan(joined["score"]))
        return joined

    @functools.cached_property
    def _score(self) -> Score:
        if not self.detector.compiled:
            return self.detector.score
        compiled = jax.jit(self.detector.score)

        def score(state: Any, outputs: Outputs) -> Float[Array, " b"]:
            count = len(outputs.logits)
            rows = next((rows for rows in SCORED if rows >= count), count)
            if rows == count or isinstance(outputs.logits, jax.core.Tracer):
                return compiled(state, outputs)
            padded = jax.tree.map(lambda array: _padded(np.asarray(array), rows), outputs)
            return compiled(state, padded)[:count]

        return score

    @functools.cached_property
    def _decide(self) -> Callable[[Outputs, Float[Array, " b"]], dict[str, Array]]:
        calibration, target_tpr, per_class = self.calibration, self.target_tpr, self.per_class

        def decide(outputs: Outputs, scores: Float[Array, " b"]) -> dict[str, Array]:
            features, logits = jnp.asarray(outputs.features), jnp.asarray(outputs.logits)
            finite = jnp.isfinite(features).all(axis=1) & jnp.isfinite(logits).all(axis=1)
            label = logits.argmax(axis=1).astype(jnp.int32)
            score = jnp.where(finite, scores, jnp.nan).astype(jnp.float32)
            classes = label if per_class else None
            return {
                "label": label,
                "score": score,
                "is_ood": conformal.is_ood(calibration, score, target_tpr, classes),
                "p_value": conformal.conformal_p_values(calibration, score, classes),
                "features": features,
            }

        return jax.jit(decide)


class _HeldOut(NamedTuple):
    """What the calibration images gave: scores, predicted classes, the shape of an image."""

    scores: Float[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    image_shape: tuple[int, ...]


def _held_out(
    fitted: FittedAll,
    detector: Detector,
    backbone: Backbone,
    calibration: Iterable[LabelledImages | Any],
) -> _HeldOut:
    shapes: set[tuple[int, ...]] = set()
    outputs, _ = extract_labelled(
        backbone,
        _noting(shapes, _batches("calibration", calibration)),
        needs=detector.needs,
        early_prototypes=fitted.early_prototypes,
    )
    scores = fitting.score(detector, fitted.detectors[detector.name].state, outputs)
    if not (_finite_rows(outputs) & ~np.isnan(scores)).all():
        raise ValueError(
            "calibration: the network's outputs or the detector's scores are NaN or infinite "
            f"for some of {len(scores)} images; expected finite numbers"
        )
    classes = np.asarray(outputs.logits).argmax(axis=1).astype(np.int32)
    return _HeldOut(scores, classes, shapes.pop())


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


def _padded(array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """With the last row repeated, up to a power of two by default."""
    missing = (rows or 1 << (len(array) - 1).bit_length()) - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")


def _training_batches(
    given: TrainingBatches | Iterable[LabelledImages],
) -> TrainingBatches:
    if callable(given):
        return given
    if not isinstance(given, Iterable):
        raise TypeError(
            f"train_batches is a {type(given).__name__}; expected a list of batches, or of pairs "
            "(images, labels)"
        )
    if iter(given) is given:
        raise TypeError(
            f"train_batches is a {type(given).__name__}, which can be read only once, and "
            "detectors may read some images again; expected a list of batches, or a function of "
            "row numbers (None for all) that gives them"
        )

    def read(rows: Int[np.ndarray, " r"] | None) -> Iterator[Batch]:
        start = 0
        for batch in _batches("train_batches", given):
            stop = start + int(batch.valid.sum())
            if rows is None:
                yield batch
            else:
                # Rows are asked for in ascending order.
                own = rows[(rows >= start) & (rows < stop)] - start
                if len(own):
                    chosen = np.flatnonzero(batch.valid)[own]
                    yield _batch(batch.images[chosen], batch.labels[chosen], len(batch.valid))
            start = stop

    return read


def _batches(name: str, given: Iterable[LabelledImages | Any]) -> Iterator[Batch]:
    """What a user gives as batches of one shape, the smaller ones padded."""
    size, shape, given_any = 0, (), False
    for item in given:
        given_any = True
        if isinstance(item, Batch):
            yield item
            continue
        pair = isinstance(item, tuple) and len(item) == 2
        images = np.asarray(checks.array_of(name, item[0] if pair else item))
        labels = (
            np.asarray(checks.array_of(name, item[1]))
            if pair
            else np.broadcast_to(np.int32(-1), images.shape[:1])
        )
        if not jnp.issubdtype(images.dtype, jnp.floating) or images.ndim != 4 or not len(images):
            raise TypeError(
                f"{name} holds images of dtype {images.dtype} and shape {images.shape}; expected "
                "normalised floating-point images (B, H, W, C)"
            )
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(
                f"{name} holds labels of dtype {labels.dtype} and shape {labels.shape}; expected "
                f"integers ({len(images)},)"
            )
        labels = checks.int32(f"{name}: labels", labels)
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise ValueError(f"{name} holds images {images.shape[1:]}; expected {shape} as before")
        size = max(size, len(images))
        with checks.room(name, images.shape), np.errstate(over="ignore"):
            batch = _batch(images.astype(np.float32), labels, size)
        yield batch
    if not given_any:
        raise ValueError(f"{name} is empty; expected at least one batch")


def _batch(images: np.ndarray, labels: np.ndarray, size: int) -> Batch:
    missing = size - len(images)
    return Batch(
        np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]),
        np.pad(labels, (0, missing)),
        np.arange(size) < len(images),
    )


def _noting(shapes: set[tuple[int, ...]], batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        shapes.add(batch.images.shape[1:])
        if len(shapes) > 1:
            raise ValueError(f"calibration holds images of shapes {sorted(shapes)}; expected one")
        yield batch
