"""RegNetY: stages of grouped bottlenecks with squeeze and excitation."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import ConvNorm, ConvNormReLU, conv
from grood_jax.models.staged import Staged


class SqueezeExcitation(nnx.Module):
    """Scales channels by what their means over the image say.

    References:
      Hu et al., arXiv 1709.01507; torchvision/ops/misc.py.
    """

    def __init__(self, width: int, squeezed: int, *, rngs: nnx.Rngs) -> None:
        self.reduce = conv(width, squeezed, 1, bias=True, rngs=rngs)
        self.expand = conv(squeezed, width, 1, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Activations of the same shape."""
        means = x.mean(axis=(1, 2), keepdims=True)
        return x * jax.nn.sigmoid(self.expand(jax.nn.relu(self.reduce(means))))


class Block(nnx.Module):
    """Convolutions 1×1, 3×3 in groups, and 1×1, all of the block's width, around a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, group: int, *, rngs: nnx.Rngs
    ) -> None:
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else ConvNorm(inputs, outputs, 1, stride, rngs=rngs)
        self.first = ConvNormReLU(inputs, outputs, 1, rngs=rngs)
        self.grouped = ConvNormReLU(outputs, outputs, 3, stride, groups=outputs // group, rngs=rngs)
        # A quarter of what enters the block, not of the block's own width.
        self.excite = SqueezeExcitation(outputs, round(inputs / 4), rngs=rngs)
        self.last = ConvNorm(outputs, outputs, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        y = self.last(self.excite(self.grouped(self.first(x))))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class RegNet(Staged):
    """A stem and four stages, each of which halves height and width.

    torchvision calls the stages ``layer1`` to ``layer4`` block1 to block4.
    """

    stages = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        group: int,
        *,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ) -> None:
        inputs = 32
        self.stem = ConvNormReLU(channels, inputs, 3, 2, rngs=rngs)
        for name, width, count in zip(self.stages[1:], widths, blocks, strict=True):
            stage = []
            for position in range(count):
                stride = 2 if position == 0 else 1
                stage.append(Block(inputs, width, stride, group, rngs=rngs))
                inputs = width
            setattr(self, name, nnx.Sequential(*stage))
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)


def regnet_y_16gf(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> RegNet:
    """RegNetY of 16 billion multiplications for an image of 224×224.

    References:
      Radosavovic et al., arXiv 2003.13678, table 4 and figure 16 (RegNetY-16GF);
      torchvision/models/regnet.py; OpenOOD v1.5, openood/networks/regnet_y_16gf.py.
    """
    return RegNet(
        (224, 448, 1232, 3024),
        (2, 4, 11, 1),
        112,
        num_classes=num_classes,
        channels=channels,
        rngs=rngs,
    )
