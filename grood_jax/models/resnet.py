"""Residual networks: those for 32×32 and 64×64 images, and those for ImageNet's."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import ConvNorm, ConvNormReLU, conv, norm
from grood_jax.models.staged import Staged


class Stem(ConvNormReLU):
    """Convolution 3×3, batch norm, ReLU, without pooling."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, 3, rngs=rngs)


class PooledStem(ConvNormReLU):
    """Convolution 7×7 of stride 2, batch norm, ReLU, and the largest of 3×3, with stride 2."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, 7, 2, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return nnx.max_pool(super().__call__(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class Projection(ConvNorm):
    """A shortcut by convolution 1×1 and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(inputs, outputs, 1, stride, rngs=rngs)


class PadShortcut(nnx.Module):
    """The parameter-free shortcut "A": strided, with channels of zeros on both sides.

    He et al., arXiv 1512.03385, section 4.2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        del rngs
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        strided = x[:, :: self.stride, :: self.stride]
        return jnp.pad(strided, ((0, 0), (0, 0), (0, 0), (self.padding, self.padding)))


class BasicBlock(nnx.Module):
    """Two convolutions 3×3 around a shortcut."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: type[Projection] | type[PadShortcut],
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv1 = conv(inputs, outputs, 3, stride, rngs=rngs)
        self.norm1 = norm(outputs, rngs=rngs)
        self.conv2 = conv(outputs, outputs, 3, rngs=rngs)
        self.norm2 = norm(outputs, rngs=rngs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else shortcut(inputs, outputs, stride, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """Convolutions 1×1, 3×3 and 1×1 around a shortcut, a quarter as wide in between.

    The stride is that of the 3×3 convolution, as in torchvision ("ResNet V1.5"), not of the first
    as in the paper.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        width = outputs // 4
        self.conv1 = conv(inputs, width, 1, rngs=rngs)
        self.norm1 = norm(width, rngs=rngs)
        self.conv2 = conv(width, width, 3, stride, rngs=rngs)
        self.norm2 = norm(width, rngs=rngs)
        self.conv3 = conv(width, outputs, 1, rngs=rngs)
        self.norm3 = norm(outputs, rngs=rngs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else Projection(inputs, outputs, stride, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(Staged):
    """A stem and stages of blocks, the first of each later stage with stride 2.

    Args:
      stem: the first stage.
      widths: channels after each of the other stages.
      blocks: how many of them each of these stages has.
      block: makes a block of the channels before and after it, and its stride.
      num_classes: of the head.
      rngs: randomness for the weights.
    """

    def __init__(
        self,
        stem: Stem | PooledStem,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        block: Callable[..., nnx.Module],
        *,
        num_classes: int,
        rngs: nnx.Rngs,
    ) -> None:
        layers = [f"layer{i + 1}" for i in range(len(widths))]
        self.stages = ("stem", *layers)
        self.stem = stem
        inputs = stem.conv.out_features
        for index, (name, width, count) in enumerate(zip(layers, widths, blocks, strict=True)):
            stage = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(block(inputs, width, stride, rngs=rngs))
                inputs = width
            setattr(self, name, nnx.Sequential(*stage))
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)


def openood_resnet18(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
    """OpenOOD's ResNet-18 for small images: 3×3 stem, no max-pool, stages 64-128-256-512.

    Its networks for 32×32 and for 64×64 images differ only in the size of their final average,
    which is the whole image in both.

    References:
      He et al., arXiv 1512.03385; OpenOOD v1.5, openood/networks/resnet18_32x32.py and
      resnet18_64x64.py.
    """
    return ResNet(
        Stem(channels, 64, rngs=rngs),
        (64, 128, 256, 512),
        (2, 2, 2, 2),
        partial(BasicBlock, shortcut=Projection),
        num_classes=num_classes,
        rngs=rngs,
    )


def cifar_resnet(
    depth: Literal[20, 32, 44, 56],
) -> Callable[..., ResNet]:
    """The CIFAR ResNet of a depth: three stages of (depth − 2) / 6 blocks, shortcuts "A".

    References:
      He et al., arXiv 1512.03385, section 4.2.
    """

    def create(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
        return ResNet(
            Stem(channels, 16, rngs=rngs),
            (16, 32, 64),
            ((depth - 2) // 6,) * 3,
            partial(BasicBlock, shortcut=PadShortcut),
            num_classes=num_classes,
            rngs=rngs,
        )

    return create


def imagenet_resnet(depth: Literal[18, 34, 50]) -> Callable[..., ResNet]:
    """The ResNet of a depth for ImageNet, as torchvision has it: its stem makes a quarter of size.

    OpenOOD's resnet18_224x224 is that of depth 18.

    References:
      He et al., arXiv 1512.03385, table 1; torchvision/models/resnet.py; OpenOOD v1.5,
      openood/networks/resnet18_224x224.py.
    """
    widths = (256, 512, 1024, 2048) if depth == 50 else (64, 128, 256, 512)
    blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    block = Bottleneck if depth == 50 else partial(BasicBlock, shortcut=Projection)

    def create(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
        stem = PooledStem(channels, 64, rngs=rngs)
        return ResNet(stem, widths, blocks, block, num_classes=num_classes, rngs=rngs)

    return create
