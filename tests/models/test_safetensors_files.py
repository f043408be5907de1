"""Files of safetensors: all dtypes, prefixes, and files that must not be read."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from damage import require_arrays_or_a_user_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grood_jax.models.torch.files import read_state_dict
from grood_jax.support.errors import UserError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
KINDS = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def file_of(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def write_state(path: Path, state: dict[str, np.ndarray]) -> Path:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in state.items():
        end = len(data) + array.nbytes
        header[name] = about(KINDS[array.dtype], array.shape, (len(data), end))
        data += array.tobytes()
    path.write_bytes(file_of(header, data))
    return path


def about(dtype: Any, shape: Any, offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype(path: Path, dtype: Any) -> None:
    matrix = (np.arange(6).reshape(2, 3) * 1.5 - 2).astype(dtype)
    state = {"matrix": matrix, "scalar": matrix[1, 2], "empty": np.zeros((0, 3), dtype)}
    read = read_state_dict(write_state(path, state))
    assert list(read) == list(state)
    for name, array in state.items():
        assert read[name].dtype == dtype and read[name].shape == array.shape
        assert not read[name].flags.writeable
        np.testing.assert_array_equal(read[name], array)


def test_arrays_in_another_order_than_the_header(path: Path) -> None:
    header = {"b": about("U8", [2], [1, 3]), "a": about("U8", [], [0, 1])}
    path.write_bytes(file_of(header, bytes([7, 8, 9])))
    read = read_state_dict(path)
    assert list(read) == ["b", "a"] and read["a"] == 7
    np.testing.assert_array_equal(read["b"], [8, 9])


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "net.", "network.", "backbone.", "_orig_mod.", "net.module."]
)
def test_prefixes_that_all_names_have(path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": np.ones(1) for name in ("conv1.weight", "module.bias")}
    assert list(read_state_dict(write_state(path, state))) == ["conv1.weight", "module.bias"]


@pytest.mark.parametrize(
    "names", [("model.a", "b"), ("model.a", "net.b"), ("models.a", "models.b")]
)
def test_prefixes_that_are_kept(path: Path, names: tuple[str, ...]) -> None:
    state = {name: np.ones(1) for name in names}
    assert list(read_state_dict(write_state(path, state))) == list(names)


def test_a_file_cut_short_anywhere(path: Path) -> None:
    write_state(path, {"a": np.arange(3.0), "b": np.ones((2, 2), np.int8)})
    content = path.read_bytes()
    for length in range(len(content)):
        refused(path, content[:length], "expected what torch.save.* or safetensors")


def test_a_changed_byte_gives_arrays_or_a_user_error(path: Path) -> None:
    content = write_state(path, {"a": np.arange(3.0), "b": np.ones(2, np.int8)}).read_bytes()
    require_arrays_or_a_user_error(path, content)


ONE = about("U8", [4], [0, 4])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (file_of({"a": ONE}, bytes(4), size=2**63), "header is said to have 9223372036854775808"),
        (file_of({"a": ONE}, b"", size=200), "header is said to have 200 bytes; expected at most"),
        (file_of(b'{"a": '), "header is no JSON"),
        (file_of(b'{"\xff": 1}'), "header is no JSON"),
        (file_of(b"{" * 5), "header is no JSON"),
        (file_of(b'{"a":' * 200_000), "header is no JSON"),
        (file_of({}), "holds no tensors"),
        (file_of({"__metadata__": {"a": "b"}}), "holds no tensors"),
        (
            file_of(
                b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
                b' "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
                bytes(2),
            ),
            "header has 'a' twice",
        ),
        (file_of({"a": 3}), "tensor 'a' is described by 3"),
        (file_of({"a": ONE | {"more": 1}}, bytes(4)), "tensor 'a' is described by"),
        (file_of({"a": {"dtype": "U8", "shape": [4]}}, bytes(4)), "tensor 'a' is described by"),
        (file_of({"a": about("F4", [4], [0, 4])}, bytes(4)), "'a' has dtype 'F4'; expected one of"),
        (file_of({"a": about(["U8"], [4], [0, 4])}, bytes(4)), r"'a' has dtype \['U8'\]"),
        (file_of({"a": about("F8_E5M2", [4], [0, 4])}, bytes(4)), "has dtype 'F8_E5M2'"),
        (file_of({"a": ONE}, bytes(3)), r"data_offsets \[0, 4\]; expected two within the 3 bytes"),
        (file_of({"a": about("U8", [4], [4, 0])}, bytes(4)), r"data_offsets \[4, 0\]"),
        (file_of({"a": about("U8", [4], [-4, 0])}, bytes(4)), r"data_offsets \[-4, 0\]"),
        (file_of({"a": about("U8", [4], [0, 2, 4])}, bytes(4)), r"data_offsets \[0, 2, 4\]"),
        (file_of({"a": about("U8", [4], [0.0, 4])}, bytes(4)), r"data_offsets \[0.0, 4\]"),
        (file_of({"a": about("U8", [1], [False, True])}, bytes(1)), r"data_offsets \[False, True"),
        (file_of({"a": about("U8", [4], [0, 10**30])}, bytes(4)), "data_offsets"),
        (file_of({"a": about("U8", [5], [0, 4])}, bytes(4)), r"shape \[5\] has 4 bytes"),
        (file_of({"a": about("U8", [-2, -2], [0, 4])}, bytes(4)), r"has shape \[-2, -2\]"),
        (file_of({"a": about("U8", 4, [0, 4])}, bytes(4)), "has shape 4"),
        (file_of({"a": about("U8", [2.0, 2], [0, 4])}, bytes(4)), r"has shape \[2.0, 2\]"),
        (file_of({"a": about("U8", [0, 2**70], [0, 0])}), r"has shape \[0, 1180"),
        (file_of({"a": about("U8", [1] * 100, [0, 1])}, bytes(1)), "has shape"),
        (file_of({"a": ONE, "b": about("U8", [2], [3, 5])}, bytes(5)), "'b' overlaps another"),
        (file_of({"a": ONE, "b": ONE}, bytes(4)), "overlaps another"),
        (file_of({"a": ONE, "b": about("U8", [1], [5, 6])}, bytes(6)), "'b' leaves a hole"),
        (file_of({"a": ONE}, bytes(5)), "tensors end at byte 4 of 5"),
        (file_of({"a\nb": 3}), r"tensor 'a\\nb' is described by 3"),
    ],
)
def test_malformed_files(path: Path, content: bytes, match: str) -> None:
    refused(path, content, match)


@given(
    offsets=st.lists(st.integers(-1, 10), min_size=2, max_size=2),
    shape=st.lists(st.integers(0, 4), max_size=3),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_an_array_is_all_of_its_bytes(path: Path, offsets: list[int], shape: list[int]) -> None:
    path.write_bytes(file_of({"a": about("U8", shape, offsets)}, bytes(range(8))))
    if offsets == [0, 8] and np.prod(shape, dtype=int) == 8:
        array = read_state_dict(path)["a"]
        np.testing.assert_array_equal(array, np.arange(8).reshape(shape))
    else:
        with pytest.raises(UserError):
            read_state_dict(path)


def test_files_by_the_package_itself(path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    state = {"model.b": np.arange(6.0).reshape(2, 3), "model.a": np.ones((), np.float32)}
    package.save_file(state, path, metadata={"format": "pt"})
    read = read_state_dict(path)
    assert set(read) == {"a", "b"}
    for name, array in read.items():
        assert array.dtype == state[f"model.{name}"].dtype
        np.testing.assert_array_equal(array, state[f"model.{name}"])
