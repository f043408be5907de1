"""Swin transformers: attention within windows that every second block shifts."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from grood_jax.models.attention import MLP, SelfAttention, linear
from grood_jax.models.layers import NARROW, conv, layer_norm
from grood_jax.models.staged import Staged

WINDOW = 7
EPSILON = 1e-5
MASKED = -100.0
"""Added to the attention between tokens that only the shift has brought together."""


def relative_positions() -> Int[np.ndarray, "t t"]:
    """Row of the table of biases for each pair of places in a window."""
    axes = np.arange(WINDOW)
    rows, columns = (place.ravel() for place in np.meshgrid(axes, axes, indexing="ij"))
    down = rows[:, None] - rows[None] + WINDOW - 1
    right = columns[:, None] - columns[None] + WINDOW - 1
    return down * (2 * WINDOW - 1) + right


def neighbours(height: int, width: int, shifts: tuple[int, int]) -> Bool[np.ndarray, "n t t"]:
    """Which places of each window were neighbours before the image was rolled by ``shifts``."""
    regions = []
    for size, shift in zip((height, width), shifts, strict=True):
        region = np.zeros(size, int)
        if shift:
            region[size - WINDOW :] = 1
            region[size - shift :] = 2
        regions.append(region)
    grid = (3 * regions[0][:, None] + regions[1][None]).reshape(
        height // WINDOW, WINDOW, width // WINDOW, WINDOW
    )
    places = grid.transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW)
    return places[:, :, None] == places[:, None]


def windows(x: Float[Array, "b h w c"]) -> Float[Array, "n t c"]:
    """(B, H, W, C) as windows (B · windows, places, C)."""
    count, height, width, channels = x.shape
    grid = x.reshape(count, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, channels)


def image(x: Float[Array, "n t c"], height: int, width: int) -> Float[Array, "b h w c"]:
    """What `windows` has divided."""
    grid = x.reshape(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, x.shape[-1])
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


class WindowAttention(SelfAttention):
    """Attention within windows of 7×7, with a learned bias for each relative position."""

    def __init__(self, width: int, heads: int, *, shifted: bool, rngs: nnx.Rngs) -> None:
        super().__init__(width, heads, rngs=rngs)
        self.shifted = shifted
        self.bias_table = nnx.Param(NARROW(rngs.params(), ((2 * WINDOW - 1) ** 2, heads)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Activations of the same shape."""
        height, width = x.shape[1:3]
        # Zeros that fill up the last windows take part in the attention, as in torchvision.
        bottom, right = -height % WINDOW, -width % WINDOW
        x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
        padded = height + bottom, width + right
        # One window that holds everything needs no shift.
        down, across = (WINDOW // 2 if self.shifted and size > WINDOW else 0 for size in padded)
        bias = self.bias_table[...][relative_positions()].transpose(2, 0, 1)[None]
        if down or across:
            x = jnp.roll(x, (-down, -across), axis=(1, 2))
            apart = ~neighbours(*padded, (down, across))[:, None]
            shape = (len(apart), self.heads, *apart.shape[2:])
            bias = jnp.broadcast_to(bias, shape)
            bias = jnp.where(np.broadcast_to(apart, shape), bias + MASKED, bias)
        x = image(self.attend(windows(x), bias), *padded)
        return jnp.roll(x, (down, across), axis=(1, 2))[:, :height, :width]


class Block(nnx.Module):
    """Attention and an MLP, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, *, shifted: bool, rngs: nnx.Rngs) -> None:
        self.norm1 = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.attention = WindowAttention(width, heads, shifted=shifted, rngs=rngs)
        self.norm2 = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, 4 * width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Activations of the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nnx.Module):
    """A convolution that makes each patch of 4×4 pixels one place, and a layer norm."""

    def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, width, 4, 4, padding=0, bias=True, kernel_init=NARROW, rngs=rngs)
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return self.norm(self.conv(x))


class Merging(nnx.Module):
    """Makes four places one, twice as wide."""

    def __init__(self, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.norm = layer_norm(4 * inputs, epsilon=EPSILON, rngs=rngs)
        self.reduction = linear(4 * inputs, 2 * inputs, bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))


class Stage(nnx.Module):
    """Blocks of one width, after a merging of places where they are fewer than before."""

    def __init__(self, inputs: int, width: int, heads: int, blocks: int, *, rngs: nnx.Rngs) -> None:
        self.merging = None if inputs == width else Merging(inputs, rngs=rngs)
        self.blocks = nnx.Sequential(
            *(Block(width, heads, shifted=bool(i % 2), rngs=rngs) for i in range(blocks))
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b _ _ _"]:
        """Activations of the next layer, (B, H, W, C)."""
        return self.blocks(x if self.merging is None else self.merging(x))


class Swin(Staged):
    """A stem that makes patches, and four stages of blocks.

    The penultimate features are the mean over the image after the last layer norm.

    References:
      Liu et al., arXiv 2103.14030; torchvision/models/swin_transformer.py; OpenOOD v1.5,
      openood/networks/swin_t.py.
    """

    stages = ("stem", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        width: int,
        blocks: tuple[int, ...],
        heads: tuple[int, ...],
        *,
        num_classes: int,
        channels: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = Patches(channels, width, rngs=rngs)
        inputs = width
        for index, name in enumerate(self.stages[1:]):
            outputs = width * 2**index
            setattr(self, name, Stage(inputs, outputs, heads[index], blocks[index], rngs=rngs))
            inputs = outputs
        self.norm = layer_norm(inputs, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def pool(self, hidden: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        """The mean after the last layer norm."""
        return self.norm(hidden).mean(axis=(1, 2))


def swin_t(*, num_classes: int, channels: int, rngs: nnx.Rngs) -> Swin:
    """The tiny Swin transformer."""
    return Swin(
        96, (2, 2, 6, 2), (3, 6, 12, 24), num_classes=num_classes, channels=channels, rngs=rngs
    )
