"""Benchmarks described once: sets in and out of distribution, image size, normalisation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from grood_jax import checks
from grood_jax.data import builtin
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sources import ImageSet, LimitedSet, TfdsSource, default_data_dir
from grood_jax.errors import UserError

Group = Literal["near", "far"]


@dataclass(frozen=True)
class SetSpec:
    """A set of images and its possible sources.

    Attributes:
      name: the set's name in results.
      sources: where it may be found, in the order in which they are tried; or a function that
        makes a set that is built in.
    """

    name: str
    sources: tuple[TfdsSource, ...] | Callable[[], ImageSet]


@dataclass(frozen=True)
class Benchmark:
    """What a detector is evaluated on.

    Attributes:
      name: its name on the command line.
      num_classes: classes in distribution.
      preprocessing: input size and normalisation of networks trained on it.
      train: training images.
      test: test images in distribution.
      near: OOD sets that look like the training data.
      far: OOD sets that do not.
      validation: held-out OOD images, disjoint from the test sets; None where there are none.
      model: the network that is evaluated unless another is asked for.
      trains_on_the_spot: whether that network trains in about a minute on a CPU, so that an
        evaluation without a checkpoint trains it.
    """

    name: str
    num_classes: int
    preprocessing: Preprocessing
    train: SetSpec
    test: SetSpec
    near: tuple[SetSpec, ...]
    far: tuple[SetSpec, ...]
    validation: SetSpec | None
    model: str
    trains_on_the_spot: bool


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark whose sets have all been found.

    Attributes:
      train: training images.
      test: test images in distribution.
      ood: OOD test sets by name, each with its group.
      validation: held-out OOD images, if asked for and there are any.
      skipped: names of the OOD sets that were missing and left out.
    """

    train: ImageSet
    test: ImageSet
    ood: dict[str, tuple[Group, ImageSet]]
    validation: ImageSet | None
    skipped: tuple[str, ...]


def _tfds(name: str, split: str, *datasets: str) -> SetSpec:
    return SetSpec(name, tuple(TfdsSource(dataset, split) for dataset in datasets or (name,)))


_TINY_IMAGENET = "convert Tiny ImageNet at 32×32, without CIFAR-10's classes, to ArrayRecord"
_MNIST = _tfds("mnist", "test")
_SVHN = _tfds("svhn", "test", "svhn_cropped")
_TEXTURES = _tfds("textures", "test", "dtd")
_PLACES = SetSpec(
    "places365",
    (
        TfdsSource("places365_32", "test", in_catalogue=False),
        TfdsSource("places365_small", "validation"),
    ),
)
_LETTERS = SetSpec(
    "emnist_letters",
    (
        TfdsSource("emnist_letters", "test", in_catalogue=False),
        TfdsSource("emnist/letters", "test"),
    ),
)


def _tiny_imagenet(split: str) -> SetSpec:
    return SetSpec(
        "tiny_imagenet",
        (
            TfdsSource("tiny_imagenet_32", split, in_catalogue=False, how_to_get=_TINY_IMAGENET),
            TfdsSource("tiny_imagenet", split, in_catalogue=False, how_to_get=_TINY_IMAGENET),
        ),
    )


_BENCHMARKS = {
    "digits": Benchmark(
        name="digits",
        num_classes=builtin.ID_CLASSES,
        # Mean and deviation of the training part's 8×8 images.
        preprocessing=Preprocessing(8, 1, mean=(0.304,), std=(0.376,)),
        train=SetSpec("digits", partial(builtin.digits, "train")),
        test=SetSpec("digits", partial(builtin.digits, "test")),
        near=(SetSpec("digits_8_9", partial(builtin.digits, "near")),),
        far=(
            SetSpec("photographs", partial(builtin.photographs, "test")),
            SetSpec("uniform_noise", partial(builtin.uniform_noise, 8, 1)),
        ),
        validation=SetSpec("photographs", partial(builtin.photographs, "validation")),
        model="small",
        trains_on_the_spot=True,
    ),
    "fashion_mnist": Benchmark(
        name="fashion_mnist",
        num_classes=10,
        # Mean and deviation of the official training images, as torchvision's examples have them.
        preprocessing=Preprocessing(28, 1, mean=(0.2860,), std=(0.3530,)),
        train=_tfds("fashion_mnist", "train"),
        test=_tfds("fashion_mnist", "test"),
        near=(),
        far=(_MNIST, _LETTERS),
        validation=None,
        model="small",
        trains_on_the_spot=True,
    ),
    "cifar10": Benchmark(
        name="cifar10",
        num_classes=10,
        # OpenOOD v1.5, openood/preprocessors/utils.py (normalization_dict["cifar10"]).
        preprocessing=Preprocessing(
            32, 3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
        ),
        train=_tfds("cifar10", "train"),
        test=_tfds("cifar10", "test"),
        near=(_tfds("cifar100", "test"), _tiny_imagenet("test")),
        far=(_MNIST, _SVHN, _TEXTURES, _PLACES),
        validation=_tiny_imagenet("validation"),
        model="resnet18_32x32",
        trains_on_the_spot=False,
    ),
}


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_BENCHMARKS)


