import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.maths.prototypes import (
    ClassMeans,
    accumulate,
    empty_means,
    merge,
    require_classes,
)

CLASSES = 4


def reference(values, labels, num_classes):
    """Float64 means by class, zeros for an absent one."""
    values = np.asarray(values).astype(np.float64)
    return np.stack(
        [
            values[labels == c].mean(axis=0) if (labels == c).any() else 0.0 * values[0]
            for c in range(num_classes)
        ]
    )


def batch(rows, shape=(6,), seed=0, classes=CLASSES):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(3.0, 2.0, (rows, *shape)).astype(np.float32),
        rng.integers(0, classes, rows).astype(np.int32),
    )


def streamed(parts, shape=(6,), classes=CLASSES):
    means = empty_means(classes, shape)
    for values, labels in parts:
        means = accumulate(means, jnp.asarray(values), jnp.asarray(labels))
    return means


def assert_equal(found, expected):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def test_prototypes_are_means_by_label():
    features = [[1.0, 2.0], [3.0, 6.0], [10.0, 20.0]]
    prototypes, counts = gj.class_prototypes(features, [1, 1, 0], 2)
    expected = [[10.0, 20.0], [(1.0 + 3.0) / 2, (2.0 + 6.0) / 2]]
    assert prototypes.dtype == jnp.float32 and counts.dtype == jnp.int32
    np.testing.assert_array_equal(prototypes, expected)
    np.testing.assert_array_equal(counts, [1, 2])


def test_prototypes_of_real_features(golden):
    with np.load(golden / "g20_vectors.npz") as vectors:
        features, labels = vectors["train_features"], vectors["train_labels"]
    prototypes, counts = gj.class_prototypes(features, labels, 10)
    np.testing.assert_allclose(prototypes, reference(features, labels, 10), rtol=1e-6)
    np.testing.assert_array_equal(counts, np.bincount(labels))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_values_may_have_any_trailing_shape(shape):
    values, labels = batch(50, shape)
    prototypes, _ = gj.class_prototypes(values, labels, CLASSES)
    assert prototypes.shape == (CLASSES, *shape)
    np.testing.assert_allclose(prototypes, reference(values, labels, CLASSES), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int32, np.int64])
def test_any_real_dtype(dtype):
    values, labels = batch(50)
    values = (10 * values).astype(dtype)
    prototypes, _ = gj.class_prototypes(values, labels, CLASSES)
    np.testing.assert_allclose(prototypes, reference(values, labels, CLASSES), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 11, 32, 33, 100])
def test_streamed_means_are_right_in_batches_of_any_size(size):
    values, labels = batch(100)
    parts = [(values[i : i + size], labels[i : i + size]) for i in range(0, 100, size)]
    found = streamed(parts)
    np.testing.assert_allclose(found.means, reference(values, labels, CLASSES), rtol=1e-6)
    np.testing.assert_array_equal(found.counts, np.bincount(labels, minlength=CLASSES))


@settings(deadline=None, max_examples=30)
@given(
    cuts=st.lists(st.integers(0, 100), max_size=8),
    seed=st.integers(0, 2**32 - 1),
    offset=st.sampled_from([0.0, -1e4, 1e6]),
    scale=st.sampled_from([1e-20, 1.0, 1e8]),
)
def test_streamed_means_are_right_however_cut(cuts, seed, offset, scale):
    values, labels = batch(100, seed=seed)
    values = ((values + np.float32(offset)) * np.float32(scale)).astype(np.float32)
    edges = [0, *sorted(cuts), 100]
    found = empty_means(CLASSES, (6,))
    for start, stop in zip(edges, edges[1:], strict=False):
        valid = np.arange(100) < stop - start
        rows = (np.arange(100) + start) % 100
        found = accumulate(
            found, jnp.asarray(values[rows]), jnp.asarray(labels[rows]), jnp.asarray(valid)
        )
    expected = reference(values, labels, CLASSES)
    np.testing.assert_allclose(found.means, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.counts, np.bincount(labels, minlength=CLASSES))


