"""The network that comes with the package."""

import json
import shutil
from importlib import resources

import jax
import numpy as np
import pytest

from grood_jax import benchmarks
from grood_jax.storage import checkpoints, included
from grood_jax.support.errors import UserError
from grood_jax.training import loop as training

WEIGHTS = resources.files("grood_jax") / "models" / "weights"


def test_it_is_what_it_says():
    about = json.loads((WEIGHTS / "digits_small.json").read_text())
    loaded, benchmark = included.digits(), benchmarks.get("digits")
    assert loaded.fingerprint == about["fingerprint"]
    assert loaded.spec.preprocessing == benchmark.preprocessing
    assert loaded.spec.num_classes == benchmark.num_classes
    assert {leaf.dtype for leaf in jax.tree.leaves(checkpoints.arrays_of(loaded.model))} == {
        np.dtype(np.float32)
    }
    options = training.recipe("digits")
    assert (loaded.step, loaded.record["options"]["seed"]) == (options.epochs, 0)
    assert {name: getattr(options, name) for name in loaded.record["options"]} == dict(
        loaded.record["options"]
    )
    test = benchmarks.open_benchmark(benchmark, ood=False).test
    share = training.accuracy(loaded.model, test, benchmark.preprocessing)
    # Another processor may turn an image that lies between two classes.
    assert abs(share - about["test_accuracy"]) < 1.5 / len(test)


def test_it_is_small():
    sizes = [path.stat().st_size for path in WEIGHTS.iterdir()]
    assert len(sizes) == 2 and sum(sizes) < 200_000


@pytest.mark.parametrize(
    "asked", [("digits", "small", 1), ("digits", "resnet20", 0), ("fashion_mnist", "small", 0)]
)
def test_no_other_network_is_there(asked):
    assert included.find(*asked) is None


def test_what_is_written_is_read(tmp_path):
    first = included.digits()
    included.write(tmp_path, first, {"command": "none"})
    again = included.read(tmp_path)
    assert (again.fingerprint, again.record, again.step) == (
        first.fingerprint,
        first.record,
        first.step,
    )
    assert json.loads((tmp_path / "digits_small.json").read_text())["command"] == "none"


@pytest.mark.parametrize("damage", ["gone", "cut", "bits", "words"])
def test_damage_is_noticed(tmp_path, damage):
    for path in WEIGHTS.iterdir():
        shutil.copy(path, tmp_path)
    file = tmp_path / "digits_small.npz"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:-500])
    elif damage == "bits":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        about = tmp_path / "digits_small.json"
        about.write_text(about.read_text().replace('"fingerprint": "4', '"fingerprint": "5'))
    with pytest.raises(UserError, match="the network of the digits in .* is damaged"):
        included.read(tmp_path)
