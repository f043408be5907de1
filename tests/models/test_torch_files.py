"""PyTorch files: both formats, every layout of tensors, and files that must not be read."""

import argparse
import collections
import io
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_writer as torch_format
from damage import require_arrays_or_a_user_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import Build, Call, Global, Ordered, Persistent, Raw, Storage, tensor

from grood_jax.models.torch import files as torch_files
from grood_jax.models.torch.files import read_state_dict
from grood_jax.support.errors import UserError

FORMS = {"legacy": torch_format.legacy, "zip": torch_format.zipped}
both = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=match) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def small(form: Any) -> bytes:
    storages = [Storage("0", np.arange(6.0, dtype=np.float32)), Storage("1", np.arange(3))]
    entries = {"a": tensor(storages[0], 0, (2, 3), (3, 1)), "b": tensor(storages[1])}
    return form(Ordered(entries), storages)


def test_published_resnet20(golden: Path) -> None:
    state = read_state_dict(golden / "resnet20.th")
    # 19 convolutions, as many batch norms of 4 arrays, a linear layer of 2.
    assert len(state) == 19 + 19 * 4 + 2
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["linear.weight"].shape == (10, 64)
    assert all((state[name] > 0).all() for name in state if name.endswith("running_var"))


@both
@pytest.mark.parametrize("dtype", torch_format.KINDS, ids=str)
def test_every_dtype(path: Path, form: Any, dtype: np.dtype) -> None:
    matrix = (np.arange(6).reshape(2, 3) * 1.5 - 2).astype(dtype)
    state = {"matrix": matrix, "scalar": matrix[1, 2], "empty": np.zeros((0, 3), dtype)}
    read = read_state_dict(torch_format.write_state(path, state, form))
    assert list(read) == list(state)
    for name, array in state.items():
        assert read[name].dtype == dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


@both
def test_strides_offsets_and_shared_storages(path: Path, form: Any) -> None:
    elements = np.arange(24, dtype=np.float32)
    storage = Storage("7", elements)
    cube = elements.reshape(2, 3, 4)
    cases = {
        "whole": (tensor(storage, 0, (2, 3, 4), (12, 4, 1)), cube),
        "transposed": (tensor(storage, 0, (4, 3, 2), (1, 4, 12)), cube.T),
        "slice": (tensor(storage, 13, (2, 2), (4, 2)), cube[1, :2, 1::2]),
        "last": (tensor(storage, 23, (), ()), cube[1, 2, 3]),
        "expanded": (tensor(storage, 5, (3, 2), (0, 1)), np.tile(cube[0, 1, 1:3], (3, 1))),
    }
    path.write_bytes(form(Ordered({name: made for name, (made, _) in cases.items()}), [storage]))
    read = read_state_dict(path)
    for name, (_, expected) in cases.items():
        np.testing.assert_array_equal(read[name], expected, err_msg=name)
        assert not read[name].flags.writeable


@both
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
def test_wrapped_state_dict_among_other_entries(path: Path, form: Any, key: str) -> None:
    weight, momentum = Storage("0", np.arange(4.0)), Storage("1", np.arange(2.0))
    value = {
        "epoch": 200,
        "best_prec1": 91.73,
        "best": tensor(momentum, 0, (), ()),
        key: Ordered({"module.w": tensor(weight), "module.version": 3, "module.extra": None}),
        "optimizer": {"state": {0: {"momentum_buffer": tensor(momentum)}}, "param_groups": [[]]},
    }
    path.write_bytes(form(value, [weight, momentum]))
    read = read_state_dict(path)
    assert list(read) == ["w"]
    np.testing.assert_array_equal(read["w"], [0.0, 1.0, 2.0, 3.0])


@both
def test_lightnings_checkpoints(path: Path, form: Any) -> None:
    storage = Storage("0", np.arange(4.0))
    value = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": Ordered({"model.w": tensor(storage), "model.b": tensor(storage, 3, (), ())}),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": ""}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
    }
    path.write_bytes(form(value, [storage]))
    assert list(read_state_dict(path)) == ["w", "b"]


@both
def test_prefix_is_kept_unless_all_have_it(path: Path, form: Any) -> None:
    state = {"module.a": np.zeros(1), "b": np.ones(1)}
    assert list(read_state_dict(torch_format.write_state(path, state, form))) == list(state)


