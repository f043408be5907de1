"""Requests per second and latency of python -m grood_jax.serve, beside the bare forward pass.

python experiments/benchmarks/serving.py [DIRECTORY]

The directory is one of python -m grood_jax.fit; without one, the digits' is made. First, in this
process, the network alone and the whole prediction take turns on batches of every size that the
server compiles. Next the clients ask an application that reads the request and answers a constant:
what HTTP alone costs with this server and these clients. Then the server runs as a process of its
own, and clients in processes of theirs send random pixels over loopback, each connection a request
as soon as it has the answer to the last: first PNGs of one image, then arrays of as many images as
the server takes. Clients and server share the machine: how many cores each kept busy is reported
too. Last, the server is told to stop under load: every request that it accepted must have got its
answer.
"""

import asyncio
import io
import itertools
import json
import multiprocessing
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from PIL import Image

from grood_jax.cli import command
from grood_jax.data import Preprocessing
from grood_jax.deploying import deployment
from grood_jax.deploying.deployment import Deployment
from grood_jax.deploying.serving.batching import batch_sizes
from grood_jax.evaluation import results
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

BODIES = 16
"""Different images that a client sends in turn."""

BARE_SECONDS = 2.0
"""For each batch size, after the first runs."""

Address = tuple[str, int]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
      directory: of python -m grood_jax.fit; the digits' is made by default.
      concurrency: connections that send PNGs at the same time, one level after the other.
      array_concurrency: connections that send arrays of max_batch images, likewise.
      seconds: that a level takes at most.
      requests: that a level takes at most.
      clients: processes that send.
      max_batch: of the server.
      output: the results file.
    """

    directory: tyro.conf.Positional[Path | None] = None
    concurrency: tuple[int, ...] = (1, 4, 16, 64, 256)
    array_concurrency: tuple[int, ...] = (1, 4, 8)
    seconds: float = 5.0
    requests: int = 20_000
    clients: int = 1
    max_batch: int = 64
    output: Path = Path("experiments/results/benchmark_serving.json")

    def __post_init__(self) -> None:
        for name in ("requests", "clients", "max_batch"):
            checks.at_least(name, getattr(self, name), 1)
        checks.positive("seconds", self.seconds)
        for level in (*self.concurrency, *self.array_concurrency):
            checks.at_least("concurrency", level, 1)
        checks.at_least("number of concurrency levels", len(self.concurrency), 1)


@dataclass
class Sent:
    """What one client process saw.

    Attributes:
      seconds: from each request to its answer, if that is of status 200.
      outcomes: statuses; "closed" before an answer began, "half" within one, "unreachable".
      wall: seconds that it took.
      cpu: seconds of a core that it used.
    """

    seconds: list[float]
    outcomes: Counter[str]
    wall: float = 0.0
    cpu: float = 0.0


async def _connection(address: Address, bodies: Iterator[bytes], end: float, sent: Sent) -> None:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        sent.outcomes["unreachable"] += 1
        return
    try:
        for body in bodies:
            start = time.perf_counter()
            if start >= end:
                return
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length))
            status = head.split()[1].decode()
            sent.outcomes[status] += 1
            if status == "200":
                sent.seconds.append(time.perf_counter() - start)
    except asyncio.IncompleteReadError as error:
        sent.outcomes["half" if error.partial else "closed"] += 1
    except ConnectionError:
        sent.outcomes["closed"] += 1
    finally:
        writer.close()


async def _connections(
    address: Address, bodies: Sequence[bytes], count: int, end: float, requests: int
) -> Sent:
    sent = Sent([], Counter())
    # All draw from one supply, hence the bound on their number.
    supply = itertools.islice(itertools.cycle(bodies), requests)
    await asyncio.gather(*(_connection(address, supply, end, sent) for _ in range(count)))
    return sent


def send(
    address: Address, bodies: Sequence[bytes], count: int, seconds: float, requests: int
) -> Sent:
    """In a process of its own: keeps ``count`` requests under way."""
    start, cpu = time.perf_counter(), time.process_time()
    sent = asyncio.run(_connections(address, bodies, count, start + seconds, requests))
    sent.wall = time.perf_counter() - start
    sent.cpu = time.process_time() - cpu
    return sent


class Clients:
    """Processes that send."""

    def __init__(self, pool: ProcessPoolExecutor, count: int) -> None:
        self._pool, self._count = pool, count

    def start(
        self,
        address: Address,
        bodies: Sequence[bytes],
        concurrency: int,
        seconds: float,
        requests: int,
    ) -> Callable[[], Sent]:
        """Begins to send; the result waits for the end and has it all."""
        used = min(self._count, concurrency)
        shares = [concurrency // used + (i < concurrency % used) for i in range(used)]
        futures = [
            self._pool.submit(send, address, bodies, share, seconds, requests // used)
            for share in shares
        ]

        def finish() -> Sent:
            found = [future.result() for future in futures]
            return Sent(
                [seconds for sent in found for seconds in sent.seconds],
                sum((sent.outcomes for sent in found), Counter()),
                max(sent.wall for sent in found),
                sum(sent.cpu for sent in found),
            )

        return finish


def requests_of(wanted: Preprocessing, images: int) -> list[bytes]:
    """Whole HTTP requests of random pixels: PNGs of one image, or arrays of several."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(BODIES):
        shape = (images, wanted.image_size, wanted.image_size, wanted.channels)
        pixels = rng.integers(0, 256, shape, np.uint8)
        file = io.BytesIO()
        if images == 1:
            Image.fromarray(pixels[0].squeeze()).save(file, "PNG")
        else:
            np.save(file, pixels)
        kind = "image/png" if images == 1 else "application/x-npy"
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {file.tell()}\r\n\r\n"
        )
        found.append(head.encode() + file.getvalue())
    return found


