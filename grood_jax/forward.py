"""Forward passes: each image once, and the few that are mixed once more."""

from collections.abc import Callable, Iterable, Iterator
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
from grood_jax.detectors import MixedTraining
from grood_jax.mixup import mix_with_prototypes, other_classes
from grood_jax.outputs import Mix, Outputs
from grood_jax.prototypes import ClassSums, accumulate, class_sums, means

TrainingBatches = Callable[[np.ndarray | None], Iterable[Batch]]
"""Batches of the training rows given, in that order; of all rows for None."""


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
    return _gather(
        (_forward(backbone, batch.images, early_prototypes, mixes), batch.valid)
        for batch in batches
    )


def _gather(results: Iterable[tuple[Any, Bool[np.ndarray, " b"]]]) -> Any:
    """The valid rows of all batches' results, joined in host memory.

    Each result is fetched when the next is under way, so that the device does not wait.
    """
    parts: list[Any] = []
    waiting: list[tuple[Any, np.ndarray]] = []
    for result in results:
        parts += [_valid_rows(*waiting.pop())] if waiting else []
        waiting.append(result)
    if not waiting:
        raise ValueError("batches is empty; expected at least one batch")
    parts.append(_valid_rows(*waiting.pop()))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _valid_rows(tree: Any, valid: Bool[np.ndarray, " b"]) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[valid], tree)


@dataclass(frozen=True)
class TrainingPass:
    """What one pass over the training set left, and second passes over some of its rows.

    Attributes:
      backbone: the classifier.
      train: gives batches of the training set.
      outputs: features and logits of the N training samples.
      labels: their classes, (N,) int32.
      early_prototypes: class means of the activations at the cut, (C, ...) float32, if asked for.
    """

    backbone: Backbone
    train: TrainingBatches
    outputs: Outputs
    labels: Int[Array, " n"]
    early_prototypes: Float[Array, "c ..."] | None

    def mixed_samples(self, source: MixedTraining, key: Array) -> Outputs:
        """Outputs of samples drawn at random, each mixed with its second most likely class."""
        drawn = jax.random.permutation(key, len(self.labels))[: source.samples]
        rows = np.sort(np.asarray(drawn))
        targets = self._others(rows, 1, source.present)[:, 0]
        return self._second_pass(rows, targets, source.weight, _forward_mixed)

    def mixed_copies(self, rows: Int[np.ndarray, " r"], mix: Mix) -> Float[Array, "r k d"]:
        """Features of the rows' mixed copies."""
        targets = self._others(rows, mix.classes, mix.present)
        return self._second_pass(rows, targets, mix.weight, _forward_mixed_copies)

    def _others(
        self, rows: Int[np.ndarray, " r"], count: int, present: tuple[int, ...]
    ) -> Int[np.ndarray, "r k"]:
        logits = jnp.asarray(self.outputs.logits)[rows]
        return np.asarray(other_classes(logits, count, _classes(present)))

    def _second_pass(
        self,
        rows: Int[np.ndarray, " r"],
        targets: Int[np.ndarray, "r ..."],
        weight: float,
        run: Callable[..., Any],
    ) -> Any:
        """Runs the network over some rows, mixed with the early prototypes of the targets."""
        expected = np.asarray(self.labels)[rows]

        def results() -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
            start = 0
            for batch in self.train(rows):
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
                        batch.images,
                        self.early_prototypes,
                        padded,
                        jnp.float32(weight),
                    ),
                    valid,
                )
            if start != len(rows):
                raise ValueError(
                    f"train gave other samples than the {len(rows)} rows asked for; expected "
                    "batches of just these rows, in their order"
                )

        return jax.tree.map(jnp.asarray, _gather(results()))


def run_training_set(backbone: Backbone, train: TrainingBatches, *, early: bool) -> TrainingPass:
    """Runs the network once over the training set.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      early: average the activations at the cut by class on the way.

    Raises:
      ValueError: a label that is no class, features, logits or activations that are not finite,
        or no batch.
    """
    labels: list[Int[np.ndarray, " b"]] = []
    sums: ClassSums | None = None

    def results() -> Iterator[tuple[Outputs, Bool[np.ndarray, " b"]]]:
        nonlocal sums
        for batch in train(None):
            if not labels:
                hidden, logits = jax.eval_shape(_hidden_and_logits, backbone, batch.images)
                count = logits.shape[1]
                sums = class_sums(count, hidden.shape[1:]) if early else None
            labels.append(batch.labels[batch.valid])
            # A label that is no class would spoil the sums: say so before the pass goes on.
            checks.classes("labels of the training set", labels[-1], count, ("N",))
            if sums is None:
                outputs = _forward(backbone, batch.images, None, ())
            else:
                outputs, sums = _forward_and_sum(
                    backbone, batch.images, batch.labels, batch.valid, sums
                )
            yield outputs, batch.valid

    outputs = jax.tree.map(jnp.asarray, _gather(results()))
    checks.finite("features of the training set", outputs.features)
    checks.finite("logits of the training set", outputs.logits)
    prototypes = None if sums is None else means(sums)
    if prototypes is not None:
        checks.finite("class means of the activations at the cut", prototypes)
    joined = jnp.asarray(np.concatenate(labels), jnp.int32)
    return TrainingPass(backbone, train, outputs, joined, prototypes)


def _hidden_and_logits(
    backbone: Backbone, images: Float[Array, "b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, "b c"]]:
    hidden = backbone.hidden(images)
    return hidden, jnp.asarray(backbone.finish(hidden).logits)


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
    mixed: dict[Mix, Float[Array | np.ndarray, "b k d"]] = {}
    for mix in mixes:
        logits = jnp.asarray(outputs.logits)
        targets = other_classes(logits, mix.classes, _classes(mix.present))
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
def _forward_mixed_copies(
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
        return jnp.asarray(backbone.finish(mixed).features)

    return jax.lax.map(one_class, targets.T).transpose(1, 0, 2)


def _classes(present: tuple[int, ...]) -> Int[Array, " p"] | None:
    return jnp.asarray(present, jnp.int32) if present else None
