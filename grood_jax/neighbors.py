"""Exact nearest neighbours: a jitted blocked scan over a bank, settled and certified.

The fast form ``‖b‖² − 2 q·b`` loses its digits to cancellation, so it only orders: the bank's
rows are taken in groups of a few, the groups whose lower bound is smallest are settled with
direct differences, and the answer is certified by the bound of the first group left out. A query
without that certificate is searched again with direct differences over the whole bank. The
result is thus the nearest distance by direct differences, whatever the data.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy.typing as npt
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from grood_jax import checks

GROUP = 16
"""Rows that share one lower bound."""

BLOCK_GROUPS = 256
"""Groups in one step of the scan over the bank."""

QUERY_BLOCK = 256
"""Queries searched together; the rest wait their turn."""

SPARE_GROUPS = 7
"""Groups settled beyond the k that could hold the k nearest rows, one each."""

LARGEST = 1e37
"""Beyond this, values are refused: the reciprocals of their differences underflow in float32."""

DIRECT_BLOCK = 16
"""Uncertified queries searched together by direct differences."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Vectors made ready for searching; immutable, a pytree.

    Attributes:
      vectors: the rows as given, then rows of zeros up to a whole number of groups,
        (N + padding, D) float32.
      center: what is subtracted in the fast form, so that data far from the origin keep their
        digits, (D,) float32.
      inverse_scale: power of two by which the fast form multiplies, so that no square over- or
        underflows, () float32.
      bounds: squared norms of the centred, scaled rows, less the rounding error that the fast
        form may make; infinite for the padding, (N + padding,) float32.
      size: how many rows there are without the padding, N.
    """

    vectors: Float[Array, "n d"]
    center: Float[Array, " d"]
    inverse_scale: Float[Array, ""]
    bounds: Float[Array, " n"]
    size: int = field(metadata={"static": True})


def rounding(width: int) -> float:
    """Bound on the relative rounding error of a float32 dot product of ``width`` terms."""
    return 2 * (width + 32) * 2.0**-24


def build_bank(vectors: npt.ArrayLike) -> Bank:
    """Makes a bank of the rows of ``vectors`` (N, D).

    Raises:
      TypeError: not real numbers.
      ValueError: wrong rank, no rows, NaN, infinite values or values beyond 1e37.
    """
    rows = checks.finite("bank", checks.shaped("bank", vectors, ("N", "D")), LARGEST)
    if 0 in rows.shape:
        raise ValueError(f"bank has shape {rows.shape}; expected at least one row and one column")
    return _build(rows)


@jax.jit
def _build(rows: Float[Array, "n d"]) -> Bank:
    count, width = rows.shape
    # Halved before the sum: rows near float32's largest value must not overflow the mean.
    mean = jnp.mean(rows * 0.5, axis=0) * 2.0
    mean = jnp.where(jnp.isfinite(mean), mean, 0.0)
    unit = jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(jnp.float32).tiny)
    spread = jnp.mean(((rows - mean[None, :]) / unit) ** 2)
    # Where norms run over decades about the origin, it is the origin that keeps their digits.
    far = spread < 0.25 * jnp.mean((rows / unit) ** 2)
    center = jnp.where(far, mean, 0.0)
    largest = jnp.max(jnp.abs(rows - center[None, :]))
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1.0))
    inverse_scale = jnp.ldexp(jnp.float32(1.0), jnp.clip(-exponent, -125, 125))
    centred = (rows - center[None, :]) * inverse_scale
    bounds = jnp.sum(centred * centred, axis=1) * (1.0 - rounding(width))
    padding = -count % (GROUP * BLOCK_GROUPS if count > GROUP * BLOCK_GROUPS else GROUP)
    return Bank(
        vectors=jnp.pad(rows, ((0, padding), (0, 0))),
        center=center,
        inverse_scale=inverse_scale,
        bounds=jnp.pad(bounds, (0, padding), constant_values=jnp.inf),
        size=count,
    )


def nearest_distances(
    queries: npt.ArrayLike,
    bank: Bank | npt.ArrayLike,
    k: int = 1,
) -> Float[Array, " q"]:
    """Euclidean distance from each query to its k-th nearest row of the bank, exact.

    May be jitted and mapped, but not differentiated.

    Args:
      queries: (Q, D).
      bank: rows (N, D), or a `Bank` made of them once by `build_bank` and used many times.
      k: which neighbour, from 1 to N.

    Returns:
      Distances, (Q,) float32, within a relative 1e-5 of float64 brute force.

    Raises:
      TypeError: not real numbers, or ``k`` not an integer.
      ValueError: wrong rank, widths that differ, an empty bank, NaN, infinite values or values
        beyond 1e37, or ``k`` larger than the bank.
    """
    checks.at_least("k", k, 1)
    ready = bank if isinstance(bank, Bank) else build_bank(bank)
    width = ready.vectors.shape[1]
    points = checks.shaped("queries", queries, ("Q", width))
    points = checks.finite("queries", points, LARGEST)
    if k > ready.size:
        raise ValueError(f"k is {k}; expected at most the bank's {ready.size} rows")
    return search(points, ready, k)


@partial(jax.jit, static_argnames="k")
def search(queries: Float[Array, "q d"], bank: Bank, k: int) -> Float[Array, " q"]:
    """`nearest_distances` without its checks, for use inside compiled code."""
    count = queries.shape[0]
    if count == 0:
        return jnp.zeros(0, jnp.float32)
    block = min(QUERY_BLOCK, count)
    padded = jnp.pad(queries, ((0, -count % block), (0, 0)))
    blocks = padded.reshape(-1, block, queries.shape[1])
    distances, certain = lax.map(partial(_search_block, bank=bank, k=k), blocks)
    distances, certain = distances.reshape(-1), certain.reshape(-1)
    certain = certain | (jnp.arange(len(certain)) >= count)
    return _resolve(padded, distances, certain, bank, k)[:count]


def _top_k(values: Float[Array, "q n"] | Int[Array, " n"], k: int) -> tuple[Array, Array]:
    """`lax.top_k`, kept as such: fused with what surrounds it, XLA for CPU sorts all the values."""
    largest, places = lax.top_k(lax.optimization_barrier(values), k)
    return lax.optimization_barrier((largest, places))


def _search_block(
    queries: Float[Array, "q d"], bank: Bank, k: int
) -> tuple[Float[Array, " q"], Bool[Array, " q"]]:
    """Distances of one block of queries, and which of them are certified."""
    count, width = queries.shape
    centred = (queries - bank.center[None, :]) * bank.inverse_scale
    lows = _group_lows(centred, bank)
    groups = lows.shape[1]
    taken = min(groups, k + SPARE_GROUPS)
    order, chosen = _top_k(-lows, min(groups, taken + 1))
    distances = _settle(queries, chosen[:, :taken], bank)
    kth = -_top_k(-distances, k)[0][:, -1]
    if taken == groups:
        return kth, jnp.ones(count, bool)
    # The first group left out holds nothing nearer than this; the last term covers underflow.
    squared = jnp.sum(centred * centred, axis=1) * (1.0 - rounding(width))
    left_out = -order[:, taken] + squared - 8 * width * jnp.finfo(jnp.float32).tiny
    reached = kth * bank.inverse_scale
    certain = (reached * reached * (1.0 + rounding(width)) <= left_out) | (kth == 0.0)
    return kth, certain


def _group_lows(centred: Float[Array, "q d"], bank: Bank) -> Float[Array, "q g"]:
    """Lower bounds of ``‖b − q‖² − ‖q‖²`` for each query and group of the bank's rows."""
    rows, width = bank.vectors.shape
    steps = max(1, rows // (GROUP * BLOCK_GROUPS))
    minus_two = -2.0 * centred

    def step(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
        vectors, bounds = block
        centred_rows = (vectors - bank.center[None, :]) * bank.inverse_scale
        product = lax.dot_general(
            minus_two,
            centred_rows,
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        lows = product + bounds[None, :]
        return None, lows.reshape(len(centred), -1, GROUP).min(axis=-1)

    blocks = (bank.vectors.reshape(steps, -1, width), bank.bounds.reshape(steps, -1))
    lows = lax.scan(step, None, blocks)[1]
    # NaN (a query that overflows) sorts last: it must fail its certificate, not hide a group.
    lows = jnp.where(jnp.isnan(lows), -jnp.inf, lows)
    return lows.transpose(1, 0, 2).reshape(len(centred), -1)


def _direct(queries: Float[Array, "q d"], rows: Float[Array, "q r d"]) -> Float[Array, "q r"]:
    """Distances by direct differences, scaled so that no square over- or underflows."""
    differences = queries[:, None, :] - rows
    largest = jnp.max(jnp.abs(differences), axis=-1)
    scale = jnp.where(largest > 0, largest, 1.0)
    scaled = differences / scale[:, :, None]
    return scale * jnp.sqrt(jnp.sum(scaled * scaled, axis=-1))


def _settle(queries: Float[Array, "q d"], groups: Array, bank: Bank) -> Float[Array, "q r"]:
    """Direct distances from each query to the rows of its own groups."""

    def one_group(group: Array) -> Float[Array, "q r"]:
        rows = group[:, None] * GROUP + jnp.arange(GROUP)[None, :]
        distances = _direct(queries, bank.vectors[rows])
        return jnp.where(jnp.isfinite(bank.bounds[rows]), distances, jnp.inf)

    settled = lax.map(one_group, groups.T)
    return settled.transpose(1, 0, 2).reshape(len(queries), -1)


def _resolve(
    queries: Float[Array, "q d"],
    distances: Float[Array, " q"],
    certain: Bool[Array, " q"],
    bank: Bank,
    k: int,
) -> Float[Array, " q"]:
    """Searches the uncertified queries again, by direct differences over the whole bank."""
    block = min(DIRECT_BLOCK, len(queries))

    def unfinished(state: tuple[Array, Array]) -> Array:
        return ~state[1].all()

    def finish_some(state: tuple[Array, Array]) -> tuple[Array, Array]:
        distances, certain = state
        chosen = _top_k((~certain).astype(jnp.int32), block)[1]
        exact = _brute_force(queries[chosen], bank, k)
        # Certified queries may fill the block up; the direct answer is as good for them.
        return distances.at[chosen].set(exact), certain.at[chosen].set(True)

    return lax.while_loop(unfinished, finish_some, (distances, certain))[0]


def _brute_force(queries: Float[Array, "q d"], bank: Bank, k: int) -> Float[Array, " q"]:
    rows, width = bank.vectors.shape

    def step(best: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        vectors, bounds = block
        distances = _direct(queries, jnp.broadcast_to(vectors, (len(queries), *vectors.shape)))
        distances = jnp.where(jnp.isfinite(bounds)[None, :], distances, jnp.inf)
        return -_top_k(-jnp.concatenate([best, distances], axis=1), k)[0], None

    start = jnp.full((len(queries), k), jnp.inf, jnp.float32)
    blocks = (bank.vectors.reshape(-1, GROUP, width), bank.bounds.reshape(-1, GROUP))
    return lax.scan(step, start, blocks)[0][:, -1]
