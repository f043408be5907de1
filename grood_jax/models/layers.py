"""The convolutions and norms that the networks are made of, with PyTorch's numbers."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.convolution import convolve

KAIMING = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
"""He et al., arXiv 1502.01852, by the outputs."""

NARROW = nnx.initializers.truncated_normal(0.02)
"""The transformers' (arXiv 2010.11929, arXiv 2103.14030)."""


def conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    padding: int | str | None = None,
    bias: bool = False,
    kernel_init: Callable[..., Any] = KAIMING,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution; all of the networks' convolutions are made here.

    Args:
      inputs: channels that it reads.
      outputs: channels that it makes.
      size: height and width of the kernel.
      stride: between windows.
      groups: into which the channels are divided.
      padding: on every side, or ``"SAME"`` as TensorFlow has it; by default size // 2, PyTorch's
        usual, which differs from ``"SAME"`` at even sizes and stride 2.
      bias: whether there is one.
      kernel_init: makes fresh kernels.
      rngs: randomness for them.
    """
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=kernel_init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def norm(width: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """A batch norm, with PyTorch's defaults; all of the networks' batch norms are made here."""
    return nnx.BatchNorm(width, momentum=0.9, epsilon=epsilon, rngs=rngs)


def layer_norm(width: int, *, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm; its variance is of the differences from the mean, as PyTorch's is."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class ConvNorm(nnx.Module):
    """A convolution and its batch norm.

    Attributes:
      conv: the convolution, without bias.
      norm: the batch norm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | str | None = None,
        epsilon: float = 1e-5,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = conv(inputs, outputs, size, stride, groups=groups, padding=padding, rngs=rngs)
        self.norm = norm(outputs, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations before the nonlinearity, (B, H, W, C)."""
        return self.norm(self.conv(x))


class ConvNormReLU(ConvNorm):
    """A convolution, its batch norm, and ReLU."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return jax.nn.relu(self.norm(self.conv(x)))
