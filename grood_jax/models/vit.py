"""Vision transformers over patches of 16×16 pixels."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.attention import MLP, SelfAttention
from grood_jax.models.layers import NARROW, conv, layer_norm
from grood_jax.models.staged import Staged
from grood_jax.support.errors import UserError

PATCH = 16
EPSILON = 1e-6
WIDTH, DEPTH, HEADS, HIDDEN = 768, 12, 12, 3072


class Tokens(nnx.Module):
    """From images to tokens: one for the class, then one a patch, each with its position's."""

    def __init__(self, channels: int, image_size: int, *, rngs: nnx.Rngs) -> None:
        self.image_size = image_size
        self.patches = conv(
            channels, WIDTH, PATCH, PATCH, padding=0, bias=True, kernel_init=NARROW, rngs=rngs
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, WIDTH)))
        count = (image_size // PATCH) ** 2 + 1
        self.positions = nnx.Param(NARROW(rngs.params(), (1, count, WIDTH)))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        """Tokens, (B, T, D)."""
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"the images have {x.shape[1]} × {x.shape[2]} pixels; expected "
                f"{self.image_size} × {self.image_size}, which the network has positions for"
            )
        count = x.shape[0]
        patches = self.patches(x).reshape(count, -1, WIDTH)
        first = jnp.broadcast_to(self.class_token[...], (count, 1, WIDTH))
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + jnp.broadcast_to(self.positions[...], tokens.shape)


class EncoderBlock(nnx.Module):
    """Attention and an MLP, each after a layer norm and beside a shortcut."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.norm1 = layer_norm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.attention = SelfAttention(WIDTH, HEADS, rngs=rngs)
        self.norm2 = layer_norm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(WIDTH, HIDDEN, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """Tokens of the same shape."""
        x = x + self.attention.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(Staged):
    """A stem that makes tokens, and blocks ``layer1`` to ``layer12``, between which they stay.

    Activations are tokens (B, T, C), that of the class first; the penultimate features are that
    one after the last layer norm.

    Attributes:
      image_size: height and width of the images, which the position embeddings fix.

    References:
      Dosovitskiy et al., arXiv 2010.11929; torchvision/models/vision_transformer.py; OpenOOD
      v1.5, openood/networks/vit_b_16.py.
    """

    stages = ("stem", *(f"layer{i + 1}" for i in range(DEPTH)))

    def __init__(self, *, num_classes: int, channels: int, image_size: int, rngs: nnx.Rngs) -> None:
        if image_size % PATCH:
            raise UserError(
                f"image_size is {image_size}; a vision transformer expects a multiple of {PATCH}"
            )
        self.image_size = image_size
        self.stem = Tokens(channels, image_size, rngs=rngs)
        for name in self.stages[1:]:
            setattr(self, name, EncoderBlock(rngs=rngs))
        self.norm = layer_norm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.head = nnx.Linear(WIDTH, num_classes, rngs=rngs)

    def pool(self, hidden: Float[Array, "b t c"]) -> Float[Array, "b c"]:
        """The class's token after the last layer norm."""
        return self.norm(hidden[:, 0])