def measure_bare(deployed: Deployment, max_batch: int) -> list[dict[str, Any]]:
    """Images per second of the network alone, and of the prediction from bytes to verdicts."""
    forward = jax.jit(lambda backbone, images: backbone(images))
    backbone, wanted = deployed.classifier.backbone, deployed.preprocessing
    rng = np.random.default_rng(0)
    found = []
    for size in batch_sizes(max_batch):
        shape = (size, wanted.image_size, wanted.image_size, wanted.channels)
        pixels = rng.integers(0, 256, shape, np.uint8)
        images = jax.device_put(wanted.normalize(pixels))
        forward_seconds, predict_seconds = _medians(
            lambda x=images: jax.block_until_ready(forward(backbone, x)),
            lambda x=pixels: deployed.predict(x),
        )
        found.append(
            {
                "batch": size,
                "forward_images_per_second": size / forward_seconds,
                "predict_images_per_second": size / predict_seconds,
            }
        )
    return found


def _medians(*runs: Callable[[], Any]) -> list[float]:
    """Seconds of each, in turn."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    end = time.perf_counter() + BARE_SECONDS
    while time.perf_counter() < end or not seconds[0]:
        for run, own in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
    return [float(np.median(own)) for own in seconds]


async def constant(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that does nothing but HTTP."""
    while (await receive()).get("more_body"):
        pass
    body = b'{"class": 1, "name": "1", "score": 0.5, "p_value": 0.5, "is_ood": false}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def measure_http(
    clients: "Clients", bodies: Sequence[bytes], config: BenchmarkConfig
) -> list[dict[str, Any]]:
    """Requests per second of `constant`, by concurrency."""
    words = ["-m", "uvicorn", "serving:constant", "--app-dir", str(Path(__file__).parent)]
    options = ["--port", "0", "--http", "h11", "--lifespan", "off", "--no-access-log"]
    found = []
    with _started([*words, *options], r".*running on http://([^:]+):(\d+)") as (_, address):
        for level in config.concurrency:
            sent = clients.start(address, bodies, level, config.seconds / 2, config.requests)()
            rate = len(sent.seconds) / sent.wall
            found.append({"concurrency": level, "requests_per_second": rate})
    return found


