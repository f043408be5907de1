"""Exact nearest neighbours: bounded cheaply, settled by direct differences, certified.

Distances are bounded from below by one matrix product of few columns (`grood_jax.neighbors.bank`),
for rows whose norms are near the query's. The rows with the lowest bounds are settled with direct
differences, and the answer is certified by the lowest bound of the rows left out. A query without
that certificate is searched again with longer lists, and at last by direct differences over all
rows. The result is thus the nearest distance by direct differences, whatever the data; the bounds
decide how long it takes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from grood_jax.neighbors.bank import (
    GROUP,
    HOST_BLOCK,
    LARGEST,
    Bank,
    HostRows,
    ShardedBank,
    reduce,
    rounding,
    square_slack,
    underflow,
)
from grood_jax.neighbors.building import build_bank
from grood_jax.support import checks

LONG_LIST = 24
"""Rows on a list from which on blocks of bounds have more rows and fewer queries."""

SPARE = 10
"""Rows settled at the first search, beyond one or two for each of the k."""

LONGER, LONG = 4, 64
"""How much longer the lists are at the second search, and how long at least."""

AGAIN_QUERIES = 8
"""Uncertified queries that are searched again together."""

FEW_ROWS = 512
"""Rows of a bank that are settled all, without bounds: those take a second longer to compile, and
save a hundredth of a millisecond a query."""

LANES, BARRIERS = 64, (32, 4)
"""Partial sums that are added up column by column, and where their addition is interrupted."""

TOO_SMALL = 1e-20
"""Squared distances below this, in units of the bank's scale, may have lost digits to underflow."""


def nearest_distances(
    queries: npt.ArrayLike,
    bank: Bank | ShardedBank | npt.ArrayLike,
    k: int = 1,
) -> Float[Array, " q"]:
    """Euclidean distance from each query to its k-th nearest row of the bank, exact.

    May be jitted and mapped, but not differentiated; with a bfloat16 bank neither.

    Args:
      queries: (Q, D).
      bank: rows (N, D), or a bank made of them once (`build_bank`, `shard_bank`) and used many
        times.
      k: which neighbour, from 1 to N.

    Returns:
      Distances, (Q,) float32, within a relative 1e-5 of float64 brute force.

    Raises:
      TypeError: not real numbers, or ``k`` not an integer.
      ValueError: wrong rank, widths that differ, an empty bank, NaN, infinite values or values
        beyond 1e37, ``k`` larger than the bank, or a bfloat16 bank in compiled code.

    Examples:
      >>> from grood_jax import nearest_distances
      >>> bank = [[3, 4], [6, 8], [0, 100]]
      >>> print(nearest_distances([[0, 0], [6, 8]], bank))
      [5. 0.]
      >>> print(nearest_distances([[0, 0], [6, 8]], bank, k=2))
      [10.  5.]
    """
    checks.at_least("k", k, 1)
    ready = bank if isinstance(bank, Bank | ShardedBank) else build_bank(bank)
    points = checks.shaped("queries", queries, ("Q", ready.width))
    points = checks.finite("queries", points, LARGEST)
    return search(points, ready, k)


def search(queries: Float[Array, "q d"], bank: Bank | ShardedBank, k: int) -> Float[Array, " q"]:
    """`nearest_distances` without checks of values, for use inside compiled code."""
    if k > bank.size:
        raise ValueError(f"k is {k}; expected at most the bank's {bank.size} rows")
    if isinstance(bank, ShardedBank):
        return _search_shards(queries, bank, k)
    if bank.host is None:
        return _k_nearest(queries, bank, k)[:, -1]
    if isinstance(queries, jax.core.Tracer):
        raise ValueError(
            "bank keeps its float32 rows on the host (dtype 'bfloat16'); expected a float32 bank "
            "in compiled code"
        )
    return _search_with_host(queries, bank, bank.host, k)


