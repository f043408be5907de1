import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.maths.gradients import distance, distances_to, prototype_loss


def distances(features, prototypes):
    differences = features[:, None, :].astype(np.float64) - prototypes.astype(np.float64)
    return np.sqrt((differences**2).sum(axis=2))


def loss(features, class_prototypes, ood_prototype, predicted):
    """``−log softmax(−d)_ŷ`` over C + 1 prototypes, in float64."""
    minus = -distances(features, np.concatenate([class_prototypes, ood_prototype[None]]))
    largest = minus.max(axis=1, keepdims=True)
    normalizer = largest[:, 0] + np.log(np.exp(minus - largest).sum(axis=1))
    return normalizer - minus[np.arange(len(features)), predicted]


def closed_form(features, class_prototypes, ood_prototype):
    """``softmax(−d)_ood · (h − p_ood) / ‖h − p_ood‖``, in float64."""
    d = distances(features, np.concatenate([class_prototypes, ood_prototype[None]]))
    minus = d.min(axis=1, keepdims=True) - d
    weight = np.exp(minus[:, -1]) / np.exp(minus).sum(axis=1)
    difference = features.astype(np.float64) - ood_prototype.astype(np.float64)
    length = np.where(d[:, -1:] > 0, d[:, -1:], 1.0)
    return weight[:, None] * difference / length


def finite_differences(features, class_prototypes, ood_prototype, predicted, step=1e-5):
    columns = []
    for axis in range(features.shape[1]):
        shift = step * np.eye(features.shape[1])[axis]
        above, below = (
            loss(features, class_prototypes, ood_prototype + sign * shift, predicted)
            for sign in (1, -1)
        )
        columns.append((above - below) / (2 * step))
    return np.stack(columns, axis=1)


def problem(rows=30, classes=5, width=8, seed=0, scale=1.0, offset=0.0):
    rng = np.random.default_rng(seed)
    return tuple(
        (offset + scale * rng.normal(size=shape)).astype(np.float32)
        for shape in ((rows, width), (classes, width), (width,))
    )


@pytest.mark.parametrize("rows, classes, width", [(30, 5, 8), (1, 1, 1), (6, 100, 2), (5, 10, 512)])
def test_gradients_equal_the_closed_form(rows, classes, width):
    features, prototypes, ood = problem(rows, classes, width)
    found = gj.ood_gradients(features, prototypes, ood)
    assert found.shape == features.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


@pytest.mark.parametrize("predicted", range(5))
def test_gradients_equal_finite_differences_whatever_the_predicted_class(predicted):
    features, prototypes, ood = problem()
    expected = finite_differences(features, prototypes, ood, np.full(30, predicted))
    assert np.abs(expected).max() > 0.1
    found = gj.ood_gradients(features, prototypes, ood)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["train", "test"])
def test_gradients_equal_those_of_the_authors_program(golden, part):
    with np.load(golden / "g20_vectors.npz") as vectors:
        features, expected = vectors[f"{part}_features"], vectors[f"{part}_gradients"]
        prototypes, ood = vectors["class_prototypes"], vectors["ood_prototype_mixup"]
    found = np.asarray(gj.ood_gradients(features, prototypes, ood))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows, classes, width, several", [(30, 5, 8, 3), (6, 1, 2, 1)])
def test_gradients_with_respect_to_several_prototypes(rows, classes, width, several):
    """``softmax(−d)_m · (h − p_m) / ‖h − p_m‖`` over C + M prototypes, in float64."""
    features, prototypes, _ = problem(rows, classes, width)
    ood = np.random.default_rng(1).normal(size=(several, width)).astype(np.float32)
    ood[0] = features[2]
    d = distances(features, np.concatenate([prototypes, ood]))
    weights = (np.exp(-d) / np.exp(-d).sum(axis=1, keepdims=True))[:, classes:]
    rest = features[:, None].astype(np.float64) - ood
    lengths = np.where(d[:, classes:] > 0, d[:, classes:], 1.0)
    found = gj.ood_gradients(features, prototypes, ood)
    assert found.shape == (rows, several, width) and found.dtype == jnp.float32
    np.testing.assert_array_equal(found[2, 0], np.zeros(width))
    expected = weights[:, :, None] * rest / lengths[:, :, None]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    if several == 1:
        alone = gj.ood_gradients(features, prototypes, ood[0])
        np.testing.assert_allclose(found[:, 0], alone, rtol=0, atol=1e-7)


