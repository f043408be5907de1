"""The command line that makes a directory to ship: ``python -m grood_jax.fit``."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from grood_jax.cli import command
from grood_jax.deploying.setting import FitConfig
from grood_jax.support.files import require_directory
from grood_jax.support.progress import says, tell

if TYPE_CHECKING:
    import grood_jax.passes.processes
    from grood_jax.deploying.deployment import Deployment

DESCRIPTION = """Fits a detector to a classifier, sets its threshold on held-out images of the
benchmark's test set, and writes all of it into one directory, for python -m grood_jax.predict and
python -m grood_jax.serve. The other test images check what is promised."""


@says
def run(
    config: FitConfig, *, say: Callable[[str], None] = print, show_progress: bool = False
) -> "Deployment":
    """Fits and calibrates a detector and writes the directory.

    Args:
      config: what and where.
      say: takes lines of progress.
      show_progress: shows bars on stderr.

    Raises:
      UserError: what a user can mend: missing data, no checkpoint, too few images, …
      ValueError: an unknown detector, or an option outside its range.
    """
    return command.in_company(config, partial(_fit, config), say, show_progress)


def _fit(
    config: FitConfig,
    crew: "grood_jax.passes.processes.Processes",
    say: Callable[[str], None],
    show_progress: bool,
) -> "Deployment":
    from grood_jax.deploying import pipeline

    detector = pipeline.create_detector(config.detector)
    benchmark, data, place = pipeline.open_sets(config, detector, crew)
    if config.present_classes == "data":
        detector = pipeline.of_present_classes(detector, data.train, benchmark.num_classes, say)
    directory = config.output_dir or pipeline.default_directory(benchmark.name, config.detector)
    if crew.leads:
        require_directory("output_dir", directory)
        if config.cache_dir is not None:
            require_directory("cache_dir", config.cache_dir)
    inputs = pipeline.open_inputs(config, benchmark, data, place, crew, say, show_progress)
    made = pipeline.fit(config, detector, inputs)
    made.save(directory)
    classifier = made.classifier
    if explanation := classifier.detector.explain(classifier.state):
        say(f"{config.detector} took {explanation}")
    count = len(made.calibration_scores())
    say(f"{config.detector} calibrated on {count} images; it lies in {directory}")
    realised = pipeline.realised(made, inputs)
    if realised is not None:
        say(
            f"of {realised.images} other test images {realised.kept:.4f} are taken for ID "
            f"(promised: {config.target_tpr:g}); ID accuracy {realised.accuracy:.4f}"
        )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(FitConfig(), "grood_jax.fit", DESCRIPTION, argv)
    from grood_jax.deploying.pipeline import create_detector

    try:
        create_detector(config.detector)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return command.status(lambda: run(config, say=tell, show_progress=True))
