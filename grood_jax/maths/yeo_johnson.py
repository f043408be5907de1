"""Yeo and Johnson's power transformation, which brings numbers nearer to a Gaussian."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

REACH = 5.0
"""How far from 0 a power may be."""

NARROWING = 40
"""How often the bracket of a power is narrowed by the golden section: to 1e-7."""

MOST = 40.0
"""The largest exponent: beyond it a number counts as that, so that squares stay in float32."""


def yeo_johnson(
    values: Float[Array | np.ndarray, "n p"], powers: Float[Array | np.ndarray, " p"]
) -> Float[Array | np.ndarray, "n p"]:
    """``((1 + x)^λ − 1) / λ`` of what is not negative, else ``−((1 − x)^(2 − λ) − 1) / (2 − λ)``.

    Where the divisor is 0, the logarithm of 1 + |x|.

    Args:
      values: x, (N, P); of NumPy or JAX, as are the results, of the same dtype.
      powers: λ of each column, (P,).

    Returns:
      Numbers of that shape, in the same order within a column.

    References:
      Yeo and Johnson, A new family of power transformations to improve normality or symmetry,
      Biometrika 87, 2000.
    """
    xp: ModuleType | Any = jnp if isinstance(values, jax.Array) else np
    power = xp.where(values >= 0, powers[None, :], 2 - powers[None, :])
    logs = xp.log1p(xp.abs(values))
    plain = power == 0
    raised = xp.expm1(xp.minimum(power * logs, MOST)) / xp.where(plain, 1, power)
    return xp.sign(values) * xp.where(plain, logs, raised)


def likeliest_powers(values: Float[np.ndarray, "n p"]) -> Float[np.ndarray, " p"]:
    """The power of each column by which it is likeliest to be Gaussian, from −5 to 5.

    The likelihood's negative logarithm is convex in λ (Marchand et al., arXiv 2210.01639), and the
    golden section finds where it is least.

    Args:
      values: (N, P) float64.

    Returns:
      λ, (P,) float64, to 1e-7; 1, which leaves numbers as they are, for columns of one value.
    """
    logs = (np.sign(values) * np.log1p(np.abs(values))).sum(axis=0)

    def surprise(powers: Float[np.ndarray, " p"]) -> Float[np.ndarray, " p"]:
        with np.errstate(divide="ignore"):
            spread = np.log(yeo_johnson(values, powers).var(axis=0))
        return len(values) / 2 * spread - (powers - 1) * logs

    golden = (5**0.5 - 1) / 2
    low, high = (np.full(values.shape[1], end) for end in (-REACH, REACH))
    inner, outer = high - golden * (high - low), low + golden * (high - low)
    of_inner, of_outer = surprise(inner), surprise(outer)
    for _ in range(NARROWING):
        lower = of_inner < of_outer
        low, high = np.where(lower, low, inner), np.where(lower, outer, high)
        fresh = np.where(lower, high - golden * (high - low), low + golden * (high - low))
        of_fresh = surprise(fresh)
        inner, outer = np.where(lower, fresh, outer), np.where(lower, inner, fresh)
        of_inner, of_outer = (
            np.where(lower, of_fresh, of_outer),
            np.where(lower, of_inner, of_fresh),
        )
    return np.where(values.min(axis=0) == values.max(axis=0), 1.0, (low + high) / 2)