def test_short_gradients_keep_their_relative_digits():
    features, prototypes, _ = problem(20, 5, 8)
    ood = np.full(8, 10.0, np.float32)
    expected = closed_form(features, prototypes, ood)
    assert np.linalg.norm(expected, axis=1).max() < 1e-7
    np.testing.assert_allclose(
        gj.ood_gradients(features, prototypes, ood), expected, rtol=1e-5, atol=0
    )


def test_the_norm_is_the_softmax_weight_of_the_ood_prototype():
    features, prototypes, ood = problem()
    d = distances(features, np.concatenate([prototypes, ood[None]]))
    weight = np.exp(-d[:, -1]) / np.exp(-d).sum(axis=1)
    norms = np.linalg.norm(gj.ood_gradients(features, prototypes, ood), axis=1)
    np.testing.assert_allclose(norms, weight, rtol=1e-5)


def test_a_feature_at_the_ood_prototype_has_gradient_zero():
    features, prototypes, ood = problem()
    features[3] = ood
    prototypes[1] = ood
    found = np.asarray(gj.ood_gradients(features, prototypes, ood))
    np.testing.assert_array_equal(found[3], np.zeros(8))
    assert np.linalg.norm(np.delete(found, 3, axis=0), axis=1).min() > 0
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


def test_a_feature_at_a_class_prototype_is_like_any_other():
    features, prototypes, ood = problem()
    features[2] = prototypes[4]
    found = gj.ood_gradients(features, prototypes, ood)
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gap", [1e-3, 1e-20, 1e-30])
def test_a_feature_near_the_ood_prototype_has_a_direction(gap):
    prototypes = np.ones((1, 3), np.float32)
    features = np.array([[0.0, gap, -gap]], np.float32)
    found = gj.ood_gradients(features, prototypes, np.zeros(3))
    expected = closed_form(features, prototypes, np.zeros(3))
    assert np.linalg.norm(expected) > 0.8
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_features_far_from_the_origin():
    features, prototypes, ood = problem(offset=1e4)
    found = gj.ood_gradients(features, prototypes, ood)
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


def test_rows_do_not_depend_on_the_batch():
    features, prototypes, ood = problem(33)
    together = np.asarray(gj.ood_gradients(features, prototypes, ood))
    for size in (1, 11, 32):
        parts = [
            gj.ood_gradients(features[i : i + size], prototypes, ood) for i in range(0, 33, size)
        ]
        np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=1e-7)


def test_no_rows_at_all():
    _, prototypes, ood = problem()
    assert gj.ood_gradients(np.zeros((0, 8)), prototypes, ood).shape == (0, 8)


def test_inside_compiled_code():
    features, prototypes, ood = problem()
    found = jax.jit(gj.ood_gradients)(features, prototypes, ood)
    np.testing.assert_allclose(found, gj.ood_gradients(features, prototypes, ood), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int8, np.int64])
def test_any_real_dtype(dtype):
    features, prototypes, ood = (array.astype(dtype) for array in problem(scale=3.0))
    found = gj.ood_gradients(features, prototypes, ood)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, closed_form(features, prototypes, ood), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from([(1, 1, 1), (6, 3, 2), (5, 2, 16)]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-38, 1e-30, 1e-3, 1.0, 1e3, 1e9, 1e17]),
    offset=st.sampled_from([0.0, 1.0, -1e4, 1e17]),
    dtype=st.sampled_from([np.float16, jnp.bfloat16, np.float32, np.float64, np.int32]),
)
def test_gradients_are_finite_and_no_longer_than_one(shape, seed, scale, offset, dtype):
    rows, classes, width = shape
    features, prototypes, ood = problem(rows, classes, width, seed, scale, offset)
    features[-1] = ood
    prototypes[0] = features[0]
    limit = {np.float16: 1e4, np.int32: 1e9}.get(dtype, 1e18)
    arrays = [np.clip(a, -limit, limit).astype(dtype) for a in (features, prototypes, ood)]

    found = np.asarray(gj.ood_gradients(*arrays))

    assert np.isfinite(found).all()
    assert np.linalg.norm(found.astype(np.float64), axis=1).max() <= 1 + 1e-6
    np.testing.assert_array_equal(found[-1], np.zeros(width))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_rows_and_of_classes_does_not_matter(seed):
    features, prototypes, ood = problem(6, 4, 3, seed)
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(6), rng.permutation(4)
    found = gj.ood_gradients(features, prototypes, ood)
    again = gj.ood_gradients(features[rows], prototypes[classes], ood)
    np.testing.assert_allclose(again, found[rows], rtol=0, atol=1e-6)


MATRIX, VECTOR = np.zeros((4, 3)), np.zeros(3)


