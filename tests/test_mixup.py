import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.maths.mixup import other_classes

CLASSES, WEIGHT = 5, 0.3


def activations(rows=7, shape=(4, 3, 2), dtype=np.float32):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(rows, *shape)).astype(dtype),
        rng.normal(size=(CLASSES, *shape)).astype(dtype),
        rng.integers(0, CLASSES, rows),
    )


def mixed(hidden, prototype, weight):
    return weight * hidden.astype(np.float64) + (1 - weight) * prototype.astype(np.float64)


def test_mixing_is_interpolation():
    found = gj.mix_with_prototypes([[1.0, 2.0]], [[0.0, 0.0], [5.0, -2.0]], [1], 0.8)
    expected = [[0.8 * 1.0 + 0.2 * 5.0, 0.8 * 2.0 + 0.2 * -2.0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (6,), (4, 3, 2)])
def test_one_class_a_sample(shape):
    hidden, prototypes, targets = activations(shape=shape)
    found = gj.mix_with_prototypes(hidden, prototypes, targets, WEIGHT)
    assert found.dtype == jnp.float32
    expected = np.stack(
        [mixed(e, prototypes[c], WEIGHT) for e, c in zip(hidden, targets, strict=True)]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (6,), (4, 3, 2)])
def test_several_classes_a_sample(shape):
    hidden, prototypes, targets = activations(shape=shape)
    several = np.stack([targets, (targets + 1) % CLASSES, (targets + 3) % CLASSES], axis=1)
    found = gj.mix_with_prototypes(hidden, prototypes, several, WEIGHT)
    assert found.shape == (7, 3, *shape) and found.dtype == jnp.float32
    expected = np.stack(
        [
            [mixed(e, prototypes[c], WEIGHT) for c in row]
            for e, row in zip(hidden, several, strict=True)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_weight_one_is_the_sample_and_zero_the_prototype():
    hidden, prototypes, targets = activations()
    kept = gj.mix_with_prototypes(hidden, prototypes, targets, 1.0)
    replaced = gj.mix_with_prototypes(hidden, prototypes, targets, 0.0)
    np.testing.assert_array_equal(kept, hidden)
    np.testing.assert_array_equal(replaced, prototypes[targets])


@pytest.mark.parametrize("weight", [1, np.float64(0.25), np.float32(0.25), jnp.float32(0.25)])
def test_the_weight_may_be_any_scalar(weight):
    hidden, prototypes, targets = activations()
    found = gj.mix_with_prototypes(hidden, prototypes, targets, weight)
    expected = mixed(hidden, prototypes[targets], float(weight))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int32])
def test_any_real_dtype(dtype):
    hidden, prototypes, targets = activations()
    hidden, prototypes = (10 * hidden).astype(dtype), (10 * prototypes).astype(dtype)
    found = gj.mix_with_prototypes(hidden, prototypes, targets, WEIGHT)
    assert found.dtype == jnp.float32
    expected = mixed(hidden, prototypes[targets], WEIGHT)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_inside_compiled_code_and_with_a_traced_weight():
    hidden, prototypes, targets = activations()
    found = jax.jit(gj.mix_with_prototypes)(hidden, prototypes, targets, jnp.float32(WEIGHT))
    expected = gj.mix_with_prototypes(hidden, prototypes, targets, WEIGHT)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), weight=st.floats(0.0, 1.0, width=32))
def test_mixed_values_lie_between_the_two_and_rows_do_not_meet(seed, weight):
    rng = np.random.default_rng(seed)
    hidden, prototypes = rng.normal(size=(6, 3)), rng.normal(size=(CLASSES, 3))
    targets = rng.integers(0, CLASSES, 6)
    found = gj.mix_with_prototypes(hidden, prototypes, targets, weight)
    low, high = (f(hidden, prototypes[targets]) for f in (np.minimum, np.maximum))
    assert (found >= low - 1e-6).all() and (found <= high + 1e-6).all()
    order = rng.permutation(6)
    again = gj.mix_with_prototypes(hidden[order], prototypes, targets[order], weight)
    np.testing.assert_array_equal(again, found[order])


ZEROS = np.zeros((2, 3)), np.zeros((4, 3))


