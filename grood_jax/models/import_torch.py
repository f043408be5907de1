"""Weights of PyTorch's networks: ``python -m grood_jax.models.import_torch``."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from grood_jax import benchmarks, checks, command, models
from grood_jax.data import Preprocessing
from grood_jax.data.preprocessing import Interpolation
from grood_jax.errors import UserError
from grood_jax.models import Importable
from grood_jax.models.staged import Staged
from grood_jax.models.torch_files import read_state_dict
from grood_jax.models.torch_names import head_name, stem_name, torch_name
from grood_jax.models.vit import PATCH

DESCRIPTION = """Makes a checkpoint of a PyTorch state dict, as OpenOOD (resnet18_32x32,
resnet18_64x64, resnet18_224x224), torchvision (resnet18, resnet34, resnet50, vit_b_16, swin_t,
regnet_y_16gf), Y. Idelbayev's pytorch_resnet_cifar10 (resnet20 to resnet56) or the package
efficientnet-lite-pytorch (efficientnet_lite0) name their layers. PyTorch is not needed."""

_USUAL = benchmarks.get("imagenet1k").preprocessing
_IMAGENET = (_USUAL.mean, _USUAL.std)

PUBLISHED: dict[str, Preprocessing] = {
    "resnet18_32x32": benchmarks.get("cifar10").preprocessing,
    "resnet18_64x64": Preprocessing(64, 3, *_IMAGENET),
    # It was trained on CIFAR-10 with ImageNet's normalisation.
    **dict.fromkeys(
        ("resnet20", "resnet32", "resnet44", "resnet56"), Preprocessing(32, 3, *_IMAGENET)
    ),
    **dict.fromkeys(("resnet18_224x224", "resnet18", "resnet34", "resnet50", "vit_b_16"), _USUAL),
    "swin_t": replace(_USUAL, resize=232, interpolation="bicubic"),
    "regnet_y_16gf": Preprocessing(384, 3, *_IMAGENET, resize=384, interpolation="bicubic"),
    "efficientnet_lite0": Preprocessing(
        224, 3, (127 / 255,) * 3, (128 / 255,) * 3, resize=256, interpolation="bicubic"
    ),
}
"""What the images are for the published weights of each network.

Sources: OpenOOD v1.5, openood/evaluation_api/preprocessor.py, which has none for resnet18_64x64, so
that Tiny ImageNet is taken to be normalised as ImageNet is; trainer.py of
github.com/akamaster/pytorch_resnet_cifar10; the transforms of torchvision's weights IMAGENET1K_V1,
and for regnet_y_16gf IMAGENET1K_SWAG_E2E_V1, which OpenOOD takes; tensorflow/tpu,
models/official/efficientnet, lite/efficientnet_lite_builder.py and preprocessing.py, from whose
weights those of the PyTorch package were made.
"""

_IGNORED = ("num_batches_tracked", "relative_position_index")
"""Arrays on which nothing depends: the counters of PyTorch's batch norms, and a table that Swin's
windows alone decide."""


def import_state_dict(state: Mapping[str, np.ndarray], name: str) -> Staged:
    """Makes a network of a PyTorch state dict.

    Args:
      state: arrays by PyTorch's names and in its layouts, as `read_state_dict` returns them. How
        many classes and channels the network has is read from their shapes, and for vit_b_16 the
        size of its images.
      name: the network, one of ``Importable``.

    Returns:
      The network, float32.

    Raises:
      ValueError: no network that can be imported has that name.
      UserError: entries are missing, unexpected, of the wrong shape, not floating-point or not
        finite; the message lists them all.

    References:
      The names: those of `torch_names.torch_name`.
    """
    checks.choice("model", name, get_args(Importable))
    if name == "vit_b_16":
        state = _with_new_names(state)
    abstract = nnx.eval_shape(
        lambda: models.create(
            name,
            num_classes=_size(state, head_name(name), 0, 2, default=10),
            channels=_size(state, stem_name(name), 1, 4, default=3),
            image_size=_image_size(state),
            rngs=nnx.Rngs(0),
        )
    )
    graph, variables = nnx.split(abstract)
    tree = nnx.to_pure_dict(variables)
    _check(state, torch_shapes(abstract, name), name)
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _from_torch(_keys(path), state[torch_name(name, _keys(path))]), tree
    )
    nnx.replace_by_pure_dict(variables, arrays)
    return nnx.merge(graph, variables)


def torch_shapes(model: Staged, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's arrays in PyTorch, where its state dict has them.

    Args:
      model: the network; its arrays may be abstract.
      name: the network's, one of ``Importable``.
    """
    arrays = nnx.to_pure_dict(nnx.split(model)[1])
    leaves = [(_keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)]
    return {torch_name(name, path): _torch_shape(path, leaf.shape) for path, leaf in leaves}


def _with_new_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # torchvision's published ViTs have the names that its MLPBlock had in its first version.
    renamed = {}
    for key, array in state.items():
        new = key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
        renamed[key if new in state else new] = array
    return renamed


def _size(state: Mapping[str, np.ndarray], name: str, axis: int, rank: int, *, default: int) -> int:
    array = state.get(name)
    # Whatever is wrong with the array is listed with all else that is wrong.
    return default if array is None or array.ndim != rank else max(1, array.shape[axis])


def _image_size(state: Mapping[str, np.ndarray]) -> int:
    positions = _size(state, "encoder.pos_embedding", 1, 3, default=1) - 1
    # The other position is the class token's.
    side = math.isqrt(positions)
    return PATCH * side if 0 < side**2 == positions else 224


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(entry.key) for entry in path)


