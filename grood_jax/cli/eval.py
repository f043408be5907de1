"""The command line of evaluation: ``python -m grood_jax.eval``."""

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grood_jax.cli import command
from grood_jax.cli.listing import listed_detectors
from grood_jax.evaluation.setting import EvalConfig
from grood_jax.support import provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import says, tell

if TYPE_CHECKING:
    import grood_jax.passes.processes

PROGRAM = "python -m grood_jax.eval"

DESCRIPTION = """Evaluates OOD detectors on a benchmark, in one forward pass for all of them, and
writes results.json: AUROC, FPR@95 and AUPR as fractions, from scores that are higher for more
OOD."""


@says
def run(
    config: EvalConfig,
    *,
    say: Callable[[str], None] = print,
    show_progress: bool = False,
    commandline: str | None = None,
) -> dict[str, Any]:
    """Evaluates detectors on a benchmark and writes ``results.json``.

    Args:
      config: what and how.
      say: takes lines of progress.
      show_progress: shows bars on stderr.
      commandline: recorded as the command; by default the one that stands for ``config``.

    Returns:
      What was written: see the documentation for its form.

    Raises:
      UserError: what a user can mend: missing data, no checkpoint, a class without samples, …
      ValueError: an unknown data set or detector, or an option outside its range.
    """
    always = () if config.outputs is not None else ("dataset",)
    words = commandline or provenance.command_line(PROGRAM, config, always=always)
    if config.outputs is not None:
        return _evaluate_outputs(config, config.outputs, say, words)
    work = partial(_evaluate, config, commandline=words)
    return command.in_company(config, work, say, show_progress)


def _say_beforehand(config: EvalConfig, output_dir: Path, say: Callable[[str], None]) -> None:
    """What a user would rather know before the network runs than after."""
    from grood_jax.evaluation import report as reports

    before = output_dir / "results.json"
    if before.exists():
        say(f"{before} is there already and will be replaced; --output-dir names another place")
    if config.report and not reports.can_draw():
        say(
            "report.html will not be written: matplotlib is missing; install it with pip install "
            "matplotlib, or leave the report out with --no-report"
        )


def _evaluate_outputs(
    config: EvalConfig, folder: Path, say: Callable[[str], None], words: str
) -> dict[str, Any]:
    from grood_jax.evaluation import report as reports
    from grood_jax.evaluation import results
    from grood_jax.evaluation.from_outputs import evaluate_outputs
    from grood_jax.storage.outputs import read_outputs

    held = read_outputs(folder)
    output_dir = config.output_dir or Path("results") / folder.resolve().name
    _say_beforehand(config, output_dir, say)
    require_directory("output_dir", output_dir)
    made = evaluate_outputs(
        held.train,
        held.test,
        held.near,
        held.far,
        head=held.head,
        id_validation=held.id_validation,
        detectors=None if config.detectors == EvalConfig.detectors else config.detectors,
        present_classes=config.present_classes,
        seed=config.seed,
        name=folder.resolve().name,
        source=str(folder),
    )
    made.results["command"] = words
    say(f"results in {made.save(output_dir)}")
    for name, reason in made.left_out.items():
        say(f"left out {name}: {reason}")
    if config.save_scores:
        results.write_scores(made.scores, output_dir / "scores.npz")
    if config.report and reports.can_draw():
        say(f"report in {made.report(output_dir)}")
    return made.results


def _evaluate(
    config: EvalConfig,
    crew: "grood_jax.passes.processes.Processes",
    say: Callable[[str], None],
    show_progress: bool,
    *,
    commandline: str,
) -> dict[str, Any]:
    from grood_jax.evaluation import pipeline, results
    from grood_jax.evaluation import report as reports
    from grood_jax.evaluation.tuning import create_candidates
    from grood_jax.storage.outputs import write_outputs

    candidates: pipeline.Candidates = create_candidates(config.detectors, config.search)
    benchmark, data, place = pipeline.open_sets(config, candidates, crew, say)
    if config.present_classes == "data":
        candidates = pipeline.of_present_classes(candidates, data.train, benchmark.num_classes, say)
    output_dir = config.output_dir or Path("results") / benchmark.name
    if crew.leads:
        _say_beforehand(config, output_dir, say)
        require_directory("output_dir", output_dir)
        for name in ("cache_dir", "save_outputs"):
            if (folder := getattr(config, name)) is not None:
                require_directory(name, folder)
    inputs = pipeline.open_inputs(config, benchmark, data, place, crew, say, show_progress)
    made = pipeline.evaluate(inputs, candidates, say)
    record = pipeline.record(inputs, made.passed, made.scored, made.failures, commandline)
    shown = pipeline.shown_sets(inputs, made.passed) if config.report else []
    if not crew.leads:
        return record
    results.write(record, output_dir / "results.json")
    for line in inputs.read.complaints():
        say(line)
    say(f"results in {output_dir / 'results.json'}")
    scores = {name: own.scores for name, own in made.scored.items()}
    if config.save_scores:
        results.write_scores(scores, output_dir / "scores.npz")
    if config.save_outputs is not None:
        write_outputs(config.save_outputs, pipeline.saved_outputs(inputs, made))
        say(f"outputs in {config.save_outputs}")
    if config.report and reports.can_draw():
        drawn = {name: made.fitted.detectors[name] for name in scores}
        say(f"report in {reports.write(record, shown, drawn, scores, output_dir)}")
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    given = sys.argv[1:] if argv is None else argv
    listing = ""
    if {"-h", "--help"} & {*given}:
        listing = f"\n\nDetectors and their options, with defaults:\n{listed_detectors()}"
    config = command.parse(EvalConfig(), "grood_jax.eval", DESCRIPTION, argv, listing)
    from grood_jax.evaluation.tuning import create_candidates

    try:
        create_candidates(config.detectors, config.search)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    words = f"{PROGRAM} {shlex.join(given)}".strip()

    def work() -> None:
        import jax

        from grood_jax.evaluation import pipeline, tables

        record = run(config, say=tell, show_progress=True, commandline=words)
        if config.distributed and jax.process_index() > 0:
            return
        print(tables.written(record, config.format))
        # What other programs are to read holds nothing else.
        say = print if config.format == "table" else tell
        for line in tables.accuracies(record):
            say(line)
        if record["failed"]:
            raise UserError(pipeline.summary(record["failed"]))

    return command.status(work)
