"""Benchmarks of a user's own, in a TOML or Python file, down to each thing wrong with one."""

from pathlib import Path

import numpy as np
import pytest

from grood_jax import benchmarks
from grood_jax.data.folders import FolderSource, ImageListSource
from grood_jax.data.npz import NpzSource
from grood_jax.data.tfds import TfdsSource
from grood_jax.support.errors import UserError

TOML = """
name = "pets"
classes = ["dog", "cat"]
image_size = 8
resize = 9
interpolation = "bicubic"
channels = 1
mean = [0.5]
std = [0.25]
model = "small"

[train]
folder = "train"
npz = "train.npz"

[test]
imglist = "lists/test.txt"
images = "images"

[validation]
folder = "held out"

[near.cows]
tfds = "cows/small:test"

[far.noise]
npz = "noise.npz"

[shifted.drawn]
folder = "drawn"
"""

PYTHON = """
from functools import partial

import numpy as np

from grood_jax.benchmarks import Benchmark
from grood_jax.data import ArraySet, Preprocessing
from grood_jax.data.finding import SetSpec


def made(name, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    return ArraySet(name, "made", pixels, (np.arange(20) % 2).astype(np.int32))


benchmark = Benchmark(
    name="made",
    num_classes=2,
    preprocessing=Preprocessing(4, 1, (0.5,), (0.5,)),
    train=SetSpec("made", partial(made, "made", 0)),
    test=SetSpec("made", partial(made, "made", 1)),
    near=(),
    far=(SetSpec("other", partial(made, "other", 2)),),
    validation=None,
    model="small",
)
"""


def written(tmp_path: Path, text: str, name: str = "mine.toml") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_toml(tmp_path):
    found = benchmarks.get(written(tmp_path, TOML))
    assert (found.name, found.num_classes, found.class_names) == ("pets", 2, ("dog", "cat"))
    pre = found.preprocessing
    assert (pre.image_size, pre.resize, pre.interpolation, pre.channels) == (8, 9, "bicubic", 1)
    assert (pre.mean, pre.std, found.model) == ((0.5,), (0.25,), "small")
    assert found.data_dir == tmp_path
    assert found.train.sources == (FolderSource("train", ("dog", "cat")), NpzSource("train.npz"))
    assert found.test.sources == (ImageListSource("lists/test.txt", "images"),)
    assert found.validation is not None
    assert found.validation.sources == (FolderSource("held out"),)
    assert [spec.name for spec in (*found.near, *found.far)] == ["cows", "noise"]
    assert found.near[0].sources == (TfdsSource("cows/small", "test", in_catalogue=False),)
    assert found.far[0].sources == (NpzSource("noise.npz"),)
    assert found.shifted[0].sources == (FolderSource("drawn", ("dog", "cat")),)
    assert found.id_validation is None


def test_defaults_and_the_folder_of_the_file(tmp_path):
    text = """
    classes = 3
    image_size = 4
    mean = [0.5, 0.5, 0.5]
    std = [1, 1, 1]
    train.npz = "a.npz"
    test.npz = "b.npz"
    far.c.npz = "c.npz"
    """
    for number, name in enumerate("abc"):
        np.savez(
            tmp_path / f"{name}.npz",
            images=np.full((6, 4, 4, 3), number, np.uint8),
            labels=np.arange(6) % 3,
        )
    benchmark = benchmarks.get(written(tmp_path, text, "three colours.toml"))
    assert (benchmark.name, benchmark.model) == ("three colours", "resnet18_32x32")
    data = benchmarks.open_benchmark(benchmark)
    assert {n: int(s.read(np.arange(1))[0].max()) for n, s in data.titled.items()} == {
        "train": 0,
        "test": 1,
        "c": 2,
    }
    with pytest.raises(UserError, match="three colours .train. is missing .looked for a.npz in"):
        benchmarks.open_benchmark(benchmark, data_dir=tmp_path / "elsewhere")


def test_python(tmp_path):
    data = benchmarks.open_benchmark(benchmarks.get(written(tmp_path, PYTHON, "made.py")))
    assert {name: len(images) for name, images in data.titled.items()} == {
        "train": 20,
        "test": 20,
        "other": 20,
    }


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("name =", "nmae ="), "key is 'nmae'; .*did you mean 'name'"),
        (('classes = ["dog", "cat"]', ""), "classes is missing"),
        (('classes = ["dog", "cat"]', "classes = 2"), "train is a folder, and classes is a number"),
        (('["dog", "cat"]', '["dog", "dog"]'), "expected different names"),
        (("image_size = 8", "image_size = 0"), "image_size is 0"),
        (("mean = [0.5]", "mean = 0.5"), "describes no benchmark"),
        (("mean = [0.5]", "mean = [0.5, 0.5]"), "mean is .*; expected 1 finite numbers"),
        (('"small"', '"smal"'), "model is 'smal'; .*did you mean 'small'"),
        (('folder = "drawn"', 'fodler = "drawn"'), "drawn has the keys fodler; expected folder"),
        (('tfds = "cows/small:test"', ""), "cows has the keys none"),
        (("small:test", "small"), "cows.tfds is 'cows/small'; expected 'NAME:SPLIT'"),
        (("[near.cows]", "[[near]]"), "near is .*; expected a table"),
        (("[train]", "[train"), "describes no benchmark: "),
    ],
)
def test_toml_that_is_none(tmp_path, change, complaint):
    path = written(tmp_path, TOML.replace(*change))
    with pytest.raises(UserError, match=complaint):
        benchmarks.get(path)


def test_no_ood_set(tmp_path):
    text = TOML[: TOML.index("[near.cows]")]
    with pytest.raises(UserError, match="near and far hold no set; expected one at least"):
        benchmarks.get(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "TypeError: benchmark is nothing; expected a grood_jax.benchmarks.Benchmark"),
        ("benchmark = 3", "TypeError: benchmark is a int"),
        ("benchmark = (", "SyntaxError: "),
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
    ],
)
def test_python_that_is_none(tmp_path, text, complaint):
    with pytest.raises(UserError, match=f"mine.py describes no benchmark: {complaint}"):
        benchmarks.get(written(tmp_path, text, "mine.py"))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        benchmarks.get(str(tmp_path / "absent.toml"))
