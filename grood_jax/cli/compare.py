"""The command line that puts results side by side: ``grood compare``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from grood_jax.cli import command
from grood_jax.evaluation.tables import Form

DESCRIPTION = """Puts the results of several evaluations of the same data side by side: AUROC and
FPR@95 of the means over near and far sets, a detector a row, runs across, and how far each is above
the first."""


@dataclass(frozen=True)
class CompareConfig:
    """What is compared.

    Attributes:
      results: two or more files results.json, or the folders that they lie in.
      format: of the tables that are printed.
    """

    results: tyro.conf.Positional[tuple[Path, ...]] = ()
    format: Form = "table"


def run(config: CompareConfig) -> str:
    """The tables.

    Raises:
      UserError: fewer than two results, some that cannot be read, or of different data.
    """
    from grood_jax.evaluation import comparing

    return comparing.written(comparing.read_runs(config.results), config.format)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(CompareConfig(), "grood compare", DESCRIPTION, argv)
    return command.status(lambda: print(run(config)))
