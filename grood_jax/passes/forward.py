"""Forward passes: each image once, and the few that are mixed once more."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Grams, Mix, Need, Outputs, Perturbed
from grood_jax.data import Batch
from grood_jax.detectors import MixedTraining
from grood_jax.maths.grams import gram_sums
from grood_jax.maths.mixup import mix_with_prototypes, other_classes
from grood_jax.maths.perturbation import perturb
from grood_jax.maths.prototypes import ClassSums, accumulate, means
from grood_jax.passes.devices import (
    ALL,
    ROWS,
    by_rows,
    divided,
    empty_sums,
    everywhere,
    mesh_of,
    total,
)
from grood_jax.passes.processes import block_of, joined, joined_sums
from grood_jax.support import checks
from grood_jax.support.errors import UserError

TrainingBatches = Callable[[np.ndarray | None], Iterable[Batch]]
"""Batches of the training rows given, in that order; of all rows for None.

As everywhere below, a `grood_jax.passes.processes.Share` of them is completed by other processes.
"""

Arrays = dict[str, np.ndarray]
Recall = Callable[[Mapping[str, Any], Iterable[str], Callable[[], Arrays]], Arrays]
"""``(about, names, make) -> arrays``: of ``make``, or of an earlier call about the same.

What it is about decides the arrays; the names say which of them are wanted.
"""


def make_anew(about: Mapping[str, Any], names: Iterable[str], make: Callable[[], Arrays]) -> Arrays:
    """A `Recall` that remembers nothing."""
    del about, names
    return make()


def extract(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    needs: tuple[Need, ...] = (),
    early_prototypes: Float[Array, "c ..."] | None = None,
) -> Outputs:
    """Runs the network once over the batches.

    Args:
      backbone: the classifier.
      batches: padded batches of one shape.
      needs: what to compute beside features and logits.
      early_prototypes: what is mixed in, (C, ...), for a `Mix`.

    Returns:
      Outputs of the valid rows in order, as NumPy arrays.

    Raises:
      ValueError: there is no batch.
    """
    return extract_labelled(backbone, batches, needs=needs, early_prototypes=early_prototypes)[0]


def extract_labelled(
    backbone: Backbone,
    batches: Iterable[Batch],
    *,
    needs: tuple[Need, ...] = (),
    early_prototypes: Float[Array, "c ..."] | None = None,
    recall: Recall = make_anew,
    about: Mapping[str, Any] | None = None,
) -> tuple[Outputs, Int[np.ndarray, " n"]]:
    """As `extract`, with the labels of the batches.

    Args:
      backbone: the classifier.
      batches: padded batches of one shape; read only if there is nothing to recall.
      needs: what to compute beside features and logits.
      early_prototypes: what is mixed in, (C, ...), for a `Mix`.
      recall: gives the arrays, or has them made.
      about: what the images are, for ``recall``.
    """
    mesh = mesh_of(backbone)

    def results() -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
        early = everywhere(early_prototypes, mesh)
        for batch in batches:
            outputs = network_outputs(backbone, divided(batch.images, mesh), early, needs, mesh)
            yield (outputs, batch.labels), batch.valid

    def make() -> Arrays:
        outputs, labels = _gather(results())
        return outputs.arrays() | {"labels": labels}

    names = ("features", "logits", "labels", *map(str, needs))
    arrays = recall(about or {}, names, lambda: joined(batches, make))
    return Outputs.from_arrays(arrays, needs), arrays["labels"]


def require_needs(backbone: Backbone, needs: Mapping[Need, str], images: Any) -> None:
    """Refuses what a backbone cannot give, before anything is computed.

    Args:
      backbone: the classifier.
      needs: what is needed, and the name of the detector that needs it.
      images: a batch.

    Raises:
      UserError: the backbone has no middle layers, no gradient, or does not know the images' scale.
    """
    for need, name in needs.items():
        if isinstance(need, Grams) and backbone.layers is None:
            raise UserError(
                f"{name} needs the activations of middle layers, and the backbone has none; make "
                "it of a model with a method `activations(images)`, or give it `layers`"
            )
        if isinstance(need, Perturbed):
            if not backbone.input_std:
                raise UserError(
                    f"{name} moves pixels, and the backbone does not say what images were divided "
                    "by; give it `input_std`"
                )
            try:
                jax.eval_shape(partial(_perturbed_logits, need), backbone, jnp.asarray(images))
            except Exception as error:
                line = (str(error).strip() or repr(error)).splitlines()[0]
                raise UserError(
                    f"{name} needs the gradient of the logits with respect to images, and the "
                    f"backbone cannot give it: {line}"
                ) from error


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
    # Beyond these are rows that make the batch divisible among devices.
    return jax.tree.map(lambda array: np.asarray(array)[: len(valid)][valid], tree)


@dataclass(frozen=True)
class TrainingPass:
    """What one pass over the training set left, and second passes over some of its rows.

    Attributes:
      backbone: the classifier.
      train: gives batches of the training set.
      outputs: features and logits of the N training samples.
      labels: their classes, (N,) int32.
      early_prototypes: class means of the activations at the cut, (C, ...) float32, if asked for.
      recall: gives the arrays of second passes, or has them made.
    """

    backbone: Backbone
    train: TrainingBatches
    outputs: Outputs
    labels: Int[Array, " n"]
    early_prototypes: Float[Array, "c ..."] | None
    recall: Recall = make_anew

    def mixed_samples(self, source: MixedTraining, key: Array) -> Outputs:
        """Outputs of samples drawn at random, each mixed with its second most likely class."""
        drawn = jax.random.permutation(key, len(self.labels))[: source.samples]
        rows = np.sort(np.asarray(drawn))
        targets = self._others(rows, 1, source.present)[:, 0]
        arrays = self._second_pass(
            rows, targets, source.weight, _forward_mixed, ("features", "logits")
        )
        return jax.tree.map(jnp.asarray, Outputs.from_arrays(arrays))

    def mixed_copies(self, rows: Int[np.ndarray, " r"], mix: Mix) -> Float[Array, "r k d"]:
        """Features of the rows' mixed copies."""
        targets = self._others(rows, mix.classes, mix.present)
        run = _forward_mixed_copies
        return jnp.asarray(self._second_pass(rows, targets, mix.weight, run, ("mixed",))["mixed"])

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
        names: tuple[str, ...],
    ) -> Arrays:
        """Runs the network over some rows, mixed with the early prototypes of the targets."""
        digest = hashlib.sha256(rows.astype(np.int64).tobytes() + targets.tobytes()).hexdigest()
        about = {"set": "mixed training set", "rows and targets": digest, "weight": weight}
        expected = np.asarray(self.labels)[rows]

        mesh = mesh_of(self.backbone)

        def results(batches: Iterable[Batch]) -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
            early = everywhere(self.early_prototypes, mesh)
            own = block_of(batches, len(rows))
            start = own.start
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
            if start != own.stop:
                raise ValueError(
                    f"train gave other samples than the {len(rows)} rows asked for; expected "
                    "batches of just these rows, in their order"
                )

        def make() -> Arrays:
            batches = self.train(rows)
            return joined(batches, lambda: _gather(results(batches)))

        return self.recall(about, names, make)


