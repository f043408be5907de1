"""Flax classifiers by name, each cut at a named stage."""

from collections.abc import Callable
from typing import Literal

from flax import nnx

from grood_jax import checks
from grood_jax.models.resnet import cifar_resnet, resnet18_32x32
from grood_jax.models.small import Small
from grood_jax.models.staged import Staged

Name = Literal["small", "resnet18_32x32", "resnet20", "resnet32", "resnet44", "resnet56"]

_FACTORIES: dict[str, Callable[..., Staged]] = {
    "small": Small,
    "resnet18_32x32": resnet18_32x32,
    "resnet20": cifar_resnet(20),
    "resnet32": cifar_resnet(32),
    "resnet44": cifar_resnet(44),
    "resnet56": cifar_resnet(56),
}

__all__ = ["Name", "Staged", "create", "names", "stages"]


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_FACTORIES)


def create(name: str, *, num_classes: int, channels: int = 3, rngs: nnx.Rngs) -> Staged:
    """Makes a network by name, with fresh weights.

    Args:
      name: one of `names()`.
      num_classes: how many classes.
      channels: of the images.
      rngs: randomness for the weights.

    Raises:
      TypeError: a number is no integer.
      ValueError: no network has that name, or a number is below 1.
    """
    checks.choice("model", name, names())
    checks.at_least("num_classes", num_classes, 1)
    checks.at_least("channels", channels, 1)
    return _FACTORIES[name](num_classes=num_classes, channels=channels, rngs=rngs)


def stages(name: str) -> tuple[str, ...]:
    """The stages at which a network can be cut, in order; no weights are made.

    Raises:
      ValueError: no network has that name.
    """
    return nnx.eval_shape(lambda: create(name, num_classes=1, rngs=nnx.Rngs(0))).stages
