"""The command line that makes a report of results afterwards: ``grood report``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from grood_jax.cli import command
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

DESCRIPTION = """Makes report.html of an evaluation's results.json: the table and the origin, and
where scores.npz lies beside it (grood eval --save-scores) histograms and ROC curves. Feature
spaces and images are drawn by the evaluation alone."""


@dataclass(frozen=True)
class ReportConfig:
    """Of what a report is made, and where.

    Attributes:
      results: results.json of an evaluation.
      scores: its scores (default: scores.npz beside the results, if it is there).
      output_dir: of report.html and its figures (default: beside the results); a report that lies
        there is left alone.
    """

    results: tyro.conf.Positional[Path] = tyro.MISSING
    scores: Path | None = None
    output_dir: Path | None = None


def run(config: ReportConfig, *, say: Callable[[str], None] = print) -> Path:
    """Makes the report.

    Args:
      config: of what, and where.
      say: takes lines on what cannot be drawn.

    Returns:
      The page's path.

    Raises:
      UserError: there are no such results or scores, these are of another evaluation, or a report
        lies there already.
    """
    from grood_jax.evaluation import report, results
    from grood_jax.evaluation.report import page

    directory = config.output_dir or config.results.parent
    with manifests.described("evaluation", config.results):
        held = results.read(config.results)
        if (directory / "report.html").exists():
            raise UserError(
                f"{directory / 'report.html'} is there already, and may show more than can be "
                "drawn afterwards; --output-dir names another place"
            )
        beside = config.results.with_name("scores.npz")
        scores = config.scores or (beside if beside.exists() else None)
        drawn = {}
        if scores is None or not report.can_draw():
            say(page.NO_SCORES)
        else:
            drawn = results.read_scores(scores, held)
        require_directory("output_dir", directory)
        return report.write_afterwards(held, drawn, directory)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(ReportConfig(), "grood report", DESCRIPTION, argv)
    return command.status(lambda: print(f"report in {run(config, say=tell)}"))
