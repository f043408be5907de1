"""The command line that makes a directory to ship: ``python -m grood_jax.fit``."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from grood_jax import benchmarks, models
from grood_jax.cli import command
from grood_jax.cli.eval import (
    EvalConfig,
    create_candidates,
    explained,
    find_classifier,
    preprocessing_of,
    present,
)
from grood_jax.data.finding import Kind
from grood_jax.data.sets import PartOfSet
from grood_jax.deploying import deployment
from grood_jax.deploying.deployment import Deployment
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.detectors import Detector, Validation
from grood_jax.passes.reading import Reader
from grood_jax.support import checks
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

DESCRIPTION = """Fits a detector to a classifier, sets its threshold on held-out images of the
benchmark's test set, and writes all of it into one directory, for python -m grood_jax.predict and
python -m grood_jax.serve. The other test images check what is promised."""


@dataclass(frozen=True)
class FitConfig:
    """What is fitted, and where to.

    Attributes:
      dataset: the benchmark whose images are used, as for python -m grood_jax.eval.
      detector: the detector, options behind a colon (grood:k=5); several joined by "+".
      output_dir: the directory, replaced if it holds an earlier one (default:
        deployments/DATASET-DETECTOR).
      data_dir: where images lie, as for python -m grood_jax.eval.
      source: look only for this form of data.
      checkpoint: directory of the classifier (default: as for python -m grood_jax.eval).
      model: the network; the checkpoint's or the benchmark's by default.
      cut: the stage after which the network is cut, for mix-up.
      target_tpr: the share of images in distribution that are to be taken for such.
      per_class: keep that share within each predicted class.
      calibration_share: the share of the test images that set the threshold.
      seed: of all that is random.
      limit: use at most this many images of each set, evenly spaced.
      batch_size: images in each forward pass.
      download: prepare missing data sets that tensorflow-datasets knows.
    """

    dataset: str = "digits"
    detector: str = "grood"
    output_dir: Path | None = None
    data_dir: Path | None = None
    source: Kind | None = None
    checkpoint: Path | None = None
    model: models.Name | None = None
    cut: str = "layer1"
    target_tpr: float = 0.95
    per_class: bool = False
    calibration_share: float = 0.5
    seed: int = 0
    limit: int | None = None
    batch_size: int = 256
    download: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ValueError: an option outside its range.
        """
        for name in ("target_tpr", "calibration_share"):
            if not 0 < checks.fraction(name, getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number in (0, 1)")
        self.classifier()

    def classifier(self) -> EvalConfig:
        """How the classifier is found; raises ValueError as `EvalConfig` does."""
        return EvalConfig(
            dataset=self.dataset,
            detectors=(self.detector,),
            data_dir=self.data_dir,
            source=self.source,
            checkpoint=self.checkpoint,
            model=self.model,
            cut=self.cut,
            seed=self.seed,
            limit=self.limit,
            batch_size=self.batch_size,
            download=self.download,
        )


def default_directory(dataset: str, detector: str) -> Path:
    """Where what is fitted lies unless told otherwise."""
    return Path("deployments") / f"{dataset}-{re.sub(r'[^A-Za-z0-9._]+', '-', detector)}"


def create_detector(spec: str) -> Detector:
    """The detector of that description.

    Raises:
      ValueError, TypeError: as `grood_jax.cli.eval.create_candidates`; or it stands for several.
    """
    made = create_candidates((spec,), False)
    if len(made) != 1:
        raise ValueError(f"detector is {spec!r}; expected one (join several by +)")
    return made[spec][0]


def run(
    config: FitConfig, *, report: Callable[[str], None] = print, show_progress: bool = False
) -> Deployment:
    """Fits and calibrates a detector and writes the directory.

    Args:
      config: what and where.
      report: takes lines of progress.
      show_progress: shows bars on stderr.

    Raises:
      UserError: what a user can mend: missing data, no checkpoint, too few images, …
      ValueError: an unknown detector, or an option outside its range.
    """
    detector = create_detector(config.detector)
    benchmark = benchmarks.get(config.dataset)
    data = benchmarks.open_benchmark(
        benchmark,
        preprocessing=preprocessing_of(config.classifier(), benchmark),
        data_dir=config.data_dir,
        source=config.source,
        download=config.download,
        validation=isinstance(detector.ood, Validation),
        ood=False,
        limit=config.limit,
    )
    directory = config.output_dir or default_directory(benchmark.name, config.detector)
    require_directory("output_dir", directory)
    loaded, _ = find_classifier(config.classifier(), benchmark, report, show_progress)
    read = Reader(loaded.spec.preprocessing, config.batch_size, show_progress)
    sample_key, fit_key = jax.random.split(jax.random.key(config.seed))
    shuffled = np.asarray(jax.random.permutation(sample_key, len(data.test)))
    cut = max(1, round(config.calibration_share * len(shuffled)))
    held_out, checked = (
        PartOfSet(data.test, np.sort(rows), part)
        for rows, part in ((shuffled[:cut], "calibration"), (shuffled[cut:], "check"))
    )
    classifier = explained(
        config.limit,
        lambda: OODClassifier.fit(
            deployment.backbone_of(loaded.model, loaded.spec, config.cut),
            read.training(data.train),
            detector=detector,
            calibration=read(held_out, "calibration images"),
            key=fit_key,
            target_tpr=config.target_tpr,
            per_class=config.per_class,
            noise=read.noise,
            validation=lambda: read(present(data.validation), "held-out OOD images"),
        ),
    )
    names = benchmark.class_names or tuple(map(str, range(benchmark.num_classes)))
    made = Deployment(classifier, loaded.model, loaded.spec, config.cut, names)
    made.save(directory)
    report(f"{config.detector} calibrated on {len(held_out)} images; it lies in {directory}")
    if len(checked):
        kept, right = 0, 0
        for batch in read(checked, "check"):
            found = classifier.predict(batch.images[batch.valid])
            kept += int((~found.is_ood).sum())
            right += int((found.label == batch.labels[batch.valid]).sum())
        report(
            f"of {len(checked)} other test images {kept / len(checked):.4f} are taken for ID "
            f"(promised: {config.target_tpr:g}); ID accuracy {right / len(checked):.4f}"
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(FitConfig(), "grood_jax.fit", DESCRIPTION, argv)
    try:
        create_detector(config.detector)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return command.status(lambda: run(config, report=tell, show_progress=True))
