"""State dicts into networks: every array in its place, every misfit named, and the command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_reference
from flax import nnx
from torch_writer import write_state

from grood_jax import checkpoints
from grood_jax.errors import UserError
from grood_jax.models import import_torch
from grood_jax.models.import_torch import ImportConfig, import_state_dict, main, run

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@pytest.fixture(scope="module")
def resnet20_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "resnet20.th"
    return write_state(path, torch_reference.random_state("resnet20"))


@pytest.mark.parametrize("name", torch_reference.DEPTHS)
def test_every_array_goes_to_its_place(name: str) -> None:
    state = torch_reference.random_state(name, classes=7, channels=1)
    model = import_state_dict(state, name)
    blocks = {
        f"layer{layer}.{index}": block
        for layer in range(1, 5)
        for index, block in enumerate(getattr(model, f"layer{layer}", nnx.Sequential()).layers)
    }
    convs = {"conv1": model.stem.conv}
    norms = {"bn1": model.stem.norm}
    for prefix, block in blocks.items():
        convs |= {f"{prefix}.conv1": block.conv1, f"{prefix}.conv2": block.conv2}
        norms |= {f"{prefix}.bn1": block.norm1, f"{prefix}.bn2": block.norm2}
        if f"{prefix}.shortcut.0.weight" in state:
            convs[f"{prefix}.shortcut.0"] = block.shortcut.conv
            norms[f"{prefix}.shortcut.1"] = block.shortcut.norm
    for key, conv in convs.items():
        weight = state[f"{key}.weight"]
        outputs, inputs, height, width = weight.shape
        o, i, h, w = outputs - 1, inputs // 2, 0, width - 1
        assert conv.kernel.shape == (height, width, inputs, outputs)
        assert conv.kernel[h, w, i, o] == weight[o, i, h, w], key
        assert conv.bias is None
    for key, norm in norms.items():
        np.testing.assert_array_equal(norm.scale[...], state[f"{key}.weight"])
        np.testing.assert_array_equal(norm.bias[...], state[f"{key}.bias"])
        np.testing.assert_array_equal(norm.mean[...], state[f"{key}.running_mean"])
        np.testing.assert_array_equal(norm.var[...], state[f"{key}.running_var"])
    head = "fc" if name == "resnet18_32x32" else "linear"
    np.testing.assert_array_equal(model.head.kernel[...], state[f"{head}.weight"].T)
    np.testing.assert_array_equal(model.head.bias[...], state[f"{head}.bias"])
    # Nothing of the state dict but the batch counters was left out.
    used = len(convs) + 4 * len(norms) + 2
    assert used == sum(not key.endswith("num_batches_tracked") for key in state)


def test_precisions_become_float32_and_the_counters_may_be_missing() -> None:
    state = {
        key: array.astype(np.float64)
        for key, array in torch_reference.random_state("resnet20").items()
        if not key.endswith("num_batches_tracked")
    }
    model = import_state_dict(state, "resnet20")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {np.dtype(np.float32)}


def test_the_network_keeps_its_own_arrays() -> None:
    state = torch_reference.random_state("resnet20")
    model = import_state_dict(state, "resnet20")
    before = np.array(model.stem.norm.mean[...])
    state["bn1.running_mean"] += 1
    np.testing.assert_array_equal(model.stem.norm.mean[...], before)


def test_all_that_does_not_fit_is_said_at_once() -> None:
    state = torch_reference.random_state("resnet20")
    del state["layer1.0.conv1.weight"], state["linear.bias"]
    state["layer2.0.shortcut.0.weight"] = np.zeros((32, 16, 1, 1), np.float32)
    state["num_batches_tracked"] = np.zeros(())
    state["bn1.weight"] = np.ones(17, np.float32)
    # Transposed sizes that happen to have as many elements.
    state["layer2.0.conv1.weight"] = np.ones((16, 32, 3, 3), np.float32)
    state["layer3.2.conv2.weight"] = np.ones((64, 64, 3, 3), np.int8)
    state["layer3.2.bn2.running_var"] = np.full(64, np.nan, np.float32)
    with pytest.raises(UserError) as caught:
        import_state_dict(state, "resnet20")
    assert str(caught.value) == (
        "the state dict does not fit model resnet20; "
        "missing: layer1.0.conv1.weight, linear.bias; "
        "unexpected: layer2.0.shortcut.0.weight, num_batches_tracked; "
        "bn1.weight has shape (17,), expected (16,); "
        "layer2.0.conv1.weight has shape (16, 32, 3, 3), expected (32, 16, 3, 3); "
        "layer3.2.bn2.running_var holds NaN or infinite values; "
        "layer3.2.conv2.weight has dtype int8, expected floating-point numbers"
    )


def test_sizes_that_cannot_be_read_from_the_shapes() -> None:
    state = torch_reference.random_state("resnet20")
    state["linear.weight"] = np.zeros(64, np.float32)
    del state["conv1.weight"]
    with pytest.raises(UserError, match=r"missing: conv1.weight; linear.weight has shape \(64,\)"):
        import_state_dict(state, "resnet20")


def test_the_wrong_depth_and_the_other_layout() -> None:
    state = torch_reference.random_state("resnet20")
    with pytest.raises(UserError, match="missing: .*layer3.4.bn2.running_var"):
        import_state_dict(state, "resnet32")
    with pytest.raises(UserError, match="missing: .*fc.weight.*unexpected: .*linear.weight"):
        import_state_dict(state, "resnet18_32x32")
    with pytest.raises(UserError, match="missing: .*; unexpected: w"):
        import_state_dict({"w": np.zeros(3)}, "resnet20")


@pytest.mark.parametrize("name", ["small", "resnet50", ""])
def test_networks_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(ValueError, match=f"model is '{name}'; expected one of resnet18_32x32, "):
        import_state_dict({}, name)


def test_command_writes_a_checkpoint(resnet20_file: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "new" / "resnet20"
    argv = [str(resnet20_file), "--model", "resnet20", "--output", str(output)]
    assert main(argv) == 0
    assert "resnet20 of 269,722 parameters, 10 classes" in capsys.readouterr().out
    loaded = checkpoints.load_model(output, expected_model="resnet20")
    assert (loaded.spec.model, loaded.spec.num_classes) == ("resnet20", 10)
    assert "resnet20.th" in loaded.spec.source
    preprocessing = loaded.spec.preprocessing
    assert (preprocessing.image_size, preprocessing.channels) == (32, 3)
    assert (preprocessing.mean, preprocessing.std) == IMAGENET
    expected = import_state_dict(torch_reference.random_state("resnet20"), "resnet20")
    assert loaded.fingerprint == checkpoints.fingerprint(expected)

    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {output} holds a checkpoint already; choose another directory\n"


def test_normalisation_of_resnet18(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = torch_reference.random_state("resnet18_32x32")
    specs = []
    monkeypatch.setattr(import_torch, "read_state_dict", lambda path: state)
    monkeypatch.setattr(checkpoints, "save_model", lambda *saved: specs.append(saved))
    run(ImportConfig(Path("r18.ckpt"), "resnet18_32x32", tmp_path))
    ((directory, model, spec),) = specs
    assert directory == tmp_path and model.head.out_features == spec.num_classes == 10
    assert (spec.preprocessing.mean, spec.preprocessing.std) == CIFAR10


def test_normalisation_by_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grey = write_state(tmp_path / "grey.pt", torch_reference.random_state("resnet20", channels=1))
    specs = []
    monkeypatch.setattr(checkpoints, "save_model", lambda *saved: specs.append(saved[2]))
    options = ["--model", "resnet20", "--output", str(tmp_path)]
    assert main([str(grey), *options, "--mean", "0.5", "--std", "0.25"]) == 0
    assert (specs[0].preprocessing.mean, specs[0].preprocessing.std) == ((0.5,), (0.25,))
    assert specs[0].preprocessing.channels == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "0.5"], "--mean has 1 numbers; expected 3, one for each channel"),
        (["--std", "0.5", "0.5"], "--std has 2 numbers; expected 3, one for each channel"),
        (["--std", "0.5", "0", "0.5"], r"--std is \(0.5, 0.0, 0.5\); expected numbers above 0"),
        (["--mean", "0", "nan", "0"], r"--mean is \(0.0, nan, 0.0\); expected finite numbers"),
        (["--model", "resnet32"], "resnet20.th: the state dict does not fit model resnet32; mis"),
    ],
)
def test_command_refuses_in_one_line(
    resnet20_file: Path, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    output = tmp_path / "out"
    argv = [str(resnet20_file), "--model", "resnet20", "--output", str(output), *options]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not captured.out and not output.exists()


@pytest.mark.parametrize(
    "channels, options, message",
    [
        (1, [], "--mean has 3 numbers by default; expected 1"),
        (4, ["--mean", *"0000", "--std", *"1111"], "takes 4 channels; expected 1 or 3"),
    ],
)
def test_channels_without_a_normalisation(
    tmp_path: Path, capsys, channels: int, options: list[str], message: str
) -> None:
    state = torch_reference.random_state("resnet20", channels=channels)
    path = write_state(tmp_path / "odd.pt", state)
    argv = [str(path), "--model", "resnet20", "--output", str(tmp_path / "out"), *options]
    assert main(argv) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["a.pt", "--model", "resnet20"],
        ["a.pt", "--model", "small", "--output", "out"],
        ["a.pt", "--model", "resnet20", "--output", "out", "--mean", "red"],
    ],
)
def test_bad_usage(capsys, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_as_a_program_without_pytorch(resnet20_file: Path, tmp_path: Path) -> None:
    # PyTorch may be installed where the tests run: here it cannot be imported.
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "grood_jax.models.import_torch", str(resnet20_file)]
    done = subprocess.run(
        [*command, "--model", "resnet20", "--output", str(output)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert checkpoints.latest_step(output) is not None
