"""Outputs on disk are used when they are right, and made anew when they are not."""

import io
import json
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from damaged_files import changed, cut_short, emptied

from grood_jax.conformal.drift import DriftMonitor
from grood_jax.passes.memo import Form
from grood_jax.storage.cache import OutputsCache
from grood_jax.support import manifest as manifests
from grood_jax.support import npz

ABOUT = {"set": "mnist", "n": 3}


class Making:
    """Counts how often arrays are made."""

    def __init__(self, **arrays):
        self.arrays, self.count = arrays, 0

    def __call__(self):
        self.count += 1
        return dict(self.arrays)


def form(*names):
    """Results that are arrays by name already."""
    return Form(names, dict, dict)


def made():
    return Making(features=np.arange(6, dtype=np.float32).reshape(3, 2), labels=np.arange(3))


@pytest.fixture
def said():
    return []


@pytest.fixture
def memo(tmp_path, said):
    return OutputsCache(tmp_path, {"model": "abc"}, said.append)


def only(folder):
    (path,) = folder.iterdir()
    return path


def test_arrays_are_made_once(memo, said, tmp_path):
    make = made()
    first = memo(ABOUT, form("features", "labels"), make)
    again = OutputsCache(tmp_path, {"model": "abc"}, said.append)(ABOUT, form("features"), make)
    assert make.count == 1 and said == []
    for name, array in make.arrays.items():
        for found in (first, again):
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("shared", "about"), [({"model": "abd"}, ABOUT), ({"model": "abc"}, ABOUT | {"n": 4})]
)
def test_what_differs_is_made_anew(memo, said, tmp_path, shared, about):
    memo(ABOUT, form("features"), made())
    make = made()
    OutputsCache(tmp_path, shared, said.append)(about, form("features"), make)
    assert make.count == 1 and len(list(tmp_path.iterdir())) == 2


def test_arrays_that_are_missing_join_those_that_are_there(memo):
    memo(ABOUT, form("features"), made())
    make = Making(**{"grams 0": np.ones(2), "grams 1": np.zeros(2)})
    memo(ABOUT, form("features", "grams"), make)
    held = memo(ABOUT, form("grams", "labels"), make)
    assert make.count == 1 and set(held) == {"features", "labels", "grams 0", "grams 1"}


def another(path):
    with np.load(path) as file:
        arrays = dict(file)
    manifest = json.loads(str(arrays["manifest"]))
    manifest["about"] = {"set": "another"}
    manifest["checksum"] = manifests.checksum_of(manifest)
    arrays["manifest"] = np.array(json.dumps(manifest))
    np.savez(path, **arrays)


def of_another_kind(path):
    DriftMonitor.start(9).save(path)


def without_manifest(path):
    with np.load(path) as file:
        arrays = {name: array for name, array in file.items() if name != "manifest"}
    np.savez(path, **arrays)


def with_promises(path):
    """An array whose header promises more than there is."""
    member = io.BytesIO()
    promised = {"descr": "<f4", "fortran_order": False, "shape": (2**50,)}
    np.lib.format.write_array_header_1_0(member, promised)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", member.getvalue())


def a_bomb(path):
    np.savez_compressed(path, features=np.zeros(100_000, np.uint8))


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        *(cut_short, emptied, changed, another, of_another_kind, without_manifest, with_promises),
        *(a_bomb, a_pipe),
    ],
)
def test_a_spoilt_file_is_made_anew_and_said_so(memo, said, tmp_path, spoil, monkeypatch):
    monkeypatch.setattr(npz, "MAX_UNPACKED", 10_000)
    memo(ABOUT, form("features"), made())
    spoil(only(tmp_path))
    make = made()
    found = memo(ABOUT, form("features"), make)
    assert make.count == 1
    np.testing.assert_array_equal(found["features"], make.arrays["features"])
    (line,) = said
    assert str(only(tmp_path)) in line and "made anew" in line
    assert ("unpacks to 100128 bytes" in line) == (spoil is a_bomb)
    memo(ABOUT, form("features"), make)
    assert make.count == 1


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path, said):
    memo = OutputsCache(tmp_path / "nowhere", {}, said.append)
    make = made()
    found = memo(ABOUT, form("features"), make)
    np.testing.assert_array_equal(found["features"], make.arrays["features"])
    assert "could not be written" in said[0]


def test_a_file_of_0_1_0_is_made_anew(memo, said, tmp_path):
    memo(ABOUT, form("features"), made())
    np.savez(only(tmp_path), about="{}", fingerprint="0", **made().arrays)
    make = made()
    memo(ABOUT, form("features"), make)
    assert make.count == 1
    assert said == [f"cache: {only(tmp_path)} was written by an earlier version; it is made anew"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e4m3fn, np.float64, np.bool_])
def test_arrays_keep_their_dtype(memo, said, dtype):
    arrays = {"features": np.arange(6).reshape(2, 3).astype(dtype), "none": np.zeros((0, 2), dtype)}
    memo(ABOUT, form(*arrays), Making(**arrays))
    remembered = memo(ABOUT, form(*arrays), Making())
    assert said == []
    for name, array in arrays.items():
        assert remembered[name].dtype == array.dtype
        np.testing.assert_array_equal(remembered[name], array)
