"""Values taken apart into JSON and arrays, and put together again."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pair:
    first: Any
    second: Any


@dataclass
class Mutable:
    first: Any


def again(value):
    description, arrays = take_apart("value", value)
    return put_together(json.loads(json.dumps(description, allow_nan=False)), arrays)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


def kinds(value):
    if isinstance(value, Pair):
        return Pair, kinds(value.first), kinds(value.second)
    if isinstance(value, dict):
        return dict, {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [kinds(inner) for inner in value]
    return type(value)


@given(PLAIN)
def test_plain_values_come_back_as_they_were(value):
    found = again(value)
    assert found == value
    assert kinds(found) == kinds(value)


def test_nan_and_infinity_survive_json():
    assert np.isnan(again(float("nan")))
    assert again(float("-inf")) == float("-inf")


@pytest.mark.parametrize(
    "dtype",
    ["float32", "bfloat16", "int32", "bool", "float64", "uint8", "float8_e4m3fn", "int4", ">f4"],
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3)])
def test_arrays_keep_dtype_shape_and_place(dtype, shape):
    host = np.arange(np.prod(shape)).reshape(shape).astype(jnp.dtype(dtype))
    found = again(Pair(host, (jnp.asarray(host.astype(jnp.bfloat16)),)))
    assert isinstance(found.first, np.ndarray) and isinstance(found.second[0], jax.Array)
    assert (
        found.first.dtype == host.dtype.newbyteorder("=") and found.second[0].dtype == jnp.bfloat16
    )
    np.testing.assert_array_equal(found.first, host)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("count", [None, 3])
def test_random_keys_give_the_same_numbers(kind, count):
    keys = jax.random.key(7, impl=kind)
    keys = keys if count is None else jax.random.split(keys, count)
    found = again({"keys": keys})["keys"]
    assert found.dtype == keys.dtype and found.shape == keys.shape
    one, other = (jax.random.key_data(each) for each in (keys, found))
    np.testing.assert_array_equal(one, other)


def test_arrays_are_named_by_where_they_stand():
    _, arrays = take_apart("state", {"a": [np.zeros(1), Pair(np.ones(1), None)]})
    assert sorted(arrays) == ["state.a.0", "state.a.1.first"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Pair(1, object()), "value.second is a object"),
        (Mutable(1), "value is a Mutable"),
        ({1: 2}, "value is a dict"),
        ([lambda: None], "value.0 is a function"),
        (np.array([None]), "value is a ndarray"),
        (np.array(["a"]), "value is a ndarray"),
        (np.zeros(1, "datetime64[s]"), "value is a ndarray"),
        (np.zeros(1, [("a", "i4")]), "value is a ndarray"),
        (np.zeros(1, np.longdouble), "value is a ndarray"),
    ],
)
def test_what_cannot_be_saved_is_named(value, named):
    with pytest.raises(UserError, match=named):
        take_apart("value", value)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"class": "os:system", "fields": {}}, "os:system is not known"),
        ({"class": "no_such_module:Pair", "fields": {}}, "not known here"),
        ({"class": f"{__name__}:Mutable", "fields": {"first": 1}}, "not known here"),
        ({"class": f"{__name__}:Pair", "fields": {"third": 1}}, "saved by another version"),
        ({"class": f"{__name__}:Pair.first", "fields": {}}, "not known here"),
        ({"array": "absent", "on": "host"}, "cannot be read"),
        ({"array": "a", "on": "moon"}, "cannot be read"),
        ({"array": "a", "key": "nobody's"}, 'a random key of "nobody\'s" is not known'),
        ({"array": "a", "key": "rbg"}, "a random key of 'rbg' is not known"),
        ({"tuple": 3}, "cannot be read"),
        ([1], "cannot be read"),
        (1.5, "cannot be read"),
    ],
)
def test_a_description_of_something_else_is_refused(description, said):
    with pytest.raises(UserError, match=said):
        put_together(description, {"a": np.zeros(1)})


def test_nothing_is_imported():
    import sys

    sys.modules.pop("this", None)
    with pytest.raises(UserError, match="not known here"):
        put_together({"class": "this:Pair", "fields": {}}, {})
    assert "this" not in sys.modules
