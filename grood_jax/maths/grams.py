"""Sums of the rows of Gram matrices of activations (arXiv 1912.12510)."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def gram_sums(activations: Float[Array, "b ... c"], powers: Sequence[int]) -> Float[Array, "b p c"]:
    """``signed_root_p(Σ_j (F^p (F^p)ᵀ)_ij)`` of each channel i and power p.

    ``F`` holds a sample's activations by channel and place, and ``F^p`` their p-th powers. The Gram
    matrix itself is never made: the sum of its row i is ``Σ_s F_is^p (Σ_j F_js^p)``. Activations
    are divided by their largest first, so that no power overflows.

    Args:
      activations: of one layer, (B, …, C) float32.
      powers: P powers, each at least 1.

    Returns:
      (B, P, C) float32, of the second power of the activations' unit.

    References:
      Sastry and Oore, arXiv 1912.12510, section 3; summed by rows as in the authors' code and in
      OpenOOD v1.5, where the paper takes the upper triangle.
    """
    count, *places, channels = activations.shape
    flat = activations.reshape(count, math.prod(places), channels)
    by_channel = jnp.abs(flat).max(axis=1, keepdims=True)
    largest = by_channel.max(axis=2, keepdims=True)

    def scaled(by: Float[Array, "b _ _"]) -> Float[Array, "b s c"]:
        return flat / jnp.where(by > 0, by, 1.0)

    own, others = scaled(by_channel), scaled(largest)
    sums = []
    for power in powers:
        together = (others**power).sum(axis=2, keepdims=True)
        sums.append((own**power * together).sum(axis=1))
    rows = jnp.stack(sums, axis=1)
    # All roots at once: each would be a kernel of its own to compile.
    exponents = 1.0 / jnp.asarray(powers, jnp.float32)
    return jnp.sign(rows) * jnp.abs(rows) ** exponents[None, :, None] * (by_channel * largest)
