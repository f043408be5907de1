"""An evaluation of outputs that any network has left: features and logits, and no images."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.benchmarks.base import Group
from grood_jax.data import ArraySet
from grood_jax.detectors import Detector, MixedTraining, Noise, Training, require_head
from grood_jax.evaluation import fitting, pipeline
from grood_jax.evaluation.evaluated import Evaluated, collected
from grood_jax.evaluation.evaluating import Detectors, chosen, grouped, of_present_classes
from grood_jax.evaluation.pipeline import Failures, Passed
from grood_jax.evaluation.report import ShownSet
from grood_jax.passes.forward import Labelled
from grood_jax.support import checks
from grood_jax.support.errors import UserError, first_line

FEWEST = 2
"""Samples of a set."""

ROWS_PER_UNKNOWN = 4
"""Training samples, for each unknown, that the class head is recovered from at most."""

Head = tuple[Float[np.ndarray, "d c"], Float[np.ndarray, " c"]]

BESIDES = ("grood:ood_prototype=prototype-mean",)
"""What is tried of detectors whose defaults need images."""


def evaluate_outputs(
    train: Any,
    test: Any,
    near: Mapping[str, Any] | None = None,
    far: Mapping[str, Any] | None = None,
    *,
    head: Any = None,
    id_validation: Any = None,
    detectors: Detectors = None,
    present_classes: Literal["all", "data"] = "all",
    seed: int = 0,
    name: str = "saved outputs",
    source: str = "arrays",
) -> Evaluated:
    """Fits and scores detectors on features and logits that a network of any framework has left.

    Detectors that need images (mixed at a cut, moved, or the activations of middle layers) are left
    out: they are in `Evaluated.left_out`, or in `Evaluated.failed` where they were asked for.
    Detectors that need the class head use ``head``; without it, the layer that is recovered from
    the training set's features and logits, where these determine it.

    Args:
      train: features (N, D), logits (N, C) and labels (N,) of the training set; as a tuple, or a
        mapping with these names.
      test: the same of images of the same classes on which the network was not trained.
      near: features and logits of OOD sets that look like the training data, by name; labels are
        not needed.
      far: of OOD sets that do not.
      head: weights (D, C) or, as PyTorch has them, (C, D), and bias (C,), of the layer from
        features to logits; as a tuple, or a mapping with these names.
      id_validation: as ``test``, of images that neither the network nor ``test`` has seen, for
        detectors that are better fitted on such.
      detectors: as for `grood_jax.evaluate`; by default all that need no images, GROOD with the
        mean of the class prototypes among them.
      present_classes: which classes detectors may expect: all of the network's, or those that the
        training set holds.
      seed: of all that is random.
      name: of the data, for the results.
      source: where the outputs came from, for the results.

    Returns:
      Figures and scores.

    Raises:
      TypeError: what is no array of its kind.
      UserError: arrays whose lengths or widths do not go together, labels that are no classes,
        values that are not finite, fewer than two samples, a head that does not give the logits.
      ValueError: an unknown detector or option.
    """
    checks.seed("seed", seed)
    known, labels = _labelled("train", train)
    shape = known.features.shape[1], known.logits.shape[1]
    inside = _labelled("test", test, shape)
    groups = grouped({g: sets for g, sets in (("near", near), ("far", far)) if sets})
    outside = {
        set_name: _outputs(f"{group}[{set_name!r}]", given, shape)
        for set_name, (group, given) in groups.items()
    }
    layer, why = _given_head(known, head) if head is not None else recovered_head(known)
    wanted = chosen(detectors, [*BESIDES, *_all_names()])
    if checks.choice("present_classes", present_classes, ("all", "data")) == "data":
        wanted = of_present_classes(wanted, labels)
    failures, left_out = Failures(), dict[str, str]()
    for word, (detector,) in wanted.items():
        reason = _unmet(detector, why if layer is None else None)
        if reason is not None:
            (left_out if detectors is None else failures.reasons)[word] = reason
    failures.require_some_success(wanted)
    able = {
        word: own
        for word, own in wanted.items()
        if word not in failures.reasons and word not in left_out
    }
    held = None if id_validation is None else _labelled("id_validation", id_validation, shape)
    fitter = fitting.from_outputs(
        known, labels, layer, key=jax.random.key(seed), id_validation=held
    )
    fitted = pipeline.fit(fitter, able, {}, failures)
    failures.require_some_success(able)
    passed = Passed({"test": inside}, outside)
    by_name: dict[str, Group] = {set_name: group for set_name, (group, _) in groups.items()}
    scored = pipeline.score_all(fitted, passed, by_name, failures)
    about = _about(name, source, seed, {"train": known, **passed.outputs}, left_out)
    shown = [_shown(own, by_name.get(own, "ID"), part) for own, part in passed.outputs.items()]
    return collected(passed, scored, failures.reasons, about, shown, fitted.detectors)


def _about(
    name: str,
    source: str,
    seed: int,
    outputs: Mapping[str, Outputs],
    left_out: Mapping[str, str],
) -> dict[str, Any]:
    """What the record says of the network and the data."""
    marks = {part: _fingerprint(own) for part, own in outputs.items()}
    return {
        "benchmark": name,
        "model": "saved outputs",
        "checkpoint": {
            "directory": source,
            "source": "outputs of a network",
            "epochs": None,
            "fingerprint": marks["train"],
        },
        "seed": seed,
        "preprocessing": {},
        "command": "grood_jax.evaluate_outputs",
        "data": {
            part: {
                "source": source,
                "n": len(own.logits),
                "fingerprint": marks[part],
                "fingerprint_of": "outputs",
            }
            for part, own in outputs.items()
        },
        **({"left_out": dict(left_out)} if left_out else {}),
    }


def recovered_head(outputs: Outputs) -> tuple[Head | None, str]:
    """The layer that makes the logits of the features, if there is one and they determine it.

    Least squares in float64 over features and a constant.

    Args:
      outputs: of the training set.

    Returns:
      Weights and bias, float32, or None; and why there are none, for a message.
    """
    features = np.asarray(outputs.features, np.float64)
    logits = np.asarray(outputs.logits, np.float64)
    count, width = features.shape
    unknowns = width + 1
    if count < unknowns:
        return None, f"{count} training samples do not determine {unknowns} unknowns of a class"
    rows = np.linspace(0, count - 1, min(count, ROWS_PER_UNKNOWN * unknowns)).astype(int)
    # At one scale, so that the constant is no odd one out.
    scale = np.sqrt(np.square(features).mean()) or 1.0
    equations = np.column_stack([features[rows] / scale, np.ones(len(rows))])
    found, _, rank, _ = np.linalg.lstsq(equations, logits[rows], rcond=None)
    if rank < unknowns:
        return None, (
            f"the training features span {rank} of {unknowns} directions, and do not determine it"
        )
    weights, bias = (part.astype(np.float32) for part in (found[:-1] / scale, found[-1]))
    try:
        _require_gives(outputs, weights, bias)
    except ValueError:
        apart = np.abs(features @ weights + bias - logits).max()
        return None, f"no linear layer gives the logits of the features (off by {apart:.3g})"
    return (weights, bias), ""


def _require_gives(
    outputs: Outputs, weights: Float[np.ndarray, "d c"], bias: Float[np.ndarray, " c"]
) -> None:
    """Raises ValueError unless the layer gives the logits of the features."""
    labels = jnp.zeros(len(outputs.logits), jnp.int32)
    layer = jnp.asarray(weights), jnp.asarray(bias)
    require_head("head", Training(outputs, labels, head=layer))


def _given_head(outputs: Outputs, head: Any) -> tuple[Head, str]:
    """A head as it is given, laid out as (D, C).

    Raises:
      UserError: it has another shape, or does not give the logits.
    """
    weights, bias = _named("head", head, ("weights", "bias"))
    width, classes = outputs.features.shape[1], outputs.logits.shape[1]
    weights = _floats("head: weights", weights, 2)
    bias = np.zeros(classes, np.float32) if bias is None else _floats("head: bias", bias, 1)
    forms = [form for form in (weights, weights.T) if form.shape == (width, classes)]
    if not forms or bias.shape != (classes,):
        raise UserError(
            f"head has weights {weights.shape} and bias {bias.shape}; expected ({width}, "
            f"{classes}) or ({classes}, {width}), and ({classes},), as features and logits say"
        )
    reason = ""
    for form in forms:
        try:
            _require_gives(outputs, np.ascontiguousarray(form), bias)
            return (np.ascontiguousarray(form), bias), ""
        except ValueError as error:
            reason = reason or first_line(error)
    raise UserError(f"head does not give the logits of the training set: {reason}")


def _unmet(detector: Detector, no_head: str | None) -> str | None:
    """Why a detector cannot be fitted on outputs alone; None where it can."""
    if detector.needs or detector.fit_needs or detector.rows is not None:
        asked = (*detector.needs, *detector.fit_needs)
        kinds = ", ".join(dict.fromkeys(type(need).__name__.lower() for need in asked))
        return f"it needs images ({kinds})"
    if detector.makes_do:
        return None
    if any(isinstance(source, MixedTraining | Noise) for source in detector.ood_sources):
        return "it needs images (what stands for OOD is made of them)"
    if detector.ood_sources:
        return "it needs held-out OOD images"
    if detector.head and no_head is not None:
        return f"it needs the class head, which is not given; {no_head}"
    return None


def _all_names() -> Iterable[str]:
    from grood_jax import detectors

    return detectors.names()


def _labelled(name: str, given: Any, shape: tuple[int, int] | None = None) -> Labelled:
    outputs = _outputs(name, given, shape)
    labels = _named(name, given, ("features", "logits", "labels"))[2]
    if labels is None:
        raise UserError(f"{name} has no labels; expected features, logits and labels")
    array = np.asarray(checks.array_of(f"{name}: labels", labels))
    if array.shape != (len(outputs.logits),) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"{name} has labels of dtype {array.dtype} and shape {array.shape}, and "
            f"{len(outputs.logits)} logits; expected integers ({len(outputs.logits)},)"
        )
    try:
        return outputs, checks.labels(f"labels of {name}", array, outputs.logits.shape[1])
    except ValueError as error:
        raise UserError(str(error)) from error


def _outputs(name: str, given: Any, shape: tuple[int, int] | None) -> Outputs:
    parts = _named(name, given, ("features", "logits", "labels"))[:2]
    features, logits = (
        _floats(f"{name}: {part}", array, 2)
        for part, array in zip(("features", "logits"), parts, strict=True)
    )
    if len(features) != len(logits):
        raise UserError(
            f"{name} has {len(features)} features and {len(logits)} logits; expected as many"
        )
    if len(features) < FEWEST:
        raise UserError(f"{name} has {len(features)} samples; expected at least {FEWEST}")
    found = features.shape[1], logits.shape[1]
    if shape is not None and found != shape:
        raise UserError(
            f"{name} has features of {found[0]} and logits of {found[1]} numbers; expected "
            f"{shape[0]} and {shape[1]}, as train has"
        )
    return Outputs(features, logits)


def _named(name: str, given: Any, parts: tuple[str, ...]) -> list[Any]:
    """The parts of a tuple, or of a mapping by their names; None for what is not there."""
    if isinstance(given, Mapping):
        return [given.get(part) for part in parts]
    if isinstance(given, tuple | list) and 2 <= len(given) <= len(parts):
        return [*given, *[None] * (len(parts) - len(given))]
    raise TypeError(f"{name} is a {type(given).__name__}; expected ({', '.join(parts)})")


def _floats(name: str, given: Any, axes: int) -> np.ndarray:
    if given is None:
        raise TypeError(f"{name} is None; expected an array")
    array = np.asarray(checks.array_of(name, given))
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {array.dtype}; expected floating-point numbers")
    if array.ndim != axes or 0 in array.shape[1:]:
        letters = "(N, D)" if axes == 2 else "(C,)"
        hint = "; flatten what follows the first axis" if array.ndim > axes else ""
        raise UserError(f"{name} has shape {array.shape}; expected {letters}{hint}")
    with checks.room(name, array.shape), np.errstate(over="ignore"):
        array = array.astype(np.float32)
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"{name} holds NaN or infinite values in {bad.sum()} rows, the first {bad.argmax()}; "
            "expected finite numbers"
        )
    return array


def _fingerprint(outputs: Outputs) -> str:
    digest = hashlib.sha256()
    for array in outputs.arrays().values():
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _shown(name: str, group: Any, outputs: Outputs) -> ShownSet:
    """A set for the report, without pictures."""
    none: Int[np.ndarray, " n"] = np.zeros(0, np.int32)
    pictures = ArraySet(name, "outputs", np.zeros((0, 1, 1, 1), np.uint8), none)
    return ShownSet(name, group, pictures, none, outputs)