def get(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
      ValueError: there is none.
    """
    return _BENCHMARKS[checks.choice("dataset", name, names())]


def open_benchmark(
    benchmark: Benchmark,
    *,
    data_dir: Path | None = None,
    skip_missing: bool = False,
    download: bool = False,
    validation: bool = False,
    ood: bool = True,
    limit: int | None = None,
) -> OpenBenchmark:
    """Finds all the sets of a benchmark before anything is computed.

    Args:
      benchmark: the benchmark.
      data_dir: where tensorflow-datasets' prepared data lie; its own default by default.
      skip_missing: leave out OOD test sets that are missing.
      download: prepare missing sets that tensorflow-datasets knows.
      validation: open the held-out OOD images too.
      ood: open the OOD test sets.
      limit: at most this many images of each set.

    Raises:
      UserError: sets are missing; each is named with where it was looked for and how to get it.
      ValueError: limit below 1.
    """
    if limit is not None:
        checks.at_least("limit", limit, 1)
    folder = (data_dir or default_data_dir()).expanduser()
    if validation and benchmark.validation is None:
        raise UserError(
            f"benchmark {benchmark.name} has no held-out OOD images for ood_prototype "
            "'validation'; choose 'mixup', 'noise' or 'prototype-mean'"
        )
    missing: list[str] = []
    skipped: list[str] = []

    def find(spec: SetSpec, optional: bool = False) -> ImageSet | None:
        found = _open(spec, folder, benchmark.preprocessing, download)
        if found is None:
            if optional and skip_missing:
                skipped.append(spec.name)
            else:
                missing.append(_missing(spec, folder))
        if found is not None and limit is not None and limit < len(found):
            return LimitedSet(found, limit)
        return found

    train = find(replace(benchmark.train, name=f"{benchmark.name} (train)"))
    test = find(replace(benchmark.test, name=benchmark.test.name))
    groups: list[tuple[Group, SetSpec]] = [("near", s) for s in benchmark.near]
    groups += [("far", s) for s in benchmark.far]
    outside: dict[str, tuple[Group, ImageSet]] = {}
    for group, spec in groups if ood else []:
        found = find(spec, optional=True)
        if found is not None:
            outside[spec.name] = (group, found)
    held_out = None
    if validation and benchmark.validation is not None:
        held_out = find(
            replace(benchmark.validation, name=f"{benchmark.validation.name} (validation)")
        )
    if missing or train is None or test is None:
        raise UserError(
            f"{len(missing)} sets of benchmark {benchmark.name} are missing: "
            + "; ".join(missing)
            + ("" if ood is False else " (--skip-missing leaves missing OOD test sets out)")
        )
    return OpenBenchmark(train, test, outside, held_out, tuple(skipped))


def _open(
    spec: SetSpec, data_dir: Path, preprocessing: Preprocessing, download: bool
) -> ImageSet | None:
    if callable(spec.sources):
        return spec.sources()
    size, channels = preprocessing.image_size, preprocessing.channels
    for source in spec.sources:
        folder = source.find(data_dir)
        if folder is not None:
            return source.open(spec.name, folder, size, channels)
    for source in spec.sources:
        if download and source.in_catalogue:
            source.download(data_dir)
            folder = source.find(data_dir)
            if folder is not None:
                return source.open(spec.name, folder, size, channels)
    return None


def _missing(spec: SetSpec, data_dir: Path) -> str:
    assert not callable(spec.sources)
    looked = " or ".join(str(data_dir / source.dataset) for source in spec.sources)
    hints = [s.hint(data_dir) for s in spec.sources if s.in_catalogue or s.how_to_get]
    return f"{spec.name} (looked for {looked}; {hints[0]})"
