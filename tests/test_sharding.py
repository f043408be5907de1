import re
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from companions import run_both
from jax.sharding import Mesh
from test_neighbors import KINDS, gaussian, made, near_a_plane

import grood_jax as gj
from grood_jax.neighbors import searching, sharding

pytestmark = pytest.mark.usefixtures("bounded")


def mesh(**axes):
    return Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))


EIGHT = mesh(bank=8)

search = jax.jit(gj.nearest_distances, static_argnums=2)


@pytest.mark.slow
def test_the_bits_are_those_of_one_device_in_compiled_code_too():
    for kind in KINDS:
        queries, bank = made(kind)
        sharded = jax.tree.map(lambda array: array + 0, gj.shard_bank(bank, EIGHT))
        assert sharded.size == 700 and sharded.width == 24
        found = search(queries, sharded, 10)
        np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10))


@pytest.mark.slow
def test_neighbours_in_one_shard_may_lie_many_decades_apart():
    queries, bank = made(gaussian)
    queries, bank[::20] = 1e-25 * queries, 1e-25 * bank[::20]
    found = search(queries, gj.shard_bank(bank, EIGHT), 10)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, 10))


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes, shape, k",
    [
        ({"bank": 4, "query": 2}, (700, 40, 24), 10),
        # More neighbours than a shard has rows.
        ({"query": 2, "bank": 4}, (50, 12, 3), 50),
        ({"query": 2, "bank": 4}, (300, 12, 3), 100),
    ],
)
def test_queries_may_be_divided_too(axes, shape, k):
    queries, bank = made(gaussian, *shape)
    sharded = gj.shard_bank(bank, mesh(**axes), query_axis="query")
    # The axis does not divide as many.
    found = gj.nearest_distances(queries[1:], sharded, k)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, k)[1:])


def collectives(text):
    """Names of a compiled program's collective operations, and elements of what they make."""
    names = "all-gather|all-reduce|all-to-all|collective-[a-z]+|reduce-scatter|send|recv"
    for shapes, name in re.findall(rf" = (.+?) ({names})(?:-start)?\(", text):
        sizes = [prod(map(int, size.split(","))) for size in re.findall(r"\[([\d,]+)\]", shapes)]
        yield name, max(sizes, default=1)


@pytest.mark.slow
def test_only_the_nearest_distances_travel(unchecked):
    queries, bank = made(gaussian)
    sharded = gj.shard_bank(bank, EIGHT)
    compiled = searching._search_shards.lower(jnp.asarray(queries), sharded, 1).compile()
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


@pytest.mark.slow
def test_each_share_is_assembled_where_it_lies(unchecked, monkeypatch):
    """No device ever holds more than its share twice: the rows as given, and sorted in the bank."""
    rows = np.random.default_rng(0).normal(size=(8 * 4096, 64)).astype(np.float32)
    share, before, most = rows.nbytes // 8, {id(own) for own in jax.live_arrays()}, {}

    def looked(given, device):
        made = device_put(given, device)
        lying = [own for own in jax.live_arrays() if id(own) not in before]
        for own in lying:
            for part in own.addressable_shards:
                most[part.device] = max(most.get(part.device, 0), part.data.nbytes)
        return made

    device_put = jax.device_put
    monkeypatch.setattr(jax, "device_put", looked)
    shards = jax.tree.leaves(gj.shard_bank(rows, EIGHT).shards)
    monkeypatch.undo()
    assert max(most.values()) <= share and len(most) == 8
    for array in shards:
        places = {part.index[0].start or 0: part.device for part in array.addressable_shards}
        assert places == dict(enumerate(jax.devices()))
    lowered = sharding._with_leading_axis.lower(rows[:4096], np.zeros((64, 0)), 2**21, 4096)
    used = lowered.compile().memory_analysis()
    assert used.output_size_in_bytes < 1.1 * share
    assert used.temp_size_in_bytes < 1.1 * share


def test_bad_searches(unchecked):
    sharded = gj.shard_bank(np.zeros((9, 3)), EIGHT)
    with pytest.raises(ValueError, match="k is 10; expected at most the bank's 9 rows"):
        gj.nearest_distances(np.zeros((2, 3)), sharded, 10)
    with pytest.raises(ValueError, match=r"queries has shape \(2, 4\); expected \(Q, 3\)"):
        gj.nearest_distances(np.zeros((2, 4)), sharded)


@pytest.mark.slow
def test_two_processes_search_each_its_own_rows(tmp_path):
    queries, plane = made(near_a_plane, 1003, 40, 72)
    # Shares that differ in size, and in how many axes help.
    shares = plane, made(gaussian, 600, 1, 72)[1]
    assert [gj.build_bank(share).axes for share in shares] == [8, 0]
    np.save(tmp_path / "queries.npy", queries)
    for number, share in enumerate(shares):
        np.save(tmp_path / f"{number}.npy", share)
    assert run_both("sharded_process.py", tmp_path, 500) == [0, 0]
    expected = gj.nearest_distances(queries, np.concatenate(shares), 10)
    for number in (0, 1):
        with np.load(tmp_path / f"{number}-found.npz") as found:
            np.testing.assert_array_equal(found["distances"], expected)
            assert found["axes"] == 8
            assert "devices of the processes [0, 1] at place 0 of 'bank'" in str(found["refusal"])
