"""DenseNet-BC for 32×32 images, of depth 100 and growth 12."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import conv, norm
from grood_jax.models.staged import Staged

GROWTH = 12
DEPTH = 100


class DenseLayer(nnx.Module):
    """Batch norm, ReLU and convolution, 1×1 and 3×3; what it makes is put beside what it was given.

    So nothing inside a block cuts the network: whatever follows reads all that comes before.
    """

    def __init__(self, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = norm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, 4 * GROWTH, 1, rngs=rngs)
        self.norm2 = norm(4 * GROWTH, rngs=rngs)
        self.conv2 = conv(4 * GROWTH, GROWTH, 3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w _"]:
        """Activations of the next layer, (B, H, W, C + GROWTH)."""
        y = self.conv1(jax.nn.relu(self.norm1(x)))
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nnx.Module):
    """Half the channels, and half the height and width."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = norm(inputs, rngs=rngs)
        self.conv1 = conv(inputs, inputs // 2, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H / 2, W / 2, C / 2)."""
        return nnx.avg_pool(self.conv1(jax.nn.relu(self.norm1(x))), (2, 2), strides=(2, 2))


class NormReLU(nnx.Module):
    """A batch norm and ReLU."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = norm(width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Activations of the next layer, (B, H, W, C)."""
        return jax.nn.relu(self.norm(x))


class DenseNetBC(Staged):
    """A convolution, three dense blocks with transitions between them, and a last batch norm.

    The network of ODIN's paper (arXiv 1706.02690); its penultimate features are 342 wide.

    References:
      Huang et al., arXiv 1608.06993; densenet.py of github.com/andreasveit/densenet-pytorch.
    """

    stages = ("stem", "layer1", "transition1", "layer2", "transition2", "layer3", "top")

    def __init__(self, *, num_classes: int, channels: int, rngs: nnx.Rngs) -> None:
        width = 2 * GROWTH
        self.stem = conv(channels, width, 3, rngs=rngs)
        for number in (1, 2, 3):
            layers = []
            # Each layer has two convolutions; four stand outside the blocks, the head among them.
            for _ in range((DEPTH - 4) // 6):
                layers.append(DenseLayer(width, rngs=rngs))
                width += GROWTH
            setattr(self, f"layer{number}", nnx.Sequential(*layers))
            if number < 3:
                setattr(self, f"transition{number}", Transition(width, rngs=rngs))
                width //= 2
        self.top = NormReLU(width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)