# Kernels: HWIO here and OIHW there for convolutions, (D, C) here and (C, D) there for linear
# layers. All else is laid out alike.
def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
    if path[-1] == "kernel":
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return jnp.array(array, jnp.float32)


def _check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], name: str
) -> None:
    modules = {key.rpartition(".")[0] for key in expected}
    ignored = {f"{module}.{array}" for module in modules for array in _IGNORED}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys() - ignored)
    wrong = []
    for key in expected.keys() & state.keys():
        array = state[key]
        if array.shape != expected[key]:
            wrong.append(f"{key} has shape {array.shape}, expected {expected[key]}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            wrong.append(f"{key} has dtype {array.dtype}, expected floating-point numbers")
        elif not np.isfinite(array).all():
            wrong.append(f"{key} holds NaN or infinite values")
    found = [
        *([f"missing: {', '.join(missing)}"] if missing else []),
        *([f"unexpected: {', '.join(unexpected)}"] if unexpected else []),
        *sorted(wrong),
    ]
    if found:
        raise UserError(f"the state dict does not fit model {name}; {'; '.join(found)}")


@dataclass(frozen=True)
class ImportConfig:
    """What is imported, and where to. Defaults are those of the model's published weights.

    Attributes:
      checkpoint: the PyTorch file (.pt, .pth, .th, .ckpt, .safetensors).
      model: the network whose state dict it is.
      output: directory of the checkpoint that is written.
      image_size: height and width of the images (default: 32 for the CIFAR ResNets and
        resnet18_32x32, 64 for resnet18_64x64, 384 for regnet_y_16gf, 224 for the others; for
        vit_b_16 always what its position embeddings are for).
      resize: to which the shorter side is resized before the centre is cropped (default: 232 for
        swin_t, 256 for others of 224×224; the image size if that is not the default).
      interpolation: of the resizing (default: bicubic for swin_t, regnet_y_16gf and
        efficientnet_lite0, else bilinear).
      mean: mean of each channel of the training images, scaled to [0, 1] (default: CIFAR-10's for
        resnet18_32x32, 127/255 for efficientnet_lite0, ImageNet's for the others).
      std: standard deviation of each channel, likewise (128/255 for efficientnet_lite0).
    """

    checkpoint: tyro.conf.Positional[Path] = tyro.MISSING
    model: Importable = tyro.MISSING
    output: Path = tyro.MISSING
    image_size: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def run(config: ImportConfig) -> Staged:
    """Reads the PyTorch file and writes the checkpoint.

    Returns:
      The network.

    Raises:
      UserError: the file cannot be read or does not fit, what is said of the images does not fit
        the network, or the output directory holds a checkpoint already.
    """
    from grood_jax.checkpoints import ModelSpec, save_model

    state = read_state_dict(config.checkpoint)
    try:
        model = import_state_dict(state, config.model)
    except UserError as error:
        raise UserError(f"{config.checkpoint}: {error}") from error
    channels = state[stem_name(config.model)].shape[1]
    spec = ModelSpec(
        model=config.model,
        num_classes=model.head.out_features,
        preprocessing=_preprocessing(config, channels, getattr(model, "image_size", None)),
        source=f"imported from the PyTorch file {config.checkpoint.name}",
    )
    save_model(config.output, model, spec)
    return model


def _preprocessing(config: ImportConfig, channels: int, only_size: int | None) -> Preprocessing:
    """What the images are, of one size if only that fits the network."""
    if channels not in (1, 3):
        raise UserError(f"{config.checkpoint} takes {channels} channels; expected 1 or 3")
    published = PUBLISHED[config.model]
    size = config.image_size
    if only_size is not None and size not in (None, only_size):
        raise UserError(
            f"--image-size is {size}; expected {only_size}, for which {config.checkpoint} has "
            "position embeddings"
        )
    if size is None:
        size = only_size or published.image_size
    if size < 1:
        raise UserError(f"--image-size is {size}; expected at least 1")
    resize = config.resize
    if resize is None and size == published.image_size:
        resize = published.resize
    if resize is not None and resize < size:
        raise UserError(f"--resize is {resize}; expected at least the image size, {size}")
    mean = _of_channels("--mean", config.mean, published.mean, channels, config.checkpoint)
    std = _of_channels("--std", config.std, published.std, channels, config.checkpoint)
    if min(std) <= 0:
        raise UserError(f"--std is {std}; expected numbers above 0")
    return Preprocessing(
        image_size=size,
        channels=channels,
        mean=mean,
        std=std,
        resize=resize,
        interpolation=config.interpolation or published.interpolation,
    )


def _of_channels(
    option: str,
    given: tuple[float, ...] | None,
    published: tuple[float, ...],
    channels: int,
    checkpoint: Path,
) -> tuple[float, ...]:
    chosen = published if given is None else given
    if len(chosen) != channels:
        raise UserError(
            f"{option} has {len(chosen)} numbers{' by default' if given is None else ''}; "
            f"expected {channels}, one for each channel that {checkpoint} takes"
        )
    if not all(math.isfinite(number) for number in chosen):
        raise UserError(f"{option} is {chosen}; expected finite numbers")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(ImportConfig(), "grood_jax.models.import_torch", DESCRIPTION, argv)

    def work() -> None:
        model = run(config)
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        print(
            f"{config.output}: {config.model} of {count:,} parameters, "
            f"{model.head.out_features} classes, from {config.checkpoint}"
        )

    return command.status(work)


if __name__ == "__main__":
    sys.exit(main())