@contextmanager
def server(directory: Path, max_batch: int) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """The real server, ready."""
    words = ["-m", "grood_jax.serve", str(directory), "--port", "0", "--max-batch", str(max_batch)]
    with _started(words, r"ready at http://(\S+):(\d+)") as started:
        yield started


@contextmanager
def _started(words: Sequence[str], ready: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """A process of Python's, when it has said where it listens."""
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        for said in process.stderr:
            if found := re.match(ready, said):
                yield process, (found[1], int(found[2]))
                break
        else:
            raise UserError(f"the server did not start: {said.strip()}")
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def read_metrics(address: Address) -> dict[str, float]:
    """The server's metrics that have no labels."""
    with urllib.request.urlopen("http://{}:{}/metrics".format(*address)) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", "\n".join(lines), re.M)
    }


def measure_level(
    clients: Clients,
    address: Address,
    bodies: Sequence[bytes],
    config: BenchmarkConfig,
    concurrency: int,
    images: int,
) -> dict[str, Any]:
    """One level of concurrency, with so many images in each request."""
    tell(f"{concurrency} requests of {images} at the same time")
    before = read_metrics(address)
    sent = clients.start(address, bodies, concurrency, config.seconds, config.requests)()
    after = read_metrics(address)
    total, batches, server_cpu = (
        after[name] - before[name]
        for name in (
            "grood_batch_images_sum",
            "grood_batch_images_count",
            "process_cpu_seconds_total",
        )
    )
    p50, p99 = np.percentile(sent.seconds, [50, 99]) * 1e3
    return {
        "concurrency": concurrency,
        "images_per_request": images,
        "requests": len(sent.seconds),
        "outcomes": dict(sent.outcomes),
        "requests_per_second": len(sent.seconds) / sent.wall,
        "images_per_second": len(sent.seconds) * images / sent.wall,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "images_per_batch": total / batches,
        "server_cores": server_cpu / sent.wall,
        "client_cores": sent.cpu / sent.wall,
    }


def stop_under_load(
    clients: Clients,
    process: subprocess.Popen[str],
    address: Address,
    bodies: Sequence[bytes],
    concurrency: int,
) -> dict[str, Any]:
    """Tells the server to stop while clients send."""
    finish = clients.start(address, bodies, concurrency, 30.0, 10**6)
    time.sleep(2)
    start = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    seconds = time.perf_counter() - start
    sent = finish()
    counted = re.search(r"stopped: (\d+) requests accepted, (\d+) answered", said)
    accepted, answered = map(int, counted.groups()) if counted else (-1, -1)
    return {
        "concurrency": concurrency,
        "exit_status": process.returncode,
        "seconds_to_stop": seconds,
        "accepted_since_start": accepted,
        "answered_since_start": answered,
        "outcomes": dict(sent.outcomes),
    }


