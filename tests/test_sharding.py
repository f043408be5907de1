import os
import re
import socket
import subprocess
import sys
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from test_neighbors import KINDS, gaussian, hard, made, near_a_plane

import grood_jax as gj
from grood_jax import neighbors


def mesh(**axes):
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


EIGHT = mesh(bank=8)


def test_the_bits_are_those_of_one_device():
    for kind in KINDS:
        queries, bank = made(kind)
        found = gj.nearest_distances(queries, gj.shard_bank(bank, EIGHT), 10)
        np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10))


def test_neighbours_in_one_shard_may_lie_many_decades_apart():
    queries, bank = made(gaussian)
    queries, bank[::20] = 1e-25 * queries, 1e-25 * bank[::20]
    found = gj.nearest_distances(queries, gj.shard_bank(bank, EIGHT), 10)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10))


def test_k_may_be_larger_than_a_shard():
    queries, bank = made(gaussian, 50, 12, 3)
    found = gj.nearest_distances(queries, gj.shard_bank(bank, EIGHT), 50)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 50))


@pytest.mark.parametrize("axes", [{"bank": 4, "query": 2}, {"query": 2, "bank": 4}])
def test_queries_may_be_divided_too(axes):
    queries, bank = made(gaussian)
    sharded = gj.shard_bank(bank, mesh(**axes), query_axis="query")
    # As many as the axis does not divide.
    found = gj.nearest_distances(queries[:37], sharded, 10)
    assert found.shape == (37,)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10)[:37])


def test_a_sharded_bank_of_few_axes_passes_through_compiled_code():
    queries, bank = hard()
    sharded = gj.shard_bank(bank, EIGHT)
    assert sharded.size == 5003 and sharded.width == 64 and sharded.shards.axes == 8
    copied = jax.jit(lambda bank: jax.tree.map(lambda array: array + 0, bank))(sharded)
    found = jax.jit(gj.nearest_distances, static_argnums=2)(queries, copied, 10)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10))


def collectives(text):
    """Names of a compiled program's collective operations, and elements of what they make."""
    names = "all-gather|all-reduce|all-to-all|collective-[a-z]+|reduce-scatter|send|recv"
    for shapes, name in re.findall(rf" = (.+?) ({names})(?:-start)?\(", text):
        sizes = [prod(map(int, size.split(","))) for size in re.findall(r"\[([\d,]+)\]", shapes)]
        yield name, max(sizes, default=1)


def test_only_the_nearest_distances_travel(unchecked):
    queries, bank = made(gaussian)
    sharded = gj.shard_bank(bank, EIGHT)
    compiled = neighbors._search_shards.lower(jnp.asarray(queries), sharded, 1).compile()
    assert list(collectives(compiled.as_text())) == [("all-gather", 1 * 8 * 40)]
    found = compiled(jnp.asarray(queries), sharded)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 1))


@pytest.mark.parametrize(
    "rows, options, error, message",
    [
        (8, {"bank_axis": "rows"}, ValueError, "bank_axis is 'rows' and query_axis None; expected"),
        (8, {"query_axis": "query"}, ValueError, "of the mesh, which has 'bank'"),
        (8, {"query_axis": "bank"}, ValueError, "expected different axes of the mesh"),
        (7, {}, ValueError, "bank has shape (7, 24); expected at least 8 rows, one for each devic"),
        (8, {"memory": 2**16 - 1}, ValueError, "memory is 65535; expected at least 65536"),
        (8, {"memory": 1e6}, TypeError, "memory is 1000000.0; expected an integer"),
    ],
)
def test_bad_arguments(unchecked, rows, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.shard_bank(made(gaussian)[1][:rows], EIGHT, **options)


def test_bad_searches(unchecked):
    sharded = gj.shard_bank(np.zeros((9, 3)), EIGHT)
    with pytest.raises(ValueError, match="k is 10; expected at most the bank's 9 rows"):
        gj.nearest_distances(np.zeros((2, 3)), sharded, 10)
    with pytest.raises(ValueError, match=r"queries has shape \(2, 4\); expected \(Q, 3\)"):
        gj.nearest_distances(np.zeros((2, 4)), sharded)


def test_two_processes_search_each_its_own_rows(tmp_path):
    queries, plane = made(near_a_plane, 1003, 40, 64)
    # Shares that differ in size, and in how many axes help.
    shares = plane, made(gaussian, 600, 1, 64)[1]
    assert [gj.build_bank(share).axes for share in shares] == [8, 0]
    np.save(tmp_path / "queries.npy", queries)
    for number, share in enumerate(shares):
        np.save(tmp_path / f"{number}.npy", share)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("sharded_process.py")
    commands = [
        [sys.executable, str(program), str(number), str(port), str(tmp_path)] for number in (0, 1)
    ]
    logs = [tmp_path / f"{number}.log" for number in (0, 1)]
    started = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as file:
                started.append(
                    subprocess.Popen(
                        command,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    )
                )
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
        said = "\n".join(log.read_text() for log in logs if log.exists())
    assert codes == [0, 0], said
    bank = np.concatenate(shares)
    expected = gj.nearest_distances(queries, bank, 10)
    expected_of_few = gj.nearest_distances(queries[:, :8], bank[:, :8], 10)
    for number in (0, 1):
        with np.load(tmp_path / f"{number}-found.npz") as found:
            np.testing.assert_array_equal(found["along"], expected)
            np.testing.assert_array_equal(found["across"], expected_of_few)
