"""Self-attention and the layers beside it, shared by the transformers."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from grood_jax.models.layers import NARROW


def linear(inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer of a transformer."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=NARROW, rngs=rngs)


class SelfAttention(nnx.Module):
    """Softmax attention of tokens to each other.

    Args:
      width: channels of a token.
      heads: into which the channels are divided.
      rngs: randomness for the weights.

    References:
      Vaswani et al., arXiv 1706.03762, section 3.2.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.heads = heads
        # Queries, keys and values in this order, as PyTorch packs them.
        self.qkv = linear(width, 3 * width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)

    def attend(
        self, x: Float[Array, "n t c"], bias: Float[Array, "m h t t"] | None = None
    ) -> Float[Array, "n t c"]:
        """Tokens of the same shape; ``bias`` is added before the softmax.

        Args:
          x: tokens, (N, T, C).
          bias: (M, H, T, T), where M divides N: sequence i takes the bias i modulo M.
        """
        count, tokens, width = x.shape
        queries, keys, values = jnp.moveaxis(
            self.qkv(x).reshape(count, tokens, 3, self.heads, width // self.heads), 2, 0
        )
        scale = (width // self.heads) ** -0.5
        weights = jnp.einsum("nthd,nshd->nhts", queries * scale, keys)
        if bias is not None:
            grouped = weights.reshape(count // len(bias), *bias.shape)
            weights = (grouped + bias[None]).reshape(weights.shape)
        mixed = jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(weights), values)
        return self.out(mixed.reshape(count, tokens, width))


class MLP(nnx.Module):
    """Two linear layers with GELU between them; the exact one, by the error function."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.first = linear(width, hidden, rngs=rngs)
        self.second = linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*places c"]) -> Float[Array, "*places c"]:
        """Activations of the same shape."""
        return self.second(jax.nn.gelu(self.first(x), approximate=False))