def require_nothing_lost(stop: Mapping[str, Any], before: int) -> None:
    """Compares the server's count with the clients'.

    Args:
      stop: of `stop_under_load`.
      before: answers that clients had got before.

    Raises:
      RuntimeError: they differ.
    """
    got = before + stop["outcomes"].get("200", 0)
    if (
        not stop["accepted_since_start"] == stop["answered_since_start"] == got
        or stop["exit_status"]
    ):
        raise RuntimeError(f"clients got {got} answers; the server stopped with {dict(stop)}")


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    require_directory("output", config.output.parent)
    with tempfile.TemporaryDirectory() as folder:
        directory = config.directory or make_directory(Path(folder))
        deployed = deployment.load(directory)
        tell("bare forward pass")
        bare = measure_bare(deployed, config.max_batch)
        one, several = (
            requests_of(deployed.preprocessing, images) for images in (1, config.max_batch)
        )
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(config.clients, mp_context=spawn) as pool:
            clients = Clients(pool, config.clients)
            tell("HTTP alone")
            http = measure_http(clients, one, config)
            tell("starting the server")
            with server(directory, config.max_batch) as (process, address):
                # Processes start when they are first needed.
                answered = len(clients.start(address, one, config.clients, 0.5, 1000)().seconds)
                load = [
                    measure_level(clients, address, bodies, config, level, images)
                    for bodies, images, levels in (
                        (one, 1, config.concurrency),
                        (several, config.max_batch, config.array_concurrency),
                    )
                    for level in levels
                ]
                answered += sum(level["requests"] for level in load)
                tell("stopping under load")
                stop = stop_under_load(clients, process, address, one, max(config.concurrency))
    require_nothing_lost(stop, answered)
    program = "python experiments/benchmarks/serving.py"
    if config.directory is not None:
        program += f" {shlex.quote(config.directory.name)}"
    found = {
        "command": provenance.command_line(program, config, never=("directory", "output")),
        "versions": provenance.versions()
        | {name: metadata.version(name) for name in ("starlette", "uvicorn")},
        "device": provenance.device(),
        "model": deployed.spec.model,
        "image": [deployed.preprocessing.image_size] * 2 + [deployed.preprocessing.channels],
        "detector": deployed.classifier.detector.name,
        "max_batch": config.max_batch,
        "client_processes": config.clients,
        "bare": bare,
        "http": http,
        "load": load,
        "stop": stop,
    }
    results.write(found, config.output)
    return found


def make_directory(folder: Path) -> Path:
    """The digits' classifier, made in a folder."""
    tell("no directory is given: fitting on the digits")
    made = folder / "digits"
    words = [sys.executable, "-m", "grood_jax.fit", "--output-dir", str(made)]
    if subprocess.run(words, cwd=folder).returncode:
        raise UserError("python -m grood_jax.fit failed")
    return made


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    height, width, channels = found["image"]
    lines = [
        f"{found['device']}; {found['model']} with {found['detector']}, "
        f"{height} × {width} × {channels}",
        "",
        f"{'batch':>11} {'forward alone, images/s':>24} {'prediction, images/s':>21}",
    ]
    for row in found["bare"]:
        lines.append(
            f"{row['batch']:11} {row['forward_images_per_second']:24.0f} "
            f"{row['predict_images_per_second']:21.0f}"
        )
    lines += [
        "",
        f"{'concurrency':>11} {'images each':>11} {'requests/s':>11} {'images/s':>9} "
        f"{'p50, ms':>8} {'p99, ms':>8} {'images a batch':>15} "
        f"{'server cores':>13} {'client cores':>13}",
    ]
    for row in found["load"]:
        lines.append(
            f"{row['concurrency']:11} {row['images_per_request']:11} "
            f"{row['requests_per_second']:11.0f} {row['images_per_second']:9.0f} "
            f"{row['p50_ms']:8.1f} {row['p99_ms']:8.1f} {row['images_per_batch']:15.1f} "
            f"{row['server_cores']:13.2f} {row['client_cores']:13.2f}"
        )
    lines += ["", f"{'concurrency':>11} {'HTTP alone, requests/s':>23}"]
    lines += [f"{r['concurrency']:11} {r['requests_per_second']:23.0f}" for r in found["http"]]
    stop = found["stop"]
    lines += [
        "",
        f"stopped under load in {stop['seconds_to_stop']:.1f} s: {stop['accepted_since_start']} "
        f"accepted, {stop['answered_since_start']} answered, all received; the load's outcomes: "
        f"{json.dumps(stop['outcomes'])}",
    ]
    return "\n".join(lines)


def main() -> None:
    config = command.parse(BenchmarkConfig(), "experiments.benchmarks.serving", __doc__ or "", None)
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
