"""A few ratios of times, measured in seconds and kept: one line of JSON each time.

python experiments/benchmarks/history.py

Appends to the file that GROOD_HISTORY names, history.jsonl beside this one by default, and prints
the line. A ratio is our time over another's, so lower is better; both are warm, their runs
alternate, and the fastest run of each counts, for what else the machine does only adds to times.
Ratios depend on the machine less than times do; compare lines of like devices. FAISS is no
dependency; where it is, it is measured too.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.neighbors import NearestNeighbors

import grood_jax as gj
from grood_jax.maths.gradients import distances_to, gradients
from grood_jax.neighbors.searching import search
from grood_jax.support import provenance

HERE = Path(__file__).parent
REPEATS = 9
PAUSE = 0.1
"""Seconds before each run, in which the threads of the one before go to sleep."""

ROWS, QUERIES, COLUMNS = 10_000, 512, 128
SAMPLES, CLASSES, FEATURES = 512, 200, 512


def ratio(ours: Callable[[], Any], other: Callable[[], Any]) -> float:
    """Our time over the other's: the fastest of runs that alternate."""

    def timed(call: Callable[[], Any]) -> float:
        time.sleep(PAUSE)
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    timed(ours), timed(other)
    runs = [(timed(ours), timed(other)) for _ in range(REPEATS)]
    fastest = [min(times) for times in zip(*runs, strict=True)]
    return round(fastest[0] / fastest[1], 3)


@jax.jit
def closed_form(features: Array, prototypes: Array, p_ood: Array) -> Array:
    """GROOD's gradients, written out; distances to classes as in the library."""
    to_classes = distances_to(features, prototypes)
    apart = features - p_ood[None]
    to_ood = jnp.linalg.norm(apart, axis=1, keepdims=True)
    return jax.nn.softmax(-jnp.concatenate([to_classes, to_ood], axis=1))[:, -1:] * apart / to_ood


@jax.jit
def differentiated(features: Array, prototypes: Array, p_ood: Array) -> Array:
    """GROOD's gradients by differentiating through the distances to all prototypes."""

    def loss(p_ood: Array, feature: Array) -> Array:
        every = jnp.concatenate([prototypes, p_ood[None]])
        return -jax.nn.log_softmax(-jnp.linalg.norm(feature[None] - every, axis=1))[0]

    return jax.vmap(jax.grad(loss), (None, 0))(p_ood, features)


@jax.jit
def all_distances(queries: Array, rows: Array) -> Array:
    """Nearest distances by the expansion of the square: fast, and not exact."""
    squares = jnp.sum(rows**2, axis=1)[None] - 2 * queries @ rows.T
    return jnp.sqrt(jnp.maximum(squares.min(axis=1) + jnp.sum(queries**2, axis=1), 0.0))


def measured() -> dict[str, float]:
    """The ratios by name."""
    rng = np.random.default_rng(0)
    # Gradients as GROOD searches them: of samples around the centres of ten classes.
    centres = rng.normal(size=(10, COLUMNS))
    rows, queries = (
        np.asarray(
            gj.ood_gradients(
                centres[np.arange(count) % 10]
                + rng.normal(size=(count, COLUMNS)) / 2 * 0.95 ** np.arange(COLUMNS)[None],
                centres,
                centres.mean(axis=0),
            )
        )
        for count in (ROWS, QUERIES)
    )
    bank, rows_there, queries_there = gj.build_bank(rows), jnp.asarray(rows), jnp.asarray(queries)
    nearest = NearestNeighbors(algorithm="brute").fit(rows)

    def ours(k: int) -> Callable[[], Any]:
        return lambda: search(queries_there, bank, k)

    found = {
        "search k=1 / expansion in JAX": ratio(
            ours(1), lambda: all_distances(queries_there, rows_there)
        ),
        "search k=1 / scikit-learn": ratio(ours(1), lambda: nearest.kneighbors(queries, 1)),
        "search k=10 / scikit-learn": ratio(ours(10), lambda: nearest.kneighbors(queries, 10)),
    }
    try:
        import faiss
    except ImportError:
        pass
    else:
        flat = faiss.IndexFlatL2(COLUMNS)
        flat.add(rows)
        for k in (1, 10):
            found[f"search k={k} / FAISS"] = ratio(ours(k), lambda k=k: flat.search(queries, k))
    features, prototypes = (
        jnp.asarray(rng.normal(size=(count, FEATURES)), jnp.float32) / 8
        for count in (SAMPLES, CLASSES)
    )
    given = features, prototypes, prototypes.mean(axis=0)
    np.testing.assert_allclose(gradients(*given), closed_form(*given), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradients(*given), differentiated(*given), rtol=1e-3, atol=1e-6)
    found["gradients / closed form"] = ratio(lambda: gradients(*given), lambda: closed_form(*given))
    found["gradients / jax.grad through all distances"] = ratio(
        lambda: gradients(*given), lambda: differentiated(*given)
    )
    return found


def commit() -> str | None:
    """The commit that is checked out, with a mark where files differ; None outside git."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(git, cwd=HERE, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def main() -> None:
    """Measures, prints and appends."""
    line = json.dumps(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "versions": provenance.versions(),
            "device": provenance.device(),
            "ratios": measured(),
        },
        ensure_ascii=False,
    )
    print(line)
    path = Path(os.environ.get("GROOD_HISTORY", HERE / "history.jsonl"))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