@partial(jax.jit, static_argnames="k")
def _search_shards(queries: Float[Array, "q d"], bank: ShardedBank, k: int) -> Float[Array, " q"]:
    """Each device searches its own rows; only the k best distances of each travel."""
    count = len(queries)
    spread = 1 if bank.query_axis is None else bank.mesh.shape[bank.query_axis]
    over_queries = PartitionSpec(bank.query_axis)

    def local(queries: Float[Array, "q d"], shards: Bank) -> Float[Array, " q"]:
        own = jax.tree.map(lambda array: array[0], shards)
        nearest = _k_nearest(queries, own, k)
        everywhere = lax.all_gather(nearest, bank.bank_axis, axis=1, tiled=True)
        return -_top_k(-everywhere, k)[0][:, -1]

    distances = jax.shard_map(
        local,
        mesh=bank.mesh,
        in_specs=(over_queries, PartitionSpec(bank.bank_axis)),
        out_specs=over_queries,
        check_vma=False,
    )(jnp.pad(queries, ((0, -count % spread), (0, 0)), mode="edge"), bank.shards)
    return distances[:count]


@partial(jax.jit, static_argnames="k")
def _k_nearest(queries: Float[Array, "q d"], bank: Bank, k: int) -> Float[Array, "q k"]:
    """Distances to the k nearest rows, ascending; infinite where the bank has fewer."""
    count = queries.shape[0]
    if count == 0:
        return jnp.zeros((0, k), jnp.float32)
    if len(bank.places) <= FEW_ROWS:
        return _settle_all(queries, bank, k)
    # Queries of like norms together: they look at the same rows.
    order = jnp.argsort(jnp.linalg.norm(reduce(queries, bank.frame), axis=1))
    first, second = _list_lengths(bank, k)
    block = min(_block_shape(bank, first)[0], count)
    points = queries[order]
    padded = jnp.pad(points, ((0, -count % block), (0, 0)), mode="edge")
    blocks = padded.reshape(-1, block, queries.shape[1])
    distances, certain = lax.map(partial(_search_block, bank=bank, k=k, kept=first), blocks)
    distances, certain = distances.reshape(-1, k)[:count], certain.reshape(-1)[:count]

    def longer(bank: Bank) -> Callable[[Array, Array], tuple[Array, Array]]:
        return lambda queries, _: _search_block(queries, bank, k, second)

    distances, certain = _search_again(points, distances, certain, longer(bank))
    if bank.axes:
        distances, certain = _search_again(points, distances, certain, longer(_without_axes(bank)))
    distances, _ = _search_again(points, distances, certain, partial(_search_directly, bank=bank))
    return jnp.zeros((count, k), jnp.float32).at[order].set(distances)


def _without_axes(bank: Bank) -> Bank:
    """The same rows, bounded by all their columns; what rounding may do is less then."""
    no_axes = jnp.zeros((bank.width, 0))
    return replace(bank, frame=replace(bank.frame, axes=no_axes), reduced=jnp.zeros((0, 0)))