@both
def test_parameters_and_the_oldest_tensors(path: Path, form: Any) -> None:
    storage = Storage("0", np.arange(3.0))
    wrapped = Call(Global("torch._utils", "_rebuild_parameter"), (tensor(storage), True, None))
    oldest = tensor(storage, function="_rebuild_tensor")
    path.write_bytes(form({"parameter": wrapped, "oldest": oldest}, [storage]))
    read = read_state_dict(path)
    np.testing.assert_array_equal(read["parameter"], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(read["oldest"], [0.0, 1.0, 2.0])


@both
def test_attributes_of_the_dict_change_nothing(path: Path, form: Any) -> None:
    # PyTorch sets _metadata; a pickle may also shadow the dict's methods.
    storage = Storage("0", np.arange(3.0))
    state = {"_metadata": Ordered({"": {"version": 1}}), "items": 1, "keys": 2, "get": 3}
    path.write_bytes(form(Build(Ordered({"w": tensor(storage)}), state), [storage]))
    np.testing.assert_array_equal(read_state_dict(path)["w"], [0.0, 1.0, 2.0])


@both
@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ("touch {marker}",)),
        ("posix", "system", ("touch {marker}",)),
        ("builtins", "eval", ("open({marker!r}, 'w')",)),
        ("pathlib", "Path.touch", ("{marker}",)),
        ("torch.nn.modules.linear", "Linear", ()),
        ("__main__", "Net", ()),
        ("numpy", "dtype", ("f4",)),
        ("torch", "load", ("{marker}",)),
        ("collections", "OrderedDict.fromkeys", ((),)),
    ],
)
def test_forbidden_classes_are_left_out_and_not_run(
    path: Path, form: Any, module: str, name: str, arguments: tuple[Any, ...]
) -> None:
    marker = path.with_name("marker")
    given = tuple(a.format(marker=str(marker)) if isinstance(a, str) else a for a in arguments)
    storage = Storage("0", np.arange(3.0))
    value = {"w": tensor(storage), "epoch": Call(Global(module, name), given)}
    path.write_bytes(form(value, [storage]))
    found = read_state_dict(path)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], np.arange(3.0))
    # Alone, within a tensor, or in the place of the state dict, they are named.
    call = Call(Global(module, name), given)
    for alone in (call, {"epoch": call}, {"state_dict": call}, [call]):
        refused(path, form(alone, []), f"asks for '{module}.{name}'.*not run")
    rebuilt = Call(Global("torch._utils", "_rebuild_tensor_v2"), (call, 0, (3,), (1,), False, {}))
    refused(path, form({"w": rebuilt}, []), "tensor w has no storage")
    # Its state, called again, added to.
    for odd in (Build(call, {"x": 1}), Call(call, ()), Build(Call(call, ()), {"__class__": 1})):
        path.write_bytes(form({"w": tensor(storage), "odd": odd}, [storage]))
        assert list(read_state_dict(path)) == ["w"]
    assert not marker.exists()


@both
def test_what_training_scripts_write_beside_the_state_dict(path: Path, form: Any) -> None:
    """NumPy scalars and arrays, a Namespace, a path, an enumeration, a set, a deque."""
    storage = Storage("0", np.arange(3.0))
    scalar = Call(
        Global("numpy._core.multiarray", "scalar"),
        (Build(Call(Global("numpy", "dtype"), ("f8", False, True)), (3, "<")), "bytes"),
    )
    beside = {
        "best": scalar,
        "args": Build(Call(Global("argparse", "Namespace"), ()), {"lr": 0.1, "best": scalar}),
        "where": Call(Global("pathlib", "PosixPath"), ("a", "b")),
        "history": Call(Global("builtins", "set"), ([1, 2],)),
        "mode": Call(Global("mine", "Mode"), (1,)),
        "epoch": 3,
    }
    for key in ("state_dict", "model"):
        path.write_bytes(form({**beside, key: {"w": tensor(storage)}}, [storage]))
        found = read_state_dict(path)
        assert list(found) == ["w"]
        np.testing.assert_array_equal(found["w"], np.arange(3.0))
    # Within the state dict itself too.
    path.write_bytes(form({"w": tensor(storage), **beside}, [storage]))
    assert list(read_state_dict(path)) == ["w"]


def test_objects_as_pickle_itself_writes_them(path: Path) -> None:
    """Every protocol's way to make an object, set its state, and fill it; nothing is run."""
    beside = {
        "best": np.float64(0.5),
        "array": np.arange(3),
        "args": argparse.Namespace(lr=0.1, best=np.float32(1)),
        "where": Path("a"),
        "queue": collections.deque([1, 2]),
        "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"a": [1]}),
        "set": {1, 2},
        "complex": 1j,
    }
    for protocol in range(2, 6):
        code = pickle.dumps(beside, protocol)
        loaded = torch_files._Unpickler(code).load()
        assert list(loaded) == list(beside)
        kinds = {type(value) for value in loaded.values()}
        assert kinds <= {torch_files._Foreign, set}


