"""Evaluations of a user's own image folders, sound and damaged, by a file that describes them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grood_jax import benchmarks
from grood_jax.cli import eval, fit

TOML = """
classes = ["0", "1", "2", "3", "4", "5", "6", "7"]
image_size = 8
channels = 1
mean = [0.304]
std = [0.377]
model = "small"
train.folder = "train"
test.folder = "test"
near.digits_8_9.folder = "near"
shifted.again.folder = "test"
shifted.dim.folder = "dim"
"""
BAD = ("train/3/00010.png", "train/3/00011.png", "test/5/00003.png", "near/00002.png")


def write(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> None:
    for number, image in enumerate(images):
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{number:05}.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """The digits as files, 300 of each set, in folders for each class."""
    root = tmp_path_factory.mktemp("own")
    data = benchmarks.open_benchmark(benchmarks.get("digits"), limit=300)
    for name, images in data.titled.items():
        pixels, labels = images.read(np.arange(len(images)))
        if name in ("train", "test"):
            # Numbered within each class, as most are.
            for label in range(8):
                write(root / name / str(label), pixels[labels == label])
        elif name == "digits_8_9":
            write(root / "near", pixels)
        if name == "test":
            write(root / "dim", pixels // 2, labels)
    (root / "own.toml").write_text(TOML)
    return root


@pytest.fixture
def checkpoint(digits_checkpoint) -> str:
    return str(digits_checkpoint)


def evaluate(folder: Path, checkpoint: str, output: Path, *words: str) -> dict:
    toml = str(folder / "own.toml")
    command = ["--dataset", toml, "--checkpoint", checkpoint, "--output-dir", str(output), *words]
    assert eval.main(command) == 0
    return json.loads((output / "results.json").read_text())


def rows(found: dict) -> dict:
    return {name: detector["datasets"] for name, detector in found["detectors"].items()}


@pytest.mark.slow
def test_the_same_images_give_the_same_figures(folders, checkpoint, tmp_path, monkeypatch):
    detectors = ("--detectors", "msp", "grood:ood_prototype=prototype-mean")
    own = evaluate(folders, checkpoint, tmp_path / "own", *detectors)
    assert own["benchmark"] == "own"
    assert own["data"]["digits_8_9"]["source"] == "folder:near"
    assert {name: facts["n"] for name, facts in own["data"].items()} == dict.fromkeys(
        ["train", "test", "digits_8_9"], 300
    )
    built_in = ["--limit", "300", "--checkpoint", checkpoint, "--output-dir", str(tmp_path)]
    assert eval.main([*detectors, *built_in]) == 0
    expected = json.loads((tmp_path / "results.json").read_text())
    assert own["id_accuracy"] == expected["id_accuracy"]
    for name, datasets in rows(own).items():
        for metric in ("auroc", "fpr95"):
            value = expected["detectors"][name]["datasets"]["digits_8_9"][metric]
            # Sums run in another order.
            assert abs(datasets["digits_8_9"][metric] - value) < 1e-4


@pytest.fixture(scope="module")
def damaged(folders, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("damaged") / "set"
    shutil.copytree(folders, root)
    for name in BAD:
        path = root / name
        path.write_bytes(path.read_bytes()[:50])
    return root


def test_a_damaged_image_ends_the_run_with_its_path(damaged, checkpoint, tmp_path, capsys):
    command = ["--dataset", str(damaged / "own.toml"), "--checkpoint", checkpoint]
    assert eval.main([*command, "--output-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: own: {damaged / BAD[0]} cannot be read: ")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_damaged_images_are_left_out_if_asked(damaged, folders, checkpoint, tmp_path, capsys):
    """As if they had never been there, in all passes, with and without remembered outputs."""
    sound = tmp_path / "sound"
    shutil.copytree(folders, sound)
    for name in BAD:
        (sound / name).unlink()
    detectors = ("--detectors", "grood", "grood:interpolate=true,sampling_ratio=0.5")
    expected = evaluate(sound, checkpoint, tmp_path / "a", *detectors)
    skip = ("--skip-bad-images", "--batch-size", "64", "--cache-dir", str(tmp_path / "cache"))
    first = evaluate(damaged, checkpoint, tmp_path / "b", *detectors[:2], *skip)
    said = capsys.readouterr().err
    assert "left out 2 unreadable images of own of folder:train: " in said
    assert str(damaged / "test/5/00003.png") in said
    # The pass over the training set is remembered; of what is mixed anew, rows must not shift.
    second = evaluate(damaged, checkpoint, tmp_path / "c", *detectors, *skip)
    assert {name: facts["unreadable"] for name, facts in second["data"].items()} == {
        "train": 2,
        "test": 1,
        "digits_8_9": 1,
    }
    assert second["detectors"]["grood"]["datasets"]["digits_8_9"]["n"] == 299
    for found, name in ((first, "grood"), (second, "grood"), (second, detectors[2])):
        for metric, value in rows(expected)[name]["digits_8_9"].items():
            if isinstance(value, float):
                assert abs(rows(found)[name]["digits_8_9"][metric] - value) < 1e-6
            else:
                assert rows(found)[name]["digits_8_9"][metric] == value


@pytest.mark.slow
def test_the_full_spectrum_counts_shifted_images_as_id(folders, checkpoint, tmp_path):
    few = ("--detectors", "msp", "--batch-size", "100")
    plain = evaluate(folders, checkpoint, tmp_path, *few)
    toml = (folders / "own.toml").read_text()
    (folders / "again.toml").write_text(toml.replace('shifted.dim.folder = "dim"\n', ""))
    command = ["--dataset", str(folders / "again.toml"), "--full-spectrum", *few]
    assert eval.main([*command, "--checkpoint", checkpoint, "--output-dir", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["shifted_accuracy"] == {"again": plain["id_accuracy"]}
    for metric in ("auroc", "fpr95"):
        # Every ID image twice: the same ranks.
        first, second = (rows(found)["msp"]["digits_8_9"][metric] for found in (plain, again))
        assert abs(first - second) < 1e-9
    both = evaluate(folders, checkpoint, tmp_path, *few, "--full-spectrum")
    assert list(both["shifted_accuracy"]) == ["again", "dim"]
    assert both["full_spectrum"] and not plain["full_spectrum"]
    assert rows(both)["msp"]["digits_8_9"]["auroc"] < rows(plain)["msp"]["digits_8_9"]["auroc"]


@pytest.mark.slow
def test_a_share_of_the_training_images(folders, checkpoint, tmp_path):
    found = evaluate(
        folders, checkpoint, tmp_path, "--detectors", "knn:k=1", "--train-share", "0.5"
    )
    assert (found["train_share"], found["data"]["train"]["n"]) == (0.5, 150)
    assert found["data"]["test"]["n"] == 300


def test_the_other_commands_take_the_file_too(folders, checkpoint, tmp_path, capsys):
    words = ["--dataset", str(folders / "own.toml"), "--checkpoint", checkpoint]
    assert fit.main([*words, "--detector", "msp", "--output-dir", str(tmp_path / "out")]) == 0
    assert "of 150 other test images" in capsys.readouterr().err


def test_a_network_that_there_is_not(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert eval.main(["--dataset", str(folders / "own.toml")]) == 1
    said = capsys.readouterr().err
    assert "there is no checkpoint in checkpoints/own-small-seed0; train one with" in said
    assert f"--dataset {folders / 'own.toml'} --model small" in said
