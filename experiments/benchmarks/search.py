"""Nearest-neighbour search against FAISS and scikit-learn, in one process, on the same threads.

python experiments/benchmarks/search.py --parts compare growth imagenet

compare: on random rows, on made-up gradients and features, and on the real gradient banks of
gradient_banks.py (made first, if --data-dir and --checkpoint are given). Each method is warm, their
runs alternate, and medians of --repeats are compared, and the fastest. growth: how time, index and
memory grow with rows and columns. imagenet: a synthetic bank of 1,281,167 × 2,048, in bfloat16, its
float32 rows in a file.

FAISS is not a dependency: pip install faiss-cpu.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradient_banks
import jax
import jax.numpy as jnp
import numpy as np

import grood_jax as gj
from grood_jax.cli import command
from grood_jax.evaluation import results
from grood_jax.neighbors import building
from grood_jax.support import progress, provenance
from grood_jax.support.files import require_directory

PARTS = ("compare", "growth", "imagenet")
ROWS, QUERIES, COLUMNS, FEATURES = 50_000, 1_024, 512, 64
KNN = 50
"""The neighbour whose distance the detector ``knn`` has for its score."""

CHECKED = 64
"""Queries whose distances are compared with float64."""

PAUSE = 0.5
"""Seconds before each run."""

IMAGENET = (1_281_167, 2_048)
WRITTEN = 50_000
"""Rows of the synthetic bank that are made at once."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and on what.

    Attributes:
      parts: what to measure.
      data_dir: prepared data sets, for the real gradient banks.
      checkpoint: a ResNet-20 for CIFAR-10, for the real gradient banks.
      bank_dir: where the real gradient banks are kept.
      ks: which neighbours.
      repeats: runs of each method.
      output_dir: where each part's results file goes.
    """

    parts: tuple[Literal["compare", "growth", "imagenet"], ...] = ("compare",)
    data_dir: Path | None = None
    checkpoint: Path = Path("checkpoints/resnet20")
    bank_dir: Path = Path("results/gradient_banks")
    ks: tuple[int, ...] = (1, 10, 50)
    repeats: int = 5
    output_dir: Path = Path("experiments/results")


def reference(queries: np.ndarray, bank: np.ndarray, k: int) -> np.ndarray:
    """Float64 distances to the k-th nearest rows, by direct differences."""
    found = []
    for query in queries.astype(np.float64):
        squares = np.concatenate(
            [
                ((bank[i : i + WRITTEN].astype(np.float64) - query) ** 2).sum(axis=1)
                for i in range(0, len(bank), WRITTEN)
            ]
        )
        found.append(np.sqrt(np.partition(squares, k - 1)[k - 1]))
    return np.array(found)


def methods(
    bank: np.ndarray, ready: gj.Bank, k: int
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Searches by name, each with its index ready."""
    import faiss
    from sklearn.neighbors import NearestNeighbors

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    no_axes = jnp.zeros((bank.shape[1], 0))
    brute = building.assemble(jnp.asarray(bank), no_axes, ready.memory)
    flat = faiss.IndexFlatL2(bank.shape[1])
    flat.add(bank)
    nearest = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(bank)

    def faiss_search(queries: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(flat.search(queries, k)[0][:, -1], 0.0))

    return {
        "grood-jax": lambda queries: np.asarray(gj.nearest_distances(queries, ready, k)),
        "grood-jax, brute force": lambda queries: np.asarray(
            gj.nearest_distances(queries, brute, k)
        ),
        "faiss": faiss_search,
        "scikit-learn": lambda queries: nearest.kneighbors(queries)[0][:, -1],
    }