def test_forbidden_classes_by_every_opcode(path: Path) -> None:
    for code in (
        b"(X\x02\x00\x00\x00idios\nsystem\n",  # INST
        b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x02\x00\x00\x00id\x85R",  # STACK_GLOBAL
        b"(cos\nsystem\nX\x02\x00\x00\x00ido",  # OBJ
        b"cos\nsystem\nX\x02\x00\x00\x00id\x85\x81",  # NEWOBJ
    ):
        refused(path, torch_format.legacy(Raw(code), []), "asks for 'os.system'")
    # Extension registry (EXT1): there is nothing registered, and nothing is looked up outside it.
    refused(path, torch_format.legacy(Raw(b"\x82\x01"), []), "unregistered extension code 1")


@both
@pytest.mark.parametrize(
    "target",
    [
        Global("torch._utils", "_rebuild_tensor_v2"),
        Global("torch._utils", "_rebuild_parameter"),
        Global("torch", "FloatStorage"),
        Global("collections", "OrderedDict"),
        Storage("0", np.arange(6.0)),
        tensor(Storage("0", np.arange(6.0))),
    ],
    ids=["tensor", "parameter", "kind", "dict", "storage", "made"],
)
@pytest.mark.parametrize(
    "state",
    [
        {"offset": 9},
        (None, {"__call__": 1, "offset": 9, "__defaults__": (1,), "items": 1}),
        (3, "<", None, None, None, -1, -1, 0),
    ],
    ids=["attributes", "slots", "setstate"],
)
def test_what_a_pickle_may_name_cannot_be_changed_by_it(
    path: Path, form: Any, target: Any, state: Any
) -> None:
    refused(path, form({"w": Build(target, state)}, [Storage("0", np.arange(6.0))]), "damaged")
    path.write_bytes(small(form))
    read = read_state_dict(path)
    np.testing.assert_array_equal(read["a"], [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])


@both
def test_a_file_cut_short_anywhere(path: Path, form: Any) -> None:
    content = small(form)
    for length in range(len(content)):
        refused(path, content[:length], "expected what torch.save")


@both
def test_a_changed_byte_gives_arrays_or_a_user_error(path: Path, form: Any) -> None:
    require_arrays_or_a_user_error(path, small(form))