def run_training_set(
    backbone: Backbone,
    train: TrainingBatches,
    *,
    early: bool,
    needs: tuple[Need, ...] = (),
    recall: Recall = make_anew,
) -> TrainingPass:
    """Runs the network once over the training set.

    Args:
      backbone: the classifier.
      train: gives batches of the training set.
      early: average the activations at the cut by class on the way.
      needs: what to compute beside features and logits; no mixed copies.
      recall: gives the arrays, or has them made.

    Raises:
      ValueError: a label that is no class, features, logits or activations that are not finite,
        or no batch.
    """
    labels: list[Int[np.ndarray, " b"]] = []
    sums: ClassSums | None = None
    mesh = mesh_of(backbone)

    def results(batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Bool[np.ndarray, " b"]]]:
        nonlocal sums
        for batch in batches:
            if not labels:
                hidden, logits = jax.eval_shape(_hidden_and_logits, backbone, batch.images)
                count = logits.shape[1]
                sums = empty_sums(count, hidden.shape[1:], mesh) if early else None
            labels.append(batch.labels[batch.valid])
            # A label that is no class would spoil the sums: say so before the pass goes on.
            checks.classes("labels of the training set", labels[-1], count, ("N",))
            images = divided(batch.images, mesh)
            if sums is None:
                outputs = network_outputs(backbone, images, None, needs, mesh)
            else:
                marks = divided(batch.labels, mesh), divided(batch.valid, mesh)
                outputs, sums = _forward_and_sum(backbone, images, *marks, needs, sums, mesh)
            yield outputs, batch.valid

    def make() -> Arrays:
        batches = train(None)

        def rows() -> Arrays:
            outputs = _gather(results(batches))
            return outputs.arrays() | {"labels": np.concatenate(labels).astype(np.int32)}

        arrays = joined(batches, rows)
        if sums is None:
            return arrays
        return arrays | {"early": np.asarray(means(joined_sums(batches, total(sums, mesh))))}

    names = ["features", "logits", "labels", *map(str, needs), *(["early"] if early else [])]
    arrays = recall({"set": "training set"}, names, make)
    outputs = Outputs.from_arrays(arrays, needs)
    # What is large beside these stays on the host.
    features, logits = jnp.asarray(outputs.features), jnp.asarray(outputs.logits)
    outputs = replace(outputs, features=features, logits=logits)
    checks.finite("features of the training set", features)
    checks.finite("logits of the training set", logits)
    prototypes = jnp.asarray(arrays["early"]) if early else None
    if prototypes is not None:
        checks.finite("class means of the activations at the cut", prototypes)
    return TrainingPass(backbone, train, outputs, jnp.asarray(arrays["labels"]), prototypes, recall)