def compare(config: BenchmarkConfig) -> dict[str, Any]:
    """Every method on every bank, with each k."""
    rng = np.random.default_rng(0)
    banks = {
        "Gaussian": tuple(rng.standard_normal((n, COLUMNS), np.float32) for n in (ROWS, QUERIES)),
        **{
            f"like gradients, {columns} columns": tuple(
                synthetic(count, columns, rng) for count in (ROWS, QUERIES)
            )
            for columns in (COLUMNS, FEATURES)
        },
        "unit features": tuple(features(count, FEATURES, rng) for count in (ROWS, QUERIES)),
    }
    ks = {"unit features": (KNN,)}
    made = gradient_banks.BankConfig(config.data_dir, config.checkpoint, config.bank_dir)
    if config.data_dir is not None:
        gradient_banks.make_banks(made)
    for width in gradient_banks.WIDTHS:
        if gradient_banks.path(made, width).exists():
            bank, queries = gradient_banks.load(made, width)
            chosen = rng.permutation(len(queries))[:QUERIES]
            banks[f"gradients of {width} columns"] = bank, queries[chosen]
    if not any(name.startswith("gradients") for name in banks):
        progress.tell(f"no gradient banks in {config.bank_dir}; give --data-dir and --checkpoint")
    return {
        f"{name}, k={k}": _compare_on(name, bank, queries, k, config.repeats)
        for name, (bank, queries) in banks.items()
        for k in ks.get(name, config.ks)
    }


def _compare_on(
    name: str, bank: np.ndarray, queries: np.ndarray, k: int, repeats: int
) -> dict[str, Any]:
    ready = gj.build_bank(bank)
    searches = methods(bank, ready, k)
    expected = reference(queries[:CHECKED], bank, k)
    seconds: dict[str, list[float]] = {method: [] for method in searches}
    errors = {}
    for method, search in searches.items():
        found = search(queries)[:CHECKED]
        errors[method] = float(np.max(np.abs(found - expected) / expected))
    for _ in range(repeats):
        for method, search in searches.items():
            # The threads of the method before still spin for a while.
            time.sleep(PAUSE)
            start = time.perf_counter()
            search(queries)
            seconds[method].append(time.perf_counter() - start)
    medians = {method: float(np.median(taken)) for method, taken in seconds.items()}
    figures = {
        "rows": len(bank),
        "columns": bank.shape[1],
        "axes": ready.axes,
        "peak_memory_bytes": provenance.peak_memory_bytes(),
        "methods": {
            method: {
                "microseconds_per_query": medians[method] / len(queries) * 1e6,
                "least_and_most_seconds": [min(seconds[method]), max(seconds[method])],
                "times_faiss": medians["faiss"] / medians[method],
                "largest_relative_error": errors[method],
            }
            for method in searches
        },
    }
    bound = f"{ready.axes} axes" if ready.axes else "no axes: the bound does not help"
    print(f"\n{name}, {len(bank)} × {bank.shape[1]}, k={k}; {bound}")
    for method, row in figures["methods"].items():
        print(
            f"  {method:30} {row['microseconds_per_query']:9.1f} µs a query  "
            f"{row['times_faiss']:6.2f} × FAISS  "
            f"error {row['largest_relative_error']:.1e}",
            flush=True,
        )
    return figures