@pytest.mark.parametrize(
    "features, prototypes, ood, error, message",
    [
        (VECTOR, MATRIX, VECTOR, ValueError, "features has shape (3,); expected (B, 3)"),
        (MATRIX[None], MATRIX, VECTOR, ValueError, "features has shape (1, 4, 3); expected (B, 3)"),
        (np.zeros((4, 2)), MATRIX, VECTOR, ValueError, "features has shape (4, 2); expected (B, 3"),
        (MATRIX, VECTOR, VECTOR, ValueError, "class_prototypes has shape (3,); expected (C, D)"),
        (MATRIX, MATRIX[:0], VECTOR, ValueError, "class_prototypes has shape (0, 3); expected at"),
        (MATRIX, MATRIX, MATRIX[None], ValueError, "ood_prototype has shape (1, 4, 3); expected"),
        (
            MATRIX,
            MATRIX,
            MATRIX[:0],
            ValueError,
            "ood_prototype has shape (0, 3); expected (3,), o",
        ),
        (MATRIX, MATRIX, MATRIX[:, :2], ValueError, "ood_prototype has shape (4, 2); expected (3"),
        (
            MATRIX,
            MATRIX,
            np.array(0.0),
            ValueError,
            "ood_prototype has shape (); expected (3,), or (M, 3)",
        ),
        (MATRIX, MATRIX, np.zeros(2), ValueError, "ood_prototype has shape (2,); expected (3,)"),
        (MATRIX + np.nan, MATRIX, VECTOR, ValueError, "features holds 12 values that are NaN"),
        (MATRIX, MATRIX + np.inf, VECTOR, ValueError, "class_prototypes holds 12 values that are"),
        (MATRIX, MATRIX, VECTOR - np.inf, ValueError, "ood_prototype holds 3 values that are NaN"),
        (MATRIX + 1e19, MATRIX, VECTOR, ValueError, "features holds values up to 1e+19; expected"),
        (MATRIX, MATRIX - 2e18, VECTOR, ValueError, "class_prototypes holds values up to 2e+18"),
        (MATRIX, MATRIX, VECTOR + 1e30, ValueError, "ood_prototype holds values up to 1e+30; exp"),
        (MATRIX > 0, MATRIX, VECTOR, TypeError, "features has dtype bool; expected real numbers"),
        (MATRIX, MATRIX * 1j, VECTOR, TypeError, "class_prototypes has dtype complex128; expected"),
        (MATRIX, MATRIX, ["a"] * 3, TypeError, "ood_prototype has dtype <U1; expected real"),
    ],
)
def test_bad_input(features, prototypes, ood, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.ood_gradients(features, prototypes, ood)


distance_and_gradient = jax.jit(jax.value_and_grad(distance))


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e18])
def test_distance_and_its_gradient_at_every_scale(scale):
    x, y = (scale * np.random.default_rng(0).normal(size=(2, 7))).astype(np.float32)
    length = np.linalg.norm(x.astype(np.float64) - y)
    value, gradient = distance_and_gradient(x, y)
    np.testing.assert_allclose(value, length, rtol=1e-6)
    np.testing.assert_allclose(gradient, (x.astype(np.float64) - y) / length, atol=1e-6)


def test_distance_of_equal_points_and_its_gradient_are_zero():
    x = np.array([1.0, -2.0, 1e18, 1e-30, 0.0, 3.0, 4.0], np.float32)
    value, gradient = distance_and_gradient(x, x)
    np.testing.assert_array_equal(value, 0.0)
    np.testing.assert_array_equal(gradient, np.zeros(7))


def test_distances_to_prototypes():
    points, prototypes, _ = problem(offset=1e4)
    found = distances_to(jnp.asarray(points), jnp.asarray(prototypes))
    assert found.shape == (30, 5)
    np.testing.assert_allclose(found, distances(points, prototypes), rtol=1e-6)


def test_prototype_loss_is_the_negative_log_softmax():
    features, prototypes, ood = problem()
    predicted = np.arange(30) % 5
    d = distances_to(jnp.asarray(features), jnp.asarray(prototypes))
    found = jax.jit(jax.vmap(prototype_loss, (None, 0, 0, 0)))(
        jnp.asarray(ood), jnp.asarray(features), d, d[np.arange(30), predicted]
    )
    np.testing.assert_allclose(found, loss(features, prototypes, ood, predicted), rtol=1e-5)


def test_no_columns():
    with pytest.raises(ValueError, match=r"class_prototypes has shape \(3, 0\); expected"):
        gj.ood_gradients(np.zeros((2, 0)), np.zeros((3, 0)), np.zeros(0))