@pytest.mark.parametrize(
    "hidden, prototypes, targets, weight, error, message",
    [
        (np.zeros(()), ZEROS[1], [0], 0.5, ValueError, "hidden has shape (); expected (B, ...)"),
        (ZEROS[0], np.zeros((4, 5)), [0, 1], 0.5, ValueError, "shape (4, 5); expected (C, 3)"),
        (ZEROS[0], np.zeros(3), [0, 1], 0.5, ValueError, "shape (3,); expected (C, 3)"),
        (*ZEROS, [0, 1, 2], 0.5, ValueError, "targets has shape (3,); expected (2,)"),
        (*ZEROS, [[0], [1], [2]], 0.5, ValueError, "targets has shape (3, 1); expected (2, K)"),
        (*ZEROS, [[[0]], [[1]]], 0.5, ValueError, "targets has shape (2, 1, 1); expected (2,)"),
        (*ZEROS, [0, 4], 0.5, ValueError, "targets holds 4; expected classes from 0 to 3"),
        (*ZEROS, [0, -1], 0.5, ValueError, "targets holds -1; expected classes from 0 to 3"),
        (*ZEROS, [0.0, 1.0], 0.5, TypeError, "targets has dtype float64; expected integers"),
        (ZEROS[0] > 0, ZEROS[1], [0, 1], 0.5, TypeError, "hidden has dtype bool; expected real"),
        (ZEROS[0], ZEROS[1] > 0, [0, 1], 0.5, TypeError, "prototypes has dtype bool; expected"),
        (*ZEROS, [0, 1], 1.5, ValueError, "weight is 1.5; expected a number in [0, 1]"),
        (*ZEROS, [0, 1], -0.5, ValueError, "weight is -0.5; expected a number in [0, 1]"),
        (*ZEROS, [0, 1], float("nan"), ValueError, "weight is nan; expected a number in [0, 1]"),
        (*ZEROS, [0, 1], np.ones(2), ValueError, "weight has shape (2,); expected ()"),
        (*ZEROS, [0, 1], True, TypeError, "weight has dtype bool; expected real numbers"),
        (*ZEROS, [0, 1], jnp.float32(2), ValueError, "weight is 2.0; expected a number in [0, 1]"),
    ],
)
def test_bad_input(hidden, prototypes, targets, weight, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gj.mix_with_prototypes(hidden, prototypes, targets, weight)


def test_other_classes_come_likeliest_first_after_the_predicted_one():
    logits = jnp.array([[0.1, 0.9, 0.5, 0.3], [5.0, -1.0, -2.0, 4.0]])
    np.testing.assert_array_equal(other_classes(logits, 1), [[2], [3]])
    np.testing.assert_array_equal(other_classes(logits, 3), [[2, 3, 0], [3, 1, 2]])
    assert other_classes(logits, 3).dtype == jnp.int32


def test_other_classes_against_a_sort_of_many():
    logits = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    expected = np.argsort(-logits, axis=1)[:, 1:5]
    np.testing.assert_array_equal(other_classes(jnp.asarray(logits), 4), expected)


def test_second_class_equals_that_of_pytorch(golden):
    with np.load(golden / "g20_network.npz") as network:
        logits, second = network["logits"], network["second_class"]
    np.testing.assert_array_equal(other_classes(jnp.asarray(logits), 1)[:, 0], second)


def test_other_classes_are_chosen_among_the_present():
    logits = jnp.array([[9.0, 8.0, 7.0, 6.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    present = jnp.array([0, 2, 4])
    np.testing.assert_array_equal(other_classes(logits, 2, present), [[2, 4], [2, 0]])


def test_a_predicted_class_that_is_absent_costs_no_present_one():
    logits = jnp.array([[1.0, 9.0, 3.0, 2.0]])
    np.testing.assert_array_equal(other_classes(logits, 2, jnp.array([0, 2, 3])), [[2, 3]])


def test_equal_logits_go_by_their_order_and_infinite_ones_stay_apart_from_absent_classes():
    logits = jnp.array([[1.0, 1.0, 1.0, 1.0], [-jnp.inf, -jnp.inf, 2.0, -jnp.inf]])
    np.testing.assert_array_equal(other_classes(logits, 2), [[1, 2], [0, 1]])
    present = jnp.array([1, 2, 3])
    np.testing.assert_array_equal(other_classes(logits, 2, present), [[1, 2], [1, 3]])


@pytest.mark.parametrize("count, present, available", [(0, None, 4), (4, None, 4), (2, [0, 1], 2)])
def test_other_classes_refuses_a_count_out_of_range(count, present, available):
    chosen = None if present is None else jnp.array(present)
    message = f"count is {count}; expected from 1 to {available - 1}, with {available} classes"
    with pytest.raises(ValueError, match=message):
        other_classes(jnp.zeros((2, 4)), count, chosen)


@pytest.mark.parametrize("name", ["hidden", "prototypes"])
def test_values_that_are_no_numbers(name):
    given = {"hidden": np.ones((2, 3)), "prototypes": np.ones((4, 3))}
    given[name] = given[name] * np.nan
    with pytest.raises(ValueError, match=f"{name} holds .* NaN or infinite"):
        gj.mix_with_prototypes(**given, targets=[0, 1], weight=0.5)