def test_one_batch_keeps_what_a_running_mean_in_float32_loses():
    rows = 50_000
    values = np.linspace(1e4, 1e4 + 10, rows, dtype=np.float32)[:, None]
    expected = values.astype(np.float64).mean()
    running = np.float32(0.0)
    for count, value in enumerate(values[:, 0], start=1):
        running += (value - running) / np.float32(count)

    found = float(gj.class_prototypes(values, np.zeros(rows, int), 1)[0][0, 0])

    assert abs(running / expected - 1) > 1e-6
    assert abs(found / expected - 1) < 1e-7


def test_one_batch_keeps_small_values_beside_large_ones():
    values = np.array([3e7, 1.0, -3e7, 0.25] * 500, np.float32)
    prototypes, _ = gj.class_prototypes(values, np.zeros(2000, int), 1)
    np.testing.assert_allclose(prototypes, [(1.0 + 0.25) / 4], rtol=1e-6)


@pytest.mark.parametrize("rows", [1300, 5000])
def test_many_batches_leave_a_mean_right_to_a_millionth(rows):
    """As many as ImageNet has samples of a class, one of it in each batch; and values that stay."""
    values = np.random.default_rng(0).gamma(0.5, 2.0, (rows, 4)).astype(np.float32)
    values[:, 3] = np.float32(0.1)
    batches = values[:, None], np.zeros((rows, 1), np.int32)
    found, _ = jax.lax.scan(
        lambda means, batch: (accumulate(means, *batch), None), empty_means(1, (4,)), batches
    )
    expected = reference(values, np.zeros(rows), 1)
    np.testing.assert_allclose(found.means, expected, rtol=1e-6 if rows < 2000 else 3e-6)
    np.testing.assert_array_equal(found.means[0, 3], values[0, 3])


def test_merged_parts_equal_the_whole():
    values, labels = batch(96)
    parts = [(values[i : i + 32], labels[i : i + 32]) for i in range(0, 96, 32)]
    first, second, third = (streamed([part]) for part in parts)

    merged = merge(merge(first, second), third)

    np.testing.assert_allclose(merged.means, reference(values, labels, CLASSES), rtol=1e-6)
    np.testing.assert_array_equal(merged.counts, np.bincount(labels, minlength=CLASSES))
    swapped = merge(third, merge(second, first))
    np.testing.assert_allclose(swapped.means, merged.means, rtol=5e-7)


def test_merging_with_no_samples_changes_nothing():
    means = streamed([batch(32)])
    assert_equal(merge(means, empty_means(CLASSES, (6,))), means)
    assert_equal(merge(empty_means(CLASSES, (6,)), means), means)


def test_masked_rows_equal_dropped_rows():
    values, labels = batch(32)
    valid = np.arange(32) % 3 > 0
    dropped = streamed([(values[valid], labels[valid])])
    values[~valid] = np.nan

    masked = accumulate(
        empty_means(CLASSES, (6,)), jnp.asarray(values), jnp.asarray(labels), jnp.asarray(valid)
    )

    assert_equal(masked, dropped)


def test_rows_may_come_in_any_order():
    values, labels = batch(100)
    order = np.random.default_rng(1).permutation(100)
    first, _ = gj.class_prototypes(values, labels, CLASSES)
    second, _ = gj.class_prototypes(values[order], labels[order], CLASSES)
    np.testing.assert_allclose(second, first, rtol=2e-7)


def test_absent_classes_are_zeros():
    values, _ = batch(10)
    prototypes, counts = gj.class_prototypes(values, np.full(10, 2), CLASSES)
    np.testing.assert_array_equal(counts, [0, 0, 10, 0])
    np.testing.assert_array_equal(prototypes[np.array([0, 1, 3])], np.zeros((3, 6)))
    assert np.abs(prototypes[2]).min() > 0


def test_no_samples_are_no_error_here():
    prototypes, counts = gj.class_prototypes(np.zeros((0, 3)), np.zeros(0, int), 2)
    np.testing.assert_array_equal(prototypes, np.zeros((2, 3)))
    np.testing.assert_array_equal(counts, [0, 0])


