"""Wall time of an evaluation in two processes beside that of the same in one, on one machine.

python experiments/benchmarks/processes.py

Further words after ``--`` are those of python -m grood_jax.eval. The one process has as many
cores as the several together, which have a share each (Linux; elsewhere the system divides them).
In a round each is started without any compiled program kept, and once more with what it kept then;
one and several take turns, and medians are compared. Wall time is from the start of the first
interpreter to the end of the last; processor time that of all of them, and of the one that took
most.
"""

import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from grood_jax.cli import command
from grood_jax.evaluation import results
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

KEPT = ("cold", "warm")
"""Without compiled programs that are kept, and with those of the run before."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how often.

    Attributes:
      words: of python -m grood_jax.eval.
      processes: how many, beside one.
      rounds: runs of each.
      output: the results file; one that is there keeps what it says of other words.
    """

    words: tyro.conf.Positional[tuple[str, ...]] = ("--dataset", "digits", "--detectors", "all")
    processes: int = 2
    rounds: int = 3
    output: Path = Path("experiments/results/benchmark_processes.json")

    def __post_init__(self) -> None:
        checks.at_least("processes", self.processes, 2)
        checks.at_least("rounds", self.rounds, 1)


@dataclass
class Started:
    """A process that was started, and what it came to."""

    running: subprocess.Popen[bytes]
    seconds: float = 0.0
    processor: float = 0.0


def run_once(words: Sequence[str], count: int, folder: Path, cache: Path) -> list[Started]:
    """Runs an evaluation in some processes; what each came to.

    Args:
      words: of the command line.
      count: how many processes.
      folder: where results and logs go.
      cache: the user's cache directory, with compiled programs.

    Raises:
      UserError: one of them failed.
    """
    shares = shares_of_cores(count)
    base = [sys.executable, "-m", "grood_jax.eval", *words, "--output-dir", str(folder / "made")]
    if count > 1:
        base += ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}"]
        base += ["--num-processes", str(count)]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    begun, started = time.perf_counter(), []
    try:
        for number in range(count):
            own = [*base, "--process-id", str(number)] if count > 1 else base
            with (folder / f"{number}.log").open("w") as log:
                started.append(
                    Started(subprocess.Popen(own, stdout=log, stderr=log, env=environment))
                )
            if shares:
                os.sched_setaffinity(started[-1].running.pid, shares[number])
        for number, each in enumerate(started):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            code = each.running.wait()
            each.seconds = time.perf_counter() - begun
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            each.processor = sum(after[:2]) - sum(before[:2])
            if code:
                raise UserError(f"{' '.join(base)}: {(folder / f'{number}.log').read_text()}")
    finally:
        for each in started:
            each.running.kill()
            each.running.wait()
    return started


def shares_of_cores(count: int) -> list[set[int]]:
    """The cores of each process; empty where the system does not let them be named."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise UserError(f"this machine has {len(cores)} cores; expected one for each of {count}")
    return [set(cores[number::count]) for number in range(count)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of one process and of several by what was kept, and their ratio."""
    counts = (1, config.processes)
    runs: dict[str, dict[int, list[list[Started]]]] = {
        kept: {count: [] for count in counts} for kept in KEPT
    }
    with tempfile.TemporaryDirectory() as name:
        for turn in range(config.rounds):
            for count in counts:
                folder = Path(name) / f"{turn}-{count}"
                folder.mkdir()
                for kept in KEPT:
                    made = run_once(config.words, count, folder, folder / "cache")
                    runs[kept][count].append(made)
                    wall = max(each.seconds for each in made)
                    tell(f"round {turn + 1}, {count} processes, {kept}: {wall:.1f} s")
    return {kept: summary(runs[kept]) for kept in KEPT}


def summary(runs: dict[int, list[list[Started]]]) -> dict[str, Any]:
    """Figures of the runs in one process and in several."""
    one, several = (
        {
            "seconds": [max(each.seconds for each in run) for run in own],
            "processor_seconds": [sum(each.processor for each in run) for run in own],
            "most_processor_seconds": [max(each.processor for each in run) for run in own],
        }
        for own in runs.values()
    )
    medians = [statistics.median(own["seconds"]) for own in (one, several)]
    return {"one": one, "several": several, "ratio": medians[1] / medians[0]}


def table(found: dict[str, Any]) -> str:
    """A line for each state of the compiled programs."""
    lines = []
    for words, own in found["processes"].items():
        for kept in KEPT:
            one, several = (statistics.median(own[kept][n]["seconds"]) for n in ("one", "several"))
            lines.append(
                f"{words}, {kept}: {one:.1f} s in one process, {several:.1f} s in {own['count']}, "
                f"ratio {own[kept]['ratio']:.2f}"
            )
    return "\n".join(lines)


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures, and writes the results file."""
    require_directory("output", config.output.parent)
    held = json.loads(config.output.read_text()) if config.output.exists() else {}
    # Folders of one machine say nothing on another.
    words = " ".join(Path(w).name if w.startswith("/") else w for w in config.words)
    own = {"count": config.processes, "rounds": config.rounds, **measure(config)}
    found = {
        "command": "python experiments/benchmarks/processes.py",
        "versions": provenance.versions(),
        "device": provenance.device(),
        "processes": held.get("processes", {}) | {words: own},
    }
    results.write(found, config.output)
    return found


def main() -> None:
    name = "experiments.benchmarks.processes"
    config = command.parse(BenchmarkConfig(), name, __doc__ or "", None)
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
