import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax.support import checks

REAL = [np.float16, jnp.bfloat16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8]


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, np.ndarray.tolist, memoryview])
def test_shaped_returns_float32_whatever_it_is_given(dtype, convert):
    given = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32)
    array = given.astype(dtype) if convert in (np.asarray, jnp.asarray) else given

    found = checks.shaped("x", convert(array), (2, "D"))

    assert isinstance(found, jax.Array) and found.dtype == jnp.float32
    np.testing.assert_array_equal(found, given)


def test_shaped_does_not_wrap_wide_integers():
    wide = np.array([2**40, -(2**33), 2**63 - 1])
    np.testing.assert_array_equal(checks.shaped("x", wide, (3,)), wide.astype(np.float32))


def test_values_that_float32_cannot_hold_are_infinite_and_then_refused():
    found = checks.shaped("x", np.array([1.0, -1e300]), (2,))
    np.testing.assert_array_equal(found, [1.0, -np.inf])
    with pytest.raises(ValueError, match=r"x holds 1 values .* at index \(1,\)"):
        checks.finite("x", found)


@pytest.mark.parametrize(
    "found, wanted, message",
    [
        ((3,), ("N", "D"), "x has shape (3,); expected (N, D)"),
        ((3, 4, 5), ("N", "D"), "x has shape (3, 4, 5); expected (N, D)"),
        ((3, 4), ("N", 5), "x has shape (3, 4); expected (N, 5)"),
        ((), ("N", "..."), "x has shape (); expected (N, ...)"),
        ((3, 4, 5), ("N", 5, "..."), "x has shape (3, 4, 5); expected (N, 5, ...)"),
    ],
)
def test_shaped_names_the_shape_found_and_expected(found, wanted, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.shaped("x", np.zeros(found), wanted)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_shaped_takes_any_number_of_trailing_axes(shape):
    assert checks.shaped("x", np.zeros(shape), (3, "...")).shape == shape


@pytest.mark.parametrize(
    "array, dtype",
    [
        ([True], "bool"),
        ([1j], "complex128"),
        (["a"], "<U1"),
        ([None], "object"),
        (jnp.ones(1, bool), "bool"),
        (jax.random.key(0), "key<fry>"),
    ],
)
def test_shaped_refuses_what_is_no_real_number(array, dtype):
    with pytest.raises(TypeError, match=f"x has dtype {dtype}; expected real numbers"):
        checks.shaped("x", array, ("N",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_counts_the_bad_values_and_says_where_the_first_is(bad):
    array = jnp.zeros((2, 3)).at[1, 0].set(bad).at[1, 2].set(bad)
    message = "x holds 2 values that are NaN or infinite, the first at index (1, 0); expected"
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.finite("x", array)


def test_finite_returns_what_it_is_given():
    array = jnp.array([1.0, -3e38])
    assert checks.finite("x", array) is array
    assert checks.finite("x", jnp.zeros((0, 2)), 1.0).shape == (0, 2)


def test_finite_refuses_magnitudes_beyond_the_limit():
    assert checks.finite("x", jnp.array([2.0, -8.0]), 8.0).shape == (2,)
    message = "x holds values up to 8.5; expected at most 8e+00 (rescale"
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.finite("x", jnp.array([2.0, -8.5]), 8.0)


def test_checks_of_values_let_tracers_pass():
    @jax.jit
    def doubled(x, labels):
        values = checks.finite("x", checks.shaped("x", x, ("N",)), 1.0)
        return 2 * values, checks.classes("labels", labels, 2, ("N",))

    values, labels = doubled(jnp.array([jnp.inf, 4.0]), jnp.array([7, 1]))
    np.testing.assert_array_equal(values, [jnp.inf, 8.0])
    np.testing.assert_array_equal(labels, [7, 1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_classes_returns_int32(dtype):
    found = checks.classes("labels", np.array([0, 2, 1], dtype), 3, (3,))
    assert isinstance(found, jax.Array) and found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [0, 2, 1])


def test_classes_takes_lists_and_no_labels_at_all():
    np.testing.assert_array_equal(checks.classes("labels", [[1, 0]], 2, (1, 2)), [[1, 0]])
    assert checks.classes("labels", np.zeros(0, int), 2, ("N",)).shape == (0,)


@pytest.mark.parametrize("labels, found", [([0, 3], 3), ([0, -1], -1), ([2**32 + 1, 0], 2**32 + 1)])
def test_classes_refuses_labels_out_of_range(labels, found):
    with pytest.raises(ValueError, match=f"labels holds {found}; expected classes from 0 to 2"):
        checks.classes("labels", np.array(labels), 3, ("N",))


@pytest.mark.parametrize("dtype", [float, bool])
def test_classes_refuses_other_dtypes(dtype):
    with pytest.raises(TypeError, match="labels has dtype .*; expected integers"):
        checks.classes("labels", np.zeros(3, dtype), 3, ("N",))


@pytest.mark.parametrize("shape", [(3,), ("N", "K")])
def test_classes_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"labels has shape \(2,\); expected \("):
        checks.classes("labels", [0, 1], 3, shape)


@pytest.mark.parametrize("value", [2, 7, np.int64(2)])
def test_at_least_returns_a_python_integer(value):
    found = checks.at_least("k", value, 2)
    assert type(found) is int and found == value


def test_at_least_refuses_smaller_ones():
    with pytest.raises(ValueError, match="k is 1; expected at least 2"):
        checks.at_least("k", 1, 2)


@pytest.mark.parametrize("value", [1.0, "1", True, None])
def test_at_least_refuses_what_is_no_integer(value):
    with pytest.raises(TypeError, match=f"k is {value!r}; expected an integer of at least 1"):
        checks.at_least("k", value, 1)


@pytest.mark.parametrize("value", [0, 0.0, 0.25, 1, np.float32(0.5)])
def test_fraction_returns_a_python_float(value):
    found = checks.fraction("weight", value)
    assert type(found) is float and found == value


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, np.inf])
def test_fraction_refuses_numbers_outside(value):
    message = f"weight is {value}; expected a number in [0, 1]"
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.fraction("weight", value)


def test_fraction_may_leave_out_zero():
    assert checks.fraction("ratio", 1e-9, zero=False) == 1e-9
    with pytest.raises(ValueError, match=re.escape("ratio is 0.0; expected a number in (0, 1]")):
        checks.fraction("ratio", 0.0, zero=False)


@pytest.mark.parametrize("value", ["half", None, True, 1j])
def test_fraction_refuses_what_is_no_number(value):
    with pytest.raises(TypeError, match=f"weight is {value!r}; expected a number"):
        checks.fraction("weight", value)


def test_choice_returns_an_option_and_hints_at_the_nearest():
    options = ("mixup", "noise")
    assert checks.choice("source", "noise", options) == "noise"
    message = "source is 'mixip'; expected one of mixup, noise; did you mean 'mixup'?"
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.choice("source", "mixip", options)
    with pytest.raises(ValueError, match="source is 3; expected one of mixup, noise$"):
        checks.choice("source", 3, options)


@pytest.mark.parametrize("value", [True, False, np.True_])
def test_flags(value):
    assert checks.flag("interpolate", value) is bool(value)


@pytest.mark.parametrize("value", [0, 1, "true", None])
def test_no_flags(value):
    with pytest.raises(TypeError, match=f"interpolate is {value!r}; expected True or False"):
        checks.flag("interpolate", value)


def test_integers_may_have_an_upper_end():
    assert checks.at_least("k", 7, 1, 7) == 7
    with pytest.raises(ValueError, match="k is 8; expected at most 7"):
        checks.at_least("k", 8, 1, 7)


@pytest.mark.parametrize("value", [-1, 2**32, 2**70])
def test_seeds_that_jax_would_take_for_others(value):
    assert checks.seed("seed", 2**32 - 1) == 2**32 - 1
    with pytest.raises(ValueError, match=f"seed is {value}; expected at"):
        checks.seed("seed", value)


@pytest.mark.parametrize("check", [checks.fraction, checks.percent, checks.positive])
@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_too_large_for_a_float_are_out_of_range(check, value):
    with pytest.raises(ValueError, match="weight is -?1000"):
        check("weight", value)


def test_what_numpy_cannot_read_is_named():
    with pytest.raises(ValueError, match="x is no array: .*inhomogeneous"):
        checks.shaped("x", [[1], [1, 2]], ("N", "D"))
    with pytest.raises(ValueError, match="x is no array: .*inhomogeneous"):
        checks.classes("x", [[1], [1, 2]], 3, ("N",))


def test_gigantic_views_are_refused_and_not_allocated():
    gigantic = np.broadcast_to(np.float32(1), (2**44, 3))
    with pytest.raises(ValueError, match=r"x has shape \(17592186044416, 3\); .* fits into memory"):
        checks.shaped("x", gigantic, ("N", 3))


def test_only_words_are_choices():
    with pytest.raises(ValueError, match=r"source is array\(\['mixup', 'noise'\]"):
        checks.choice("source", np.array(["mixup", "noise"]), ("mixup", "noise"))
