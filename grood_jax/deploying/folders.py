"""Folders of one's own images in the place of a benchmark: what ``grood fit --train`` opens."""

from pathlib import Path

import numpy as np

from grood_jax.benchmarks import Benchmark, OpenBenchmark
from grood_jax.data import ImageSet, LimitedSet, Preprocessing
from grood_jax.data.finding import SetSpec
from grood_jax.data.folders import FolderSource
from grood_jax.data.given import class_folders
from grood_jax.data.sets import PartOfSet
from grood_jax.deploying.setting import FitConfig
from grood_jax.evaluation import own_model
from grood_jax.evaluation.classifier import Place
from grood_jax.storage import checkpoints
from grood_jax.support.errors import UserError


def open_folders(config: FitConfig) -> tuple[Benchmark, OpenBenchmark, Place]:
    """Opens the folders of training and of calibration images, and looks for the classifier.

    Args:
      config: with ``train``, and a checkpoint or a function that makes the model.

    Returns:
      A benchmark that is made of the folders, its test set the calibration images; its sets; and
      the classifier's place.

    Raises:
      UserError: there are no such folders, or it is not known how images are brought to the
        network.
    """
    assert config.train is not None
    folder = config.train.resolve()
    classes = class_folders("train", folder)
    base, place = _prepared(config)
    sources = {"train": FolderSource(folder.name, classes)}
    if config.calibration is not None:
        sources["calibration"] = FolderSource(config.calibration.resolve().name)
    specs = {name: SetSpec(name, (source,)) for name, source in sources.items()}
    benchmark = Benchmark(
        name=folder.parent.name or folder.name,
        num_classes=len(classes),
        preprocessing=base,
        train=specs["train"],
        test=specs.get("calibration", specs["train"]),
        near=(),
        far=(),
        validation=None,
        model="small",
        class_names=classes,
    )
    prepare = place.preprocessing(benchmark)
    train = _opened(config, "train", sources["train"], config.train, prepare)
    held_out: ImageSet = PartOfSet(train, np.zeros(0, np.int64), "no calibration images")
    if config.calibration is not None:
        held_out = _opened(
            config, "calibration", sources["calibration"], config.calibration, prepare
        )
    data = OpenBenchmark(train, held_out, {}, {}, None, None, ())
    return benchmark, data, place


def _opened(
    config: FitConfig, name: str, source: FolderSource, folder: Path, prepare: Preprocessing
) -> ImageSet:
    found = source.open(name, folder.resolve().parent, prepare)
    if found is None:
        raise UserError(f"{name} is {folder}; expected a folder of images, and nothing is there")
    return found if config.limit is None else LimitedSet(found, config.limit)


def _prepared(config: FitConfig) -> tuple[Preprocessing, Place]:
    """How images are brought to the classifier, and where that is."""
    if not own_model.is_function(config.model):
        if config.checkpoint is None:
            raise UserError(
                "train is a folder, and no classifier is named; expected --model FILE.py:FUNCTION "
                "or --checkpoint"
            )
        stored = checkpoints.stored_in(config.checkpoint)
        if stored is None:
            raise UserError(f"there is no checkpoint in {config.checkpoint}")
        return stored.spec.preprocessing, Place(config.checkpoint, stored)
    if config.image_size is None:
        raise UserError("train is a folder, and the model does not say its size; give --image-size")
    given = config.mean is not None and config.std is not None
    mean, std = (config.mean, config.std) if given else ((0.5,) * 3, (0.5,) * 3)
    try:
        base = Preprocessing(config.image_size, len(mean or ()), mean or (), std or ())
    except ValueError as error:
        raise UserError(str(error)) from error
    made = own_model.make(str(config.model), base, config.cut, normalizes=not given)
    return made.spec.preprocessing, Place(Path(str(config.model)), None, made)
