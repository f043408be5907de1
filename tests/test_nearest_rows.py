"""The rows that a search finds, beside float64 brute force: which, in what order, and ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_neighbors import KINDS, coarse_grid, gaussian, hard, in_blocks, made
from test_sharding import mesh

import grood_jax as gj
from grood_jax.neighbors import searching

pytestmark = pytest.mark.usefixtures("bounded")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
rows_of = functools.partial(gj.nearest_distances, return_indices=True)


def assert_nearest(found, queries, rows, k):
    """Distances as float64 has them, to different rows, in order; none nearer is missing."""
    distances, numbers = map(np.asarray, found)
    assert distances.shape == numbers.shape == (len(queries), k)
    assert (distances.dtype, numbers.dtype) == (np.float32, np.int32)
    apart = queries.astype(np.float64)[:, None] - rows.astype(np.float64)
    every = np.sqrt((apart**2).sum(axis=2))
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :k], rtol=1e-5)
    np.testing.assert_allclose(distances, np.take_along_axis(every, numbers, axis=1), rtol=1e-5)
    assert (np.diff(np.sort(numbers, axis=1), axis=1) > 0).all()
    rising = (np.diff(distances, axis=1) > 0) | (np.diff(numbers, axis=1) > 0)
    assert (np.diff(distances, axis=1) >= 0).all() and rising.all()


def with_ties(rows=700):
    """Queries, and rows many of which are the same: exact ties, at distance 0 too."""
    queries, grid = made(coarse_grid, rows)
    return np.concatenate([queries[:20], queries[20:] + 0.5]), grid


def first_rows(queries, rows, k):
    """Of rows at the same distance the first: sums of few small integers are exact."""
    apart = queries.astype(np.float64)[:, None] - rows.astype(np.float64)
    return np.argsort((apart**2).sum(axis=2), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [10, slow(1), slow(50)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_brute_force(kind, k):
    queries, rows = made(kind)
    found = rows_of(queries, rows, k)
    assert_nearest(found, queries, rows, k)
    np.testing.assert_array_equal(found[0][:, -1], gj.nearest_distances(queries, rows, k))


@pytest.mark.parametrize(
    ("dtype", "k"), [("float32", 10), slow("float32", 1), slow("bfloat16", 10)]
)
def test_of_rows_as_near_the_first_are_found(dtype, k):
    queries, rows = with_ties()
    bank = gj.build_bank(rows, dtype=dtype)
    distances, numbers = rows_of(queries, bank, k)
    np.testing.assert_array_equal(numbers, first_rows(queries, rows, k))
    np.testing.assert_array_equal(distances[:, -1], gj.nearest_distances(queries, bank, k))


def test_a_bank_of_one_repeated_row_gives_its_first_rows():
    rows = np.tile(made(gaussian)[1][:1], (700, 1))
    distances, numbers = rows_of(rows[:40], rows, 10)
    np.testing.assert_array_equal(distances, np.zeros((40, 10)))
    np.testing.assert_array_equal(numbers, np.tile(np.arange(10), (40, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_bounded_by_few_axes_are_those_of_brute_force(dtype):
    queries, rows = hard()
    ready = in_blocks(rows, 10, dtype=dtype)
    assert ready.axes > 0
    assert_nearest(rows_of(queries, ready, 10), queries, rows, 10)


@pytest.mark.slow
def test_chunks_that_do_not_fit_into_memory_together(monkeypatch):
    monkeypatch.setattr(searching, "SHARE", 2)
    queries, rows = made(gaussian, 5003, 20, 24)
    ready = gj.build_bank(rows, memory=2**16)
    kept = searching._list_lengths(ready, 10)[0]
    count, chunk = searching._block_shape(ready, kept)
    assert searching._most_chunks(ready, count, chunk) < 5003 / chunk
    assert_nearest(rows_of(queries, ready, 10), queries, rows, 10)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(50, 3, 50), (73, 1, 73)])
def test_any_size(shape):
    rows, width, k = shape
    queries, bank = made(gaussian, rows, 12, width)
    assert_nearest(rows_of(queries, bank, k), queries, bank, k)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "k"), [(700, 10), (300, 100)])
def test_rows_of_a_divided_bank_are_numbered_as_they_were_given(count, k):
    queries, rows = with_ties(count)
    sharded = gj.shard_bank(rows, mesh(query=2, bank=4), query_axis="query")
    distances, numbers = jax.jit(rows_of, static_argnums=2)(queries, sharded, k)
    np.testing.assert_array_equal(numbers, first_rows(queries, rows, k))
    np.testing.assert_array_equal(distances[:, -1], gj.nearest_distances(queries, rows, k))


@pytest.mark.slow
def test_rows_in_compiled_and_mapped_code():
    queries, rows = made(gaussian)
    bank = gj.build_bank(rows)
    search = jax.jit(jax.vmap(functools.partial(rows_of, k=10), (0, None)))
    found = search(queries.reshape(2, 20, 24), bank)
    for mapped, own in zip(found, rows_of(queries, bank, 10), strict=True):
        np.testing.assert_array_equal(mapped.reshape(40, 10), own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_queries(dtype):
    distances, numbers = rows_of(np.zeros((0, 3)), gj.build_bank(np.ones((5, 3)), dtype=dtype), 2)
    assert distances.shape == numbers.shape == (0, 2) and numbers.dtype == jnp.int32


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1), copies=st.integers(1, 300))
def test_any_data_give_rows_of_brute_force(kind, seed, copies):
    rng = np.random.default_rng(seed)
    rows, queries = (kind(rng, count, 24).astype(np.float32) for count in (700, 40))
    rows[rng.permutation(700)[:copies]] = queries[0]
    assert_nearest(rows_of(queries, rows, 10), queries, rows, 10)


def test_what_is_no_flag(unchecked):
    with pytest.raises(TypeError, match="return_indices is 1; expected"):
        gj.nearest_distances(np.zeros((1, 2)), np.ones((3, 2)), 1, 1)
