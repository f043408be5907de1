"""The pass over the training set, and the second passes over the few samples that are mixed."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Mix, Need, Outputs
from grood_jax.data import Batch
from grood_jax.detectors import MixedTraining
from grood_jax.maths.mixup import mix_with_prototypes, other_classes
from grood_jax.maths.prototypes import ClassMeans, accumulate, merge
from grood_jax.passes.devices import (
    ALL,
    DIVIDED,
    by_parts,
    by_rows,
    divided,
    everywhere,
    mesh_of,
    no_means,
    of_all_devices,
)
from grood_jax.passes.forward import (
    Labelled,
    TrainingBatches,
    labelled_form,
    mixed_features,
    network_outputs,
    present_classes,
    with_extra,
)
from grood_jax.passes.memo import Arrays, Form, Memo, make_anew, parts_of
from grood_jax.passes.parts import Span, run_pass, valid_rows
from grood_jax.passes.processes import joined_means
from grood_jax.support import checks

T = TypeVar("T")

ALONE = 0.02
"""How far outputs of one image may differ from batch to batch, relative to the largest: rounding
of low-precision models is less, batch statistics are more."""

TrainingResults = tuple[Outputs, Int[np.ndarray, " n"], Float[Array | np.ndarray, "c ..."] | None]
"""Outputs, labels, and class means of the activations at the cut if asked for."""


@dataclass(frozen=True)
class TrainingPass:
    """What one pass over the training set left, and second passes over some of its rows.

    Attributes:
      backbone: the classifier.
      train: gives batches of the training set.
      outputs: features and logits of the N training samples.
      labels: their classes, (N,) int32.
      early_prototypes: class means of the activations at the cut, (C, ...) float32, if asked for.
      memo: remembers the results of second passes, or has them made.
    """

    backbone: Backbone
    train: TrainingBatches
    outputs: Outputs
    labels: Int[Array, " n"]
    early_prototypes: Float[Array, "c ..."] | None
    memo: Memo = make_anew

    def mixed_samples(self, source: MixedTraining, key: Array) -> Outputs:
        """Outputs of samples drawn at random, each mixed with its second most likely class."""
        drawn = jax.random.permutation(key, len(self.labels))[: source.samples]
        rows = np.sort(np.asarray(drawn))
        targets = self._others(rows, 1, source.present)[:, 0]
        form = Form(("features", "logits"), Outputs.arrays, Outputs.from_arrays)
        outputs = self._second_pass(rows, targets, source.weight, _forward_mixed, form)
        return jax.tree.map(checks.placed, outputs)

    def mixed_copies(self, rows: Int[np.ndarray, " r"], mix: Mix) -> Float[Array, "r k d"]:
        """Features of the rows' mixed copies."""
        targets = self._others(rows, mix.classes, mix.present)
        form: Form[np.ndarray] = Form(
            ("mixed",), lambda copies: {"mixed": copies}, lambda arrays: arrays["mixed"]
        )
        return checks.placed(
            self._second_pass(rows, targets, mix.weight, _forward_mixed_copies, form)
        )

    def _others(
        self, rows: Int[np.ndarray, " r"], count: int, present: tuple[int, ...]
    ) -> Int[np.ndarray, "r k"]:
        logits = checks.rows(self.outputs.logits, rows)
        return np.asarray(other_classes(logits, count, present_classes(present)))

    def _second_pass(
        self,
        rows: Int[np.ndarray, " r"],
        targets: Int[np.ndarray, "r ..."],
        weight: float,
        run: Callable[..., Any],
        form: Form[T],
    ) -> T:
        """Runs the network over some rows, mixed with the early prototypes of the targets."""
        digest = hashlib.sha256(rows.astype(np.int64).tobytes() + targets.tobytes()).hexdigest()
        about = {"set": "mixed training set", "rows and targets": digest, "weight": weight}
        expected = np.asarray(self.labels)[rows]

        mesh = mesh_of(self.backbone)

        def results(
            batches: Iterable[Batch], own: Span | None, fresh: bool
        ) -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
            early = everywhere(self.early_prototypes, mesh)
            start, stop = own or (0, len(rows))
            for batch in batches:
                valid = batch.valid
                part = slice(start, start + int(valid.sum()))
                if not np.array_equal(batch.labels[valid], expected[part]):
                    break
                start = part.stop
                padded = np.zeros((len(valid), *targets.shape[1:]), np.int32)
                padded[valid] = targets[part]
                yield (
                    run(
                        self.backbone,
                        divided(batch.images, mesh),
                        early,
                        divided(padded, mesh),
                        jnp.float32(weight),
                        mesh,
                    ),
                    valid,
                )
            if start != stop:
                raise ValueError(
                    f"train gave other samples than the {len(rows)} rows asked for; expected "
                    "batches of just these rows, in their order"
                )

        def make() -> T:
            return run_pass(self.train(rows), form, results, parts=parts_of(self.memo, about))

        return self.memo(about, form, make)


