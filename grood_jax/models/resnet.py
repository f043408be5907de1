"""Residual networks for 32×32 images: OpenOOD's ResNet-18 and the CIFAR ResNets."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.staged import Staged

KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _conv(inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=KAIMING,
        rngs=rngs,
    )


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Stem(nnx.Module):
    """Convolution 3×3, batch norm, ReLU, without pooling."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv = _conv(inputs, outputs, 3, 1, rngs)
        self.norm = _norm(outputs, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return jax.nn.relu(self.norm(self.conv(x)))


class Projection(nnx.Module):
    """A shortcut by convolution 1×1 and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv = _conv(inputs, outputs, 1, stride, rngs)
        self.norm = _norm(outputs, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return self.norm(self.conv(x))


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
        self.conv1 = _conv(inputs, outputs, 3, stride, rngs)
        self.norm1 = _norm(outputs, rngs)
        self.conv2 = _conv(outputs, outputs, 3, 1, rngs)
        self.norm2 = _norm(outputs, rngs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else shortcut(inputs, outputs, stride, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(Staged):
    """A stem and stages of basic blocks, the first of each later stage with stride 2."""

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: int,
        shortcut: type[Projection] | type[PadShortcut],
        *,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ) -> None:
        layers = [f"layer{i + 1}" for i in range(len(widths))]
        self.stages = ("stem", *layers)
        self.stem = Stem(channels, widths[0], rngs=rngs)
        inputs = widths[0]
        for index, (name, width) in enumerate(zip(layers, widths, strict=True)):
            stage = []
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(BasicBlock(inputs, width, stride, shortcut, rngs=rngs))
                inputs = width
            setattr(self, name, nnx.Sequential(*stage))
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)


def resnet18_32x32(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
    """OpenOOD's ResNet-18 for 32×32 images: 3×3 stem, no max-pool, stages 64-128-256-512.

    References:
      He et al., arXiv 1512.03385; OpenOOD v1.5, openood/networks/resnet18_32x32.py.
    """
    widths = (64, 128, 256, 512)
    return ResNet(widths, 2, Projection, num_classes=num_classes, channels=channels, rngs=rngs)


def cifar_resnet(
    depth: Literal[20, 32, 44, 56],
) -> Callable[..., ResNet]:
    """The CIFAR ResNet of a depth: three stages of (depth − 2) / 6 blocks, shortcuts "A".

    References:
      He et al., arXiv 1512.03385, section 4.2.
    """

    def create(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> ResNet:
        return ResNet(
            (16, 32, 64),
            (depth - 2) // 6,
            PadShortcut,
            num_classes=num_classes,
            channels=channels,
            rngs=rngs,
        )

    return create
