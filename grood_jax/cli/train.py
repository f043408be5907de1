"""The command line of training: ``python -m grood_jax.train``."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from grood_jax import benchmarks, models
from grood_jax.cli import command
from grood_jax.data.finding import Kind
from grood_jax.support import checks
from grood_jax.support.progress import says, tell
from grood_jax.training.options import TrainOptions, recipe

if TYPE_CHECKING:
    import grood_jax.storage.checkpoints

DESCRIPTION = """Trains a classifier on the training images of a benchmark, with a checkpoint after
each epoch; started again, it goes on where it stopped. The defaults are the data set's."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained, and where to.

    Attributes:
      dataset: the benchmark whose training images are used, as for python -m grood_jax.eval.
      model: the network; the benchmark's by default.
      data_dir: where images lie, as for python -m grood_jax.eval.
      source: look only for this form of data.
      output_dir: of the checkpoints (default: checkpoints/DATASET-MODEL-seedSEED).
      download: prepare missing data sets that tensorflow-datasets knows.
      limit: use at most this many training and test images, evenly spaced.
      options: how it is trained; `grood_jax.training.options.recipe` has those of a benchmark.
    """

    dataset: str = "digits"
    model: models.Name | None = None
    data_dir: Path | None = None
    source: Kind | None = None
    output_dir: Path | None = None
    download: bool = False
    limit: int | None = None
    options: tyro.conf.OmitArgPrefixes[TrainOptions]

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        benchmarks.check_name(self.dataset)
        if self.limit is not None:
            checks.at_least("limit", self.limit, 1)


@says
def run(
    config: TrainConfig, *, say: Callable[[str], None] = print, show_progress: bool = False
) -> "grood_jax.storage.checkpoints.Loaded":
    """Trains, or goes on training, the network that the configuration describes.

    Args:
      config: what and how.
      say: takes lines of progress.
      show_progress: shows a bar on stderr.

    Returns:
      The trained network.

    Raises:
      UserError: what a user can mend: missing data, another run's checkpoint, …
      ValueError: an unknown data set or model.
    """
    from grood_jax.training.runs import train_on

    return train_on(
        benchmarks.get(config.dataset),
        config.options,
        model=config.model,
        directory=config.output_dir,
        data_dir=config.data_dir,
        source=config.source,
        download=config.download,
        limit=config.limit,
        say=say,
        show_progress=show_progress,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    # The data set decides the other defaults, and --help is to show them.
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--dataset", default="digits")
    try:
        dataset = first.parse_known_args(argv)[0].dataset
    except argparse.ArgumentError:
        dataset = "digits"
    default = TrainConfig(options=recipe(dataset))
    config = command.parse(default, "grood_jax.train", DESCRIPTION, argv)
    return command.status(lambda: run(config, say=tell, show_progress=True))
