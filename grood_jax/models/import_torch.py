"""Weights of PyTorch's ResNets for 32×32 images: ``python -m grood_jax.models.import_torch``."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from grood_jax import checks, command, models
from grood_jax.data import Preprocessing
from grood_jax.errors import UserError
from grood_jax.models.staged import Staged
from grood_jax.models.torch_files import read_state_dict

DESCRIPTION = """Makes a checkpoint of a PyTorch state dict: of the CIFAR ResNets as Y. Idelbayev's
pytorch_resnet_cifar10 names their layers, or of OpenOOD's resnet18_32x32. PyTorch is not needed."""

Importable = Literal["resnet18_32x32", "resnet20", "resnet32", "resnet44", "resnet56"]

IMAGE_SIZE = 32

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

_MODULES = {
    "stem.conv": "conv1",
    "stem.norm": "bn1",
    "norm1": "bn1",
    "norm2": "bn2",
    "shortcut.conv": "shortcut.0",
    "shortcut.norm": "shortcut.1",
}
_ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def import_state_dict(state: Mapping[str, np.ndarray], name: str) -> Staged:
    """Makes a network of a PyTorch state dict.

    Args:
      state: arrays by PyTorch's names and in its layouts, as `read_state_dict` returns them. How
        many classes and channels the network has is read from their shapes.
      name: the network, one of ``Importable``.

    Returns:
      The network, float32.

    Raises:
      ValueError: no network that can be imported has that name.
      UserError: entries are missing, unexpected, of the wrong shape, not floating-point or not
        finite; the message lists them all.

    References:
      The names: resnet.py of github.com/akamaster/pytorch_resnet_cifar10, and of OpenOOD v1.5
      openood/networks/resnet18_32x32.py.
    """
    checks.choice("model", name, get_args(Importable))
    head = "fc" if name == "resnet18_32x32" else "linear"
    abstract = nnx.eval_shape(
        lambda: models.create(
            name,
            num_classes=_size(state, f"{head}.weight", 0, 2, default=10),
            channels=_size(state, "conv1.weight", 1, 4, default=3),
            rngs=nnx.Rngs(0),
        )
    )
    graph, variables = nnx.split(abstract)
    tree = nnx.to_pure_dict(variables)
    expected = {
        _torch_name(path, head): _torch_shape(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    _check(state, expected, name)
    arrays = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _from_torch(state[_torch_name(path, head)]), tree
    )
    nnx.replace_by_pure_dict(variables, arrays)
    return nnx.merge(graph, variables)


def _size(state: Mapping[str, np.ndarray], name: str, axis: int, rank: int, *, default: int) -> int:
    array = state.get(name)
    # Whatever is wrong with the array is listed with all else that is wrong.
    return default if array is None or array.ndim != rank else max(1, array.shape[axis])


def _torch_name(path: Any, head: str) -> str:
    *parents, array = [str(entry.key) for entry in path if entry.key != "layers"]
    parent = ".".join(parents)
    if parent == "head":
        parent = head
    for ours, theirs in _MODULES.items():
        if parent == ours or parent.endswith(f".{ours}"):
            parent = parent.removesuffix(ours) + theirs
            break
    return f"{parent}.{_ARRAYS[array]}"


# Kernels: HWIO here and OIHW there for convolutions, (D, C) here and (C, D) there for the head.
def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _from_torch(array: np.ndarray) -> jax.Array:
    axes = (2, 3, 1, 0) if array.ndim == 4 else range(array.ndim)[::-1]
    return jnp.array(array.transpose(axes), jnp.float32)


def _check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], name: str
) -> None:
    # PyTorch's batch norms count their batches; nothing depends on it.
    counters = {key.replace("running_mean", "num_batches_tracked") for key in expected}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys() - counters)
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
    """What is imported, and where to.

    Attributes:
      checkpoint: the PyTorch file (.pt, .pth, .th, .ckpt).
      model: the network whose state dict it is.
      output: directory of the checkpoint that is written.
      mean: mean of each channel of the training images, scaled to [0, 1] (default: ImageNet's for
        the CIFAR ResNets, as they were trained with it; CIFAR-10's for resnet18_32x32).
      std: standard deviation of each channel, likewise.
    """

    checkpoint: tyro.conf.Positional[Path] = tyro.MISSING
    model: Importable = tyro.MISSING
    output: Path = tyro.MISSING
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def run(config: ImportConfig) -> Staged:
    """Reads the PyTorch file and writes the checkpoint.

    Returns:
      The network.

    Raises:
      UserError: the file cannot be read or does not fit, the normalisation does not fit the
        network, or the output directory holds a checkpoint already.
    """
    from grood_jax.checkpoints import ModelSpec, save_model

    state = read_state_dict(config.checkpoint)
    try:
        model = import_state_dict(state, config.model)
    except UserError as error:
        raise UserError(f"{config.checkpoint}: {error}") from error
    spec = ModelSpec(
        model=config.model,
        num_classes=model.head.out_features,
        preprocessing=_preprocessing(config, state["conv1.weight"].shape[1]),
        source=f"imported from the PyTorch file {config.checkpoint.name}",
    )
    save_model(config.output, model, spec)
    return model


def _preprocessing(config: ImportConfig, channels: int) -> Preprocessing:
    if channels not in (1, 3):
        raise UserError(f"{config.checkpoint} takes {channels} channels; expected 1 or 3")
    defaults = _CIFAR10 if config.model == "resnet18_32x32" else _IMAGENET
    given = []
    for option, numbers, default in zip(
        ("--mean", "--std"), (config.mean, config.std), defaults, strict=True
    ):
        chosen = default if numbers is None else numbers
        if len(chosen) != channels:
            raise UserError(
                f"{option} has {len(chosen)} numbers{' by default' if numbers is None else ''}; "
                f"expected {channels}, one for each channel that {config.checkpoint} takes"
            )
        if not all(math.isfinite(number) for number in chosen):
            raise UserError(f"{option} is {chosen}; expected finite numbers")
        given.append(chosen)
    mean, std = given
    if min(std) <= 0:
        raise UserError(f"--std is {std}; expected numbers above 0")
    return Preprocessing(image_size=IMAGE_SIZE, channels=channels, mean=mean, std=std)


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