def _block_shape(bank: Bank, kept: int) -> tuple[int, int]:
    """Queries and rows in one block of bounds."""
    # Long lists cost as much a block as its bounds do: fewer and longer blocks.
    ratio = 128 if bank.axes else 8 if kept < LONG_LIST else 32
    elements = bank.memory // 4
    queries = 2 ** int(np.log2(elements / ratio) / 2)
    return queries, min(len(bank.places), elements // queries // GROUP * GROUP)


def _list_lengths(bank: Bank, k: int) -> tuple[int, int]:
    """How many rows are settled at the first search, and at the second."""
    # Bounds by all columns are nearly the distances.
    first = (2 if bank.axes else 1) * k + SPARE
    return min(first, len(bank.places)), min(max(LONGER * first, LONG), len(bank.places))


def _top_k(values: Float[Array, "q n"], k: int) -> tuple[Array, Array]:
    """`lax.top_k`, kept as such: fused with what surrounds it, XLA for CPU sorts all the values."""
    largest, places = lax.top_k(lax.optimization_barrier(values), k)
    # One barrier each: XLA crashes on a barrier over both where several devices take part.
    return lax.optimization_barrier(largest), lax.optimization_barrier(places)


def _search_again(
    queries: Float[Array, "q d"],
    distances: Float[Array, "q k"],
    certain: Bool[Array, " q"],
    search_block: Callable[[Array, Array], tuple[Array, Array]],
) -> tuple[Float[Array, "q k"], Bool[Array, " q"]]:
    """Searches the uncertified queries once more, in another way."""
    block = min(AGAIN_QUERIES, len(queries))
    uncertain_first = jnp.argsort(certain)

    def some(step: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        distances, certain = state
        # Certain queries may fill the block up; their answer is as good the second time.
        chosen = lax.dynamic_slice_in_dim(uncertain_first, step * block, block)
        nearest, sure = search_block(queries[chosen], distances[chosen])
        keep = certain[chosen] & ~sure
        nearest = jnp.where(keep[:, None], distances[chosen], nearest)
        sure = sure | certain[chosen]
        return distances.at[chosen].set(nearest), certain.at[chosen].set(sure)

    steps = -(-(~certain).sum() // block)
    return lax.fori_loop(0, steps, some, (distances, certain))


class _Seen(NamedTuple):
    """What a block of queries has seen of the bank: the sorted rows from ``low`` to ``high``.

    Attributes:
      low, high: between which rows.
      bounds: the lowest bounds, ascending; infinite where there are fewer, (Q, kept).
      rows: the rows of these bounds, (Q, kept) int32.
      left_out: the lowest bound of all others, (Q,).
    """

    low: Int[Array, ""]
    high: Int[Array, ""]
    bounds: Float[Array, "q r"]
    rows: Int[Array, "q r"]
    left_out: Float[Array, " q"]


def _search_block(
    queries: Float[Array, "q d"], bank: Bank, k: int, kept: int
) -> tuple[Float[Array, "q k"], Bool[Array, " q"]]:
    """Distances of one block of queries to their k nearest rows, and which are certified."""
    points = reduce(queries, bank.frame)

    def unfinished(state: tuple[_Seen, Array, tuple[Array, Array]]) -> Array:
        seen, _, (begin, end) = state
        return (begin < seen.low) | (seen.high < end)

    # What is found among rows of like norms says how far from these rows may lie: the second
    # look, if there is one, is the last.
    def look(
        state: tuple[_Seen, Array, tuple[Array, Array]],
    ) -> tuple[_Seen, Array, tuple[Array, Array]]:
        seen = _look_within(points, bank, *state[::2])
        distances = _settle(queries, lambda j: bank.vectors[seen.rows[:, j]], seen, bank, k)
        return seen, distances, _window(points, bank, distances[:, -1])

    nothing = jnp.full((len(queries), k), jnp.inf)
    start, window = _like_norms(points, bank, kept)
    seen, distances, _ = lax.while_loop(unfinished, look, (start, nothing, window))
    return distances, _certain(points, bank, seen, distances[:, -1])


def _like_norms(
    points: Float[Array, "q s"], bank: Bank, kept: int
) -> tuple[_Seen, tuple[Int[Array, ""], Int[Array, ""]]]:
    """Nothing seen yet, and the block of rows whose norms are nearest to those of the queries."""
    count, total = len(points), len(bank.places)
    span = _block_shape(bank, kept)[1]
    norms = jnp.linalg.norm(points, axis=1)
    middle = jnp.searchsorted(bank.norms, jnp.stack([norms.min(), norms.max()])).sum() // 2
    low = jnp.clip(middle - span // 2, 0, total - span).astype(jnp.int32)
    nothing = _Seen(
        low,
        low,
        jnp.full((count, kept), jnp.inf),
        jnp.zeros((count, kept), jnp.int32),
        jnp.full(count, jnp.inf),
    )
    return nothing, (low, low + span)


def _window(
    points: Float[Array, "q s"], bank: Bank, reach: Float[Array, " q"]
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Between which rows the norms allow a distance of at most ``reach`` from some query."""
    slack = square_slack(bank.frame)
    norms = jnp.linalg.norm(points, axis=1)
    margin = reach * bank.frame.inverse_scale * (1.0 + slack) + underflow(points.shape[1]) ** 0.5
    # A query that overflows needs all rows.
    margin = jnp.where(jnp.isfinite(norms), margin, jnp.inf)
    norms = jnp.where(jnp.isfinite(norms), norms, 0.0)
    least = ((norms * (1.0 - slack) - margin) * (1.0 - 2 * slack)).min()
    greatest = ((norms * (1.0 + slack) + margin) * (1.0 + 2 * slack)).max()
    # A row at the upper end belongs to the window.
    ends = jnp.stack([least, jnp.nextafter(greatest, jnp.inf)])
    begin, end = jnp.searchsorted(bank.norms, ends).astype(jnp.int32)
    return begin, end


def _look_within(
    points: Float[Array, "q s"],
    bank: Bank,
    seen: _Seen,
    window: tuple[Int[Array, ""], Int[Array, ""]],
) -> _Seen:
    """Looks at all rows of the window."""
    begin, end = window
    total, span = len(bank.places), _block_shape(bank, seen.rows.shape[1])[1]

    def unfinished(seen: _Seen) -> Array:
        return (begin < seen.low) | (seen.high < end)

    def extend(seen: _Seen) -> _Seen:
        left = begin < seen.low
        start = jnp.where(
            left, jnp.maximum(seen.low - span, 0), jnp.minimum(seen.high, total - span)
        )
        return _look(points, bank, start, seen)

    return lax.while_loop(unfinished, extend, seen)


def _look(points: Float[Array, "q s"], bank: Bank, start: Int[Array, ""], seen: _Seen) -> _Seen:
    """Lets a block of rows, from ``start`` on, compete for the places among the lowest bounds."""
    count, kept = seen.rows.shape
    span = _block_shape(bank, kept)[1]
    rows = start + jnp.arange(span, dtype=jnp.int32)
    new = (rows < seen.low) | (rows >= seen.high)
    bounds = _bounds(points, bank, start, span) + jnp.where(new, 0.0, jnp.inf)[None, :]
    # Groups are strided, so that the minimum runs along whole vectors.
    groups = span // GROUP
    least = bounds.reshape(count, GROUP, groups).min(axis=1)
    taken = min(kept, groups)
    best, chosen = _top_k(-least, min(taken + 1, groups))
    left_out = -best[:, taken] if taken < groups else jnp.full(count, jnp.inf)
    members = jnp.arange(GROUP)[None, :, None] * groups + chosen[:, None, :taken]
    members = members.reshape(count, -1)
    bounds = jnp.concatenate([seen.bounds, jnp.take_along_axis(bounds, members, axis=1)], axis=1)
    rows = jnp.concatenate([seen.rows, start + members.astype(jnp.int32)], axis=1)
    best, chosen = _top_k(-bounds, kept + 1)
    return _Seen(
        jnp.minimum(seen.low, start),
        jnp.maximum(seen.high, start + span),
        -best[:, :kept],
        jnp.take_along_axis(rows, chosen[:, :kept], axis=1),
        jnp.minimum(jnp.minimum(seen.left_out, left_out), -best[:, kept]),
    )


def _bounds(
    points: Float[Array, "q s"], bank: Bank, start: Int[Array, ""], span: int
) -> Float[Array, "q n"]:
    """Lower bounds of squared distances less the queries' squared norms; −∞ where there is none.

    Of distances themselves, in a bank whose rows were rounded to bfloat16.
    """
    own = len(bank.reduced) > 0
    rows = lax.dynamic_slice_in_dim(bank.reduced if own else bank.vectors, start, span)
    rows = rows.astype(jnp.float32) if own else reduce(rows, bank.frame)
    product = lax.dot_general(
        -2.0 * points,
        rows,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    bounds = product + lax.dynamic_slice_in_dim(bank.bounds, start, span)[None, :]
    if len(bank.errors):
        errors = lax.dynamic_slice_in_dim(bank.errors, start, span)
        bounds = jnp.sqrt(jnp.maximum(bounds + _offset(points, bank), 0.0)) - errors[None, :]
    # NaN (a query that overflows) sorts last: it must fail its certificate, not hide a row.
    return jnp.where(jnp.isnan(bounds), -jnp.inf, bounds)


def _offset(points: Float[Array, "q s"], bank: Bank) -> Float[Array, "q 1"]:
    """What a bound of ``‖b − q‖² − ‖q‖²`` lacks to one of ``‖b − q‖²``."""
    squares = jnp.sum(points * points, axis=1, keepdims=True)
    return squares * (1.0 - square_slack(bank.frame)) - underflow(points.shape[1])


def _certain(
    points: Float[Array, "q s"], bank: Bank, seen: _Seen, distances: Float[Array, " q"]
) -> Bool[Array, " q"]:
    """Whether no row left out can be nearer than ``distances``."""
    offset = _offset(points, bank)[:, 0]
    reached = distances * bank.frame.inverse_scale * (1.0 + rounding(bank.width))
    if len(bank.errors):
        nearer = reached > seen.left_out
    else:
        nearer = reached * reached * (1.0 + rounding(0)) > seen.left_out + offset
    # A query that overflows has no bounds at all; nothing is nearer than 0.
    return (~nearer & jnp.isfinite(offset)) | (distances == 0.0)


def _settle(
    queries: Float[Array, "q d"],
    fetch: Callable[[Int[Array, ""]], Float[Array, "q d"]],
    seen: _Seen,
    bank: Bank,
    k: int,
) -> Float[Array, "q k"]:
    """Direct distances to the k nearest of the rows seen, ascending; ``fetch`` gives the j-th."""
    scale = bank.frame.inverse_scale

    def nearest(distance: Callable[[Array, Array], Array]) -> Float[Array, "q k"]:
        columns = jnp.arange(seen.rows.shape[1])
        distances = lax.map(lambda j: distance(queries, fetch(j)), columns).T
        return _k_least(jnp.where(seen.bounds < jnp.inf, distances, jnp.inf), k)

    squares = nearest(lambda a, b: _sum_of_squares((a - b) * scale))
    # Squares that under- or overflow need each a scale of their own: duplicates, for one.
    extreme = (squares < TOO_SMALL) | ~jnp.isfinite(squares)
    return lax.cond(extreme.any(), lambda: nearest(_direct), lambda: jnp.sqrt(squares) / scale)


def _settle_all(queries: Float[Array, "q d"], bank: Bank, k: int) -> Float[Array, "q k"]:
    """Direct distances to the k nearest of all rows, ascending; infinite where there are fewer."""
    shape = len(queries), len(bank.places)
    bounds = jnp.where(bank.places >= 0, 0.0, jnp.inf)
    seen = _Seen(
        jnp.int32(0),
        jnp.int32(len(bank.places)),
        jnp.broadcast_to(bounds[None, :], shape),
        jnp.broadcast_to(jnp.arange(len(bank.places), dtype=jnp.int32)[None, :], shape),
        jnp.full(len(queries), jnp.inf),
    )

    def row(j: Int[Array, ""]) -> Float[Array, "q d"]:
        return jnp.broadcast_to(bank.vectors[j][None, :], queries.shape)

    return _settle(queries, row, seen, bank, k)


def _k_least(values: Float[Array, "q n"], k: int) -> Float[Array, "q k"]:
    """The k least values of each row, ascending; infinite where there are fewer."""
    short = max(0, k - values.shape[1])
    return -_top_k(-jnp.pad(values, ((0, 0), (0, short)), constant_values=jnp.inf), k)[0]


def _direct(queries: Float[Array, "q d"], rows: Float[Array, "q d"]) -> Float[Array, " q"]:
    """Distances by direct differences, scaled so that no square over- or underflows."""
    differences = queries - rows
    _, exponent = jnp.frexp(jnp.max(jnp.abs(differences), axis=-1))
    exponent = jnp.clip(exponent, -125, 125)
    scaled = differences * jnp.ldexp(jnp.float32(1.0), -exponent)[:, None]
    return jnp.sqrt(_sum_of_squares(scaled)) * jnp.ldexp(jnp.float32(1.0), exponent)


def _sum_of_squares(vectors: Float[Array, "q d"]) -> Float[Array, " q"]:
    """Sums added in one order whatever the shapes: a distance has the same bits in any search.

    XLA's own reductions choose their order by the number of rows.
    """
    parts = [vectors[:, i : i + LANES] for i in range(0, vectors.shape[1], LANES)]
    parts[-1] = jnp.pad(parts[-1], ((0, 0), (0, LANES - parts[-1].shape[1])))
    sums = parts[0] * parts[0]
    for part in parts[1:]:
        sums = sums + part * part
    while (half := sums.shape[1] // 2) > 0:
        # Without barriers the whole tree would become one expression, slow to compile.
        if half in BARRIERS:
            sums = lax.optimization_barrier(sums)
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def _search_directly(
    queries: Float[Array, "q d"], distances: Float[Array, "q k"], bank: Bank
) -> tuple[Float[Array, "q k"], Bool[Array, " q"]]:
    """Direct distances to all rows whose norms allow less than ``distances``."""
    begin, end = _window(reduce(queries, bank.frame), bank, distances[:, -1])

    def step(block: Int[Array, ""], best: Array) -> Array:
        start = block * GROUP
        rows = lax.dynamic_slice_in_dim(bank.vectors, start, GROUP)
        held = lax.dynamic_slice_in_dim(bank.places, start, GROUP) >= 0
        return _nearer(queries, rows, held, best)

    nothing = jnp.full(distances.shape, jnp.inf)
    nearest = lax.fori_loop(begin // GROUP, -(-end // GROUP), step, nothing)
    return nearest, jnp.ones(len(queries), bool)


def _nearer(
    queries: Float[Array, "q d"],
    rows: Float[Array, "n d"],
    held: Bool[Array, " n"],
    best: Float[Array, "q k"],
) -> Float[Array, "q k"]:
    """The k least of the distances in ``best`` and to the rows held, by direct differences."""
    distances = lax.map(lambda row: _direct(queries, jnp.broadcast_to(row, queries.shape)), rows).T
    distances = jnp.where(held[None, :], distances, jnp.inf)
    return _k_least(jnp.concatenate([best, distances], axis=1), best.shape[1])


def _search_with_host(
    queries: Float[Array, "q d"], bank: Bank, host: HostRows, k: int
) -> Float[Array, " q"]:
    """As `_k_nearest`, with lists made on the device and the rows on them fetched from the host."""
    # Compiled code would keep the host's rows alive as long as itself.
    device = replace(bank, host=None)
    places = np.asarray(bank.places)
    given, reduced = np.asarray(queries), np.asarray(_reduce(queries, device.frame))
    waiting = np.argsort(np.linalg.norm(reduced, axis=1))
    distances = np.zeros(len(given), np.float32)

    def settle(chosen: npt.NDArray, seen: _Seen) -> Float[Array, "q k"]:
        rows = host.take(np.maximum(places[np.asarray(seen.rows)], 0))
        return _settle_given(jnp.asarray(given[chosen]), jnp.asarray(rows), seen, device, k)

    for kept in _list_lengths(device, k):
        block = max(1, min(_block_shape(device, kept)[0], HOST_BLOCK // (4 * bank.width * kept)))
        left = [waiting[:0]]
        for start in range(0, len(waiting), block):
            chosen = np.resize(waiting[start : start + block], block)
            points = jnp.asarray(reduced[chosen])
            seen, window = _start(points, device, kept)
            while window[0] < seen.low or seen.high < window[1]:
                seen = _look_further(points, device, seen, window)
                reach = settle(chosen, seen)[:, -1]
                window = _reached(points, device, reach)
            distances[chosen] = np.asarray(reach)
            certain = np.asarray(_certified(points, device, seen, reach))
            left.append(np.unique(chosen[~certain]))
        waiting = np.concatenate(left)
    for start in range(0, len(waiting), AGAIN_QUERIES):
        chosen = np.resize(waiting[start : start + AGAIN_QUERIES], AGAIN_QUERIES)
        best = jnp.full((AGAIN_QUERIES, k), jnp.inf)
        for rows in host.blocks():
            best = _nearer_in(jnp.asarray(given[chosen]), jnp.asarray(rows), best)
        distances[chosen] = np.asarray(best)[:, -1]
    return jnp.asarray(distances)


_reduce = jax.jit(reduce)
_start = jax.jit(_like_norms, static_argnames="kept")
_look_further = jax.jit(_look_within)
_reached = jax.jit(_window)
_certified = jax.jit(_certain)


@partial(jax.jit, static_argnames="k")
def _settle_given(
    queries: Float[Array, "q d"], rows: Float[Array, "q r d"], seen: _Seen, bank: Bank, k: int
) -> Float[Array, "q k"]:
    return _settle(queries, lambda j: rows[:, j], seen, bank, k)


@jax.jit
def _nearer_in(
    queries: Float[Array, "q d"], rows: Float[Array, "n d"], best: Float[Array, "q k"]
) -> Float[Array, "q k"]:
    """`_nearer` for many rows."""
    padding = (0, -len(rows) % GROUP)
    blocks = jnp.pad(rows, (padding, (0, 0))).reshape(-1, GROUP, rows.shape[1])
    held = jnp.pad(jnp.ones(len(rows), bool), padding).reshape(-1, GROUP)
    return lax.scan(
        lambda best, block: (_nearer(queries, *block, best), None), best, (blocks, held)
    )[0]
