"""Forward passes: each image once, and the few that are mixed once more."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import (
    Deflated,
    Grams,
    LayerExtremes,
    LayerMeans,
    LocalConcepts,
    Need,
    Nudged,
    Outputs,
    Perturbed,
    PerturbedMost,
)
from grood_jax.data import Batch
from grood_jax.maths.concepts import unlike_all_concepts
from grood_jax.maths.deflation import without_largest_component
from grood_jax.maths.grams import gram_sums
from grood_jax.maths.mixup import mix_with_prototypes, other_classes
from grood_jax.maths.perturbation import nudge, perturb
from grood_jax.passes.devices import (
    ALL,
    DIVIDED,
    by_parts,
    by_rows,
    divided,
    everywhere,
    mesh_of,
)
from grood_jax.passes.memo import Form, Memo, make_anew, parts_of
from grood_jax.passes.parts import Span, run_pass
from grood_jax.support.errors import UserError, first_line

Labelled = tuple[Outputs, Int[np.ndarray, " n"]]

POOLED = 2.0**-6
"""By how much features in bfloat16 may differ from the means of a layer, of the largest."""

TrainingBatches = Callable[[np.ndarray | None], Iterable[Batch]]
"""Batches of the training rows given, in that order; of all rows for None.

As everywhere below, a `grood_jax.data.batching.Share` of them is completed by other processes.
"""


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
    memo: Memo = make_anew,
    about: Mapping[str, Any] | None = None,
) -> tuple[Outputs, Int[np.ndarray, " n"]]:
    """As `extract`, with the labels of the batches.

    Args:
      backbone: the classifier.
      batches: padded batches of one shape; read only if nothing is remembered.
      needs: what to compute beside features and logits.
      early_prototypes: what is mixed in, (C, ...), for a `Mix`.
      memo: remembers the outputs, or has them made.
      about: what the images are, for ``memo``.
    """
    mesh = mesh_of(backbone)

    def results(
        batches: Iterable[Batch], rows: Span | None, fresh: bool
    ) -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
        early = everywhere(early_prototypes, mesh)
        for batch in batches:
            outputs = network_outputs(backbone, divided(batch.images, mesh), early, needs, mesh)
            yield (outputs, batch.labels), batch.valid

    form = labelled_form(needs)
    parts = parts_of(memo, about or {})
    return memo(about or {}, form, lambda: run_pass(batches, form, results, parts=parts))


def labelled_form(needs: tuple[Need, ...] = ()) -> Form[Labelled]:
    """How outputs and labels are arrays."""
    return Form(
        ("features", "logits", "labels", *map(str, needs)),
        lambda result: result[0].arrays() | {"labels": result[1]},
        lambda arrays: (Outputs.from_arrays(arrays, needs), arrays["labels"]),
    )


def require_needs(backbone: Backbone, needs: Mapping[Need, str], images: Any) -> None:
    """Refuses what a backbone cannot give, before anything is computed.

    Args:
      backbone: the classifier.
      needs: what is needed, and the name of the detector that needs it.
      images: a batch.

    Raises:
      UserError: the backbone has no middle layers, no features of places or of another width, no
        gradient, does not know the images' scale, or its features are no means of the last middle
        layer, where they should be.
    """
    for need, name in needs.items():
        if (reason := lacking(backbone, need, name)) is not None:
            raise UserError(reason)
        if isinstance(need, LocalConcepts):
            _require_width_of_places(backbone, name, images)
        if need == Deflated("last"):
            _require_pooled(backbone, name, images)
        if isinstance(need, Perturbed | Nudged):
            try:
                jax.eval_shape(partial(_of_moved, need), backbone, jnp.asarray(images))
            except Exception as error:
                line = first_line(error)
                raise UserError(
                    f"{name} needs the gradient of the logits with respect to images, and the "
                    f"backbone cannot give it: {line}"
                ) from error


def lacking(backbone: Backbone, need: Need, name: str) -> str | None:
    """What a backbone was not given that a need asks for, as can be told without images.

    Args:
      backbone: the classifier.
      need: what is needed.
      name: of the detector that needs it.

    Returns:
      The reason for a user; None where nothing lacks.
    """
    layered = isinstance(need, Grams | LayerMeans | LayerExtremes) or need == Deflated("last")
    if layered and backbone.layers is None:
        return (
            f"{name} needs the activations of middle layers, and the backbone has none; make "
            "it of a model with a method `activations(images)`, or give it `layers`"
        )
    if isinstance(need, LocalConcepts) and backbone.local is None:
        return (
            f"{name} needs features of places in an image, and the backbone has none; give `local` "
            "to Backbone.from_encoder"
        )
    if isinstance(need, Perturbed) and not backbone.input_std:
        return (
            f"{name} moves pixels, and the backbone does not say what images were divided by; give "
            "it `input_std`"
        )
    return None


def _require_width_of_places(backbone: Backbone, name: str, images: Any) -> None:
    """Refuses a backbone whose features of places are of another width than its features."""
    given = jnp.asarray(images)
    places = jax.eval_shape(Backbone.local_features, backbone, given).shape
    width = jax.eval_shape(lambda own, x: own(x).features, backbone, given).shape[1]
    if places[-1] != width:
        raise UserError(
            f"{name} needs features of places in the space of the image's; local gives width "
            f"{places[-1]}, and the encoder {width}"
        )


def _require_pooled(backbone: Backbone, name: str, images: Any) -> None:
    """Refuses a backbone whose features are no means of its last middle layer; runs one batch."""
    mesh = mesh_of(backbone)
    outputs = network_outputs(
        backbone, divided(np.asarray(images), mesh), None, (LayerMeans(),), mesh
    )
    means, features = np.asarray(outputs.extra[LayerMeans()][-1]), np.asarray(outputs.features)
    expected = (
        f"{name} expects a backbone whose last middle layer has several places, and features that "
        "are its mean over these"
    )
    layer = jax.eval_shape(lambda own, x: own.middle(x)[-1], backbone, jnp.asarray(images)).shape
    if means.shape != features.shape or np.prod(layer[1:-1]) < 2:
        raise UserError(f"{expected}; found a layer {layer} and features {features.shape}")
    apart = np.abs(means - features).max()
    if not apart <= POOLED * np.abs(features).max():
        raise UserError(f"{expected}; the mean differs from the features by up to {apart:.3g}")


@partial(jax.jit, static_argnames=("needs", "mesh"))
def network_outputs(
    backbone: Backbone,
    images: Shaped[Array, "b ..."],
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
        images: Shaped[Array, "b ..."],
        early_prototypes: Float[Array, "c ..."] | None,
    ) -> Outputs:
        def of_some(images: Shaped[Array, "n ..."]) -> Outputs:
            images = backbone.normalized(images)
            hidden = backbone.hidden(images)
            return with_extra(backbone, images, hidden, early_prototypes, needs)

        # In a loop over parts the compiler does not find what needs have in common with the pass.
        return of_some(images) if needs else by_parts(of_some, images)

    return by_rows(run, mesh, (ALL, DIVIDED, ALL))(backbone, images, early_prototypes)


def with_extra(
    backbone: Backbone,
    images: Float[Array, "b ..."],
    hidden: Float[Array, "b ..."],
    early_prototypes: Float[Array, "c ..."] | None,
    needs: tuple[Need, ...],
) -> Outputs:
    """Outputs from the activations at the cut on, with what else is needed."""
    outputs = backbone.finish(hidden)
    extra: dict[Need, Any] = {}
    for need in needs:
        if isinstance(need, Perturbed | Nudged):
            extra[need] = _of_moved(need, backbone, images)
        elif isinstance(need, Grams):
            # The compiler finds what this has in common with the pass itself.
            layers = backbone.middle(images)
            extra[need] = tuple(gram_sums(layer, need.powers) for layer in layers)
        elif isinstance(need, Deflated):
            extra[need] = _deflated(need, backbone, images, hidden)
        elif isinstance(need, LayerMeans):
            extra[need] = tuple(map(_mean_of_places, backbone.middle(images)))
        elif isinstance(need, LayerExtremes):
            extra[need] = tuple(map(_largest_and_least, backbone.middle(images)))
        elif isinstance(need, LocalConcepts):
            extra[need] = _unlike_all(backbone, images, need.temperature)
        elif early_prototypes is None:
            raise ValueError("early_prototypes is None; expected (C, ...), what is mixed in")
        else:
            logits = jnp.asarray(outputs.logits)
            targets = other_classes(logits, need.classes, present_classes(need.present))
            extra[need] = mixed_features(backbone, hidden, early_prototypes, targets, need.weight)
    return replace(outputs, extra=extra)


def _mean_of_places(activations: Float[Array, "b ... c"]) -> Float[Array, "b c"]:
    # In float32, whatever the network computes in: hundreds of places are summed.
    return activations.astype(jnp.float32).mean(axis=tuple(range(1, activations.ndim - 1)))


def _largest_and_least(activations: Float[Array, "b ... c"]) -> Float[Array, "b 2"]:
    flat = activations.reshape(activations.shape[0], -1)
    return jnp.stack([flat.max(axis=1), flat.min(axis=1)], axis=1).astype(jnp.float32)


def _unlike_all(
    backbone: Backbone, images: Float[Array, "b ..."], temperature: float
) -> Float[Array, " b"]:
    if backbone.head is None:
        raise ValueError("backbone has no class head; expected one, whose weights are concepts")
    concepts = backbone.head(backbone.arrays)[0].astype(jnp.float32).T
    return unlike_all_concepts(backbone.local_features(images), concepts, temperature)


def _deflated(
    need: Deflated,
    backbone: Backbone,
    images: Float[Array, "b ..."],
    hidden: Float[Array, "b ..."],
) -> Float[Array, "b _"]:
    if need.where == "last":
        return _mean_of_places(without_largest_component(backbone.middle(images)[-1]))
    rest = without_largest_component(hidden).astype(hidden.dtype)
    return jnp.asarray(backbone.finish(rest).logits)


def _of_moved(
    need: Perturbed | Nudged, backbone: Backbone, images: Shaped[Array, "b ..."]
) -> Float[Array, "b _"]:
    """Logits or features of images that are moved as is needed."""

    def logits_of(images: Float[Array, "b ..."]) -> Float[Array, "b c"]:
        return jnp.asarray(backbone(images).logits)

    images = backbone.normalized(images)
    if isinstance(need, Nudged):
        moved = nudge(logits_of, images, need.share, need.step)
        return jnp.asarray(backbone(moved).features)
    std, most = backbone.input_std, need.numbers if isinstance(need, PerturbedMost) else None
    return logits_of(perturb(logits_of, images, std, need.temperature, need.noise, most))


def mixed_features(
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


def present_classes(present: tuple[int, ...]) -> Int[Array, " p"] | None:
    """Classes as an array; None for all."""
    return jnp.asarray(present, jnp.int32) if present else None
