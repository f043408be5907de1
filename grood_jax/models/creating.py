"""Making networks by name."""

from collections.abc import Callable

from flax import nnx

from grood_jax.models.densenet import DenseNetBC
from grood_jax.models.efficientnet import EfficientNetLite0
from grood_jax.models.regnet import regnet_y_16gf
from grood_jax.models.resnet import cifar_resnet, imagenet_resnet, openood_resnet18
from grood_jax.models.small import Small
from grood_jax.models.staged import Staged
from grood_jax.models.swin import swin_t
from grood_jax.models.vit import ViT
from grood_jax.support import checks

_FACTORIES: dict[str, Callable[..., Staged]] = {
    "small": Small,
    "resnet18_32x32": openood_resnet18,
    "resnet18_64x64": openood_resnet18,
    "resnet18_224x224": imagenet_resnet(18),
    "resnet20": cifar_resnet(20),
    "resnet32": cifar_resnet(32),
    "resnet44": cifar_resnet(44),
    "resnet56": cifar_resnet(56),
    "resnet18": imagenet_resnet(18),
    "resnet34": imagenet_resnet(34),
    "resnet50": imagenet_resnet(50),
    "vit_b_16": ViT,
    "swin_t": swin_t,
    "regnet_y_16gf": regnet_y_16gf,
    "efficientnet_lite0": EfficientNetLite0,
    "densenet_bc_100_12": DenseNetBC,
}

_OF_ONE_SIZE = ("vit_b_16",)
"""Networks whose arrays depend on the size of the images."""

MOST = 2**31 - 1
"""Of classes, channels and pixels on a side."""


def create(
    name: str, *, num_classes: int, channels: int = 3, image_size: int = 224, rngs: nnx.Rngs
) -> Staged:
    """Makes a network by name, with fresh weights.

    Args:
      name: one of `grood_jax.models.names()`.
      num_classes: how many classes.
      channels: of the images.
      image_size: their height and width; only vit_b_16 depends on it.
      rngs: randomness for the weights.

    Raises:
      TypeError: a number is no integer, or ``rngs`` none.
      ValueError: no network has that name, a number is below 1, or the network takes no images
        of that size.
    """
    checks.choice("model", name, tuple(_FACTORIES))
    checks.at_least("num_classes", num_classes, 1, MOST)
    checks.at_least("channels", channels, 1, MOST)
    checks.at_least("image_size", image_size, 1, MOST)
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs is {rngs!r}; expected flax.nnx.Rngs")
    given = {"num_classes": num_classes, "channels": channels, "rngs": rngs}
    if name in _OF_ONE_SIZE:
        given["image_size"] = image_size
    return _FACTORIES[name](**given)


def stages(name: str) -> tuple[str, ...]:
    """The stages at which a network can be cut, in order; no weights are made.

    Raises:
      ValueError: no network has that name.
    """
    return nnx.eval_shape(lambda: create(name, num_classes=1, rngs=nnx.Rngs(0))).stages
