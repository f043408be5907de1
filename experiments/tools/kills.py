"""Kills an evaluation at random moments, has it go on, and compares what it leaves.

python experiments/tools/kills.py --evaluation="--dataset digits --batch-size 64" --part-rows 256

Runs the evaluation undisturbed in each number of processes of ``--processes``, then again and again
with ``--cache-dir``: each start, in a number drawn from them, is killed at a moment drawn from the
processors' time (of Linux) that the undisturbed one took, until one is done before its moment.
That ends a series; its ``results.json`` must be that of the first number, but for times, memory,
devices and command. The next series begins with an empty cache, until there were enough kills.
Exit status 1 where anything differs.
"""

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grood_jax.cli import command
from grood_jax.evaluation import results
from grood_jax.support import provenance
from grood_jax.support.errors import UserError

PROGRAM = """import sys
from grood_jax.cli import eval
from grood_jax.passes import parts
parts.PART_ROWS = int(sys.argv[1])
sys.exit(eval.main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class KillsConfig:
    """What is killed, and how often.

    Attributes:
      evaluation: words of `python -m grood_jax.eval`.
      kills: how many at least.
      processes: numbers of processes; each start has one of them.
      part_rows: rows of a part.
      later: draws moments from those after the first pass began: until then nothing can be lost.
      seed: of moments and numbers.
      output_file: where the record goes.
    """

    evaluation: str = ""
    kills: int = 20
    processes: tuple[int, ...] = (1,)
    part_rows: int = 64
    later: bool = False
    seed: int = 0
    output_file: Path | None = None


@dataclass
class Start:
    """Processes of an evaluation that have been started."""

    running: list[subprocess.Popen[bytes]]
    logs: list[Path]
    used: float = 0.0
    began: float | None = None

    @staticmethod
    def of(config: KillsConfig, count: int, folder: Path, more: list[str]) -> "Start":
        """Starts an evaluation in a number of processes."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*shlex.split(config.evaluation), "--no-report", *more]
        running, logs = [], []
        for index in range(count):
            together = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
            together += ["--num-processes", str(count), "--process-id", str(index)]
            own = [*words, *(together if count > 1 else [])]
            logs.append(folder / f"{index}.log")
            with logs[-1].open("w") as log:
                program = [sys.executable, "-c", PROGRAM, str(config.part_rows), *own]
                running.append(subprocess.Popen(program, stdout=log, stderr=log))
        return Start(running, logs)

    def done_within(self, seconds: float) -> bool:
        """Whether it is done; all its processes are killed where it is not.

        Args:
          seconds: of processors' time that the first process may take: however busy the machine
            is, it has come as far by then.
        """
        try:
            while any(process.poll() is None for process in self.running):
                self.used = max(self.used, _processor_seconds(self.running[0].pid))
                if self.used >= seconds:
                    return False
                if self.began is None and b"training set: " in self.logs[0].read_bytes():
                    self.began = self.used
                time.sleep(0.005)
        finally:
            for process in self.running:
                process.kill()
                process.wait()
        if any(process.returncode for process in self.running):
            said = "\n".join(log.read_text() for log in self.logs)
            raise UserError(f"the evaluation failed by itself:\n{said}")
        return True

    def taken_up(self) -> list[str]:
        """What it said of earlier starts."""
        lines = [line for log in self.logs for line in log.read_text().splitlines()]
        return [line for line in lines if "taken up" in line or line.startswith("cache:")]


def _processor_seconds(process: int) -> float:
    """How long processors have worked for a process; 0 where it has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def figures(folder: Path) -> dict[str, Any]:
    """Results without what every run has anew."""
    found = json.loads((folder / "results.json").read_text())
    for own in found["detectors"].values():
        del own["fit_seconds"], own["score_seconds_per_image"]
    for name in ("command", "device", "peak_memory_bytes"):
        del found[name]
    return dict(found)


def run(config: KillsConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Kills the evaluation as often as is asked; returns the record."""
    rng = random.Random(config.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole, began, expected = {}, {}, {}
        for count in sorted(set(config.processes)):
            undisturbed = folder / f"undisturbed{count}"
            # The first compiles, and its time does not count.
            for _ in range(2):
                start = Start.of(config, count, folder, ["--output-dir", str(undisturbed)])
                start.done_within(float("inf"))
                whole[count], began[count] = start.used, start.began or 0.0
            expected[count] = figures(undisturbed)
            say(
                f"undisturbed in {count} processes: {whole[count]:.1f} s, of which the first "
                f"{began[count]:.1f} s before the first pass"
            )
        starts: list[dict[str, Any]] = []
        same: list[bool] = []
        while sum(start["killed"] for start in starts) < config.kills:
            done = False
            shutil.rmtree(folder / "cache", ignore_errors=True)
            while not done:
                count = rng.choice(config.processes)
                moment = rng.uniform(began[count] if config.later else 0.0, whole[count])
                own = ["--output-dir", str(folder / "killed"), "--cache-dir", str(folder / "cache")]
                start = Start.of(config, count, folder, own)
                done = start.done_within(moment)
                lines = start.taken_up()
                entry = {"processes": count, "seconds": moment, "killed": not done, "said": lines}
                starts.append(entry)
                how = "done before" if done else "killed after"
                say(f"{count} processes, {how} {moment:.1f} s; {'; '.join(lines)}")
            same.append(figures(folder / "killed") == expected[config.processes[0]])
            left = [p for p in (folder / "cache").iterdir() if p.suffix != ".npz"]
            say(f"the same results: {same[-1]}; left beside them: {len(left)}")
    return {
        "command": provenance.command_line("python experiments/tools/kills.py", config),
        "versions": provenance.versions(),
        "machine": f"{os.cpu_count()} cores",
        "processor seconds undisturbed": whole,
        "of which before the first pass": began,
        "undisturbed alike in all numbers of processes": len(
            {json.dumps(own, sort_keys=True) for own in expected.values()}
        )
        == 1,
        "kills": sum(start["killed"] for start in starts),
        "series with the same results": [sum(same), len(same)],
        "starts": starts,
    }


def main() -> None:
    """Runs the command line."""
    config = command.parse(KillsConfig(), "experiments.tools.kills", str(__doc__), None)
    record = run(config)
    if config.output_file is not None:
        results.write(record, config.output_file)
    alike, series = record["series with the same results"]
    print(f"{record['kills']} kills in {series} series, {alike} of them with the same results")
    if alike < series:
        raise UserError("results differ")


if __name__ == "__main__":
    raise SystemExit(command.status(main))
