import re

import jax
import numpy as np
import pytest
from test_neighbors import gaussian, made, near_a_plane, wide_norms

import grood_jax as gj
from grood_jax.neighbors import building as bank_building

pytestmark = pytest.mark.usefixtures("bounded")

DTYPES = ["float32", "bfloat16"]
QUERIES, ROWS = made(wide_norms)
ORDER = np.random.default_rng(3).permutation(700)


def assert_equal_searches(bank, rows):
    """A bank finds what the array finds, bit for bit, and gives its rows back in order."""
    np.testing.assert_array_equal(gj.bank_rows(bank), rows)
    assert gj.bank_rows(bank).dtype == np.float32 and bank.size == len(rows)
    found = gj.nearest_distances(QUERIES, bank, 10)
    np.testing.assert_array_equal(found, gj.nearest_distances(QUERIES, rows, 10))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_gives_its_rows_back_in_order(dtype):
    assert_equal_searches(gj.build_bank(ROWS[ORDER], dtype=dtype), ROWS[ORDER])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_in_pieces_equals_a_bank_at_once(dtype):
    pieces = (piece for piece in (ROWS[:1], ROWS[1:301].tolist(), jax.numpy.asarray(ROWS[301:])))
    assert_equal_searches(gj.build_bank_in_pieces(pieces, dtype=dtype), ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [np.float64, np.float16, np.int64])
def test_rows_of_any_real_dtype(dtype, given):
    rows = (10 * made(gaussian)[1]).astype(given)
    assert_equal_searches(gj.build_bank(rows, dtype=dtype), rows.astype(np.float32))


@pytest.mark.parametrize("kind, axes", [(near_a_plane, 8), (gaussian, 0)])
def test_few_axes_are_kept_where_they_help(kind, axes):
    rows = made(kind, 1003, 1, 64)[1]
    assert gj.build_bank(rows).axes == axes
    bank = gj.build_bank(rows, dtype="bfloat16")
    assert bank.axes == axes
    # What lies on the device is half as much, and some numbers for each row.
    assert sum(array.nbytes for array in jax.tree.leaves(bank)) < (0.5 + 5 / 64) * rows.nbytes


def test_a_bank_of_few_numbers_keeps_no_axes(monkeypatch):
    rows = made(near_a_plane, 1003, 1, 64)[1]
    monkeypatch.setattr(bank_building, "FEW_NUMBERS", rows.size)
    assert gj.build_bank(rows).axes == 0
    monkeypatch.setattr(bank_building, "FEW_NUMBERS", rows.size - 1)
    assert gj.build_bank(rows).axes == 8


def test_a_narrow_bank_keeps_no_axes(monkeypatch):
    rows = made(near_a_plane, 1003, 1, 64)[1]
    monkeypatch.setattr(bank_building, "FEW_COLUMNS", 64)
    assert gj.build_bank(rows).axes == gj.build_bank(rows, dtype="bfloat16").axes == 0
    monkeypatch.setattr(bank_building, "FEW_COLUMNS", 63)
    assert gj.build_bank(rows).axes == 8


@pytest.mark.slow
@pytest.mark.parametrize("kind, count", [(near_a_plane, 1003), (gaussian, 1003), (wide_norms, 130)])
def test_axes_chosen_on_the_device_are_those_of_the_host(kind, count, monkeypatch):
    rows = made(kind, count, 1, 64)[1] + np.float32(3)
    center, scale = map(np.asarray, bank_building._center_and_scale(rows))
    centred = (rows - center) * scale
    expected = bank_building.principal_axes(lambda: iter([centred]), count)
    # Blocks that do not divide the rows.
    monkeypatch.setattr(bank_building, "DEVICE_ROWS", 256)
    jax.clear_caches()
    axes, left = bank_building._axes_and_left(jax.numpy.asarray(rows), (8,))
    assert bank_building.choose_axes(jax.numpy.asarray(rows)).shape == expected.shape
    axes = np.asarray(axes, np.float64)
    np.testing.assert_allclose(axes.T @ axes, np.eye(8), atol=1e-5)
    if expected.size:
        # The same directions, but for their signs.
        np.testing.assert_allclose(np.abs((axes * expected).sum(axis=0)), 1, atol=1e-3)
    if kind is gaussian:
        # Others lie so near to one another that float32 cannot tell, here or there.
        assert left[0].tolist() == pytest.approx(_left_by(centred, axes).tolist(), abs=1)


