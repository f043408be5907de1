"""How surely places in an image are one of several concepts (arXiv 2304.04521)."""

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float


def unlike_all_concepts(
    local: Float[Array, "b *places d"], concepts: Float[Array, "c d"], temperature: float
) -> Float[Array, " b"]:
    """``1 − max_i max_c softmax_c(cos(h_i, t_c) / τ)`` over the places i of each image.

    A vector of zeros has a cosine of 0 with everything.

    Args:
      local: features of places, (B, …, D).
      concepts: a vector for each class, (C, D).
      temperature: τ.

    Returns:
      (B,) float32, in [0, 1).

    References:
      Miyai, Yu, Irie and Aizawa, GL-MCM, arXiv 2304.04521.
    """
    vectors = _directions(local.astype(jnp.float32).reshape(local.shape[0], -1, local.shape[-1]))
    cosines = jnp.matmul(vectors, _directions(concepts).T, precision=Precision.HIGHEST)
    logits = cosines / temperature
    sure = logits.max(axis=2) - jax.nn.logsumexp(logits, axis=2)
    surest = jnp.take_along_axis(logits, sure.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    # As the sum of the others' probabilities: near 1, a probability has no digits left.
    exponentials = jnp.exp(surest - surest.max(axis=1, keepdims=True))
    winner = jax.nn.one_hot(surest.argmax(axis=1), surest.shape[1], dtype=bool)
    return jnp.where(winner, 0.0, exponentials).sum(axis=1) / exponentials.sum(axis=1)


def _directions(vectors: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    # By the largest entry first: squares of large or tiny features leave float32.
    largest = jnp.abs(vectors).max(axis=-1, keepdims=True)
    scaled = vectors / jnp.where(largest > 0, largest, 1.0)
    norms = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(norms > 0, norms, 1.0)
