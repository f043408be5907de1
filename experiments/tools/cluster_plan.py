"""What a bank takes on a cluster that is not here, and how well the formulae hold on what is.

python experiments/tools/cluster_plan.py --output-file experiments/results/cluster_plan.json

Measures banks divided over 1, 2, 4 and 8 simulated devices of this machine: bytes on each device,
bytes while a share is assembled, bytes received by each device for a query, seconds to build and to
search. Prints them beside what the formulae say; then what these say of larger clusters. Sizes
follow from shapes alone. A search is taken to reach as much of a device's stated arithmetic as it
does here, and a host to look through its rows as fast as this one: that is NumPy's work.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import grood_jax as gj
from grood_jax.cli import command
from grood_jax.evaluation import results
from grood_jax.neighbors import sharding
from grood_jax.support import provenance

COUNTS = (1, 2, 4, 8)
GIGA = 1e9


@dataclass(frozen=True)
class PlanConfig:
    """What is measured.

    Attributes:
      rows: of the bank that is measured.
      columns: its columns; rows lie near a plane of a sixteenth as many.
      queries: searched at once.
      repeats: runs of each kind, of which the fastest counts.
      output_file: where the results go.
    """

    rows: int = 32_768
    columns: int = 512
    queries: int = 512
    repeats: int = 3
    output_file: Path | None = None


@dataclass(frozen=True)
class Machine:
    """A cluster, by what its vendors state.

    Attributes:
      devices: how many.
      hosts: how many machines they are in.
      memory: bytes of a device.
      flops: float32 operations a second of a device.
      wire: bytes a second that a host receives.
      images: that a device's network sees a second; assumed.
    """

    devices: int
    hosts: int
    memory: float
    flops: float
    wire: float
    images: float


# A float32 product at highest precision takes six of bfloat16 on a TPU.
MACHINES = {
    "v5e-64": Machine(64, 16, 16e9, 197e12 / 6, 12.5e9, 2_000),
    "8 x 8 H100": Machine(64, 8, 80e9, 67e12, 50e9, 3_000),
}
SETS = {
    "ImageNet-21K": (14_000_000, 1_024, 21_841),
    "a billion": (1_000_000_000, 512, 0),
}
"""Rows, columns, and classes where the outputs come from a network."""


def bank_bytes(rows: int, columns: int, axes: int) -> int:
    """Of a share of a bank, on its device: rows, coordinates, bounds, norms, places; the frame."""
    reduced = 4 * (axes + 1) if axes else 0
    return rows * (4 * columns + reduced + 12) + 4 * columns * (axes + 1)


def building_bytes(rows: int, columns: int, axes: int) -> int:
    """While a share is assembled: the rows as given, and the bank."""
    return 4 * rows * columns + bank_bytes(rows, columns, axes)


def wire_bytes(k: int, shards: int) -> int:
    """That a device receives for a query."""
    return 4 * k * shards


def search_flops(rows: int, columns: int, axes: int) -> int:
    """Of the bounds of one query with all rows of a share."""
    return 2 * rows * (axes + 1 if axes else columns)


def fastest(repeats: int, work: Callable[[], Any]) -> float:
    """Seconds, after a run that compiles."""
    jax.block_until_ready(work())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        taken.append(time.perf_counter() - start)
    return min(taken)


def own_flops(repeats: int) -> float:
    """Operations a second of this machine, on all its cores."""
    side = 2_048
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    return 2 * side**3 / fastest(repeats, lambda: product(square))


def received(text: str) -> int:
    """Elements that the collectives of a compiled program make on each device."""
    found = re.findall(r" = \(?\w+\[([\d,]+)\]\S* (?:all-gather|all-reduce|all-to-all)", text)
    return sum(prod(map(int, shape.split(","))) for shape in found)


def measured(config: PlanConfig, count: int) -> dict[str, Any]:
    """A bank over so many simulated devices: what was found, and what was expected."""
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(config.columns // 16, config.columns))
    rows = np.float32(rng.normal(size=(config.rows, len(plane))) @ plane)
    rows += np.float32(0.01 * rng.normal(size=rows.shape))
    queries = jnp.asarray(rows[: config.queries] + np.float32(0.1))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("bank",))
    bank = gj.shard_bank(rows, mesh)
    axes, share = bank.shards.axes, config.rows // count
    held: dict[Any, int] = {}
    for array in jax.tree.leaves(bank.shards):
        for part in array.addressable_shards:
            held[part.device] = held.get(part.device, 0) + part.data.nbytes
    blank = np.zeros((config.columns, axes), np.float32)
    lowered = sharding._with_leading_axis.lower(rows[:share], blank, 2**21, share)
    used = lowered.compile().memory_analysis()
    search = jax.jit(gj.nearest_distances, static_argnums=2)
    compiled = search.lower(queries, bank, 1).compile()
    return {
        "axes": axes,
        "bytes a device": [max(held.values()), bank_bytes(share, config.columns, axes)],
        "bytes while building": [
            used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes,
            building_bytes(share, config.columns, axes),
        ],
        "bytes received a query": [
            4 * received(compiled.as_text()) / config.queries,
            wire_bytes(1, count),
        ],
        "build seconds": fastest(config.repeats, lambda: gj.shard_bank(rows, mesh).shards),
        "search seconds": fastest(config.repeats, lambda: search(queries, bank, 1)),
    }


def planned(
    machine: Machine, rows: int, columns: int, classes: int, axes: int, reached: dict[str, float]
) -> dict[str, float]:
    """What a bank takes on a cluster.

    Args:
      machine: the cluster.
      rows: of the bank.
      columns: likewise.
      classes: of the network whose features they are; 0 where there is none.
      axes: how many principal axes are used.
      reached: the share of its operations that a search reaches, and seconds of building for
        each number of a host's rows.
    """
    share = -(-rows // machine.devices)
    outputs = 4 * rows * (columns + classes)
    return {
        "GB a device": bank_bytes(share, columns, axes) / GIGA,
        "GB while building": building_bytes(share, columns, axes) / GIGA,
        "of a device's memory": building_bytes(share, columns, axes) / machine.memory,
        "bytes received a query": wire_bytes(1, machine.devices),
        "pass seconds": rows / machine.images / machine.devices if classes else 0.0,
        "outputs exchanged, GB a host": outputs / GIGA if classes else 0.0,
        "exchange seconds": outputs / machine.wire if classes else 0.0,
        "build seconds": rows / machine.hosts * columns * reached["seconds a number"],
        "microseconds a query": 1e6
        * search_flops(share, columns, axes)
        / machine.flops
        / reached["share of operations"],
    }


def run(config: PlanConfig) -> dict[str, Any]:
    """Measures, checks and plans; returns what was written."""
    points = {str(count): measured(config, count) for count in COUNTS}
    flops = own_flops(config.repeats)
    one = points["1"]
    axes = one["axes"]
    work = config.queries * search_flops(config.rows, config.columns, axes)
    reached = {
        "share of operations": work / flops / one["search seconds"],
        "seconds a number": one["build seconds"] / config.rows / config.columns,
    }
    expected = dict(one)
    for own in points.values():
        # Simulated devices share the cores of one machine: the work is the same.
        for name in ("build seconds", "search seconds"):
            own[name] = [own[name], expected[name]]
    plans = {
        f"{name} on {place}": planned(machine, *shape, axes, reached)
        for name, shape in SETS.items()
        for place, machine in MACHINES.items()
    }
    record = {
        "command": provenance.command_line("python experiments/tools/cluster_plan.py", config),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "operations a second of this machine": flops,
        "reached": reached,
        "measured, expected": points,
        "plans": plans,
    }
    show(record)
    if config.output_file is not None:
        results.write(record, config.output_file)
    return record


def shown(number: float) -> str:
    """Bytes in full, seconds rounded."""
    return f"{number:,.0f}" if number >= 1 and number == int(number) else f"{number:.3g}"


def show(record: dict[str, Any]) -> None:
    """Prints the tables as Markdown."""
    points = record["measured, expected"]
    print("| devices |", " | ".join(points), "|\n| --- |" + " --- |" * len(points))
    for name in next(iter(points.values())):
        cells = [own[name] for own in points.values()]
        texts = [" / ".join(map(shown, c)) if isinstance(c, list) else shown(c) for c in cells]
        print(f"| {name} |", " | ".join(texts), "|")
    plans = record["plans"]
    print("\n| |", " | ".join(plans), "|\n| --- |" + " --- |" * len(plans))
    for name in next(iter(plans.values())):
        print(f"| {name} |", " | ".join(f"{own[name]:.3g}" for own in plans.values()), "|")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    asked = command.parse(PlanConfig(), "experiments.tools.cluster_plan", str(__doc__), None)
    raise SystemExit(command.status(lambda: run(asked)))
