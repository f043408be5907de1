"""A directory to ship, step by step: open the inputs, fit and calibrate, check what is promised.

What is printed and written stands in `grood_jax.cli.fit`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from grood_jax.backbone.backbone import Backbone
from grood_jax.benchmarks import Benchmark, OpenBenchmark
from grood_jax.data import ImageSet
from grood_jax.data.sets import PartOfSet
from grood_jax.deploying.deployment import Deployment
from grood_jax.deploying.folders import open_folders
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.deploying.setting import FitConfig
from grood_jax.detectors import Detector, Validation
from grood_jax.evaluation import pipeline as evaluation
from grood_jax.evaluation.classifier import Place, find_classifier
from grood_jax.evaluation.own_model import OwnModel
from grood_jax.evaluation.pipeline import explained, present
from grood_jax.evaluation.tuning import create_candidates
from grood_jax.passes.memo import Memo, make_anew
from grood_jax.passes.processes import Processes
from grood_jax.passes.reading import Reader
from grood_jax.storage.checkpoints import Loaded


@dataclass(frozen=True)
class Inputs:
    """What is fitted on, opened.

    Attributes:
      benchmark: the benchmark's description.
      data: its sets in distribution.
      loaded: the classifier.
      backbone: the same, cut.
      read: gives batches of sets.
      held_out: test images that set the threshold.
      checked: the other test images, on which what is promised is checked.
      memo: remembers what the network makes of training images, or has it made.
    """

    benchmark: Benchmark
    data: OpenBenchmark
    loaded: Loaded | OwnModel
    backbone: Backbone
    read: Reader
    held_out: ImageSet
    checked: ImageSet
    memo: Memo = make_anew


@dataclass(frozen=True)
class Realised:
    """What became of test images that set no threshold.

    Attributes:
      images: how many there are.
      kept: the share taken for ID.
      accuracy: of the classifier.
    """

    images: int
    kept: float
    accuracy: float


def default_directory(dataset: str, detector: str) -> Path:
    """Where what is fitted lies unless told otherwise."""
    return Path("deployments") / f"{dataset}-{re.sub(r'[^A-Za-z0-9._]+', '-', detector)}"


def create_detector(spec: str) -> Detector:
    """The detector of that description.

    Raises:
      ValueError, TypeError: as `grood_jax.evaluation.tuning.create_candidates`; or it stands for
        several.
    """
    made = create_candidates((spec,), False)
    if len(made) != 1:
        raise ValueError(f"detector is {spec!r}; expected one (join several by +)")
    return made[spec][0]


def of_present_classes(
    detector: Detector, train: ImageSet, num_classes: int, say: Callable[[str], None]
) -> Detector:
    """`grood_jax.evaluation.pipeline.of_present_classes` of one detector."""
    return evaluation.of_present_classes({"": (detector,)}, train, num_classes, say)[""][0]


def open_sets(
    config: FitConfig, detector: Detector, crew: Processes
) -> tuple[Benchmark, OpenBenchmark, Place]:
    """Finds the sets in distribution, and looks for the classifier.

    Args:
      config: what is fitted.
      detector: the detector.
      crew: the processes that do it together.

    Raises:
      UserError: sets are missing, or the file that describes them describes none.
    """
    if config.train is not None:
        return open_folders(config)
    return evaluation.open_together(
        config,
        crew,
        validation=Validation() in detector.ood_sources,
        id_validation=detector.id_validation,
        ood=False,
    )


def open_inputs(
    config: FitConfig,
    benchmark: Benchmark,
    data: OpenBenchmark,
    place: Place,
    crew: Processes,
    say: Callable[[str], None],
    show_progress: bool,
) -> Inputs:
    """Brings a classifier to the sets; it is trained on the spot if need be.

    Args:
      config: what is fitted.
      benchmark: as `open_sets` gives it, like the next two.
      data: the sets.
      place: where the classifier lies, or will.
      crew: the processes that do it together.
      say: takes lines of progress.
      show_progress: shows bars on stderr.

    Raises:
      UserError: there is no classifier, or it does not fit the rest.
    """
    loaded, _ = crew.in_turn(lambda: find_classifier(config, benchmark, place, say, show_progress))
    crew.require_same(evaluation.foundation(loaded, data))
    preprocessing = loaded.spec.preprocessing
    read = Reader(
        preprocessing,
        config.batch_size,
        show_progress,
        config.workers,
        crew=crew,
        as_bytes=True,
    )
    if config.train is None:
        held_out, checked = divided_test_set(config, data.test)
    else:
        held_out, checked = data.test, PartOfSet(data.test, np.zeros(0, np.int64), "check")
    backbone = loaded.backbone(config.cut)
    memo = evaluation.memo_of(config, loaded, backbone, data, say, read)
    return Inputs(benchmark, data, loaded, backbone, read, held_out, checked, memo)


def divided_test_set(config: FitConfig, test: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The test images that set the threshold, drawn at random, and the others."""
    sample_key, _ = _keys(config)
    shuffled = np.asarray(jax.random.permutation(sample_key, len(test)))
    cut = max(1, round(config.calibration_share * len(shuffled)))
    return (
        PartOfSet(test, np.sort(shuffled[:cut]), "calibration"),
        PartOfSet(test, np.sort(shuffled[cut:]), "check"),
    )


def fit(config: FitConfig, detector: Detector, inputs: Inputs) -> Deployment:
    """Fits the detector and sets its threshold.

    Raises:
      UserError: what the data made impossible.
    """
    loaded, read, data, benchmark = inputs.loaded, inputs.read, inputs.data, inputs.benchmark
    held_in = data.id_validation
    # Where training images set the threshold, what is fitted on is not all of the training set.
    memo = inputs.memo if inputs.held_out else make_anew
    classifier = explained(
        config.limit,
        lambda: OODClassifier.fit(
            inputs.backbone,
            replace(read, memo=memo).training(data.train),
            detector=detector,
            calibration=read(inputs.held_out, "calibration images") if inputs.held_out else None,
            key=_keys(config)[1],
            target_tpr=config.target_tpr,
            per_class=config.per_class,
            noise=read.noise,
            validation=lambda: read(present(data.validation), "held-out OOD images"),
            id_validation=None if held_in is None else read(held_in, "ID validation images"),
            memo=memo,
        ),
    )
    names = benchmark.class_names or tuple(map(str, range(benchmark.num_classes)))
    cut = config.cut if isinstance(loaded, OwnModel) else classifier.backbone.cut
    return Deployment(classifier, loaded.model, loaded.spec, cut, names)


def realised(made: Deployment, inputs: Inputs) -> Realised | None:
    """What the other test images say of the promise; None where there are none.

    All processes must ask at the same time.
    """
    count = len(inputs.checked)
    if not count:
        return None
    kept, right = 0, 0
    for batch in inputs.read(inputs.checked, "check"):
        answer = made.classifier.predict(batch.images[batch.valid])
        kept += int((~answer.is_ood).sum())
        right += int((answer.label == batch.labels[batch.valid]).sum())
    kept, right = inputs.read.crew.gathered(np.array([[kept, right]])).sum(axis=0).tolist()
    return Realised(count, kept / count, right / count)


def _keys(config: FitConfig) -> jax.Array:
    """One key for which images are held out, and one for the fit."""
    return jax.random.split(jax.random.key(config.seed))
