"""The command line of training."""

import re

import pytest

from grood_jax.cli import train
from grood_jax.storage import checkpoints
from grood_jax.training import loop as training


def test_a_run_from_the_command_line(tmp_path, capsys):
    words = ["--output-dir", str(tmp_path), "--epochs", "1", "--limit", "128"]
    assert train.main(words) == 0
    said = capsys.readouterr().err
    assert "epoch 1 of 1: loss" in said
    assert re.search(r"test accuracy 0\.\d{4} \(128 images\), checkpoint in", said)
    loaded = checkpoints.load_model(tmp_path)
    assert loaded.spec.model == "small"
    assert loaded.record["options"]["epochs"] == 1
    assert loaded.record["options"]["schedule"] == training.recipe("digits").schedule
    assert train.main(words) == 0
    assert "epoch 1" not in capsys.readouterr().err


def test_help_shows_the_recipe_of_the_data_set(capsys):
    for dataset in ("digits", "cifar10"):
        with pytest.raises(SystemExit) as stop:
            train.main(["--dataset", dataset, "--help"])
        assert stop.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"(default: {training.recipe(dataset).epochs})" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "cifar11"], "cifar11"),
        (["--model", "resnet21"], "resnet21"),
        (["--epochs", "0"], "epochs is 0; expected at least 1"),
        (["--schedule", "linear"], "linear"),
        (["--learning-rate", "-1"], "learning_rate is -1.0"),
        (["--limit", "0"], "limit is 0; expected at least 1"),
    ],
)
def test_bad_usage(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_missing_training_images(tmp_path, capsys):
    assert train.main(["--dataset", "cifar10", "--data-dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cifar10 (train)" in line and str(tmp_path) in line


def test_the_output_directory_of_another_run(tmp_path, capsys):
    words = ["--output-dir", str(tmp_path), "--limit", "128", "--epochs"]
    assert train.main([*words, "1"]) == 0
    assert train.main([*words, "2"]) == 1
    assert "trained with epochs 1 (now 2)" in capsys.readouterr().err
