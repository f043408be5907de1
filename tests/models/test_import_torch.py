"""State dicts into networks: every array in its place, every misfit named, and the command."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
import test_safetensors_files
import torch_reference
from flax import nnx
from torch_writer import write_state

from grood_jax import models
from grood_jax.cli import import_torch
from grood_jax.models.import_torch import ImportConfig, main, run
from grood_jax.models.torch import files, importing
from grood_jax.models.torch.importing import import_state_dict
from grood_jax.models.vit import ViT
from grood_jax.storage import checkpoints
from grood_jax.support.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@pytest.fixture(scope="module")
def resnet20_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torch") / "resnet20.th"
    return write_state(path, torch_reference.random_state("resnet20"))


@pytest.mark.slow
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
    said, _, otherwise = str(caught.value).partition("; if it is of another architecture: ")
    assert "docs/how-to/outputs.md" in otherwise
    assert said == (
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


@pytest.mark.parametrize("name", ["small", "resnet101", ""])
def test_networks_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(ValueError, match=f"model is '{name}'; expected one of resnet18_32x32, "):
        import_state_dict({}, name)


def named(name: str, image_size: int = 224, channels: int = 3) -> dict[str, np.ndarray]:
    """A state dict of ones."""
    model = nnx.eval_shape(
        lambda: models.create(
            name, num_classes=5, channels=channels, image_size=image_size, rngs=nnx.Rngs(0)
        )
    )
    shapes = importing.torch_shapes(model, name)
    return {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}


# One of each kind of module, as PyTorch's state dicts have them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18_64x64", {"layer2.0.shortcut.0.weight": (128, 64, 1, 1), "fc.bias": (5,)}),
        ("resnet18_224x224", {"conv1.weight": (64, 3, 7, 7), "layer4.0.downsample.1.bias": (512,)}),
        ("resnet34", {"layer3.5.bn2.running_var": (256,), "fc.weight": (5, 512)}),
        (
            "resnet50",
            {
                "layer1.0.conv1.weight": (64, 64, 1, 1),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer4.2.conv3.weight": (2048, 512, 1, 1),
                "layer4.2.bn3.running_mean": (2048,),
            },
        ),
        (
            "vit_b_16",
            {
                "class_token": (1, 1, 768),
                "conv_proj.weight": (768, 3, 16, 16),
                "encoder.pos_embedding": (1, 197, 768),
                "encoder.layers.encoder_layer_11.self_attention.in_proj_weight": (2304, 768),
                "encoder.layers.encoder_layer_11.self_attention.in_proj_bias": (2304,),
                "encoder.layers.encoder_layer_0.self_attention.out_proj.weight": (768, 768),
                "encoder.layers.encoder_layer_0.ln_2.bias": (768,),
                "encoder.layers.encoder_layer_0.mlp.0.weight": (3072, 768),
                "encoder.layers.encoder_layer_0.mlp.3.weight": (768, 3072),
                "encoder.ln.weight": (768,),
                "heads.head.weight": (5, 768),
            },
        ),
        (
            "swin_t",
            {
                "features.0.0.weight": (96, 3, 4, 4),
                "features.0.2.weight": (96,),
                "features.1.1.attn.relative_position_bias_table": (169, 3),
                "features.2.norm.weight": (384,),
                "features.2.reduction.weight": (192, 384),
                "features.5.5.attn.qkv.weight": (1152, 384),
                "features.7.1.mlp.3.weight": (768, 3072),
                "norm.bias": (768,),
                "head.weight": (5, 768),
            },
        ),
        (
            "regnet_y_16gf",
            {
                "stem.0.weight": (32, 3, 3, 3),
                "stem.1.running_mean": (32,),
                "trunk_output.block1.block1-0.proj.0.weight": (224, 32, 1, 1),
                "trunk_output.block1.block1-0.f.se.fc1.weight": (8, 224, 1, 1),
                "trunk_output.block3.block3-10.f.b.0.weight": (1232, 112, 3, 3),
                "trunk_output.block3.block3-10.f.se.fc2.bias": (1232,),
                "trunk_output.block4.block4-0.f.c.1.running_var": (3024,),
                "fc.weight": (5, 3024),
            },
        ),
        (
            "efficientnet_lite0",
            {
                "_conv_stem.weight": (32, 3, 3, 3),
                "_bn0.running_var": (32,),
                "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
                "_blocks.3._expand_conv.weight": (144, 24, 1, 1),
                "_blocks.15._project_conv.weight": (320, 1152, 1, 1),
                "_blocks.15._bn2.bias": (320,),
                "_conv_head.weight": (1280, 320, 1, 1),
                "_fc.weight": (5, 1280),
            },
        ),
    ],
)
def test_names_are_pytorchs(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = {key: array.shape for key, array in named(name).items()}
    assert found | shapes == found


@pytest.mark.slow
def test_torchvisions_older_names_of_vit() -> None:
    old = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): array
        for key, array in named("vit_b_16", image_size=32).items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in old
    both = old | {"encoder.layers.encoder_layer_0.mlp.0.bias": np.ones(3072, np.float32)}
    with pytest.raises(UserError, match="; unexpected: encoder.layers.encoder_layer_0.mlp.linear_"):
        import_state_dict(both, "vit_b_16")
    model = import_state_dict(old, "vit_b_16")
    assert model.image_size == 32 and model.stem.positions[...].shape == (1, 5, 768)


def test_positions_that_are_no_square() -> None:
    state = named("vit_b_16") | {"encoder.pos_embedding": np.ones((1, 196, 768), np.float32)}
    match = r"pos_embedding has shape \(1, 196, 768\), expected \(1, 197, 768\)"
    with pytest.raises(UserError, match=match):
        import_state_dict(state, "vit_b_16")


@pytest.mark.slow
def test_swins_index_is_left_out_and_only_where_it_belongs() -> None:
    index = np.zeros(2401, np.int64)
    state = named("swin_t") | {"features.1.0.attn.relative_position_index": index}
    with pytest.raises(UserError, match="swin_t; unexpected: relative_position_index; if it is of"):
        import_state_dict(state | {"relative_position_index": index}, "swin_t")
    assert import_state_dict(state, "swin_t").head.out_features == 5


def test_published_preprocessing_of_each_network() -> None:
    assert set(import_torch.PUBLISHED) == set(get_args(import_torch.Importable))
    assert set(get_args(import_torch.Importable)) == set(models.names()) - {"small"}
    found = {
        name: (made.image_size, made.resize, made.interpolation, made.mean, made.std)
        for name, made in import_torch.PUBLISHED.items()
    }
    assert found["resnet18_64x64"] == (64, None, "bilinear", *IMAGENET)
    for name in ("resnet18_224x224", "resnet18", "resnet34", "resnet50", "vit_b_16"):
        assert found[name] == (224, 256, "bilinear", *IMAGENET)
    assert found["swin_t"] == (224, 232, "bicubic", *IMAGENET)
    assert found["regnet_y_16gf"] == (384, 384, "bicubic", *IMAGENET)
    lite = ((127 / 255,) * 3, (128 / 255,) * 3)
    assert found["efficientnet_lite0"] == (224, 256, "bicubic", *lite)
    dense = ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
    assert found["densenet_bc_100_12"] == (32, None, "bilinear", *dense)


def specs_of(monkeypatch, state: dict[str, np.ndarray], argv: list[str]) -> list[Any]:
    """The descriptions that the command saves, without saving the arrays."""
    specs: list[Any] = []
    monkeypatch.setattr(files, "read_state_dict", lambda path: state)
    monkeypatch.setattr(checkpoints, "save_model", lambda *saved: specs.append(saved[2]))
    assert main(["a.pt", "--output", "out", *argv]) == 0
    return specs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet18", [], (224, 256, "bilinear")),
        ("resnet18", ["--resize", "232", "--interpolation", "bicubic"], (224, 232, "bicubic")),
        ("resnet18", ["--image-size", "288"], (288, None, "bilinear")),
        ("resnet18", ["--image-size", "64", "--resize", "72"], (64, 72, "bilinear")),
        ("vit_b_16", [], (32, None, "bilinear")),
        ("vit_b_16", ["--image-size", "32", "--resize", "40"], (32, 40, "bilinear")),
    ],
)
def test_sizes_by_option(monkeypatch, name: str, options: list[str], expected: tuple) -> None:
    state = named(name, image_size=32)
    (spec,) = specs_of(monkeypatch, state, ["--model", name, *options])
    made = spec.preprocessing
    assert (made.image_size, made.resize, made.interpolation) == expected


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", ["--image-size", "0"], "--image-size is 0; expected at least 1"),
        ("resnet18", ["--resize", "200"], "--resize is 200; expected at least the image size, 224"),
        ("vit_b_16", ["--image-size", "224"], "--image-size is 224; expected 32, for which a.pt"),
    ],
)
def test_sizes_that_do_not_fit(
    monkeypatch, capsys, name: str, options: list[str], message: str
) -> None:
    state = named(name, image_size=32)
    monkeypatch.setattr(files, "read_state_dict", lambda path: state)
    assert main(["a.pt", "--model", name, "--output", "out", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_checkpoint_of_a_vit_of_another_size(tmp_path: Path, monkeypatch) -> None:
    # Its blocks are left out: they would only take time.
    monkeypatch.setattr(ViT, "stages", ("stem", "layer1"))
    state = write_state(tmp_path / "vit.pt", named("vit_b_16", image_size=32))
    output = tmp_path / "vit"
    assert main([str(state), "--model", "vit_b_16", "--output", str(output)]) == 0
    loaded = checkpoints.load_model(output)
    assert loaded.model.image_size == loaded.spec.preprocessing.image_size == 32


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
    monkeypatch.setattr(files, "read_state_dict", lambda path: state)
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


def test_command_reads_safetensors_with_a_prefix(tmp_path: Path) -> None:
    state = torch_reference.random_state("resnet20")
    file = tmp_path / "resnet20.safetensors"
    test_safetensors_files.write_state(
        file, {f"model.{key}": array for key, array in state.items()}
    )
    output = tmp_path / "out"
    assert main([str(file), "--model", "resnet20", "--output", str(output)]) == 0
    expected = checkpoints.fingerprint(import_state_dict(state, "resnet20"))
    assert checkpoints.load_model(output).fingerprint == expected
