"""Weights of PyTorch's networks: ``python -m grood_jax.models.import_torch``."""

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import tyro

from grood_jax import benchmarks
from grood_jax.cli import command
from grood_jax.data import Preprocessing
from grood_jax.data.preprocessing import Interpolation
from grood_jax.models import Importable
from grood_jax.support.errors import UserError

if TYPE_CHECKING:
    import grood_jax.models.staged

DESCRIPTION = """Makes a checkpoint of a PyTorch state dict, as OpenOOD (resnet18_32x32,
resnet18_64x64, resnet18_224x224), torchvision (resnet18, resnet34, resnet50, vit_b_16, swin_t,
regnet_y_16gf), Y. Idelbayev's pytorch_resnet_cifar10 (resnet20 to resnet56), the package
efficientnet-lite-pytorch (efficientnet_lite0) or A. Veit's densenet-pytorch (densenet_bc_100_12)
name their layers. PyTorch is not needed."""

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
    "densenet_bc_100_12": Preprocessing(
        32, 3, (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)
    ),
}
"""What the images are for the published weights of each network.

Sources: OpenOOD v1.5, openood/evaluation_api/preprocessor.py, which has none for resnet18_64x64, so
that Tiny ImageNet is taken to be normalised as ImageNet is; trainer.py of
github.com/akamaster/pytorch_resnet_cifar10; the transforms of torchvision's weights IMAGENET1K_V1,
and for regnet_y_16gf IMAGENET1K_SWAG_E2E_V1, which OpenOOD takes; tensorflow/tpu,
models/official/efficientnet, lite/efficientnet_lite_builder.py and preprocessing.py, from whose
weights those of the PyTorch package were made; train.py of github.com/andreasveit/densenet-pytorch,
and calData.py of github.com/facebookresearch/odin.
"""


@dataclass(frozen=True)
class ImportConfig:
    """What is imported, and where to. Defaults are those of the model's published weights.

    Attributes:
      checkpoint: the PyTorch file (.pt, .pth, .th, .ckpt, .safetensors).
      model: the network whose state dict it is.
      output: directory of the checkpoint that is written.
      image_size: height and width of the images (default: 32 for the CIFAR ResNets,
        densenet_bc_100_12 and resnet18_32x32, 64 for resnet18_64x64, 384 for regnet_y_16gf, 224
        for the others; for vit_b_16 always what its position embeddings are for).
      resize: to which the shorter side is resized before the centre is cropped (default: 232 for
        swin_t, 256 for others of 224×224; the image size if that is not the default).
      interpolation: of the resizing (default: bicubic for swin_t, regnet_y_16gf and
        efficientnet_lite0, else bilinear).
      mean: mean of each channel of the training images, scaled to [0, 1] (default: CIFAR-10's for
        resnet18_32x32 and densenet_bc_100_12, 127/255 for efficientnet_lite0, ImageNet's for the
        others).
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


def run(config: ImportConfig) -> "grood_jax.models.staged.Staged":
    """Reads the PyTorch file and writes the checkpoint.

    Returns:
      The network.

    Raises:
      UserError: the file cannot be read or does not fit, what is said of the images does not fit
        the network, or the output directory holds a checkpoint already.
    """
    from grood_jax.models.torch.files import read_state_dict
    from grood_jax.models.torch.importing import import_state_dict
    from grood_jax.models.torch.names import stem_name
    from grood_jax.storage.checkpoints import ModelSpec, save_model

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


def _unknown_model(argv: Sequence[str]) -> str | None:
    """The network that is asked for, where it is none that can be imported."""
    words = [part for word in argv for part in word.split("=", 1)]
    names = [name for flag, name in itertools.pairwise(words) if flag == "--model"]
    return names[-1] if names and names[-1] not in get_args(Importable) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if (unknown := _unknown_model(given)) is not None:
        from grood_jax.models.torch.importing import OTHERWISE

        known = ", ".join(get_args(Importable))
        print(f"error: model is {unknown!r}; expected one of {known}; {OTHERWISE}", file=sys.stderr)
        raise SystemExit(2)
    config = command.parse(ImportConfig(), "grood_jax.models.import_torch", DESCRIPTION, given)

    def work() -> None:
        import jax
        from flax import nnx

        model = run(config)
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        print(
            f"{config.output}: {config.model} of {count:,} parameters, "
            f"{model.head.out_features} classes, from {config.checkpoint}"
        )

    return command.status(work)
