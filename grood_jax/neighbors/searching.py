"""Exact nearest neighbours: bounded cheaply, settled by direct differences, certified.

Distances are bounded from below by one matrix product of few columns (`grood_jax.neighbors.bank`),
for rows whose norms are near the query's. Of every few rows the least bound is kept; those with the
lowest are settled with direct differences, and the answer is certified by the lowest bound of the
rows left out. A query without that certificate is searched again with longer lists, and at last by
direct differences over all rows. The result is thus the nearest distance by direct differences,
whatever the data; the bounds decide how long it takes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from grood_jax.neighbors.bank import (
    FEW_NUMBERS,
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

SPARE, SPARE_GROUPS = 10, 6
"""Rows settled at the first search beyond two for each of the k, where bounds are loose; groups
beyond one where they are nearly the distances."""

SHARE = 8
"""The bounds of one chunk of rows take this part of the memory, those of groups the rest."""

ALIKE = 0.25
"""Norms of which the middle four fifths lie within this part of their median leave no row out."""

NARROW = 128
"""Columns up to which blocks of bounds have more rows and fewer queries."""

SETTLED = 2**20
"""Numbers that are subtracted at once, at most."""

NOWHERE = 2**31 - 1
"""The place of no row, after those of all rows."""

LONGER, LONG = 4, 64
"""How much longer the lists are at the second search, and how long at least."""

AGAIN_QUERIES = 8
"""Uncertified queries that are searched again together."""

FEW_ROWS = 1024
"""Rows of a bank that are settled all, without bounds: those take two seconds longer to compile,
and save a few hundredths of a millisecond a query."""

LANES, BARRIERS = 64, (32, 4)
"""Partial sums that are added up column by column, and where their addition is interrupted."""

TOO_SMALL = 1e-10
"""Squares of less, in units of the bank's scale, may have lost digits to underflow."""


Rows = tuple[Float[Array, "q k"], Int[Array, "q k"]]
Best = Float[Array, "q k"] | Rows
"""The nearest rows found: their distances, ascending, or these and their places in the bank."""


@overload
def nearest_distances(
    queries: npt.ArrayLike,
    bank: Bank | ShardedBank | npt.ArrayLike,
    k: int = 1,
    return_indices: Literal[False] = False,
) -> Float[Array, " q"]: ...


@overload
def nearest_distances(
    queries: npt.ArrayLike,
    bank: Bank | ShardedBank | npt.ArrayLike,
    k: int = 1,
    *,
    return_indices: Literal[True],
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]: ...


