"""Flax classifiers by name, each cut at a named stage."""

from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from grood_jax.models.creating import create, stages
    from grood_jax.models.staged import Staged

Importable = Literal[
    "resnet18_32x32",
    "resnet18_64x64",
    "resnet18_224x224",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet18",
    "resnet34",
    "resnet50",
    "vit_b_16",
    "swin_t",
    "regnet_y_16gf",
    "efficientnet_lite0",
    "densenet_bc_100_12",
]
"""Networks whose weights PyTorch has."""

Name = Literal["small", Importable]

__all__ = ["Importable", "Name", "Staged", "create", "names", "stages"]


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return get_args(Name)


def __getattr__(name: str) -> Any:
    """Loads what needs Flax when it is first asked for: names alone do not."""
    if name == "Staged":
        from grood_jax.models.staged import Staged

        return Staged
    if name in ("create", "stages"):
        from grood_jax.models import creating

        return getattr(creating, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
