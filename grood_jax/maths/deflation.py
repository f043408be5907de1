"""Activations without their largest singular component (arXiv 2209.08590)."""

import math

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float


def without_largest_component(activations: Float[Array, "b ... c"]) -> Float[Array, "b ... c"]:
    """``F − s₁ u₁ v₁ᵀ`` of each sample's activations F, by place and channel.

    ``u₁`` is the eigenvector of the largest eigenvalue of ``F Fᵀ`` or ``v₁`` of ``Fᵀ F``, whichever
    is the smaller; the rest is ``F − u₁ (u₁ᵀ F)``, and F is divided by its largest number first, so
    that no square leaves float32. Of equal singular values either may go.

    Args:
      activations: (B, …, C), finite.

    Returns:
      Activations of that shape, float32; zeros where there is one place or one channel.

    References:
      Song, Sebe and Wang, RankFeat, arXiv 2209.08590.
    """
    count, *places, channels = activations.shape
    flat = activations.astype(jnp.float32).reshape(count, math.prod(places), channels)
    largest = jnp.abs(flat).max(axis=(1, 2), keepdims=True)
    scaled = flat / jnp.where(largest > 0, largest, 1.0)
    wide = flat.shape[1] <= channels
    rows = scaled if wide else scaled.swapaxes(1, 2)
    gram = jnp.einsum("bik,bjk->bij", rows, rows, precision=Precision.HIGHEST)
    first = jnp.linalg.eigh(gram)[1][:, :, -1]
    along = jnp.einsum("bi,bik->bk", first, rows, precision=Precision.HIGHEST)
    rest = rows - first[:, :, None] * along[:, None, :]
    return ((rest if wide else rest.swapaxes(1, 2)) * largest).reshape(activations.shape)