def synthetic(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Rows like gradients: ten directions and what is around them, norms over six decades."""
    directions = np.random.default_rng(7).standard_normal((10, columns), np.float32)
    around = np.random.default_rng(8).standard_normal((16, columns), np.float32)
    made = np.empty((rows, columns), np.float32)
    for start in range(0, rows, WRITTEN):
        part = made[start : start + WRITTEN]
        part[:] = directions[rng.integers(0, 10, len(part))]
        part += 0.3 * rng.standard_normal((len(part), 16), np.float32) @ around
        part += 0.02 * rng.standard_normal(part.shape, np.float32)
        norms = 10.0 ** rng.uniform(-6, 0, len(part))
        part *= (norms / np.linalg.norm(part, axis=1)).astype(np.float32)[:, None]
    return made


def features(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Rows like features after ReLU and pooling: ten classes, what is around them, unit length."""
    centres = np.random.default_rng(7).exponential(size=(10, columns))
    around = np.random.default_rng(8).standard_normal((16, columns))
    made = centres[rng.integers(0, 10, rows)]
    made = made + 0.1 * rng.standard_normal((rows, 16)) @ around
    made = np.maximum(made + 0.05 * rng.standard_normal(made.shape), 0.0)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def growth(config: BenchmarkConfig) -> dict[str, Any]:
    """Time, index and memory by rows and columns; rows of more than 4 GB lie on the host."""
    found = {}
    print("\n     rows  columns  dtype     axes  build s  µs a query  index bytes a row")
    for columns in (64, 512, 2048):
        for rows in (10_000, 100_000, 1_000_000):
            rng = np.random.default_rng(0)
            given, queries = synthetic(rows, columns, rng), synthetic(512, columns, rng)
            dtype = "bfloat16" if given.nbytes > 4e9 else "float32"
            row = _grown(given, queries, dtype, config.repeats)
            found[f"{rows} x {columns}"] = row
            print(
                f"{rows:9} {columns:8}  {dtype:8} {row['axes']:5} {row['build_seconds']:8.1f} "
                f"{row['microseconds_per_query']:11.1f} {row['index_bytes_per_row']:18.1f}",
                flush=True,
            )
    return found


def _grown(
    given: np.ndarray, queries: np.ndarray, dtype: Literal["float32", "bfloat16"], repeats: int
) -> dict[str, Any]:
    start = time.perf_counter()
    bank = jax.block_until_ready(gj.build_bank(given, dtype=dtype))
    built = time.perf_counter() - start
    gj.nearest_distances(queries, bank).block_until_ready()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        distances = gj.nearest_distances(queries, bank).block_until_ready()
        taken.append(time.perf_counter() - start)
    expected = reference(queries[:4], given, 1)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(bank))
    return {
        "dtype": dtype,
        "axes": bank.axes,
        "build_seconds": built,
        "microseconds_per_query": float(np.median(taken)) / len(queries) * 1e6,
        "index_bytes_per_row": (held - bank.vectors.nbytes) / len(given),
        "device_bytes": held,
        "largest_relative_error": float(np.max(np.abs(distances[:4] - expected) / expected)),
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }


def imagenet(config: BenchmarkConfig) -> dict[str, Any]:
    """A bank of ImageNet's size in bfloat16: rows like gradients, and rows without structure."""
    makers = {
        "like gradients": synthetic,
        "Gaussian": lambda rows, columns, rng: rng.standard_normal((rows, columns), np.float32),
    }
    return {name: _imagenet(name, make, config.repeats) for name, make in makers.items()}


def _imagenet(name: str, make: Callable[..., np.ndarray], repeats: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.lib.format.open_memmap(f"{folder}/rows.npy", "w+", np.float32, IMAGENET)
        with progress.bar(IMAGENET[0], f"making rows, {name}", shown=True) as bar:
            for start in range(0, IMAGENET[0], WRITTEN):
                count = min(WRITTEN, IMAGENET[0] - start)
                rows[start : start + count] = make(count, IMAGENET[1], rng)
                bar.update(count)
        # No view may be left: what it maps would count as memory in use.
        rows.flush()
        del rows
        mapped = np.load(f"{folder}/rows.npy", mmap_mode="r")
        row = _grown(mapped, make(256, IMAGENET[1], rng), "bfloat16", min(repeats, 3))
    print(
        f"\nImageNet, {name}: {row['axes']} axes; built in {row['build_seconds']:.0f} s; "
        f"{row['microseconds_per_query'] / 1e3:.2f} ms a query; "
        f"{row['device_bytes'] / 2**30:.2f} GiB on the device; "
        f"peak {row['peak_memory_bytes'] / 2**30:.2f} GiB",
        flush=True,
    )
    return row


def main() -> None:
    default = BenchmarkConfig()
    config = command.parse(default, "search", __doc__ or "", None)

    def work() -> None:
        require_directory("output_dir", config.output_dir)
        for part in config.parts:
            found = {"compare": compare, "growth": growth, "imagenet": imagenet}[part](config)
            about = {
                # Folders say nothing on another machine.
                "command": f"python experiments/benchmarks/search.py --parts {part}",
                "versions": provenance.versions(),
                "device": provenance.device(),
                "repeats": config.repeats,
            }
            results.write(about | {part: found}, config.output_dir / f"benchmark_{part}.json")

    raise SystemExit(command.status(work))


if __name__ == "__main__":
    main()