def _hidden_and_logits(
    backbone: Backbone, images: Float[Array, "b ..."]
) -> tuple[Float[Array, "b ..."], Float[Array, "b c"]]:
    hidden = backbone.hidden(images)
    return hidden, jnp.asarray(backbone.finish(hidden).logits)


@partial(jax.jit, static_argnames=("needs", "mesh"))
def network_outputs(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."] | None,
    needs: tuple[Need, ...],
    mesh: Mesh | None = None,
) -> Outputs:
    """Outputs of a batch, with what else is needed; compiled.

    Args:
      backbone: the classifier.
      images: the batch, divided over the devices of ``mesh`` if there is one.
      early_prototypes: what is mixed in, (C, ...), for a `Mix`.
      needs: what to compute beside features and logits.
      mesh: the devices over which the backbone is spread, if it is.
    """

    def run(
        backbone: Backbone,
        images: Float[Array, "b ..."],
        early_prototypes: Float[Array, "c ..."] | None,
    ) -> Outputs:
        hidden = backbone.hidden(images)
        return _with_extra(backbone, images, hidden, early_prototypes, needs)

    return by_rows(run, mesh, (ALL, ROWS, ALL))(backbone, images, early_prototypes)


@partial(jax.jit, static_argnames=("needs", "mesh"), donate_argnames="sums")
def _forward_and_sum(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    labels: Int[Array, " b"],
    valid: Bool[Array, " b"],
    needs: tuple[Need, ...],
    sums: ClassSums,
    mesh: Mesh | None,
) -> tuple[Outputs, ClassSums]:
    def run(
        backbone: Backbone,
        images: Float[Array, "b ..."],
        labels: Int[Array, " b"],
        valid: Bool[Array, " b"],
        sums: ClassSums,
    ) -> tuple[Outputs, ClassSums]:
        hidden = backbone.hidden(images)
        outputs = _with_extra(backbone, images, hidden, None, needs)
        return outputs, accumulate(sums, hidden, labels, valid)

    given = (ALL, ROWS, ROWS, ROWS, ROWS)
    return by_rows(run, mesh, given)(backbone, images, labels, valid, sums)


def _with_extra(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    hidden: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."] | None,
    needs: tuple[Need, ...],
) -> Outputs:
    outputs = backbone.finish(hidden)
    extra: dict[Need, Any] = {}
    for need in needs:
        if isinstance(need, Perturbed):
            extra[need] = _perturbed_logits(need, backbone, images)
        elif isinstance(need, Grams):
            # The compiler finds what this has in common with the pass itself.
            layers = backbone.middle(images)
            extra[need] = tuple(gram_sums(layer, need.powers) for layer in layers)
        elif early_prototypes is None:
            raise ValueError("early_prototypes is None; expected (C, ...), what is mixed in")
        else:
            logits = jnp.asarray(outputs.logits)
            targets = other_classes(logits, need.classes, _classes(need.present))
            extra[need] = _mixed_features(backbone, hidden, early_prototypes, targets, need.weight)
    return replace(outputs, extra=extra)


def _perturbed_logits(
    need: Perturbed, backbone: Backbone, images: Float[Array, "b ..."]
) -> Float[Array, "b c"]:
    def logits_of(images: Float[Array, "b ..."]) -> Float[Array, "b c"]:
        return jnp.asarray(backbone(images).logits)

    return logits_of(perturb(logits_of, images, backbone.input_std, need.temperature, need.noise))


_MIXED = (ALL, ROWS, ALL, ROWS, ALL)


@partial(jax.jit, static_argnames="mesh")
def _forward_mixed(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, " b"],
    weight: Float[Array, ""],
    mesh: Mesh | None,
) -> dict[str, Array]:
    def run(
        backbone: Backbone, images: Array, early: Array, targets: Array, weight: Array
    ) -> dict[str, Array]:
        hidden = backbone.hidden(images)
        outputs = backbone.finish(mix_with_prototypes(hidden, early, targets, weight))
        return {"features": jnp.asarray(outputs.features), "logits": jnp.asarray(outputs.logits)}

    return by_rows(run, mesh, _MIXED)(backbone, images, early_prototypes, targets, weight)


@partial(jax.jit, static_argnames="mesh")
def _forward_mixed_copies(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."],
    targets: Int[Array, "b k"],
    weight: Float[Array, ""],
    mesh: Mesh | None,
) -> dict[str, Array]:
    def run(
        backbone: Backbone, images: Array, early: Array, targets: Array, weight: Array
    ) -> dict[str, Array]:
        hidden = backbone.hidden(images)
        return {"mixed": _mixed_features(backbone, hidden, early, targets, weight)}

    return by_rows(run, mesh, _MIXED)(backbone, images, early_prototypes, targets, weight)


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