def test_require_classes_names_those_without_a_sample():
    require_classes("sample", np.array([1, 5, 2]))
    message = "labels: no correct sample of class 1, 3 (2 of 4 classes); expected at least one"
    with pytest.raises(ValueError, match=re.escape(message)):
        require_classes("correct sample", np.array([1, 0, 2, 0]))


def test_require_classes_names_twenty_at_most():
    with pytest.raises(ValueError, match=r"class 0, 1, .*, 18, 19, … \(30 of 30 classes\)"):
        require_classes("sample", np.zeros(30, int))


def test_require_classes_looks_at_the_present_ones_only():
    require_classes("sample", np.array([1, 0, 2]), (0, 2))
    with pytest.raises(ValueError, match=re.escape("no sample of class 1 (1 of 2 classes)")):
        require_classes("sample", np.array([1, 0, 0]), (0, 1))


@pytest.mark.parametrize("present, found", [((0, 3), 3), ((-1, 0), -1)])
def test_require_classes_refuses_a_present_class_that_is_none(present, found):
    message = f"present_classes holds {found}; expected classes from 0 to 2"
    with pytest.raises(ValueError, match=message):
        require_classes("sample", np.ones(3, int), present)


@pytest.mark.parametrize(
    "features, labels, num_classes, error, message",
    [
        (np.zeros(()), [0], 2, ValueError, "features has shape (); expected (N, ...)"),
        (np.zeros((3, 2)), [0, 1], 2, ValueError, "labels has shape (2,); expected (3,)"),
        (np.zeros((2, 2)), [[0, 1]], 2, ValueError, "labels has shape (1, 2); expected (2,)"),
        (np.zeros((2, 2)), [0, 2], 2, ValueError, "labels holds 2; expected classes from 0 to 1"),
        (np.zeros((2, 2)), [0, -1], 2, ValueError, "labels holds -1; expected classes from 0"),
        (np.zeros((2, 2)), [0.0, 1.0], 2, TypeError, "labels has dtype float64; expected int"),
        (np.zeros((2, 2), bool), [0, 1], 2, TypeError, "features has dtype bool; expected real"),
        ([[0.0], [np.nan]], [0, 1], 2, ValueError, "features holds 1 values that are NaN"),
        ([[0.0], [np.inf]], [0, 1], 2, ValueError, "features holds 1 values that are NaN or inf"),
        (np.zeros((2, 2)), [0, 1], 0, ValueError, "num_classes is 0; expected at least 1"),
    ],
)
def test_bad_input(features, labels, num_classes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.class_prototypes(features, labels, num_classes)


def test_sums_that_would_overflow_are_refused(unchecked):
    found, _ = gj.class_prototypes(np.full((4, 3), 1e28), [0, 0, 0, 0], 1)
    np.testing.assert_allclose(found, 1e28, rtol=1e-6)
    with pytest.raises(ValueError, match=r"features holds values up to 3e\+38; expected at most"):
        gj.class_prototypes(np.full((4, 3), 3e38), [0, 0, 0, 0], 1)


def test_more_classes_than_there_is_memory_for(unchecked):
    with pytest.raises(ValueError, match=r"prototypes has shape .*; expected .* fits into memory"):
        gj.class_prototypes(np.broadcast_to(np.float32(1), (1, 2**16)), [0], 2**31 - 1)
    with pytest.raises(ValueError, match="num_classes is 2147483648; expected at most 2147483647"):
        gj.class_prototypes(np.ones((1, 3)), [0], 2**31)


def test_a_row_is_added_in_its_place():
    """No copy of all classes' means, which for ImageNet's take seconds a row, and no second one."""
    means, counts = jax.tree.leaves(empty_means(50, (7, 3)))
    values, labels = map(jnp.asarray, batch(4, (7, 3), classes=50))

    def add(means, counts, values, labels):
        return jax.tree.leaves(accumulate(ClassMeans(means, counts), values, labels))

    compiled = jax.jit(add, donate_argnums=(0, 1)).lower(means, counts, values, labels).compile()
    assert "f32[50,7,3]" in compiled.as_text()
    assert re.findall(r"= f32\[50,7,3\]\S* copy\(", compiled.as_text()) == []
    assert compiled.memory_analysis().temp_size_in_bytes < means.nbytes
