"""What a first evaluation compiles, and what fits of all detectors take, first and warm.

python experiments/benchmarks/first_run.py [--dataset cifar10 --data-dir data/tfds \\
    --checkpoint checkpoints/resnet20 --cache-dir cache]

All detectors are evaluated on the digits twice in one process, with nothing compiled before: how
many programs are compiled, in how much time of cores, and which take most. Then all are fitted
several times on the training outputs of a benchmark, after its forward pass, with nothing compiled
before; --cache-dir keeps those outputs for another run. Times of cores change little beside other
work, seconds do.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from grood_jax.cli import command
from grood_jax.cli.eval import run as evaluate
from grood_jax.evaluation import pipeline, results
from grood_jax.evaluation.setting import EvalConfig
from grood_jax.evaluation.tuning import create_candidates
from grood_jax.passes.processes import ALONE
from grood_jax.support import checks, provenance
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell, unsaid

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that XLA compiled."""

SHOWN = 12
"""Programs and fits that are named, those that take most."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is fitted, and how often.

    Attributes:
      dataset: the benchmark that detectors are fitted on.
      data_dir: where its images lie.
      checkpoint: its network.
      cache_dir: keeps the network's outputs.
      repeats: fits of each detector after the first.
      output: the results file.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    checkpoint: Path | None = None
    cache_dir: Path | None = None
    repeats: int = 3
    output: Path = Path("experiments/results/benchmark_first_run.json")

    def __post_init__(self) -> None:
        checks.at_least("repeats", self.repeats, 1)


class Programs:
    """Counts what XLA compiles, by the function's name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **about: Any) -> None:
        if event == COMPILED:
            self.seconds[str(about.get("fun_name"))].append(duration)

    def figures(self) -> dict[str, Any]:
        """Of what was compiled since the last call."""
        each = sorted(self.seconds.items(), key=lambda own: -sum(own[1]))
        found = {
            "programs": sum(len(own) for _, own in each),
            "compile_seconds": sum(sum(own) for _, own in each),
            "most": {name: [len(own), sum(own)] for name, own in each[:SHOWN]},
        }
        self.seconds.clear()
        return found


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds, and seconds of cores, and what the work gives."""
    start, before = time.perf_counter(), time.process_time()
    made = work()
    core = time.process_time() - before
    return {"seconds": time.perf_counter() - start, "core_seconds": core}, made


def measure_evaluations() -> dict[str, Any]:
    """A first and a second evaluation of all detectors on the digits."""
    programs, found = Programs(), {}
    with tempfile.TemporaryDirectory() as folder:
        setting = EvalConfig(detectors=("all",), output_dir=Path(folder), report=False)
        for name in ("first", "second"):
            took, record = timed(lambda: evaluate(setting, say=unsaid))
            found[name] = {**took, **programs.figures(), "detectors": len(record["detectors"])}
            tell(f"{name} evaluation: {found[name]['programs']} programs, {took}")
    return found


def measure_fits(config: BenchmarkConfig) -> dict[str, Any]:
    """All fits on a benchmark's training outputs."""
    setting = EvalConfig(
        dataset=config.dataset,
        data_dir=config.data_dir,
        checkpoint=config.checkpoint,
        cache_dir=config.cache_dir,
        detectors=("all",),
        skip_missing=True,
    )
    candidates = create_candidates(setting.detectors, False)
    benchmark, data, place = pipeline.open_sets(setting, candidates, ALONE, tell)
    inputs = pipeline.open_inputs(setting, benchmark, data, place, ALONE, tell, False)
    candidates = pipeline.that_can_be(inputs.backbone, candidates, pipeline.Failures())
    took, fitter = timed(lambda: pipeline.pass_training_set(inputs, candidates))
    jax.clear_caches()
    rows = {}
    for name, (detector,) in candidates.items():
        runs = [
            # A fit that others share is made anew.
            timed(partial(replace(fitter, fits={}).fit, name, detector))[0]
            for _ in range(1 + config.repeats)
        ]
        rows[name] = {
            what: [runs[0][what], statistics.median(run[what] for run in runs[1:])]
            for what in runs[0]
        }
    return {
        "dataset": config.dataset,
        "model": inputs.loaded.spec.model,
        "images": len(fitter.seen.labels),
        "features": fitter.seen.outputs.features.shape[1],
        "pass": took,
        "sum": {
            what: [sum(row[what][place] for row in rows.values()) for place in (0, 1)]
            for what in took
        },
        "detectors": dict(sorted(rows.items(), key=lambda own: -own[1]["core_seconds"][0])),
    }


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    require_directory("output", config.output.parent)
    jax.config.update("jax_enable_compilation_cache", False)
    found = {
        "command": provenance.command_line(
            "python experiments/benchmarks/first_run.py", config, never=("output",), folders=False
        ),
        "date": time.strftime("%Y-%m-%d"),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "load_average": os.getloadavg()[0],
        "evaluations": measure_evaluations(),
        "fits": measure_fits(config),
    }
    results.write(found, config.output)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [found["device"]]
    for name, row in found["evaluations"].items():
        lines.append(
            f"{name} evaluation of {row['detectors']} detectors on the digits: {row['programs']} "
            f"programs, {row['seconds']:.1f} s, {row['core_seconds']:.1f} s of cores"
        )
    fits = found["fits"]
    (first, warm), (core, warm_core) = fits["sum"]["seconds"], fits["sum"]["core_seconds"]
    lines.append(
        f"fits on {fits['images']} images of {fits['dataset']}: first {first:.1f} s, {core:.1f} of "
        f"cores; warm {warm:.1f} s, {warm_core:.1f} of cores"
    )
    for name, row in list(fits["detectors"].items())[:SHOWN]:
        first, warm = row["core_seconds"]
        lines.append(f"  {name:24} {first:6.2f} s of cores, warm {warm:6.2f}")
    return "\n".join(lines)


def main() -> None:
    config = command.parse(
        BenchmarkConfig(), "experiments.benchmarks.first_run", __doc__ or "", None
    )
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