def _left_by(rows, axes):
    """For each probe, how many other rows the bounds of some axes leave; in float64."""
    rows = rows.astype(np.float64)
    reduced = rows @ axes
    rest = np.sqrt(np.maximum((rows**2).sum(1) - (reduced**2).sum(1), 0))
    reduced = np.concatenate([reduced, rest[:, None]], axis=1)
    probes = np.arange(0, len(rows), -(-len(rows) // bank_building.PROBES))
    left = []
    for probe in probes:
        others = np.arange(len(rows)) != probe
        nearest = ((rows[others] - rows[probe]) ** 2).sum(1).min()
        left.append((((reduced[others] - reduced[probe]) ** 2).sum(1) <= nearest).sum())
    return np.array(left)


def test_no_rows_come_from_the_device_while_a_bank_is_built(monkeypatch):
    rows = jax.numpy.asarray(made(near_a_plane, 1003, 1, 64)[1])

    class Watched:
        """NumPy, which must not be given what a device has much of."""

        def __getattr__(self, name):
            def call(*given, **options):
                large = [own.shape for own in jax.tree.leaves(given) if isinstance(own, jax.Array)]
                assert all(np.prod(shape) <= 64 * 8 for shape in large), (name, large)
                return getattr(np, name)(*given, **options)

            own = getattr(np, name)
            return call if callable(own) and not isinstance(own, type) else own

    monkeypatch.setattr(bank_building, "np", Watched())
    assert gj.build_bank(rows).axes == 8


def test_rows_may_stay_in_a_file(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    bank = gj.build_bank(rows, dtype="bfloat16")
    assert np.shares_memory(bank.host.pieces[0], rows)
    assert_equal_searches(bank, ROWS)


def test_rows_on_the_host_are_read_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(gj.neighbors.bank, "HOST_BLOCK", 300 * 4 * 24)
    assert_equal_searches(gj.build_bank_in_pieces([ROWS[:9], ROWS[9:]], dtype="bfloat16"), ROWS)
    rows = ROWS.copy()
    rows[650, 3] = np.nan
    with pytest.raises(ValueError, match="bank holds 1 values that are NaN"):
        gj.build_bank(rows, dtype="bfloat16")


def test_a_bank_may_be_built_in_compiled_code():
    assert_equal_searches(jax.jit(gj.build_bank)(ROWS), ROWS)
    with pytest.raises(ValueError, match="a bfloat16 bank keeps rows on the host; build it outsid"):
        jax.jit(lambda rows: gj.build_bank(rows, dtype="bfloat16").bounds)(ROWS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_banks_merge_and_grow_into_new_ones(dtype):
    first = gj.build_bank(ROWS[:300], dtype=dtype)
    second = gj.build_bank(ROWS[300:], dtype=dtype, memory=2**17)
    assert_equal_searches(gj.merge_banks(first, second), ROWS)
    assert_equal_searches(gj.grow_bank(first, ROWS[300:].tolist()), ROWS)
    turned = gj.merge_banks(second, first, second)
    np.testing.assert_array_equal(gj.bank_rows(turned), np.concatenate([ROWS[300:], ROWS]))
    assert turned.memory == 2**17 and bank_building.bank_dtype(turned) == dtype
    np.testing.assert_array_equal(gj.bank_rows(first), ROWS[:300])
    np.testing.assert_array_equal(gj.bank_rows(second), ROWS[300:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thinned_bank_holds_a_seeded_share_of_the_rows(dtype):
    bank = gj.build_bank(ROWS, dtype=dtype)
    number = {row.tobytes(): i for i, row in enumerate(ROWS)}

    def drawn(ratio, seed):
        thin = gj.thin_bank(bank, ratio, jax.random.key(seed))
        assert bank_building.bank_dtype(thin) == dtype
        return [number[row.tobytes()] for row in gj.bank_rows(thin)]

    assert drawn(0.3, 0) == drawn(0.3, 0) == sorted(set(drawn(0.3, 0)))
    assert len(drawn(0.3, 0)) == 210
    # Five standard deviations of the mean of as many from 0 to 699.
    assert abs(np.mean(drawn(0.3, 0)) - 349.5) < 60
    assert drawn(0.3, 0) != drawn(0.3, 1)
    assert drawn(1.0, 0) == list(range(700))
    assert len(drawn(1e-9, 0)) == 1
    np.testing.assert_array_equal(gj.bank_rows(bank), ROWS)


MATRIX = np.zeros((4, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "pieces, error, message",
    [
        ([], ValueError, "pieces is empty; expected at least one array (N, D)"),
        ([5.0], ValueError, "bank has shape (); expected (N, D)"),
        ([MATRIX[0]], ValueError, "bank has shape (3,); expected (N, D)"),
        ([MATRIX, MATRIX[None]], ValueError, "bank has shape (1, 4, 3); expected (N, D)"),
        ([MATRIX, MATRIX[:0]], ValueError, "bank has shape (0, 3); expected at least one row"),
        ([MATRIX[:, :0]], ValueError, "bank has shape (4, 0); expected at least one row and one"),
        ([MATRIX, MATRIX[:, :2]], ValueError, "piece 1 has shape (4, 2); expected (N, 3)"),
        ([MATRIX, MATRIX + np.nan], ValueError, "bank holds 12 values that are NaN or infinite"),
        ([MATRIX, MATRIX + 2e37], ValueError, "bank holds values up to 2e+37; expected at most"),
        ([MATRIX, MATRIX + 1e40], ValueError, "bank holds 12 values that are NaN or infinite"),
        ([MATRIX, MATRIX > 0], TypeError, "bank has dtype bool; expected real numbers"),
        ([MATRIX, MATRIX * 1j], TypeError, "bank has dtype complex128; expected real numbers"),
    ],
)
def test_bad_pieces(unchecked, dtype, pieces, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.build_bank_in_pieces(pieces, dtype=dtype)


BANK, HALF = gj.build_bank(MATRIX), gj.build_bank(MATRIX, dtype="bfloat16")
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (
            lambda: gj.build_bank(MATRIX, dtype="bfloat32"),
            ValueError,
            "dtype is 'bfloat32'; expected one of float32, bfloat16; did you mean 'float32'?",
        ),
        (
            lambda: gj.build_bank(MATRIX, dtype="bfloat"),
            ValueError,
            "dtype is 'bfloat'; expected one of float32, bfloat16; did you mean 'bfloat16'?",
        ),
        (
            lambda: gj.build_bank(MATRIX, memory=2**16 - 1),
            ValueError,
            "memory is 65535; expected at least 65536",
        ),
        (
            lambda: gj.build_bank(MATRIX, memory=1e6),
            TypeError,
            "memory is 1000000.0; expected an integer of at least 65536",
        ),
        (lambda: gj.merge_banks(), ValueError, "expected banks of one dtype"),
        (
            lambda: gj.merge_banks(BANK, HALF),
            ValueError,
            "banks has dtypes ['bfloat16', 'float32']; expected banks of one dtype",
        ),
        (
            lambda: gj.merge_banks(BANK, gj.build_bank(MATRIX[:, :2])),
            ValueError,
            "piece 1 has shape (4, 2); expected (N, 3)",
        ),
        (
            lambda: gj.grow_bank(HALF, MATRIX[:, :2]),
            ValueError,
            "piece 1 has shape (4, 2); expected (N, 3)",
        ),
        (
            lambda: gj.thin_bank(BANK, 0.0, KEY),
            ValueError,
            "sampling_ratio is 0.0; expected a number in (0, 1]",
        ),
        (
            lambda: gj.thin_bank(BANK, 1.5, KEY),
            ValueError,
            "sampling_ratio is 1.5; expected a number in (0, 1]",
        ),
        (
            lambda: gj.thin_bank(BANK, "all", KEY),
            TypeError,
            "sampling_ratio is 'all'; expected a number",
        ),
    ],
)
def test_bad_arguments(unchecked, build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build()


@pytest.mark.parametrize(
    "use",
    [
        gj.bank_rows,
        gj.merge_banks,
        lambda bank: gj.grow_bank(bank, MATRIX),
        lambda bank: gj.thin_bank(bank, 0.5, KEY),
    ],
)
def test_what_is_no_bank(unchecked, use):
    with pytest.raises(TypeError, match="bank is a ndarray; expected a Bank"):
        use(MATRIX)


def test_more_memory_than_there_can_be(unchecked):
    with pytest.raises(ValueError, match="memory is .*; expected at most 1152921504606846976"):
        gj.build_bank(MATRIX, memory=2**2000)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_that_claim_more_rows_than_memory_holds_are_refused_at_once(dtype):
    rows = np.broadcast_to(np.float32(1), (2**50, 4))
    with pytest.raises(ValueError, match="expected an array that fits into memory"):
        gj.build_bank(rows, dtype=dtype)
