"""Benchmarks of a user's own, in a TOML or Python file, down to each thing wrong with one."""

from dataclasses import replace
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
        (("far.noise", "far.test"), "far holds a set called 'test'; expected another name"),
        (("near.cows", "near.train"), "near holds a set called 'train'"),
        (("shifted.drawn", "shifted.validation"), "shifted holds a set called 'validation'"),
        (("shifted.drawn", "shifted.id_validation"), "a set called 'id_validation'"),
        (("far.noise", 'far.""'), "far holds a set called ''"),
        (("far.noise", "far.cows"), "far holds a set called 'cows', as near does"),
        (("shifted.drawn", "shifted.noise"), "shifted holds a set called 'noise', as far does"),
    ],
)
def test_toml_that_is_none(tmp_path, change, complaint):
    path = written(tmp_path, TOML.replace(*change))
    with pytest.raises(UserError, match=complaint):
        benchmarks.get(path)


@pytest.mark.parametrize("name", ["test", "train", "validation", "id_validation", "", "made"])
def test_names_that_lose_a_set(tmp_path, name):
    group = 'near=(SetSpec("made", partial(made, "made", 3)),)'
    text = PYTHON.replace("near=()", group).replace('SetSpec("other"', f'SetSpec("{name}"')
    with pytest.raises(UserError, match=f"ValueError: far holds a set called '{name}'"):
        benchmarks.get(written(tmp_path, text, "made.py"))


def test_a_benchmark_opened_by_hand(tmp_path):
    found = benchmarks.open_benchmark(benchmarks.get(written(tmp_path, PYTHON, "made.py")))
    for changes in (
        {"ood": {"test": ("far", found.train)}},
        {"shifted": {"other": found.train}},
        {"shifted": {"train": found.train}},
    ):
        with pytest.raises(ValueError, match="holds a set called"):
            replace(found, **changes)


def test_labels_come_from_where_a_set_stands(tmp_path):
    text = TOML.replace("shifted.drawn", "shifted.near").replace("near.cows", "near.shifted")
    found = benchmarks.get(
        written(tmp_path, text.replace('tfds = "cows/small:test"', 'folder="c"'))
    )
    assert found.shifted[0].sources == (FolderSource("drawn", ("dog", "cat")),)
    assert found.near[0].sources == (FolderSource("c"),)


def test_a_shifted_folder_of_classes_without_names(tmp_path):
    text = TOML.replace('classes = ["dog", "cat"]', "classes = 2").replace('folder = "train"', "")
    with pytest.raises(UserError, match="drawn is a folder, and classes is a number"):
        benchmarks.get(written(tmp_path, text))


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