def run_training_set(
    backbone: Backbone,
    train: TrainingBatches,
    *,
    early: bool,
    needs: tuple[Need, ...] = (),
    memo: Memo = make_anew,
) -> TrainingPass:
    """Runs the network once over the training set.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      early: average the activations at the cut by class on the way.
      needs: what to compute beside features and logits; no mixed copies.
      memo: remembers the results, or has them made.

    Raises:
      ValueError: a label that is no class, features, logits or activations that are not finite,
        or no batch.
    """
    form = _training_form(early, needs)
    about = {"set": "training set"}

    def make() -> TrainingResults:
        batches = train(None)
        running = _Running(backbone, early, needs)
        # Over several devices, rows are brought together on the host.
        keep = _on_device if running.mesh is None else valid_rows
        outputs, labels = run_pass(
            batches,
            labelled_form(needs),
            running.results,
            parts=parts_of(memo, about),
            sums=running if early else None,
            keep=keep,
        )
        return outputs, labels, running.early_prototypes(batches)

    outputs, labels, prototypes = memo(about, form, make)
    # What is large beside these stays on the host.
    features, logits = checks.placed(outputs.features), checks.placed(outputs.logits)
    outputs = replace(outputs, features=features, logits=logits)
    checks.finite("features of the training set", features)
    checks.finite("logits of the training set", logits)
    if prototypes is not None:
        prototypes = checks.placed(prototypes)
        checks.finite("class means of the activations at the cut", prototypes)
    return TrainingPass(backbone, train, outputs, checks.placed(labels), prototypes, memo)


def _training_form(early: bool, needs: tuple[Need, ...]) -> Form[TrainingResults]:
    rows = labelled_form(needs)

    def to_arrays(results: TrainingResults) -> Arrays:
        outputs, labels, prototypes = results
        means = {} if prototypes is None else {"early": np.asarray(prototypes)}
        return rows.to_arrays((outputs, labels)) | means

    def from_arrays(arrays: Arrays) -> TrainingResults:
        return *rows.from_arrays(arrays), arrays["early"] if early else None

    return Form((*rows.names, *(["early"] if early else [])), to_arrays, from_arrays)


class _Running:
    """A pass over the training set under way; with ``early`` it takes class means at the cut."""

    def __init__(self, backbone: Backbone, early: bool, needs: tuple[Need, ...]) -> None:
        self.backbone, self.early, self.needs = backbone, early, needs
        self.mesh = mesh_of(backbone)
        self.classes: int | None = None
        self.means: ClassMeans | None = None

    def arrays(self) -> Arrays:
        """The class means so far, of each device its own: what `run_pass` sums."""
        assert self.means is not None
        return {"means": np.asarray(self.means.means), "counts": np.asarray(self.means.counts)}

    def add(self, arrays: Arrays) -> None:
        """Joins class means of other rows."""
        own = ClassMeans(*(self._on_devices(arrays[name]) for name in ("means", "counts")))
        self.means = own if self.means is None else merge(self.means, own)

    def _on_devices(self, array: np.ndarray) -> Array:
        return jnp.array(array) if self.mesh is None else divided(array, self.mesh)

    def early_prototypes(self, batches: Iterable[Batch]) -> Float[Array, "c ..."] | None:
        if self.means is None:
            return None
        return joined_means(batches, of_all_devices(self.means, self.mesh)).means

    def results(
        self, batches: Iterable[Batch], rows: Span | None, fresh: bool
    ) -> Iterator[tuple[Labelled, Bool[np.ndarray, " b"]]]:
        """Outputs and labels of each batch; where they are fresh, class means take them in."""
        for batch in batches:
            first = self.classes is None
            if self.classes is None:
                hidden, logits = jax.eval_shape(_hidden_and_logits, self.backbone, batch.images)
                self.classes = logits.shape[1]
                if self.early and self.means is None:
                    self.means = no_means(self.classes, hidden.shape[1:], self.mesh)
            # A label that is no class would spoil the means: say so before the pass goes on.
            own = batch.labels[batch.valid]
            checks.classes("labels of the training set", own, self.classes, ("N",))
            outputs = self._one(batch if fresh else replace(batch, valid=_none(batch)))
            if first:
                self._check_rows(batch, outputs)
            yield (outputs, batch.labels.astype(np.int32)), batch.valid

    def _check_rows(self, batch: Batch, outputs: Outputs) -> None:
        rows = np.flatnonzero(batch.valid)
        if len(rows) < 2:
            return
        copies = np.broadcast_to(batch.images[rows[:1]], batch.images.shape)
        # None is valid, so that nothing is summed; and nothing is compiled for it.
        alone = self._one(replace(batch, images=copies, valid=_none(batch)))
        _require_rows_alone(outputs, alone, int(rows[0]))

    def _one(self, batch: Batch) -> Outputs:
        images = divided(batch.images, self.mesh)
        if self.means is None:
            return network_outputs(self.backbone, images, None, self.needs, self.mesh)
        marks = divided(batch.labels, self.mesh), divided(batch.valid, self.mesh)
        outputs, self.means = _forward_and_sum(
            self.backbone, images, *marks, self.needs, self.means, self.mesh
        )
        return outputs


