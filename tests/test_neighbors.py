import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.neighbors import searching
from grood_jax.neighbors.bank import reduce

pytestmark = pytest.mark.usefixtures("bounded")


def brute_force(queries, bank, k):
    """Float64 distances from each query to its k-th nearest row, by direct differences."""
    queries, bank = (np.asarray(array).astype(np.float64) for array in (queries, bank))
    found = [np.sort(np.sqrt(((bank - query) ** 2).sum(axis=1)))[k - 1] for query in queries]
    return np.array(found)


def assert_exact(queries, bank, k):
    expected = brute_force(queries, bank, k)
    found = gj.nearest_distances(queries, bank, k)
    assert found.shape == (len(queries),) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=0)


def gaussian(rng, rows, width):
    return rng.normal(size=(rows, width))


def clustered(rng, rows, width):
    centers = 10.0 * np.random.default_rng(7).normal(size=(5, width))
    return centers[rng.integers(0, 5, rows)] + 1e-3 * rng.normal(size=(rows, width))


def wide_norms(rng, rows, width):
    norms = np.array([1e-1, 1e-6, 1e-13, 1e-25])[rng.integers(0, 4, rows)]
    return norms[:, None] * rng.normal(size=(rows, width)) / np.sqrt(width)


def tiny(rng, rows, width):
    return 1e-25 * rng.normal(size=(rows, width))


def far_from_the_origin(rng, rows, width):
    return 1e4 + rng.normal(size=(rows, width))


def far_cluster_and_outliers(rng, rows, width):
    outliers = 1e6 * (np.arange(rows) % 50 == 0)
    return 1e4 + 1e-1 * rng.normal(size=(rows, width)) + outliers[:, None]


def coarse_grid(rng, rows, width):
    return np.pad(rng.integers(0, 4, (rows, 2)), ((0, 0), (0, width - 2))).astype(float)


def near_a_plane(rng, rows, width):
    plane = np.random.default_rng(7).normal(size=(6, width))
    norms = 10.0 ** rng.uniform(-8, 0, (rows, 1))
    return norms * (rng.normal(size=(rows, 6)) @ plane + 1e-3 * rng.normal(size=(rows, width)))


_bounds = jax.jit(searching._bounds, static_argnums=3)

KINDS = [
    gaussian,
    clustered,
    wide_norms,
    tiny,
    far_from_the_origin,
    far_cluster_and_outliers,
    coarse_grid,
]


def made(kind, rows=700, queries=40, width=24):
    """Queries and a bank; mostly of the same shapes, for each new one compiles."""
    return (
        kind(np.random.default_rng(1), queries, width).astype(np.float32),
        kind(np.random.default_rng(0), rows, width).astype(np.float32),
    )


@functools.cache
def hard():
    """60 queries and 5003 rows, few axes of which help.

    Many rows are too close to one another for bounds: 35 about one place, 300 about another, each
    of which has ten of the queries.
    """
    queries, bank = made(near_a_plane, 5003, 60, 64)
    rng = np.random.default_rng(5)
    places = bank[np.argsort(np.linalg.norm(bank, axis=1))[-2:]]
    for place, members, first in zip(places, (35, 300), (0, 10), strict=True):
        around = place + 1e-3 * rng.normal(size=(10 + members, 64)).astype(np.float32)
        queries[first : first + 10], bank[100 * first :][:members] = around[:10], around[10:]
    return queries, bank


def in_blocks(bank, k, **options):
    """A bank of these rows that is looked at a block of rows at a time."""
    ready = gj.build_bank(bank, memory=2**16, **options)
    kept = searching._list_lengths(ready, k)[0]
    assert searching._block_shape(ready, kept)[1] < len(ready.places)
    return ready


def test_the_distance_is_euclidean_and_to_the_kth_nearest():
    bank = [[6.0, 8.0], [0.0, 0.0], [3.0, 4.0]]
    np.testing.assert_array_equal(gj.nearest_distances([[0.0, 0.0]], bank, 2), [5.0])


