"""Finding all the sets of a benchmark before anything is computed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.benchmarks.base import Benchmark, Group, require_distinct
from grood_jax.data.finding import Kind, SetSpec, Wanted, find_sets
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet, LimitedSet, PartOfSet, fingerprint
from grood_jax.data.tfds import default_data_dir
from grood_jax.support import checks
from grood_jax.support.errors import UserError
from grood_jax.support.progress import tell

VALIDATION_EVERY = 10
"""Of how many ID test images one is for validation, where options are chosen and no validation
set is found."""


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark whose sets have all been found.

    Attributes:
      train: training images.
      test: test images in distribution.
      ood: OOD test sets by name, each with its group.
      shifted: sets of the same classes that count as in distribution, if asked for, by name.
      id_validation: images of the training classes for choosing options, if asked for: the
        benchmark's own, or else, to search options, every tenth test image, which is not in
        ``test`` then.
      validation: held-out OOD images, if asked for and there are any.
      skipped: names of the sets that were missing and left out.
    """

    train: ImageSet
    test: ImageSet
    ood: dict[str, tuple[Group, ImageSet]]
    shifted: dict[str, ImageSet]
    id_validation: ImageSet | None
    validation: ImageSet | None
    skipped: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the names, also where a benchmark is opened by hand.

        Raises:
          ValueError: as `grood_jax.benchmarks.base.require_distinct`.
        """
        require_distinct({"ood": self.ood, "shifted": self.shifted})

    @property
    def titled(self) -> dict[str, ImageSet]:
        """All sets, by what messages and results call them."""
        named = {"train": self.train, "test": self.test, **self.shifted}
        return named | {name: images for name, (_, images) in self.ood.items()}


def open_benchmark(
    benchmark: Benchmark,
    *,
    preprocessing: Preprocessing | None = None,
    data_dir: Path | None = None,
    source: Kind | None = None,
    skip_missing: bool = False,
    download: bool = False,
    validation: bool = False,
    search: bool = False,
    id_validation: bool = False,
    ood: bool = True,
    full_spectrum: bool = False,
    limit: int | None = None,
    train_share: float = 1.0,
    seed: int = 0,
    say: Callable[[str], None] = tell,
) -> OpenBenchmark:
    """Finds all the sets of a benchmark before anything is computed.

    Args:
      benchmark: the benchmark.
      preprocessing: the size and channels that images are brought to; the benchmark's by default.
      data_dir: where images lie, in any form that the benchmark's sets may have; by default the
        benchmark's own place, or that of tensorflow-datasets.
      source: look only for this form.
      skip_missing: leave out OOD and shifted sets that are missing.
      download: prepare missing sets that tensorflow-datasets knows.
      validation: open the held-out OOD images too.
      search: open the validation sets, ID and OOD, by which options are chosen.
      id_validation: open the benchmark's ID validation set, if it has one and that is there.
      ood: open the OOD test sets.
      full_spectrum: open the shifted sets.
      limit: at most this many images of each set.
      train_share: this share of the training images, drawn at random.
      seed: decides which.
      say: takes a line on what lies in folders and is left out of their sets; stderr by default.

    Raises:
      TypeError: ``data_dir`` is no path, or a number of the wrong type.
      UserError: sets are missing or damaged; each is named, with where it was looked for and how
        to get it. Or the benchmark has no set of the kind that is asked for.
      ValueError: limit below 1, or a share that is none.
    """
    if limit is not None:
        checks.at_least("limit", limit, 1)
    checks.fraction("train_share", train_share, zero=False)
    validation = validation or search
    _require_kinds(benchmark, validation, search, full_spectrum)
    wanted = _wanted(benchmark, ood, full_spectrum, validation)
    folder = _folder(data_dir or benchmark.data_dir or default_data_dir())
    size = preprocessing or benchmark.preprocessing
    opened = find_sets(
        list(wanted.values()),
        folder,
        size,
        download=download,
        skip_missing=skip_missing,
        source=source,
    )
    for images in opened:
        for line in getattr(images, "left_out", ()):
            say(line)
    labelled = ("train", "test", *(key for key in wanted if key.startswith("shifted ")))
    for key, images in zip(wanted, opened, strict=True):
        if key in labelled and images is not None:
            require_labels(wanted[key].title, images, benchmark.num_classes)
    found = {
        key: _limited(images, limit)
        for key, images in zip(wanted, opened, strict=True)
        if images is not None
    }
    test, held_in = found["test"], None
    if search or id_validation:
        held_in = _id_validation(benchmark, folder, size, source, limit)
    if search and held_in is None:
        test, held_in = _divided(test)
    return OpenBenchmark(
        _share(found["train"], train_share, seed),
        test,
        {s.name: (g, found[k]) for g, s in _outside(benchmark) if (k := f"ood {s.name}") in found},
        {s.name: found[k] for s in benchmark.shifted if (k := f"shifted {s.name}") in found},
        held_in,
        found.get("validation"),
        tuple(wanted[key].spec.name for key in wanted if key not in found),
    )


def _folder(data_dir: Path) -> Path:
    """Where sets are looked for; it need not be there."""
    folder = checks.path("data_dir", data_dir).expanduser()
    try:
        folder.exists()
    except OSError as error:
        raise UserError(f"data_dir is {str(folder)!r}; {error.strerror}") from error
    return folder


def _require_kinds(
    benchmark: Benchmark, validation: bool, search: bool, full_spectrum: bool
) -> None:
    """Refuses kinds of sets that a benchmark does not have."""
    if search and benchmark.validation is None:
        raise UserError(
            f"benchmark {benchmark.name} has no validation set, so options cannot be chosen by it; "
            "leave out --search, and give options by hand"
        )
    if validation and benchmark.validation is None:
        raise UserError(
            f"benchmark {benchmark.name} has no held-out OOD images for ood_prototype "
            "'validation'; choose 'mixup', 'noise' or 'prototype-mean'"
        )
    if full_spectrum and not benchmark.shifted:
        raise UserError(
            f"benchmark {benchmark.name} has no sets of covariate-shifted images; leave out "
            "--full-spectrum"
        )


def _outside(benchmark: Benchmark) -> list[tuple[Group, SetSpec]]:
    near: list[tuple[Group, SetSpec]] = [("near", spec) for spec in benchmark.near]
    return near + [("far", spec) for spec in benchmark.far]


def _wanted(
    benchmark: Benchmark, ood: bool, full_spectrum: bool, validation: bool
) -> dict[str, Wanted]:
    """The sets to be found, by where they stand in the benchmark and by name."""
    wanted = {
        "train": Wanted(f"{benchmark.train.name} (train)", benchmark.train),
        "test": Wanted(f"{benchmark.test.name} (test)", benchmark.test),
    }
    if ood:
        wanted |= {f"ood {s.name}": Wanted(s.name, s, True) for _, s in _outside(benchmark)}
    if full_spectrum:
        wanted |= {f"shifted {s.name}": Wanted(s.name, s, True) for s in benchmark.shifted}
    if validation and benchmark.validation is not None:
        spec = benchmark.validation
        wanted["validation"] = Wanted(f"{spec.name} (validation)", spec)
    return wanted


def identity(images: ImageSet, *, content: bool = False) -> dict[str, Any]:
    """What tells sets of images apart: name, source, size, and a fingerprint.

    That is of every image and label: of their content, or, of many large files, of names, sizes
    and times of change.

    Args:
      images: the set.
      content: of content, however much it is.
    """
    found = fingerprint(images, content)
    return {
        "set": images.name,
        "source": images.source,
        "n": len(images),
        "checksum": found.checksum,
        "checksum of": found.of,
    }


def require_labels(title: str, images: ImageSet, num_classes: int) -> None:
    """Checks the labels of a set that is to have them, where they are known before it is read.

    Args:
      title: what messages call the set.
      images: the set.
      num_classes: how many classes there are.

    Raises:
      UserError: a label is no class; it is named with its row.
    """
    labels = getattr(images, "labels", None)
    if labels is None:
        return
    try:
        checks.labels(f"{title} of {images.source}", labels, num_classes)
    except ValueError as error:
        raise UserError(str(error)) from error


def _id_validation(
    benchmark: Benchmark,
    data_dir: Path,
    preprocessing: Preprocessing,
    source: Kind | None,
    limit: int | None,
) -> ImageSet | None:
    """The benchmark's own ID validation set, if it has one and that is there."""
    if benchmark.id_validation is None:
        return None
    wanted = [Wanted(benchmark.id_validation.name, benchmark.id_validation, optional=True)]
    (own,) = find_sets(
        wanted, data_dir, preprocessing, download=False, skip_missing=True, source=source
    )
    if own is None:
        return None
    require_labels(f"{own.name} (ID validation)", own, benchmark.num_classes)
    return _limited(own, limit)


def _divided(test: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The test set without what is held out of it for validation, and that."""
    rows = np.arange(len(test))
    held_out = rows % VALIDATION_EVERY == 0
    return (
        PartOfSet(test, rows[~held_out], "without validation images"),
        PartOfSet(test, rows[held_out], "validation images"),
    )


def _share(images: ImageSet, share: float, seed: int) -> ImageSet:
    if share == 1:
        return images
    import jax

    key = jax.random.fold_in(jax.random.key(seed), len(images))
    count = max(1, round(share * len(images)))
    rows = np.sort(np.asarray(jax.random.permutation(key, len(images)))[:count])
    return PartOfSet(images, rows, f"{count} of {len(images)}, drawn with seed {seed}")


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    return images if limit is None or limit >= len(images) else LimitedSet(images, limit)
