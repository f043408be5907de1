"""Labels that are no classes are refused with their set and row; poor accuracy is said."""

import warnings

import numpy as np
import pytest
import tiny_network as tiny

from grood_jax import benchmarks
from grood_jax.data import ArraySet, Preprocessing, batches
from grood_jax.data.given import door
from grood_jax.evaluation.accuracy import accuracy, warn_of_chance
from grood_jax.support import checks
from grood_jax.support.errors import UserError

TOML = """
classes = 4
image_size = 2
channels = 1
mean = [0.5]
std = [0.5]
train.npz = "train.npz"
test.npz = "test.npz"
id_validation.npz = "id_validation.npz"
validation.npz = "validation.npz"
far.other.npz = "other.npz"
shifted.drawn.npz = "drawn.npz"
"""
SETS = ("train", "test", "id_validation", "validation", "other", "drawn")


@pytest.fixture
def opened(tmp_path):
    """Opens a benchmark in which one set has other labels."""

    def write(name, labels):
        images = np.zeros((12, 2, 2), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, **labels)

    def open_with(name, labels):
        for each in SETS:
            write(each, {"labels": np.arange(12) % 4})
        write(name, {} if labels is None else {"labels": labels})
        (tmp_path / "mine.toml").write_text(TOML)
        benchmark = benchmarks.get(str(tmp_path / "mine.toml"))
        return benchmarks.open_benchmark(benchmark, search=True, full_spectrum=True)

    return open_with


TITLES = {
    "train": r"mine \(train\) of npz:train.npz",
    "test": r"mine \(test\) of npz:test.npz",
    "id_validation": r"id_validation \(ID validation\) of npz:id_validation.npz",
    "drawn": "drawn of npz:drawn.npz",
}


@pytest.mark.parametrize("name", TITLES)
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, r"label -1 of row 0 is no class \(12 of 12 .*from 0 to 3; the set has no labels"),
        (np.arange(12) % 4 + 1, r"label 4 of row 3 .*\(3 of 12 .*to be counted from 1"),
        (np.arange(12) % 4 * 10, r"label 10 of row 1 is no class \(9 of 12 are none\); exp"),
        (np.where(np.arange(12) == 7, -1, 0), r"label -1 of row 7 is no class \(1 of 12"),
    ],
)
def test_labels_of_sets_in_distribution(opened, name, labels, said):
    with pytest.raises(UserError, match=f"{TITLES[name]}: {said}"):
        opened(name, labels)


@pytest.mark.parametrize("name", ["validation", "other"])
def test_labels_of_ood_sets_do_not_matter(opened, name):
    assert len(opened(name, None).test) == 12
    assert len(opened(name, np.full(12, 99)).test) == 12


def test_labels_that_are_known_when_they_are_read():
    logits = np.eye(4, dtype=np.float32)[np.arange(24) % 4]
    assert accuracy("test", logits, np.arange(24) % 4) == 1.0
    with pytest.raises(UserError, match="test: label 4 of row 3 is no class .6 of 24"):
        accuracy("test", logits, np.arange(24) % 4 + 1)


@pytest.mark.filterwarnings("error")
def test_poor_accuracy_is_said():
    logits = np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    labels = np.arange(100) % 10
    assert accuracy("the set test", logits, labels) == 1.0
    # As many as guessing finds, fewer, and as images in another range gave.
    for shift, share in ((90, 0.1), (100, 0.0), (75, 0.25)):
        wrong = np.where(np.arange(100) < shift, (labels + 1) % 10, labels)
        said = rf"right on {share:.3f} of the set test \(chance: 0.100\)"
        with pytest.warns(UserWarning, match=said):
            assert accuracy("the set test", logits, wrong) == share


@pytest.mark.parametrize(
    ("right", "count", "classes", "poor"),
    [
        *((50, 100, 2, True), (59, 100, 2, True), (61, 100, 2, False), (5, 10, 2, False)),
        *((2, 1000, 1000, True), (40, 1000, 1000, False), (30, 100, 4, True), (51, 100, 4, False)),
    ],
)
def test_what_is_poor(right, count, classes, poor):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert warn_of_chance("x", right, count, classes) is poor
    assert len(said) == poor


@pytest.mark.parametrize("label", [2**32 + 1, 2**31, -(2**31) - 1, 2**63])
@pytest.mark.usefixtures("unchecked")
def test_labels_do_not_wrap(label):
    dtype = np.uint64 if label == 2**63 else np.int64
    labels = np.array([0, label], dtype)
    with pytest.raises(ValueError, match=f"holds {label}"):
        checks.int32("labels", labels)
    images = np.zeros((2, 2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match=f"labels of toy holds {label}"):
        next(
            batches(
                ArraySet("toy", "here", images, labels),
                Preprocessing(2, 1, (0.5,), (0.5,)),
                batch_size=2,
            )
        )
    with pytest.raises(ValueError, match=f"train_batches: labels holds {label}"):
        given = [(np.zeros((2, *tiny.SHAPE), np.float32), labels)]
        opened = door(tiny.backbone()).open("train_batches", given, labels=True)
        next(iter(opened.read(None)))
