"""Outputs on disk are used when they are right, and made anew when they are not."""

import numpy as np
import pytest

from grood_jax.passes.memo import Form
from grood_jax.storage.cache import OutputsCache

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


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def changed(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["features"] = arrays["features"] + 1
    np.savez(path, **arrays)


def another(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["about"] = np.array("something else")
    np.savez(path, **arrays)


def without_checksum(path):
    with np.load(path) as file:
        arrays = {name: array for name, array in file.items() if name != "fingerprint"}
    np.savez(path, **arrays)


@pytest.mark.parametrize("spoil", [cut_short, emptied, changed, another, without_checksum])
def test_a_spoilt_file_is_made_anew_and_said_so(memo, said, tmp_path, spoil):
    memo(ABOUT, form("features"), made())
    spoil(only(tmp_path))
    make = made()
    found = memo(ABOUT, form("features"), make)
    assert make.count == 1
    np.testing.assert_array_equal(found["features"], make.arrays["features"])
    (line,) = said
    assert str(only(tmp_path)) in line and "made anew" in line
    memo(ABOUT, form("features"), make)
    assert make.count == 1


def test_a_file_that_cannot_be_written_loses_nothing(tmp_path, said):
    memo = OutputsCache(tmp_path / "nowhere", {}, said.append)
    make = made()
    found = memo(ABOUT, form("features"), make)
    np.testing.assert_array_equal(found["features"], make.arrays["features"])
    assert "could not be written" in said[0]
