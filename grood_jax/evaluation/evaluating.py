"""An evaluation of one's own network on one's own images, in one call."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.backbone.backbone import Backbone
from grood_jax.benchmarks.base import Group, require_distinct
from grood_jax.data import ImageSet, Preprocessing
from grood_jax.data.given import Door, Given, door
from grood_jax.detectors import Detector
from grood_jax.evaluation import fitting, heads, pipeline
from grood_jax.evaluation.evaluated import Evaluated, collected
from grood_jax.evaluation.fitting import FittedAll
from grood_jax.evaluation.pipeline import Failures, Passed
from grood_jax.evaluation.report import ShownSet
from grood_jax.evaluation.tuning import create_candidates, for_present
from grood_jax.passes.devices import spread
from grood_jax.passes.forward import extract_labelled
from grood_jax.passes.reading import Reader
from grood_jax.storage.checkpoints import fingerprint_of
from grood_jax.support import checks
from grood_jax.support.errors import UserError

DEFAULT = ("grood", "msp")

Detectors = str | Detector | Sequence[str | Detector] | Mapping[str, Detector] | None
"""Names with options behind a colon, detectors, or detectors by the names for the tables."""


def evaluate(
    backbone: Backbone,
    train: Any,
    test: Any,
    ood: Mapping[str, Any],
    detectors: Detectors = None,
    *,
    preprocessing: Any = None,
    validation: Any = None,
    id_validation: Any = None,
    present_classes: Literal["all", "data"] = "all",
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
    name: str = "own data",
) -> Evaluated:
    """Fits detectors on training images, and scores test images and OOD images with them.

    The network runs once over each set for all detectors. A set is images (N, H, W, C) with labels
    (N,), as a pair of arrays; a list or another iterable of such pairs, batch by batch; a folder,
    with a folder inside for each class; an ``.npz`` file with ``images`` and ``labels``; or what
    gives an image and its label when it is indexed. Images are floating-point, normalised as the
    network takes them; or bytes and files, which need ``preprocessing``. OOD sets need no labels.

    A detector that cannot be fitted or scored does not end the others: the table has a dash for it,
    and `Evaluated.failed` the reason.

    Args:
      backbone: the network.
      train: training images with their classes.
      test: images of the same classes on which it was not trained.
      ood: OOD sets by name, which count as far; or {"near": {…}, "far": {…}}.
      detectors: names, options behind a colon, or detectors; "all" for one of each; GROOD and MSP
        by default.
      preprocessing: how bytes and files are brought to the network: (mean, std, size), of values
        scaled to [0, 1], or a `Preprocessing`.
      validation: held-out OOD images, for detectors that ask for them.
      id_validation: images of the training classes, with labels, that neither the network nor
        ``test`` has seen, for detectors that are better fitted on such.
      present_classes: which classes detectors may expect: all of the network's, or those that the
        training set holds.
      seed: of all that is random.
      batch_size: images in each forward pass, where batches are made here.
      progress: shows bars on stderr.
      name: of the data, for the results.

    Returns:
      Figures and scores.

    Raises:
      TypeError: a set that is of no known kind, or whose images or labels are not.
      UserError: a set that cannot be opened or does not fit the network: images that were not
        normalised or have channels first, labels that are no classes, NaN, fewer than two images.
      ValueError: an unknown detector or option.

    References:
      OpenOOD v1.5, arXiv 2306.09301, for the protocol.
    """
    opener = door(backbone, preprocessing, batch_size=batch_size, progress=progress)
    checks.seed("seed", seed)
    wanted = chosen(detectors)
    groups = grouped(ood)
    train_set = opener.open("train", train, labels=True, again=True)
    test_set = opener.open("test", test, labels=True, classes=train_set.classes)
    sets = {n: opener.open(f"ood[{n!r}]", given, labels=False) for n, (_, given) in groups.items()}
    held_out = None
    if validation is not None:
        held_out = opener.open("validation", validation, labels=False, again=True)
    held_in = None
    if id_validation is not None:
        held_in = opener.open(
            "id_validation", id_validation, labels=True, classes=train_set.classes
        )
    if checks.choice("present_classes", present_classes, ("all", "data")) == "data":
        wanted = of_present_classes(wanted, train_set.labels())
    failures, words = Failures(), list(wanted)
    wanted = pipeline.that_can_be(opener.backbone, wanted, failures)
    network = spread(heads.completed(opener.backbone, train_set.read, pipeline.every(wanted)))
    sources = {"noise": noise_as(opener, train_set), "validation": _all_of(held_out)}
    fitted = _fit(network, train_set, wanted, seed, sources, held_in, failures)
    given = {"test": test_set, **sets}
    passed = _pass(network, given, fitted)
    by_name: dict[str, Group] = {own: group for own, (group, _) in groups.items()}
    scored = pipeline.score_all(fitted, passed, by_name, failures)
    about = {
        "benchmark": name,
        "model": "own model",
        "checkpoint": {
            "directory": "memory",
            "source": "a backbone from Python",
            "epochs": None,
            "fingerprint": fingerprint_of(opener.backbone.arrays),
        },
        "seed": seed,
        "preprocessing": _written(opener.preprocessing),
        "command": "grood_jax.evaluate",
        "data": {n: part.described() for n, part in {"train": train_set, **given}.items()},
    }
    shown = [
        shown_set(opener, own, by_name.get(own, "ID"), part, passed) for own, part in given.items()
    ]
    return collected(passed, scored, failures.ordered(words), about, shown, fitted.detectors)


def _fit(
    network: Backbone,
    train: Given,
    wanted: Mapping[str, tuple[Detector]],
    seed: int,
    sources: Mapping[str, Any],
    held_in: Given | None,
    failures: Failures,
) -> FittedAll:
    """Fits what can be fitted on one pass over the training set."""
    images = np.zeros((2, *train.shape), np.float32)
    for word, (detector,) in wanted.items():
        reason = fitting.unmet(network, word, detector, images, **sources)
        if reason is not None:
            failures.reasons[word] = reason
    failures.require_some_success(wanted)
    able = {word: own for word, own in wanted.items() if word not in failures.reasons}
    key = jax.random.key(seed)
    fitter = fitting.prepare(
        network,
        train.read,
        pipeline.every(able),
        key=key,
        id_validation=None
        if held_in is None
        else lambda: extract_labelled(network, held_in.read(None)),
        **sources,
    )
    fitted = pipeline.fit(fitter, able, {}, failures)
    failures.require_some_success(wanted)
    return fitted


def _pass(network: Backbone, given: Mapping[str, Given], fitted: FittedAll) -> Passed:
    """Runs the network over the sets, the test set first."""
    early, needs = fitted.early_prototypes, fitted.needs
    outputs = {
        name: extract_labelled(network, part.read(None), needs=needs, early_prototypes=early)
        for name, part in given.items()
    }
    inside = {"test": outputs.pop("test")}
    return Passed(inside, {name: own for name, (own, _) in outputs.items()})


def _written(prepare: Preprocessing | None) -> dict[str, Any]:
    """As JSON has it."""
    parts = {} if prepare is None else asdict(prepare)
    return {key: list(own) if isinstance(own, tuple) else own for key, own in parts.items()}


def chosen(detectors: Detectors, default: Sequence[str] = DEFAULT) -> dict[str, tuple[Detector]]:
    """The detectors that a user asks for, by name; each of a row of one, as `pipeline.fit` wants.

    Raises:
      TypeError: what is neither a name nor a detector.
      ValueError: an unknown detector or option, none, or two of one name.
    """
    if detectors is None:
        detectors = default
    if isinstance(detectors, str | Detector):
        detectors = [detectors]
    if isinstance(detectors, Mapping):
        pairs = [(str(name), own) for name, own in detectors.items()]
    elif isinstance(detectors, Iterable):
        pairs = []
        for own in detectors:
            if isinstance(own, Detector):
                pairs.append((own.name, own))
            elif isinstance(own, str):
                made = create_candidates([own], False)
                known = {name for name, _ in pairs}
                pairs += [(word, one) for word, (one,) in made.items() if word not in known]
            else:
                raise TypeError(f"detectors holds {own!r}; expected names or detectors")
    else:
        raise TypeError(f"detectors is {detectors!r}; expected names or detectors")
    if not pairs:
        raise ValueError("detectors is empty; expected at least one")
    found: dict[str, tuple[Detector]] = {}
    for name, own in pairs:
        if not isinstance(own, Detector):
            raise TypeError(f"detectors[{name!r}] is {own!r}; expected a Detector")
        if name in found and found[name][0] is not own:
            raise ValueError(
                f"detectors holds two by the name of {name!r}; expected {{name: detector}}, with a "
                "name of its own for each"
            )
        found[name] = (own,)
    return found


def of_present_classes(
    wanted: Mapping[str, tuple[Detector]], labels: Int[np.ndarray, " n"]
) -> dict[str, tuple[Detector]]:
    """The same detectors, expecting no class but those of the labels."""
    present = np.unique(labels).tolist()
    return {word: (for_present(detector, present),) for word, (detector,) in wanted.items()}


def grouped(ood: Any) -> dict[str, tuple[Group, Any]]:
    """OOD sets by name, each with its group.

    Args:
      ood: sets by name, or sets by name in "near" and "far".

    Raises:
      TypeError: it is no mapping.
      UserError: it is empty, or a name has another meaning in the results, or stands twice.
    """
    if not isinstance(ood, Mapping):
        raise TypeError(
            f"ood is a {type(ood).__name__}; expected sets by name, as {{'svhn': …}}, or "
            "{'near': {…}, 'far': {…}}"
        )
    groups: tuple[Group, ...] = ("near", "far")
    by_group = bool(ood) and set(ood) <= set(groups)
    parts: dict[Group, Mapping[str, Any]] = {"far": ood}
    if by_group and all(isinstance(own, Mapping) for own in ood.values()):
        parts = {group: ood[group] for group in groups if group in ood}
    try:
        require_distinct({str(group): list(sets) for group, sets in parts.items()})
    except ValueError as error:
        raise UserError(f"ood: {error}") from error
    found = {name: (group, own) for group, sets in parts.items() for name, own in sets.items()}
    if not found:
        raise UserError("ood is empty; expected at least one set by name")
    return found


@dataclass(frozen=True)
class Pictured:
    """A given set as pictures for a page, whatever the network takes.

    Attributes:
      name: the set's.
      given: the set.
      mean: by which images were normalised, for each channel; empty where it is not known.
      std: likewise.
    """

    name: str
    given: Given
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.given.source

    def __len__(self) -> int:
        """How many images there are."""
        return int(self.given.seen["n"])

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Pictures and labels at the indices; of normalised images each from its least value on."""
        rows, places = np.unique(indices, return_inverse=True)
        parts = [(b.images[b.valid], b.labels[b.valid]) for b in self.given.read(rows)]
        images, labels = (np.concatenate(own)[places] for own in zip(*parts, strict=True))
        return self._as_bytes(images), labels

    def _as_bytes(self, images: np.ndarray) -> UInt8[np.ndarray, "n h w c"]:
        if images.shape[-1] not in (1, 3):
            images = np.moveaxis(images, 1, -1) if images.shape[1] in (1, 3) else images[..., :1]
        if images.dtype == np.uint8:
            return images
        if self.mean and self.std:
            scaled = images * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        else:
            low, high = (of(images, axis=(1, 2, 3), keepdims=True) for of in (np.min, np.max))
            scaled = (images - low) / np.maximum(high - low, 1e-12)
        return np.round(scaled.clip(0, 1) * 255).astype(np.uint8)


def shown_set(opener: Door, name: str, group: Any, given: Given, passed: Passed) -> ShownSet:
    """A set for the report; without pictures where it cannot be read again."""
    images: ImageSet = given.images or Pictured(
        name, given, opener.backbone.input_mean, opener.backbone.input_std
    )
    known = given.again and len(given.shape) == 3
    rows = np.arange(given.seen["n"] if known else 0)
    return ShownSet(name, group, images, rows, passed.outputs[name])


def noise_as(opener: Door, train: Given) -> Any:
    """What makes noise images, prepared as those of a set; None where it is not known how.

    Args:
      opener: has opened the set.
      train: the set.
    """
    prepare, backbone = opener.preprocessing, opener.backbone
    if prepare is None and backbone.takes_bytes and len(train.shape) == 3:
        height, width, channels = train.shape
        if height == width and channels in (1, 3) and len(backbone.input_std) == channels:
            prepare = Preprocessing(height, channels, backbone.input_mean, backbone.input_std)
    if prepare is None:
        return None
    return Reader(prepare, opener.batch_size, opener.progress, as_bytes=True).noise


def _all_of(given: Given | None) -> Any:
    return None if given is None else partial(given.read, None)