def nearest_distances(
    queries: npt.ArrayLike,
    bank: Bank | ShardedBank | npt.ArrayLike,
    k: int = 1,
    return_indices: bool = False,
) -> Float[Array, " q"] | tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Euclidean distance from each query to its k-th nearest row of the bank, exact.

    May be jitted and mapped, but not differentiated; with a bfloat16 bank neither.

    Args:
      queries: (Q, D).
      bank: rows (N, D), or a bank made of them once (`build_bank`, `shard_bank`) and used many
        times.
      k: which neighbour, from 1 to N.
      return_indices: give all of the k nearest rows, as scikit-learn's ``kneighbors`` does.

    Returns:
      Distances, (Q,) float32, within a relative 1e-5 of float64 brute force. With
      ``return_indices`` the distances of the k nearest, (Q, k) float32, ascending, the last of
      which has the same bits, and their numbers among the rows as given, (Q, k) int32. Of rows
      whose float32 distances are equal, lower numbers come first. In a `ShardedBank` of many
      processes rows are counted along ``bank_axis``.

    Raises:
      TypeError: not real numbers, ``k`` not an integer, or ``return_indices`` not a bool.
      ValueError: wrong rank, widths that differ, an empty bank, NaN, infinite values or values
        beyond 1e37, ``k`` larger than the bank, or a bfloat16 bank in compiled code.

    Examples:
      >>> from grood_jax import nearest_distances
      >>> bank = [[3, 4], [6, 8], [0, 100]]
      >>> print(nearest_distances([[0, 0], [6, 8]], bank))
      [5. 0.]
      >>> print(nearest_distances([[0, 0], [6, 8]], bank, k=2))
      [10.  5.]
      >>> distances, rows = nearest_distances([[0, 0], [6, 8]], bank, k=2, return_indices=True)
      >>> print(rows)
      [[0 1]
       [1 0]]
    """
    checks.at_least("k", k, 1)
    checks.flag("return_indices", return_indices)
    ready = bank if isinstance(bank, Bank | ShardedBank) else build_bank(bank)
    points = checks.shaped("queries", queries, ("Q", ready.width))
    points = checks.finite("queries", points, LARGEST)
    return search_rows(points, ready, k) if return_indices else search(points, ready, k)


def search(queries: Float[Array, "q d"], bank: Bank | ShardedBank, k: int) -> Float[Array, " q"]:
    """`nearest_distances` without checks of values, for use inside compiled code."""
    return _kth(_searched(queries, bank, k, False))


def search_rows(
    queries: Float[Array, "q d"], bank: Bank | ShardedBank, k: int
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """As `search`, with ``return_indices``."""
    found = _searched(queries, bank, k, True)
    assert isinstance(found, tuple)
    return found


def distances_of_each(
    queries: Float[Array, "q d"], bank: Bank | ShardedBank, ks: tuple[int, ...]
) -> Float[Array, "q v"]:
    """As `search`, for each of several k a column; one search for all of them."""
    distances, _ = search_rows(queries, bank, max(ks))
    return distances[:, np.asarray(ks) - 1]


def _searched(queries: Float[Array, "q d"], bank: Bank | ShardedBank, k: int, rows: bool) -> Best:
    if k > bank.size:
        raise ValueError(f"k is {k}; expected at most the bank's {bank.size} rows")
    if isinstance(bank, ShardedBank):
        found = _search_shards(queries, bank, k, rows)
        return found if isinstance(found, tuple) else found[:, None]
    if bank.host is None:
        return _k_nearest(queries, bank, k, rows)
    if isinstance(queries, jax.core.Tracer):
        raise ValueError(
            "bank keeps its float32 rows on the host (dtype 'bfloat16'); expected a float32 bank "
            "in compiled code"
        )
    return _search_with_host(queries, bank, bank.host, k, rows)


@partial(jax.jit, static_argnames=("k", "rows"))
def _search_shards(
    queries: Float[Array, "q d"], bank: ShardedBank, k: int, rows: bool = False
) -> Float[Array, " q"] | Rows:
    """Each device searches its own rows; only the k best of each travel."""
    count = len(queries)
    spread = 1 if bank.query_axis is None else bank.mesh.shape[bank.query_axis]
    over_queries = PartitionSpec(bank.query_axis)

    def everywhere(array: Array) -> Array:
        return lax.all_gather(array, bank.bank_axis, axis=1, tiled=True)

    def local(queries: Float[Array, "q d"], shards: Bank) -> Float[Array, " q"] | Rows:
        own = jax.tree.map(lambda array: array[0], shards)
        best = _k_nearest(queries, own, k, rows)
        if not rows:
            return _kth(_k_best(everywhere(best), None, k))
        distances, places = best
        # The shards hold the rows in order.
        sizes = everywhere(_size(own)[None, None])
        before = jnp.where(jnp.arange(sizes.shape[1]) < lax.axis_index(bank.bank_axis), sizes, 0)
        places = jnp.where(places < NOWHERE, places + before.sum(), NOWHERE)
        return _k_best(everywhere(distances), everywhere(places), k)

    best = jax.shard_map(
        local,
        mesh=bank.mesh,
        in_specs=(over_queries, PartitionSpec(bank.bank_axis)),
        out_specs=over_queries,
        check_vma=False,
    )(jnp.pad(queries, ((0, -count % spread), (0, 0)), mode="edge"), bank.shards)
    return jax.tree.map(lambda array: array[:count], best)


@partial(jax.jit, static_argnames=("k", "rows"))
def _k_nearest(queries: Float[Array, "q d"], bank: Bank, k: int, rows: bool = False) -> Best:
    """The k nearest rows; infinitely far where the bank has fewer."""
    count = queries.shape[0]
    if count == 0:
        return _nothing(0, k, rows)
    if len(bank.places) <= FEW_ROWS:
        return _settle_all(queries, bank, k, rows)
    # Queries of like norms together: they look at the same rows.
    order = jnp.argsort(jnp.linalg.norm(reduce(queries, bank.frame), axis=1))
    first, second = _list_lengths(bank, k)
    block = min(_block_shape(bank, first)[0], count)
    points = queries[order]
    padded = jnp.pad(points, ((0, -count % block), (0, 0)), mode="edge")
    blocks = padded.reshape(-1, block, queries.shape[1])
    best, certain = lax.map(partial(_search_block, bank=bank, k=k, kept=first, rows=rows), blocks)
    best = jax.tree.map(lambda array: array.reshape(-1, k)[:count], best)
    certain = certain.reshape(-1)[:count]

    def longer(bank: Bank) -> Callable[[Array, Best], tuple[Best, Array]]:
        return lambda queries, _: _search_block(queries, bank, k, second, rows)

    if bank.vectors.size > FEW_NUMBERS:
        best, certain = _search_again(points, best, certain, longer(bank))
        if bank.axes:
            best, certain = _search_again(points, best, certain, longer(_without_axes(bank)))
    best, _ = _search_again(points, best, certain, partial(_search_directly, bank=bank))
    return jax.tree.map(lambda array: jnp.zeros_like(array).at[order].set(array), best)


def _without_axes(bank: Bank) -> Bank:
    """The same rows, bounded by all their columns; what rounding may do is less then."""
    no_axes = jnp.zeros((bank.width, 0))
    return replace(bank, frame=replace(bank.frame, axes=no_axes), reduced=jnp.zeros((0, 0)))


def _loose(bank: Bank) -> bool:
    """Whether bounds may lie far below the distances."""
    return bank.axes > 0 or len(bank.errors) > 0


def _block_shape(bank: Bank, kept: int) -> tuple[int, int]:
    """Queries of a block, and rows of a chunk: their bounds take an eighth of the memory."""
    # Rows of few numbers cost little to read again: fewer queries see a narrower range of norms.
    ratio = 128 if bank.axes else 32 if bank.width <= NARROW else 8
    elements = bank.memory // 4 // SHARE
    # The rows on lists are some numbers each.
    most = max(1, bank.memory // (16 * GROUP * kept))
    queries = 2 ** int(np.log2(min(most, (elements / ratio) ** 0.5)))
    return queries, min(len(bank.places), elements // queries // GROUP * GROUP)


def _list_lengths(bank: Bank, k: int) -> tuple[int, int]:
    """How long the lists of the first search are, and those of the second."""
    first = 2 * k + SPARE if _loose(bank) else k + SPARE_GROUPS
    return min(first, len(bank.places)), min(max(LONGER * first, LONG), len(bank.places))


def _top_k(values: Float[Array, "q n"], k: int) -> tuple[Array, Array]:
    """`lax.top_k`, kept as such: fused with what surrounds it, XLA for CPU sorts all the values."""
    largest, places = lax.top_k(lax.optimization_barrier(values), k)
    # One barrier each: XLA crashes on a barrier over both where several devices take part.
    return lax.optimization_barrier(largest), lax.optimization_barrier(places)


def _search_again(
    queries: Float[Array, "q d"],
    best: Best,
    certain: Bool[Array, " q"],
    search_block: Callable[[Array, Best], tuple[Best, Array]],
) -> tuple[Best, Bool[Array, " q"]]:
    """Searches the uncertified queries once more, in another way."""
    block = min(AGAIN_QUERIES, len(queries))
    uncertain_first = jnp.argsort(certain)

    def some(step: Int[Array, ""], state: tuple[Best, Array]) -> tuple[Best, Array]:
        best, certain = state
        # Certain queries may fill the block up; their answer is as good the second time.
        chosen = lax.dynamic_slice_in_dim(uncertain_first, step * block, block)
        before = jax.tree.map(lambda array: array[chosen], best)
        nearest, sure = search_block(queries[chosen], before)
        keep = (certain[chosen] & ~sure)[:, None]
        nearest = jax.tree.map(partial(jnp.where, keep), before, nearest)
        sure = sure | certain[chosen]
        best = jax.tree.map(lambda array, new: array.at[chosen].set(new), best, nearest)
        return best, certain.at[chosen].set(sure)

    steps = -(-(~certain).sum() // block)
    return lax.fori_loop(0, steps, some, (best, certain))


class _Seen(NamedTuple):
    """What a block of queries has seen of the bank: the chunks from ``low`` to ``high``.

    Attributes:
      low, high: between which chunks of rows.
      bounds: the lowest bounds, ascending; infinite where there are fewer, (Q, kept). Of rows
        where bounds are loose, or else of groups, all of whose rows are settled.
      numbers: which rows or groups these are, (Q, kept) int32.
      left_out: the lowest bound of all others, (Q,).
    """

    low: Int[Array, ""]
    high: Int[Array, ""]
    bounds: Float[Array, "q m"]
    numbers: Int[Array, "q m"]
    left_out: Float[Array, " q"]


class _Listed(NamedTuple):
    """The rows to settle.

    Attributes:
      rows: as sorted in the bank, (Q, R) int32.
      held: which of them are some, (Q, R).
      left_out: the lowest bound of all other rows seen, (Q,).
    """

    rows: Int[Array, "q r"]
    held: Bool[Array, "q r"]
    left_out: Float[Array, " q"]


Window = tuple[Int[Array, ""], Int[Array, ""]]


def _search_block(
    queries: Float[Array, "q d"], bank: Bank, k: int, kept: int, rows: bool = False
) -> tuple[Best, Bool[Array, " q"]]:
    """The k nearest rows to each query of one block, and which answers are certified."""
    points = reduce(queries, bank.frame)

    def unfinished(state: tuple[_Seen, Window, tuple[Best, Array]]) -> Array:
        seen, (begin, end), _ = state
        return (begin < seen.low) | (seen.high < end)

    # What is found among rows of like norms says how far from these rows may lie: the second
    # look, if there is one, is the last.
    def look(
        state: tuple[_Seen, Window, tuple[Best, Array]],
    ) -> tuple[_Seen, Window, tuple[Best, Array]]:
        seen = _look_within(points, bank, *state[:2])
        listed = _listed(bank, seen)
        best = _settle(
            queries, lambda own: _rows_at(bank.vectors, listed.rows[:, own]), listed, bank, k, rows
        )
        return seen, _window(points, bank, _kth(best), kept), (best, listed.left_out)

    none = _nothing(len(queries), k, rows), jnp.full(len(queries), jnp.inf)
    seen, window = _like_norms(points, bank, kept)
    _, _, (best, left_out) = lax.while_loop(unfinished, look, (seen, window, none))
    return best, _certain(points, bank, left_out, _kth(best), rows)


def _size(bank: Bank) -> Int[Array, ""]:
    """Rows without the padding: in a shard its own, where ``bank.size`` says nothing."""
    return jnp.searchsorted(bank.norms, jnp.inf).astype(jnp.int32)


def _like_norms(points: Float[Array, "q s"], bank: Bank, kept: int) -> tuple[_Seen, Window]:
    """Nothing seen yet, and the chunk of rows whose norms are nearest to those of the queries.

    All chunks where norms are too much alike to leave any out.
    """
    count, chunk = len(points), _block_shape(bank, kept)[1]
    norms = jnp.linalg.norm(points, axis=1)
    size = _size(bank)
    middle = jnp.searchsorted(bank.norms, jnp.stack([norms.min(), norms.max()])).sum() // 2
    low = jnp.clip(middle, 0, size - 1).astype(jnp.int32) // chunk
    few, middling, many = bank.norms[jnp.stack([size // 10, size // 2, size - 1 - size // 10])]
    alike = many - few < ALIKE * middling
    low = jnp.where(alike, 0, low)
    return _unseen(low, count, kept), (low, jnp.where(alike, -(-size // chunk), low + 1))


def _unseen(low: Int[Array, ""], count: int, kept: int) -> _Seen:
    """Nothing seen yet, from chunk ``low`` on."""
    return _Seen(
        low,
        low,
        jnp.full((count, kept), jnp.inf),
        jnp.zeros((count, kept), jnp.int32),
        jnp.full(count, jnp.inf),
    )


def _window(
    points: Float[Array, "q s"], bank: Bank, reach: Float[Array, " q"], kept: int
) -> Window:
    """Between which chunks the norms allow a distance of at most ``reach`` from some query."""
    begin, end = _rows_within(points, bank, reach)
    chunk = _block_shape(bank, kept)[1]
    return begin // chunk, -(-end // chunk)


def _rows_within(points: Float[Array, "q s"], bank: Bank, reach: Float[Array, " q"]) -> Window:
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


def _look_within(points: Float[Array, "q s"], bank: Bank, seen: _Seen, window: Window) -> _Seen:
    """Looks at all chunks of the window."""
    begin, end = window
    count, kept = seen.bounds.shape
    most = 1
    if not _loose(bank):
        # Choosing costs more than the bounds of a chunk once more: all of the window at once.
        seen = _unseen(begin, count, kept)
        most = _most_chunks(bank, count, _block_shape(bank, kept)[1])

    def unfinished(seen: _Seen) -> Array:
        return (begin < seen.low) | (seen.high < end)

    def extend(seen: _Seen) -> _Seen:
        left = begin < seen.low
        return _look(
            points,
            bank,
            seen,
            jnp.where(left, jnp.maximum(seen.low - most, begin), seen.high),
            jnp.where(left, seen.low, jnp.minimum(seen.high + most, end)),
        )

    return lax.while_loop(unfinished, extend, seen)


def _most_chunks(bank: Bank, count: int, chunk: int) -> int:
    """Of how many chunks the bounds of groups fit into the memory together."""
    fit = bank.memory * (SHARE - 1) // SHARE // (4 * count * chunk // GROUP)
    return max(1, min(fit, -(-len(bank.places) // chunk)))


def _look(
    points: Float[Array, "q s"],
    bank: Bank,
    seen: _Seen,
    begin: Int[Array, ""],
    end: Int[Array, ""],
) -> _Seen:
    """Lets the groups of chunks ``begin`` to ``end`` compete for the places on the lists."""
    count, kept = seen.bounds.shape
    chunk = _block_shape(bank, kept)[1]
    if _loose(bank):
        bounds, first = _new_bounds(points, bank, begin, chunk), _start_of(begin, chunk, bank)
    else:
        bounds = _bounds_of_groups(points, bank, begin, end, chunk)
        first = begin * (chunk // GROUP)
    # Groups are strided, so that the minimum runs along whole vectors.
    strides = bounds.shape[1] // GROUP
    taken = min(kept, strides)
    best, chosen = _top_k(
        -bounds.reshape(count, GROUP, strides).min(axis=1), min(taken + 1, strides)
    )
    left_out = -best[:, taken] if taken < strides else jnp.full(count, jnp.inf)
    members = jnp.arange(GROUP)[None, :, None] * strides + chosen[:, None, :taken]
    members = members.reshape(count, -1)
    bounds = jnp.concatenate([seen.bounds, jnp.take_along_axis(bounds, members, axis=1)], axis=1)
    numbers = jnp.concatenate([seen.numbers, first + members.astype(jnp.int32)], axis=1)
    best, chosen = _top_k(-bounds, kept + 1)
    return _Seen(
        jnp.minimum(seen.low, begin),
        jnp.maximum(seen.high, end),
        -best[:, :kept],
        jnp.take_along_axis(numbers, chosen[:, :kept], axis=1),
        jnp.minimum(jnp.minimum(seen.left_out, left_out), -best[:, kept]),
    )


def _new_bounds(
    points: Float[Array, "q s"], bank: Bank, number: Int[Array, ""], chunk: int
) -> Float[Array, "q n"]:
    """The bounds of a chunk; infinite for rows that the chunk before has too."""
    start = _start_of(number, chunk, bank)
    new = start + jnp.arange(chunk, dtype=jnp.int32) >= number * chunk
    return _bounds(points, bank, start, chunk) + jnp.where(new, 0.0, jnp.inf)[None, :]


def _bounds_of_groups(
    points: Float[Array, "q s"],
    bank: Bank,
    begin: Int[Array, ""],
    end: Int[Array, ""],
    chunk: int,
) -> Float[Array, "q g"]:
    """The least bound of each group of chunks ``begin`` to ``end``, and then infinity."""
    count, groups = len(points), chunk // GROUP
    room = _most_chunks(bank, count, chunk) * groups

    def bound(number: Int[Array, ""], least: Float[Array, "q g"]) -> Float[Array, "q g"]:
        bounds = _new_bounds(points, bank, number, chunk)
        own = bounds.reshape(count, GROUP, groups).min(axis=1)
        return lax.dynamic_update_slice(least, own, (0, (number - begin) * groups))

    nothing = jnp.full((count, room + -room % GROUP), jnp.inf)
    return lax.fori_loop(begin, end, bound, nothing)


def _start_of(number: Int[Array, "*s"], chunk: int, bank: Bank) -> Int[Array, "*s"]:
    """The first row of a chunk: all have as many, and none ends after the bank."""
    return jnp.minimum(number * chunk, len(bank.places) - chunk).astype(jnp.int32)


def _listed(bank: Bank, seen: _Seen) -> _Listed:
    """The rows on the lists, or the members of the groups on them."""
    count, kept = seen.bounds.shape
    held = seen.bounds < jnp.inf
    if _loose(bank):
        return _Listed(seen.numbers, held, seen.left_out)
    chunk = _block_shape(bank, kept)[1]
    groups = chunk // GROUP
    number, place = (each[:, :, None] for each in jnp.divmod(seen.numbers, groups))
    members = groups * jnp.arange(GROUP, dtype=jnp.int32)[None, None, :]
    rows = _start_of(number, chunk, bank) + place + members
    held = held[:, :, None] & (rows >= number * chunk) & (rows < _size(bank))
    rows = jnp.where(held, rows, 0)
    return _Listed(rows.reshape(count, -1), held.reshape(count, -1), seen.left_out)


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
    points: Float[Array, "q s"],
    bank: Bank,
    left_out: Float[Array, " q"],
    distances: Float[Array, " q"],
    rows: bool = False,
) -> Bool[Array, " q"]:
    """Whether no row left out can be nearer than ``distances``; nor as near, to find ``rows``."""
    offset = _offset(points, bank)[:, 0]
    reached = distances * bank.frame.inverse_scale * (1.0 + rounding(bank.width))
    if len(bank.errors):
        nearer = reached > left_out
    else:
        nearer = reached * reached * (1.0 + rounding(0)) > left_out + offset
    # A query that overflows has no bounds at all.
    certain = ~nearer & jnp.isfinite(offset)
    # Nothing is nearer than 0, but more rows may be as near.
    return certain if rows else certain | (distances == 0.0)


def _rows_at(vectors: Float[Array, "m d"], rows: Int[Array, "q n"]) -> Float[Array, "q n d"]:
    """``vectors[rows]`` as slices, which XLA for CPU copies faster than what indices gather."""

    def row(number: Int[Array, ""]) -> Float[Array, " d"]:
        return lax.dynamic_index_in_dim(vectors, number, keepdims=False)

    return jax.vmap(row)(rows.reshape(-1)).reshape(*rows.shape, -1)


def _settle(
    queries: Float[Array, "q d"],
    fetch: Callable[[Int[Array, " n"]], Float[Array, "q n d"]],
    listed: _Listed,
    bank: Bank,
    k: int,
    rows: bool,
) -> Best:
    """The k nearest of the rows listed, by direct differences; ``fetch`` gives rows."""
    count, width = queries.shape
    length = listed.rows.shape[1]
    step = max(1, min(GROUP, SETTLED // (count * width)))
    parts = jnp.minimum(jnp.arange(length + -length % step), length - 1).reshape(-1, step)

    def apart(distance: Callable[[Array, Array], Array], own: Array) -> Float[Array, "q n"]:
        pairs = jnp.broadcast_to(queries[:, None, :], (count, step, width))
        found = distance(pairs.reshape(-1, width), fetch(own).reshape(-1, width))
        return found.reshape(count, step)

    def distances(distance: Callable[[Array, Array], Array]) -> Float[Array, "q r"]:
        found = lax.map(partial(apart, distance), parts)
        return found.transpose(1, 0, 2).reshape(count, -1)[:, :length]

    places = bank.places[listed.rows] if rows else None
    return _nearest_of(distances, listed.held, places, bank, k)


def _nearest_of(
    distances: Callable[[Callable[[Array, Array], Array]], Float[Array, "q r"]],
    held: Bool[Array, "q r"],
    places: Int[Array, "q r"] | None,
    bank: Bank,
    k: int,
) -> Best:
    """The k best of the rows held, whose ``distances`` are made of a function of two vectors."""
    scale = bank.frame.inverse_scale

    def best(distance: Callable[[Array, Array], Array]) -> Best:
        return _k_best(jnp.where(held, distances(distance), jnp.inf), places, k)

    found = best(lambda a, b: jnp.sqrt(_sum_of_squares((a - b) * scale)) / scale)
    # Squares that under- or overflow need each a scale of their own: duplicates, for one.
    scaled = _distances_of(found) * scale
    extreme = (scaled < TOO_SMALL) | ~jnp.isfinite(scaled)
    return lax.cond(extreme.any(), lambda: best(_direct), lambda: found)


def _settle_all(queries: Float[Array, "q d"], bank: Bank, k: int, rows: bool) -> Best:
    """The k nearest of all rows, by direct differences."""
    shape = len(queries), len(bank.places)

    def distances(distance: Callable[[Array, Array], Array]) -> Float[Array, "q m"]:
        return lax.map(
            lambda row: distance(queries, jnp.broadcast_to(row[None, :], queries.shape)),
            bank.vectors,
        ).T

    held = jnp.broadcast_to(bank.places >= 0, shape)
    places = jnp.broadcast_to(bank.places, shape) if rows else None
    return _nearest_of(distances, held, places, bank, k)


def _nothing(count: int, k: int, rows: bool) -> Best:
    """No row found yet."""
    distances = jnp.full((count, k), jnp.inf)
    return (distances, jnp.full((count, k), NOWHERE, jnp.int32)) if rows else distances


def _distances_of(best: Best) -> Float[Array, "q k"]:
    return best[0] if isinstance(best, tuple) else best


def _kth(best: Best) -> Float[Array, " q"]:
    """Distances to the last."""
    return _distances_of(best)[:, -1]


def _k_best(distances: Float[Array, "q n"], places: Int[Array, "q n"] | None, k: int) -> Best:
    """The k least distances of each row, ascending; infinite where there are fewer.

    With the places of those, the lowest of those as near as the last, in the order of distances
    and then of places.
    """
    padding = (0, 0), (0, max(0, k - distances.shape[1]))
    distances = jnp.pad(distances, padding, constant_values=jnp.inf)
    least = -_top_k(-distances, k)[0]
    if places is None:
        return least
    places = jnp.pad(places, padding, constant_values=NOWHERE)
    last = least[:, -1:]
    free = k - (distances < last).sum(axis=1, keepdims=True)
    tied = jnp.where(distances == last, places, NOWHERE)

    # The least place that leaves no tie free, from its highest bit on.
    def bit(number: Int[Array, ""], highest: Int[Array, "q 1"]) -> Int[Array, "q 1"]:
        more = highest | (1 << (30 - number))
        return jnp.where((tied < more).sum(axis=1, keepdims=True) < free, more, highest)

    highest = lax.fori_loop(0, 31, bit, jnp.zeros_like(free))
    chosen = (distances < last) | ((distances == last) & (places <= highest))
    _, where = _top_k(jnp.where(chosen, -distances, -jnp.inf), k)
    distances, places = (jnp.take_along_axis(own, where, axis=1) for own in (distances, places))
    places = jnp.where(distances < jnp.inf, places, NOWHERE)
    distances, places = lax.sort((distances, places), dimension=1, num_keys=2)
    return distances, places


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
    queries: Float[Array, "q d"], best: Best, bank: Bank
) -> tuple[Best, Bool[Array, " q"]]:
    """All rows whose norms allow them to be as near as the last found, by direct differences."""
    begin, end = _rows_within(reduce(queries, bank.frame), bank, _kth(best))

    def step(block: Int[Array, ""], best: Best) -> Best:
        start = block * GROUP
        rows = lax.dynamic_slice_in_dim(bank.vectors, start, GROUP)
        return _nearer(queries, rows, lax.dynamic_slice_in_dim(bank.places, start, GROUP), best)

    nothing = _nothing(len(queries), _distances_of(best).shape[1], isinstance(best, tuple))
    nearest = lax.fori_loop(begin // GROUP, -(-end // GROUP), step, nothing)
    return nearest, jnp.ones(len(queries), bool)


def _nearer(
    queries: Float[Array, "q d"],
    rows: Float[Array, "n d"],
    places: Int[Array, " n"],
    best: Best,
) -> Best:
    """The k best of those found and the rows that have places, by direct differences."""
    distances = lax.map(lambda row: _direct(queries, jnp.broadcast_to(row, queries.shape)), rows).T
    distances = jnp.where((places >= 0)[None, :], distances, jnp.inf)
    if not isinstance(best, tuple):
        return _k_best(jnp.concatenate([best, distances], axis=1), None, best.shape[1])
    own = jnp.broadcast_to(places, distances.shape)
    return _k_best(
        jnp.concatenate([best[0], distances], axis=1),
        jnp.concatenate([best[1], own], axis=1),
        best[0].shape[1],
    )


def _search_with_host(
    queries: Float[Array, "q d"], bank: Bank, host: HostRows, k: int, rows: bool
) -> Best:
    """As `_k_nearest`, with lists made on the device and the rows on them fetched from the host."""
    # Compiled code would keep the host's rows alive as long as itself.
    device = replace(bank, host=None)
    places = np.asarray(bank.places)
    given, reduced = np.asarray(queries), np.asarray(_reduce(queries, device.frame))
    waiting = np.argsort(np.linalg.norm(reduced, axis=1))
    found = jax.tree.map(np.array, _nothing(len(given), k, rows))

    def keep(chosen: npt.NDArray, best: Best) -> None:
        for all_, own in zip(jax.tree.leaves(found), jax.tree.leaves(best), strict=True):
            all_[chosen] = np.asarray(own)

    def settle(chosen: npt.NDArray, listed: _Listed) -> Best:
        own = host.take(np.maximum(places[np.asarray(listed.rows)], 0))
        return _settle_given(jnp.asarray(given[chosen]), jnp.asarray(own), listed, device, k, rows)

    for kept in _list_lengths(device, k):
        block = max(1, min(_block_shape(device, kept)[0], HOST_BLOCK // (4 * bank.width * kept)))
        left = [waiting[:0]]
        for start in range(0, len(waiting), block):
            chosen = np.resize(waiting[start : start + block], block)
            points = jnp.asarray(reduced[chosen])
            seen, window = _start(points, device, kept)
            while window[0] < seen.low or seen.high < window[1]:
                seen, listed = _look_further(points, device, seen, window)
                best = settle(chosen, listed)
                window = _reached(points, device, _kth(best), kept)
            keep(chosen, best)
            certain = np.asarray(_certified(points, device, listed.left_out, _kth(best), rows))
            left.append(np.unique(chosen[~certain]))
        waiting = np.concatenate(left)
    for start in range(0, len(waiting), AGAIN_QUERIES):
        chosen = np.resize(waiting[start : start + AGAIN_QUERIES], AGAIN_QUERIES)
        best, before = _nothing(AGAIN_QUERIES, k, rows), 0
        for block_ in host.blocks():
            best = _nearer_in(jnp.asarray(given[chosen]), jnp.asarray(block_), before, best)
            before += len(block_)
        keep(chosen, best)
    return jax.tree.map(jnp.asarray, found)


_reduce = jax.jit(reduce)
_start = jax.jit(_like_norms, static_argnames="kept")
_reached = jax.jit(_window, static_argnames="kept")
_certified = jax.jit(_certain, static_argnames="rows")


@jax.jit
def _look_further(
    points: Float[Array, "q s"], bank: Bank, seen: _Seen, window: Window
) -> tuple[_Seen, _Listed]:
    seen = _look_within(points, bank, seen, window)
    return seen, _listed(bank, seen)


@partial(jax.jit, static_argnames=("k", "rows"))
def _settle_given(
    queries: Float[Array, "q d"],
    given: Float[Array, "q r d"],
    listed: _Listed,
    bank: Bank,
    k: int,
    rows: bool,
) -> Best:
    return _settle(queries, lambda own: given[:, own], listed, bank, k, rows)


@jax.jit
def _nearer_in(
    queries: Float[Array, "q d"], rows: Float[Array, "n d"], before: Int[Array, ""], best: Best
) -> Best:
    """`_nearer` for many rows, that come after ``before`` others."""
    padding = (0, -len(rows) % GROUP)
    blocks = jnp.pad(rows, (padding, (0, 0))).reshape(-1, GROUP, rows.shape[1])
    places = before + jnp.arange(len(rows), dtype=jnp.int32)
    places = jnp.pad(places, padding, constant_values=-1).reshape(-1, GROUP)
    return lax.scan(
        lambda best, block: (_nearer(queries, *block, best), None), best, (blocks, places)
    )[0]
