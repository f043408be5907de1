"""EfficientNet-Lite0: inverted bottlenecks without squeeze and excitation."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import ConvNorm
from grood_jax.models.staged import Staged

EPSILON = 1e-3

# Of each stage: blocks, size of the kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

REPEATS = tuple(repeats for repeats, *_ in _STAGES)
"""Blocks of each stage."""


class SameConvNorm(ConvNorm):
    """A convolution padded as TensorFlow pads, and its batch norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            inputs, outputs, size, stride, groups=groups, padding="SAME", epsilon=EPSILON, rngs=rngs
        )


class SameConvNormReLU6(SameConvNorm):
    """The same, and ReLU up to 6."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return jax.nn.relu6(super().__call__(x))


class InvertedBottleneck(nnx.Module):
    """Widens, convolves each channel on its own, and narrows; around a shortcut if it can be.

    References:
      Sandler et al., arXiv 1801.04381.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        expansion: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        width = inputs * expansion
        self.expand = None if expansion == 1 else SameConvNormReLU6(inputs, width, 1, rngs=rngs)
        self.depthwise = SameConvNormReLU6(width, width, size, stride, width, rngs=rngs)
        self.project = SameConvNorm(width, outputs, 1, rngs=rngs)
        self.shortcut = inputs == outputs and stride == 1

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        y = x if self.expand is None else self.expand(x)
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(Staged):
    """A stem, seven stages of inverted bottlenecks, and a last convolution 1×1, ``top``.

    The padding is that of TensorFlow at every size of image. The PyTorch package pads as it would
    at 224×224, which is the same wherever height and width are multiples of 32.

    References:
      Tan and Le, arXiv 1905.11946; tensorflow/tpu,
      models/official/efficientnet/lite/efficientnet_lite_builder.py; the PyPI package
      efficientnet-lite-pytorch 0.1.0.
    """

    stages = ("stem", *(f"layer{i + 1}" for i in range(len(_STAGES))), "top")

    def __init__(self, *, num_classes: int, channels: int, rngs: nnx.Rngs) -> None:
        inputs = 32
        self.stem = SameConvNormReLU6(channels, inputs, 3, 2, rngs=rngs)
        for name, (repeats, size, first, expansion, width) in zip(
            self.stages[1:-1], _STAGES, strict=True
        ):
            stage = []
            for position in range(repeats):
                stride = first if position == 0 else 1
                stage.append(InvertedBottleneck(inputs, width, size, stride, expansion, rngs=rngs))
                inputs = width
            setattr(self, name, nnx.Sequential(*stage))
        self.top = SameConvNormReLU6(inputs, 1280, 1, rngs=rngs)
        self.head = nnx.Linear(1280, num_classes, rngs=rngs)
