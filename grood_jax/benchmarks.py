"""Benchmarks described once: sets in and out of distribution, image size, normalisation."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grood_jax import checks
from grood_jax.data import builtin
from grood_jax.data.finding import SetSpec, Wanted, find_sets
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet, LimitedSet, PartOfSet
from grood_jax.data.sources import TfdsSource, default_data_dir
from grood_jax.errors import UserError
from grood_jax.models import Name

VALIDATION_EVERY = 10
"""Of how many ID test images one is for validation, where options are chosen."""

SAMPLED = 16
"""Images whose pixels tell two sets apart."""

Group = Literal["near", "far"]
Dataset = Literal["digits", "fashion_mnist", "cifar10"]


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
      class_names: of the classes, in order; empty where they have none.
    """

    name: str
    num_classes: int
    preprocessing: Preprocessing
    train: SetSpec
    test: SetSpec
    near: tuple[SetSpec, ...]
    far: tuple[SetSpec, ...]
    validation: SetSpec | None
    model: Name
    trains_on_the_spot: bool
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark whose sets have all been found.

    Attributes:
      train: training images.
      test: test images in distribution.
      ood: OOD test sets by name, each with its group.
      id_validation: images of the training classes for choosing options, if asked for: every
        tenth test image, which is not in ``test`` then.
      validation: held-out OOD images, if asked for and there are any.
      skipped: names of the OOD sets that were missing and left out.
    """

    train: ImageSet
    test: ImageSet
    ood: dict[str, tuple[Group, ImageSet]]
    id_validation: ImageSet | None
    validation: ImageSet | None
    skipped: tuple[str, ...]


def _tfds(name: str, split: str, *datasets: str) -> SetSpec:
    return SetSpec(name, tuple(TfdsSource(dataset, split) for dataset in datasets or (name,)))


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
            TfdsSource("tiny_imagenet_32", split, in_catalogue=False),
            TfdsSource("tiny_imagenet", split, in_catalogue=False),
        ),
        how_to_get="with Tiny ImageNet's images, but for the classes that CIFAR-10 has too, in "
        "folders TEST and VALIDATION (as OpenOOD's tin/test and tin/val are), run python -m "
        "grood_jax.data.convert --name tiny_imagenet_32 --test TEST --validation VALIDATION "
        "--data-dir {data_dir}",
    )


_BENCHMARKS: dict[str, Benchmark] = {
    "digits": Benchmark(
        name="digits",
        num_classes=builtin.ID_CLASSES,
        # Mean and deviation of the training part's 8×8 images.
        preprocessing=Preprocessing(8, 1, mean=(0.304,), std=(0.377,)),
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
        class_names=tuple("01234567"),
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
        class_names=tuple(
            "t-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()
        ),
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
        class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
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
    search: bool = False,
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
      search: open the validation sets, ID and OOD, by which options are chosen.
      ood: open the OOD test sets.
      limit: at most this many images of each set.

    Raises:
      UserError: sets are missing or damaged; each is named, with where it was looked for and how
        to get it.
      ValueError: limit below 1.
    """
    if limit is not None:
        checks.at_least("limit", limit, 1)
    if search and benchmark.validation is None:
        raise UserError(
            f"benchmark {benchmark.name} has no validation set, so options cannot be chosen by it; "
            "leave out --search, and give options by hand"
        )
    validation = validation or search
    if validation and benchmark.validation is None:
        raise UserError(
            f"benchmark {benchmark.name} has no held-out OOD images for ood_prototype "
            "'validation'; choose 'mixup', 'noise' or 'prototype-mean'"
        )
    groups: list[tuple[Group, SetSpec]] = []
    if ood:
        groups += [("near", spec) for spec in benchmark.near]
        groups += [("far", spec) for spec in benchmark.far]
    wanted = [
        Wanted(f"{benchmark.train.name} (train)", benchmark.train),
        Wanted(f"{benchmark.test.name} (test)", benchmark.test),
        *(Wanted(spec.name, spec, optional=True) for _, spec in groups),
    ]
    if validation and benchmark.validation is not None:
        held_out = benchmark.validation
        wanted.append(Wanted(f"{held_out.name} (validation)", held_out))
    folder = (data_dir or default_data_dir()).expanduser()
    found = find_sets(
        wanted, folder, benchmark.preprocessing, download=download, skip_missing=skip_missing
    )
    train, test, *others = (None if f is None else _limited(f, limit) for f in found)
    assert train is not None and test is not None
    outside: dict[str, tuple[Group, ImageSet]] = {}
    skipped: list[str] = []
    for (group, spec), images in zip(groups, others, strict=False):
        if images is None:
            skipped.append(spec.name)
        else:
            outside[spec.name] = (group, images)
    rows = np.arange(len(test))
    held_out = rows % VALIDATION_EVERY == 0
    return OpenBenchmark(
        train,
        PartOfSet(test, rows[~held_out], "without validation images") if search else test,
        outside,
        PartOfSet(test, rows[held_out], "validation images") if search else None,
        others[-1] if validation else None,
        tuple(skipped),
    )


def identity(images: ImageSet) -> dict[str, Any]:
    """What tells sets of images apart: name, source, size, and a checksum of a few images."""
    rows = np.linspace(0, len(images) - 1, min(len(images), SAMPLED)).astype(np.int64)
    pixels, labels = images.read(rows)
    checksum = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.tobytes())
    return {
        "set": images.name,
        "source": images.source,
        "n": len(images),
        "checksum": checksum.hexdigest(),
    }


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    return images if limit is None or limit >= len(images) else LimitedSet(images, limit)