@pytest.mark.parametrize("k", [1, 10, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_every_query_equals_brute_force(kind, k):
    queries, bank = made(kind)
    assert_exact(queries, bank, k)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [gaussian, wide_norms, far_from_the_origin])
@pytest.mark.parametrize(
    "rows, width, k",
    [(1, 2, 1), (50, 3, 50), (64, 5, 2), (70, 3, 70), (257, 1, 3), (300, 2048, 5), (4099, 16, 2)],
)
def test_any_size_and_width(rows, width, k, kind):
    queries, bank = made(kind, rows, 12, width)
    assert_exact(queries, bank, k)


@pytest.mark.slow
def test_many_blocks_of_rows_bounded_by_few_axes_equal_brute_force():
    queries, bank = hard()
    ready = in_blocks(bank, 10)
    assert ready.axes > 0
    found = gj.nearest_distances(queries, ready, 10)
    np.testing.assert_allclose(found, brute_force(queries, bank, 10), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_each_search_leaves_fewer_queries_to_the_next():
    queries, bank = hard()
    ready = gj.build_bank(bank)
    search = jax.jit(searching._search_block, static_argnames=("k", "kept"))
    left = []
    for kept in searching._list_lengths(ready, 10):
        found, certain = search(jnp.asarray(queries), ready, k=10, kept=kept)
        expected = brute_force(queries, bank, 10)
        np.testing.assert_allclose(found[certain, -1], expected[certain], rtol=1e-5, atol=0)
        left.append(60 - certain.sum())
    assert 40 > left[0] > left[1] > 0


@pytest.mark.parametrize("kind", [gaussian, tiny, far_from_the_origin])
def test_data_of_any_scale_and_offset_need_no_second_search(kind):
    queries, bank = made(kind)
    search = jax.jit(searching._search_block, static_argnames=("k", "kept"))
    assert search(jnp.asarray(queries), gj.build_bank(bank), k=1, kept=12)[1].all()


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from([*KINDS, near_a_plane]),
    seed=st.integers(0, 2**32 - 1),
    shift=st.sampled_from([0.0, 1.0, 1e5]),
    scale=st.sampled_from([1e-8, 1.0, 1e20]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_bounds_never_exceed_the_distance(kind, seed, shift, scale, dtype):
    rng = np.random.default_rng(seed)
    bank = (scale * (kind(rng, 400, 64) + shift)).astype(np.float32)
    queries = (scale * (kind(rng, 12, 64) + shift * rng.integers(0, 2))).astype(np.float32)
    queries[:2] = bank[0], bank[1] * (1 + 1e-6)
    ready = gj.build_bank(bank, dtype=dtype)
    differences = queries.astype(np.float64)[:, None] - bank.astype(np.float64)
    squares = ((differences * float(ready.frame.inverse_scale)) ** 2).sum(axis=2)
    places = np.asarray(ready.places)
    for searched in [ready] if dtype == "bfloat16" else [ready, searching._without_axes(ready)]:
        points = reduce(jnp.asarray(queries), searched.frame)
        bounds = np.asarray(_bounds(points, searched, 0, 400), np.float64)
        if len(searched.errors):
            bounds = np.sign(bounds) * bounds**2
        else:
            bounds += np.asarray(searching._offset(points, searched), np.float64)
        assert (bounds <= squares[:, places]).all()


def test_queries_of_one_scale_in_a_bank_of_another():
    _, bank = made(wide_norms)
    directions = np.random.default_rng(2).normal(size=(40, 24))
    for scale in (1e-30, 1e-13, 1.0, 1e10, 1e30):
        assert_exact((scale * directions).astype(np.float32), bank, 10)


@pytest.mark.slow
def test_no_value_is_too_large_up_to_the_limit():
    queries, bank = (np.zeros((rows, 24), np.float32) for rows in (40, 700))
    queries[:, 0] = np.linspace(-9.9e36, 9.9e36, 40)
    bank[:, 0] = 9.9e36 * np.linspace(-1, 1, 700) ** 3
    for k in (1, 50):
        assert_exact(queries, bank, k)


def test_far_queries_with_a_padded_bank():
    bank = np.linspace(-3.0, 1.0, 257, dtype=np.float32)[:, None]
    assert_exact(np.array(3 * [[1e30], [-1e30], [1e37], [0.1]], np.float32), bank, 3)


def test_rows_of_the_bank_are_at_distance_zero():
    for kind in KINDS:
        _, bank = made(kind)
        np.testing.assert_array_equal(gj.nearest_distances(bank[-40:], bank), np.zeros(40))


def test_duplicates_count_one_each():
    queries, bank = made(gaussian)
    bank[:400] = np.tile(queries, (10, 1))
    np.testing.assert_array_equal(gj.nearest_distances(queries, bank, 10), np.zeros(40))
    assert_exact(queries, bank, 50)


def test_a_bank_of_one_repeated_row():
    queries, bank = made(gaussian)
    bank[:] = bank[0]
    assert_exact(queries, bank, 50)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_neither_on_order_nor_on_blocks_nor_on_other_queries(kind):
    queries, bank = made(kind)
    expected = gj.nearest_distances(queries, bank, 10)
    for order in (np.arange(700)[::-1], np.random.default_rng(3).permutation(700)):
        found = gj.nearest_distances(queries, bank[order], 10)
        np.testing.assert_array_equal(found, expected)
    found = gj.nearest_distances(queries, in_blocks(bank, 10), 10)
    np.testing.assert_array_equal(found, expected)
    pieces = np.split(queries, [1, 14])
    found = np.concatenate([gj.nearest_distances(piece, bank, 10) for piece in pieces])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_bits_bounded_by_few_axes_depend_neither_on_order_nor_on_blocks_nor_on_other_queries():
    queries, bank = hard()
    ready = in_blocks(bank, 10)
    expected = gj.nearest_distances(queries, ready, 10)
    for memory in (2**18, None):
        found = gj.nearest_distances(queries, gj.build_bank(bank, memory=memory), 10)
        np.testing.assert_array_equal(found, expected)
    order = np.random.default_rng(3).permutation(len(bank))
    found = gj.nearest_distances(queries, in_blocks(bank[order], 10), 10)
    np.testing.assert_array_equal(found, expected)
    others = np.concatenate([queries[::2], bank[:30]])
    found = gj.nearest_distances(others, ready, 10)[:30]
    np.testing.assert_array_equal(found, expected[::2])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_bank_gives_the_bits_of_a_float32_bank(kind, monkeypatch):
    queries, bank = made(kind)
    ready = gj.build_bank(bank, dtype="bfloat16")
    for k in (10, 1):
        found = gj.nearest_distances(queries, ready, k)
        np.testing.assert_array_equal(found, gj.nearest_distances(queries, bank, k))
        # The second time the host's rows are read a part at a time.
        for module in (gj.neighbors.bank, searching):
            monkeypatch.setattr(module, "HOST_BLOCK", 300 * 4 * 24)


@pytest.mark.slow
def test_a_bfloat16_bank_in_blocks_bounded_by_few_axes_gives_the_bits_of_a_float32_bank():
    queries, bank = hard()
    ready = in_blocks(bank, 10, dtype="bfloat16")
    assert ready.axes > 0
    found = gj.nearest_distances(queries, ready, 10)
    np.testing.assert_array_equal(found, gj.nearest_distances(queries, in_blocks(bank, 10), 10))


def test_a_bfloat16_bank_is_refused_in_compiled_code():
    queries, bank = made(gaussian)
    search = jax.jit(gj.nearest_distances, static_argnums=2)
    with pytest.raises(ValueError, match="rows on the host .*; expected a float32 bank in compil"):
        search(queries, gj.build_bank(bank, dtype="bfloat16"), 1)


def test_more_distant_neighbours_are_never_nearer():
    queries, bank = made(clustered)
    by_k = np.stack([gj.nearest_distances(queries, bank, k) for k in (1, 10, 50)])
    assert (np.diff(by_k, axis=0) >= 0).all()


def test_a_bank_made_once_equals_the_array():
    queries, bank = made(gaussian)
    ready = gj.build_bank(bank)
    assert ready.size == 700
    np.testing.assert_array_equal(
        gj.nearest_distances(queries, ready, 10), gj.nearest_distances(queries, bank, 10)
    )


@pytest.mark.slow
def test_a_bank_is_a_pytree_that_passes_through_compiled_and_mapped_code():
    queries, bank = made(gaussian)
    copied = jax.tree.map(lambda array: array + 0, gj.build_bank(bank))
    search = functools.partial(gj.nearest_distances, k=10)
    found = jax.jit(jax.vmap(search, (0, None)))(queries.reshape(2, 20, 24), copied)
    np.testing.assert_array_equal(found.ravel(), gj.nearest_distances(queries, bank, 10))


def test_no_queries_at_all():
    for dtype in ("float32", "bfloat16"):
        bank = gj.build_bank(np.ones((5, 3)), dtype=dtype)
        assert gj.nearest_distances(np.zeros((0, 3)), bank).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int8, np.int64])
def test_any_real_dtype(dtype):
    queries, bank = (10 * array for array in made(gaussian))
    assert_exact(queries.astype(dtype), bank.astype(dtype), 10)


@pytest.mark.slow
def test_searching_again_with_the_same_shapes_compiles_nothing(monkeypatch):
    traces = []
    original = searching._search_block

    def counted(queries, *rest, **options):
        traces.append(queries.shape)
        return original(queries, *rest, **options)

    monkeypatch.setattr(searching, "_search_block", counted)
    queries, bank = made(gaussian, 101, 9, 5)
    gj.nearest_distances(queries, bank, 2)
    first = len(traces)
    assert first > 0
    gj.nearest_distances(queries + 1, bank[::-1], 2)
    gj.nearest_distances(queries, gj.build_bank(bank), 2)
    assert len(traces) == first


@pytest.mark.parametrize("k, name", [(1, "nearest_distance"), (10, "tenth_nearest_distance")])
def test_golden_distances(golden, k, name):
    with np.load(golden / "g20_vectors.npz") as vectors:
        correct = vectors["train_logits"].argmax(axis=1) == vectors["train_labels"]
        bank, queries = vectors["train_gradients"][correct], vectors["test_gradients"]
        expected = vectors[name]
    np.testing.assert_allclose(brute_force(queries[:20], bank, k), expected[:20], rtol=1e-12)
    np.testing.assert_allclose(gj.nearest_distances(queries, bank, k), expected, rtol=1e-5)


def test_golden_distances_from_features_on(golden):
    with np.load(golden / "g20_vectors.npz") as vectors:
        correct = vectors["train_logits"].argmax(axis=1) == vectors["train_labels"]
        spots = vectors["class_prototypes"], vectors["ood_prototype_mixup"]
        bank = gj.ood_gradients(vectors["train_features"][correct], *spots)
        queries = gj.ood_gradients(vectors["test_features"], *spots)
        expected = {1: vectors["nearest_distance"], 10: vectors["tenth_nearest_distance"]}
    for k, distances in expected.items():
        np.testing.assert_allclose(gj.nearest_distances(queries, bank, k), distances, rtol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(3, 20, 2, 20), (3, 70, 2, 70), (40, 700, 24, 1)]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    shift=st.sampled_from([0.0, 1.0, 1e5]),
)
def test_any_data_equals_brute_force(shape, kind, seed, shift):
    queries, rows, width, k = shape
    rng = np.random.default_rng(seed)
    bank = (kind(rng, rows, width) + shift).astype(np.float32)
    points = (kind(rng, queries, width) + shift * rng.integers(0, 2)).astype(np.float32)
    points[0] = bank[-1]
    assert_exact(points, bank, k)