@given(
    offset=st.integers(-3, 30),
    shape=st.lists(st.integers(-1, 4), max_size=3).map(tuple),
    strides=st.lists(st.integers(-2, 12), max_size=3).map(tuple),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_tensor_stays_within_its_storage(path: Path, offset, shape, strides) -> None:
    storage = Storage("0", np.arange(24.0))
    path.write_bytes(torch_format.legacy({"w": tensor(storage, offset, shape, strides)}, [storage]))
    positions = [
        offset + sum(i * s for i, s in zip(index, strides, strict=False))
        for index in np.ndindex(*(max(n, 0) for n in shape))
    ]
    valid = len(shape) == len(strides) and min((offset, *shape, *strides)) >= 0
    if valid and all(0 <= position < 24 for position in positions):
        read = read_state_dict(path)["w"]
        # The storage's elements are their own positions.
        np.testing.assert_array_equal(read.ravel(), positions)
        assert read.shape == shape
    else:
        with pytest.raises(UserError, match="tensor w "):
            read_state_dict(path)


@both
@pytest.mark.parametrize(
    ("made", "match"),
    [
        (tensor(Storage("0", np.arange(6.0)), 0, (7,)), "reaches element 6 of a storage of 6"),
        (tensor(Storage("0", np.arange(6.0)), 6, ()), "reaches element 6 of a storage of 6"),
        (tensor(Storage("0", np.arange(6.0)), -1, (2,)), r"offset \(-1,\)"),
        (tensor(Storage("0", np.arange(6.0)), 5, (2,), (-1,)), r"strides \(-1,\)"),
        (tensor(Storage("0", np.arange(6.0)), 0, (2, 3), (1,)), r"\(2, 3\) and strides \(1,\)"),
        (tensor(Storage("0", np.arange(6.0)), 0, [6], (1,)), r"shape \[6\]"),
        (tensor(Storage("0", np.arange(6.0)), 1.0, (2,), (1,)), r"offset \(1.0,\)"),
        (tensor(Storage("0", np.arange(6.0)), 0, (2**40, 2**40), (0, 0)), "damaged"),
        (tensor(Storage("0", np.arange(6.0)), 0, (1,) * 100, (0,) * 100), "damaged"),
        (tensor(Storage("0", np.arange(6.0)), 10**30, (1,)), "reaches element"),
        (
            Call(Global("torch._utils", "_rebuild_tensor_v2"), (3, 0, (1,), (1,))),
            "no storage|no tensor has",
        ),
        (tensor(Storage("9", np.arange(6.0))), "no item named|no tensor has"),
        (tensor(Storage("0", np.arange(6.0), size=10**12), 0, (10**12,)), "bytes; |count says"),
        (tensor(Storage("0", np.arange(6.0), size=5), 0, (5,)), "bytes; |count says"),
        (tensor(Storage("0", np.arange(6.0), size=-6), 0, (0,)), "bytes; |count says"),
    ],
)
def test_impossible_tensors(path: Path, form: Any, made: Call, match: str) -> None:
    refused(path, form({"w": made}, [Storage("0", np.arange(6.0))]), match)


@pytest.mark.parametrize("count", [5, 7, -1, 2**40])
def test_legacy_count_beside_a_storage(path: Path, count: int) -> None:
    storage = Storage("0", np.arange(6.0), count=count)
    refused(path, torch_format.legacy({"w": tensor(storage)}, [storage]), "its count says")


def test_legacy_storage_that_is_not_listed(path: Path) -> None:
    storage = Storage("0", np.arange(6.0))
    refused(path, torch_format.legacy({"w": tensor(storage)}, []), "'0' of tensor w is missing")


def test_memo_index_that_would_take_gigabytes(path: Path) -> None:
    code = b"Nr\xff\xff\xff\x7f"
    refused(path, torch_format.legacy(Raw(code), []), "memo index 2147483647")


@both
@pytest.mark.parametrize("pid", ["0", ("module", 1, 2), ("storage", 1, "0", "cpu", 6), ()])
def test_references_to_anything_but_storages(path: Path, form: Any, pid: Any) -> None:
    refused(path, form({"w": Persistent(pid)}, []), "which is no storage of a tensor")


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


def _zip(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "begins with b''"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "begins with b'.x89HDF"),
        (b"import torch\n", "begins with b'import t', neither a zip nor a pickle"),
        (pickle.dumps({"w": [1.0]}), "a pickle of a dict, not PyTorch's"),
        (_tar(), "neither a zip nor a pickle"),
        (_zip("weights.npy"), "a zip with 0 files data.pkl"),
        (_zip("a/data.pkl", "b/data.pkl"), "a zip with 2 files data.pkl"),
        (_zip("a/data.pkl"), r"no tensors, only \[\]"),
        (torch_format.pickled(torch_format.MAGIC) + torch_format.pickled(7), "has version 7"),
    ],
)
def test_files_of_other_kinds(path: Path, content: bytes, match: str) -> None:
    refused(path, content, match)


@both
@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([1, 2], "holds a list, not a dict of tensors"),
        (3, "holds a int"),
        ({"epoch": 3, "lr": 0.1}, r"no tensors, only \['epoch', 'lr'\]"),
        ({"state_dict": Ordered({"a": 1})}, r"no tensors, only \['a'\]"),
    ],
)
def test_pytorch_files_of_no_state_dict(path: Path, form: Any, value: Any, match: str) -> None:
    refused(path, form(value, []), match)


@both
def test_big_endian_files(path: Path, form: Any) -> None:
    storage = Storage("0", np.arange(6.0))
    content = form({"w": tensor(storage)}, [storage], little_endian=False)
    refused(path, content, "big-endian")


def test_compressed_zip(path: Path) -> None:
    storage = Storage("0", np.zeros(10**6))
    content = torch_format.zipped(
        {"w": tensor(storage)}, [storage], compression=zipfile.ZIP_DEFLATED
    )
    refused(path, content, "is compressed")


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(UserError, match=f"{path} cannot be read: "):
            read_state_dict(path)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_by_pytorch_itself(path: Path, new: bool) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = {
        "module.view": base[1].T,
        "module.parameter": torch.nn.Parameter(base[0]),
        "module.half": base.to(torch.bfloat16),
        "module.count": torch.tensor(3),
    }
    wrapped = {"epoch": 3, "state_dict": torch.nn.Module().state_dict() | state}
    torch.save(wrapped, path, _use_new_zipfile_serialization=new)
    read = read_state_dict(path)
    assert list(read) == ["view", "parameter", "half", "count"]
    for name, array in read.items():
        expected = state[f"module.{name}"].detach()
        assert str(array.dtype) == str(expected.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(np.float64), expected.double().numpy())
