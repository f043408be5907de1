"""A small convolutional network that trains in seconds on a CPU."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import conv, norm
from grood_jax.models.staged import Staged

LECUN = nnx.initializers.lecun_normal()


class ConvBlock(nnx.Module):
    """Convolution 3×3, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv = conv(inputs, outputs, 3, stride, kernel_init=LECUN, rngs=rngs)
        self.norm = norm(outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return jax.nn.relu(self.norm(self.conv(x)))


class Small(Staged):
    """Three convolutions, the last two of stride 2, to 64 features."""

    stages = ("layer1", "layer2", "layer3")

    def __init__(self, *, num_classes: int, channels: int, rngs: nnx.Rngs) -> None:
        self.layer1 = ConvBlock(channels, 16, 1, rngs=rngs)
        self.layer2 = ConvBlock(16, 32, 2, rngs=rngs)
        self.layer3 = ConvBlock(32, 64, 2, rngs=rngs)
        self.head = nnx.Linear(64, num_classes, rngs=rngs)