def _require_rows_alone(outputs: Outputs, alone: Outputs, row: int) -> None:
    """Refuses a model whose outputs for an image depend on the other images of its batch.

    Args:
      outputs: of a batch.
      alone: of a batch of copies of its image ``row``.
      row: which one.

    Raises:
      ValueError: features or logits differ by more than rounding.
    """
    for name in ("features", "logits"):
        ours, theirs = (np.asarray(getattr(part, name))[row] for part in (outputs, alone))
        largest = float(np.abs(ours - theirs).max())
        # What is not finite is named, with its row, when the pass has ended.
        if largest > ALONE * max(float(np.abs(ours).max()), float(np.abs(theirs).max())):
            raise ValueError(
                f"the backbone's {name} of an image differ by {largest:.3g} with the other images "
                "of its batch; expected a model in evaluation mode (a training flag of its own? "
                "batch statistics without running averages?)"
            )


def _none(batch: Batch) -> Bool[np.ndarray, " b"]:
    """No row as valid: nothing is summed, by the same compiled program."""
    return np.zeros_like(batch.valid)


def _on_device(
    labelled: Labelled, valid: Bool[np.ndarray, " b"]
) -> tuple[Outputs, Int[np.ndarray, " v"]]:
    """The valid rows, features and logits where they are: detectors are fitted there."""
    outputs, labels = labelled
    features, logits = (checks.placed(part) for part in (outputs.features, outputs.logits))
    if not valid.all():
        chosen = np.flatnonzero(valid)
        features, logits = checks.rows(features, chosen), checks.rows(logits, chosen)
    return Outputs(features, logits, valid_rows(outputs.extra, valid)), labels[valid]


def _hidden_and_logits(
    backbone: Backbone, images: Shaped[Array | np.ndarray, "b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, "b c"]]:
    hidden = backbone.hidden(images)
    return hidden, jnp.asarray(backbone.finish(hidden).logits)


@partial(jax.jit, static_argnames=("needs", "mesh"), donate_argnames="means")
def _forward_and_sum(
    backbone: Backbone,
    images: Shaped[Array, "b ..."],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    needs: tuple[Need, ...],
    means: ClassMeans,
    mesh: Mesh | None,
) -> tuple[Outputs, ClassMeans]:
    def run(
        backbone: Backbone,
        images: Shaped[Array, "b ..."],
        labels: Int[Array, " b"],
        valid: Bool[Array, " b"],
        means: ClassMeans,
    ) -> tuple[Outputs, ClassMeans]:
        def of_some(images: Shaped[Array, "n ..."]) -> tuple[Outputs, Float[Array, "n ..."]]:
            images = backbone.normalized(images)
            hidden = backbone.hidden(images)
            return with_extra(backbone, images, hidden, None, needs), hidden

        # As in `network_outputs`.
        outputs, hidden = of_some(images) if needs else by_parts(of_some, images)
        return outputs, accumulate(means, hidden, labels, valid)

    given = (ALL, DIVIDED, DIVIDED, DIVIDED, DIVIDED)
    return by_rows(run, mesh, given)(backbone, images, labels, valid, means)


_MIXED = (ALL, DIVIDED, ALL, DIVIDED, ALL)


@partial(jax.jit, static_argnames="mesh")
def _forward_mixed(
    backbone: Backbone,
    images: Shaped[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, " b"],
    weight: Float[Array, ""],
    mesh: Mesh | None,
) -> Outputs:
    def run(
        backbone: Backbone, images: Array, early: Array, targets: Array, weight: Array
    ) -> Outputs:
        hidden = backbone.hidden(images)
        return backbone.finish(mix_with_prototypes(hidden, early, targets, weight))

    return by_rows(run, mesh, _MIXED)(backbone, images, early_prototypes, targets, weight)


@partial(jax.jit, static_argnames="mesh")
def _forward_mixed_copies(
    backbone: Backbone,
    images: Shaped[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, "b k"],
    weight: Float[Array, ""],
    mesh: Mesh | None,
) -> Float[Array, "b k d"]:
    def run(
        backbone: Backbone, images: Array, early: Array, targets: Array, weight: Array
    ) -> Float[Array, "b k d"]:
        hidden = backbone.hidden(images)
        return mixed_features(backbone, hidden, early, targets, weight)

    return by_rows(run, mesh, _MIXED)(backbone, images, early_prototypes, targets, weight)