MATRIX = np.zeros((4, 3))


@pytest.mark.parametrize(
    "queries, bank, k, error, message",
    [
        (MATRIX[0], MATRIX, 1, ValueError, "queries has shape (3,); expected (Q, 3)"),
        (MATRIX[:, :2], MATRIX, 1, ValueError, "queries has shape (4, 2); expected (Q, 3)"),
        (MATRIX, MATRIX[0], 1, ValueError, "bank has shape (3,); expected (N, D)"),
        (MATRIX, MATRIX[None], 1, ValueError, "bank has shape (1, 4, 3); expected (N, D)"),
        (MATRIX, MATRIX[:0], 1, ValueError, "bank has shape (0, 3); expected at least one row"),
        (MATRIX, MATRIX[:, :0], 1, ValueError, "bank has shape (4, 0); expected at least one"),
        (MATRIX + np.nan, MATRIX, 1, ValueError, "queries holds 12 values that are NaN"),
        (MATRIX, MATRIX + np.inf, 1, ValueError, "bank holds 12 values that are NaN or infinite"),
        (MATRIX - 2e37, MATRIX, 1, ValueError, "queries holds values up to 2e+37; expected at mo"),
        (MATRIX, MATRIX + 2e37, 1, ValueError, "bank holds values up to 2e+37; expected at most"),
        (MATRIX > 0, MATRIX, 1, TypeError, "queries has dtype bool; expected real numbers"),
        (MATRIX, MATRIX * 1j, 1, TypeError, "bank has dtype complex128; expected real numbers"),
        (MATRIX, MATRIX, 5, ValueError, "k is 5; expected at most the bank's 4 rows"),
        (MATRIX, gj.build_bank(MATRIX), 5, ValueError, "k is 5; expected at most the bank's 4 "),
        (MATRIX, MATRIX, 0, ValueError, "k is 0; expected at least 1"),
        (MATRIX, MATRIX, 1.0, TypeError, "k is 1.0; expected an integer of at least 1"),
    ],
)
def test_bad_input(unchecked, queries, bank, k, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.nearest_distances(queries, bank, k)


def test_k_larger_than_the_bank_is_seen_while_tracing():
    search = jax.jit(gj.nearest_distances, static_argnums=2)
    with pytest.raises(ValueError, match="k is 5; expected at most the bank's 4 rows"):
        search(MATRIX, MATRIX, 5)


def test_a_larger_k_than_a_padded_bank_holds_is_refused_in_compiled_code():
    ready = gj.build_bank(np.arange(40.0)[:, None])
    search = jax.jit(lambda queries, bank: gj.nearest_distances(queries, bank, 41))
    with pytest.raises(ValueError, match="k is 41; expected at most the bank's 40 rows"):
        search(np.zeros((2, 1), np.float32), ready)
