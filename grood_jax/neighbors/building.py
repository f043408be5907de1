"""Builds banks: at once, in pieces, from other banks, and divided over devices."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jaxtyping import Array, BFloat16, Bool, Float, Int, Shaped

from grood_jax.neighbors.bank import (
    FEW_NUMBERS,
    GROUP,
    LARGEST,
    Bank,
    Frame,
    HostRows,
    reduce,
    rounding,
    row_blocks,
    square_slack,
    underflow,
)
from grood_jax.support import checks

MEMORY, MEMORY_ACCELERATOR = 16 * 2**20, 256 * 2**20
"""Bytes of a search's bounds if nothing else is asked for: what a CPU's cache holds, and more."""

LEAST_MEMORY, MOST_MEMORY = 2**16, 2**60
MOST_ROWS = 2**31 - 1
"""Smaller or larger blocks than this are refused."""

AXES = (8, 16, 32, 64, 128)
"""How many principal axes may be kept."""

PROBES, POOL = 128, 16_384
"""Rows of a bank, and how many others, with which the number of axes is chosen."""

DEVICE_ROWS = 8192
"""Rows on a device that are looked at at once for that."""

FEW = 6
"""Axes are enough when, for 9 of 10 probes, their bounds leave this many rows of the others."""

LEAST_GAIN = 8
"""Columns for each axis, at least: with fewer, a product of all columns is as fast."""

FEW_COLUMNS = 64
"""Columns up to which no axes are kept: with them a search for one neighbour is no faster, and one
for fifty takes half as long again or twice as long."""

DType = Literal["float32", "bfloat16"]


def build_bank(
    vectors: npt.ArrayLike, *, dtype: DType = "float32", memory: int | None = None
) -> Bank:
    """Makes a bank of the rows of ``vectors`` (N, D).

    Args:
      vectors: the rows. For a bfloat16 bank they may be mapped from a file (``numpy.load`` with
        ``mmap_mode="r"``), and float32 NumPy rows are not copied: leave them as they are.
      dtype: ``"float32"``: the rows lie on the device. ``"bfloat16"``: the device holds what
        bounds are computed from, at most half as much; the winners are settled against the
        float32 rows, which stay on the host. Such a bank cannot be searched in compiled code.
      memory: bytes that the bounds of a block of queries may take in a search; 16 MiB on CPU and
        256 MiB elsewhere unless given.

    Raises:
      TypeError: not real numbers, or ``memory`` not an integer.
      ValueError: wrong rank, no rows, NaN, infinite values or values beyond 1e37, an unknown
        dtype, less memory than 64 KiB or more than 1 EiB, or rows that do not fit into memory.

    Examples:
      >>> from grood_jax import build_bank, nearest_distances
      >>> bank = build_bank([[3, 4], [6, 8]])
      >>> bank.size, bank.width
      (2, 2)
      >>> print(nearest_distances([[0, 0]], bank))
      [5.]
    """
    return build_bank_in_pieces([vectors], dtype=dtype, memory=memory)


def build_bank_in_pieces(
    pieces: Iterable[npt.ArrayLike], *, dtype: DType = "float32", memory: int | None = None
) -> Bank:
    """Makes a bank of the rows of several arrays (N_i, D), in order; see `build_bank`.

    Raises:
      TypeError: as `build_bank`; ``pieces`` are not several.
      ValueError: as `build_bank`; widths that differ, or no piece at all.
    """
    checks.choice("dtype", dtype, ("float32", "bfloat16"))
    memory = checked_memory(memory)
    given = checks.several("pieces", pieces, "several arrays (N, D)")
    if dtype == "float32":
        rows = [checked(piece) for piece in given]
        _require_one_width([part.shape for part in rows])
        return _build(rows[0] if len(rows) == 1 else jnp.concatenate(rows), memory)
    held = [checked_on_host(piece) for piece in given]
    _require_one_width([part.shape for part in held])
    return _build_on_host(HostRows(tuple(held)), memory)


def bank_rows(bank: Bank) -> Float[np.ndarray, "n d"]:
    """The rows of a bank as they were given, (N, D) float32, on the host.

    Raises:
      TypeError: ``bank`` is none.

    Examples:
      >>> from grood_jax import bank_rows, build_bank
      >>> print(bank_rows(build_bank([[6, 8], [3, 4]])))
      [[6. 8.]
       [3. 4.]]
    """
    _require_bank(bank)
    if bank.host is not None:
        return np.concatenate(bank.host.pieces)
    places = np.asarray(bank.places)
    rows = np.empty((bank.size, bank.width), np.float32)
    rows[places[places >= 0]] = np.asarray(bank.vectors)[places >= 0]
    return rows


def merge_banks(*banks: Bank) -> Bank:
    """A bank of the rows of all banks, in order; the banks themselves stay as they are.

    Raises:
      TypeError: what is no bank.
      ValueError: no bank at all, widths that differ, or banks of float32 and of bfloat16.

    Examples:
      >>> from grood_jax import build_bank, merge_banks
      >>> merge_banks(build_bank([[6, 8], [3, 4]]), build_bank([[0, 1]])).size
      3
    """
    for bank in banks:
        _require_bank(bank)
    dtypes = sorted({bank_dtype(bank) for bank in banks})
    if len(dtypes) != 1:
        raise ValueError(f"banks has dtypes {dtypes}; expected banks of one dtype")
    pieces = [piece for bank in banks for piece in _pieces(bank)]
    return build_bank_in_pieces(pieces, dtype=dtypes[0], memory=banks[0].memory)


def grow_bank(bank: Bank, vectors: npt.ArrayLike) -> Bank:
    """A bank of the rows of ``bank`` and then those of ``vectors`` (M, D); see `build_bank`.

    Raises:
      TypeError: as `build_bank`, or ``bank`` is none.
      ValueError: as `build_bank`, or widths that differ.

    Examples:
      >>> from grood_jax import bank_rows, build_bank, grow_bank
      >>> print(bank_rows(grow_bank(build_bank([[6, 8]]), [[3, 4]])))
      [[6. 8.]
       [3. 4.]]
    """
    _require_bank(bank)
    pieces = [*_pieces(bank), vectors]
    return build_bank_in_pieces(pieces, dtype=bank_dtype(bank), memory=bank.memory)


def thin_bank(bank: Bank, sampling_ratio: float, key: Array) -> Bank:
    """A bank of a share of the rows, at least one, drawn at random without replacement.

    Args:
      bank: N rows.
      sampling_ratio: the share, in (0, 1].
      key: randomness; the same key draws the same rows.

    Raises:
      TypeError: ``sampling_ratio`` is no number, ``bank`` no bank or ``key`` no key.
      ValueError: ``sampling_ratio`` lies outside (0, 1].
    """
    _require_bank(bank)
    chosen = sampled_rows(key, bank.size, sampling_ratio)
    rows = _device_rows(bank)[chosen] if bank.host is None else bank.host.take(chosen)
    return build_bank(rows, dtype=bank_dtype(bank), memory=bank.memory)


def sampled_rows(key: Array, count: int, sampling_ratio: float) -> Int[np.ndarray, " m"]:
    """A share of ``count`` row numbers, at least one, drawn without replacement; ascending.

    Raises:
      TypeError: ``sampling_ratio`` is no number, ``count`` no integer, or ``key`` no random key
        (also where all rows are kept, and none is drawn).
      ValueError: the ratio lies outside (0, 1], or ``count`` is none of rows.
    """
    checks.fraction("sampling_ratio", sampling_ratio, zero=False)
    checks.at_least("count", count, 0, MOST_ROWS)
    checks.key("key", key)
    kept = max(1, round(sampling_ratio * count))
    if kept == count:
        return np.arange(count)
    return np.sort(np.asarray(jax.random.permutation(key, count))[:kept])


def checked_memory(memory: int | None) -> int:
    """Bytes of one block of bounds: as asked for, or the default."""
    if memory is None:
        return MEMORY if jax.default_backend() == "cpu" else MEMORY_ACCELERATOR
    return checks.at_least("memory", memory, LEAST_MEMORY, MOST_MEMORY)


def _require_bank(bank: Bank) -> None:
    if not isinstance(bank, Bank):
        raise TypeError(f"bank is a {type(bank).__name__}; expected a Bank, as build_bank makes it")


def bank_dtype(bank: Bank) -> DType:
    """The dtype that a bank was built with."""
    return "float32" if bank.host is None else "bfloat16"


def _pieces(bank: Bank) -> Sequence[Float[Array | np.ndarray, "_ d"]]:
    return (_device_rows(bank),) if bank.host is None else bank.host.pieces


def _device_rows(bank: Bank) -> Float[Array, "n d"]:
    """As `bank_rows`, of a float32 bank, where they are."""
    # Padding has no place, and is dropped.
    places = jnp.where(bank.places < 0, bank.size, bank.places)
    rows = jnp.zeros((bank.size, bank.width), jnp.float32)
    return rows.at[places].set(bank.vectors, mode="drop")


def checked(vectors: npt.ArrayLike) -> Float[Array, "n d"]:
    """The rows of a bank, float32, after all checks."""
    rows = checks.shaped("bank", vectors, ("N", "D"))
    if 0 in rows.shape:
        raise ValueError(f"bank has shape {rows.shape}; expected at least one row and one column")
    return checks.finite("bank", rows, LARGEST)


def checked_on_host(vectors: npt.ArrayLike) -> Float[np.ndarray, "n d"]:
    """As `checked`, where they are; a block of them at a time goes to the device."""
    if isinstance(vectors, jax.core.Tracer):
        raise ValueError("a bfloat16 bank keeps rows on the host; build it outside compiled code")
    rows = np.asarray(checks.array_of("bank", vectors))
    if rows.ndim != 2 or 0 in rows.shape:
        checked(rows)
    with checks.room("bank", rows.shape):
        # A view may claim more rows than could be looked through in a day.
        np.empty(rows.size, np.uint8)
    for block in row_blocks(rows):
        checked(block)
    return rows if rows.dtype == np.float32 else rows.astype(np.float32)


def _require_one_width(shapes: Sequence[tuple[int, ...]]) -> None:
    if not shapes:
        raise ValueError("pieces is empty; expected at least one array (N, D)")
    for number, shape in enumerate(shapes):
        if shape[1] != shapes[0][1]:
            raise ValueError(f"piece {number} has shape {shape}; expected (N, {shapes[0][1]})")


def _build(rows: Float[Array, "n d"], memory: int) -> Bank:
    if isinstance(rows, jax.core.Tracer):
        return assemble(rows, jnp.zeros((rows.shape[1], 0)), memory)
    return assemble(rows, checks.placed(choose_axes(rows)), memory)


def choose_axes(rows: Float[Array, "n d"]) -> Float[np.ndarray, "d r"]:
    """The principal axes worth keeping for these rows, which stay on their device."""
    count, width = rows.shape
    if rows.size <= FEW_NUMBERS:
        return np.zeros((width, 0), np.float32)
    choices = _choices(-(-count // -(-count // POOL)), width)
    if not choices:
        return np.zeros((width, 0), np.float32)
    axes, left = _axes_and_left(rows, choices)
    return np.asarray(axes[:, : _fewest(choices, np.asarray(left))])


@partial(jax.jit, static_argnames="choices")
def _axes_and_left(
    rows: Float[Array, "n d"], choices: tuple[int, ...]
) -> tuple[Float[Array, "d r"], Int[Array, "c p"]]:
    """What `principal_axes` computes on the host: the most axes, and rows left by their number."""
    center, inverse_scale = _center_and_scale(rows)
    count, size = len(rows), min(len(rows), DEVICE_ROWS)
    stride = -(-count // PROBES)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def centred(part: Float[Array, "m d"]) -> Float[Array, "m d"]:
        return (part - center[None, :]) * inverse_scale

    def squares(a: Float[Array, "p s"], b: Float[Array, "m s"]) -> Float[Array, "p m"]:
        norms = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :]
        return norms - 2 * product(a, b.T)

    def coordinates(part: Float[Array, "m d"], kept: int) -> Float[Array, "m s"]:
        on_axes = product(part, axes[:, :kept])
        rest = (part * part).sum(axis=1) - (on_axes * on_axes).sum(axis=1)
        return jnp.concatenate([on_axes, jnp.sqrt(jnp.maximum(rest, 0.0))[:, None]], axis=1)

    sample, probes = centred(rows[:: -(-count // POOL)]), centred(rows[::stride])
    drawn = np.random.default_rng(0).standard_normal((rows.shape[1], choices[-1] + 10))
    basis = jnp.asarray(drawn[:, : rows.shape[1]], jnp.float32)
    for _ in range(3):
        basis = jnp.linalg.qr(product(sample.T, jnp.linalg.qr(product(sample, basis))[0]))[0]
    right = jnp.linalg.svd(product(sample, basis), full_matrices=False)[2]
    axes = product(basis, right[: choices[-1]].T)

    def block(number: Int[Array, ""]) -> tuple[Float[Array, "m d"], Bool[Array, "p m"]]:
        """Some rows, and for which probes each is another row that was not seen before."""
        start = jnp.minimum(number * size, count - size)
        places = start + jnp.arange(size)
        own = (jnp.arange(len(probes)) * stride)[:, None] == places[None, :]
        part = lax.dynamic_slice_in_dim(rows, start, size)
        return centred(part), ~own & (places >= number * size)[None, :]

    def nearer(nearest: Float[Array, " p"], number: Int[Array, ""]) -> tuple[Any, None]:
        part, others = block(number)
        found = jnp.where(others, squares(probes, part), jnp.inf).min(axis=1)
        return jnp.minimum(nearest, found), None

    numbers = jnp.arange(-(-count // size))
    nearest, _ = lax.scan(nearer, jnp.full(len(probes), jnp.inf), numbers)

    def counted(left: Int[Array, "c p"], number: Int[Array, ""]) -> tuple[Any, None]:
        part, others = block(number)
        bounds = [squares(coordinates(probes, k), coordinates(part, k)) for k in choices]
        near = [(others & (own <= nearest[:, None])).sum(axis=1) for own in bounds]
        return left + jnp.stack(near), None

    left, _ = lax.scan(counted, jnp.zeros((len(choices), len(probes)), jnp.int32), numbers)
    return axes, left


def frame_on_host(host: HostRows) -> Frame:
    """The frame of rows on the host, of which the device holds a block at most."""
    size, width = sum(map(len, host.pieces)), host.pieces[0].shape[1]
    total, squared, largest = np.zeros(width), 0.0, 0.0
    for block in host.blocks():
        total += block.sum(axis=0, dtype=np.float64)
        squared += float(np.einsum("nd,nd->", block, block, dtype=np.float64))
        largest = max(largest, float(np.abs(block).max()))
    mean = total / size
    far = squared / size - mean @ mean < 0.25 * squared / size
    center = jnp.asarray(mean if far else np.zeros(width), jnp.float32)
    inverse_scale = _inverse_scale(jnp.float32(largest) + jnp.max(jnp.abs(center)))
    origin, scale = np.asarray(center), np.asarray(inverse_scale)
    axes = principal_axes(lambda: ((block - origin) * scale for block in host.blocks()), size)
    return Frame(center, inverse_scale, jnp.asarray(axes))


@jax.jit
def _center_and_scale(rows: Float[Array, "n d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
    # Halved before the sum: rows near float32's largest value must not overflow the mean.
    mean = jnp.mean(rows * 0.5, axis=0) * 2.0
    mean = jnp.where(jnp.isfinite(mean), mean, 0.0)
    unit = jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(jnp.float32).tiny)
    spread = jnp.mean(((rows - mean[None, :]) / unit) ** 2)
    # Where norms run over decades about the origin, it is the origin that keeps their digits.
    far = spread < 0.25 * jnp.mean((rows / unit) ** 2)
    center = jnp.where(far, mean, 0.0)
    return center, _inverse_scale(jnp.max(jnp.abs(rows - center[None, :])))


def _inverse_scale(largest: Float[Array, ""]) -> Float[Array, ""]:
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1.0))
    return jnp.ldexp(jnp.float32(1.0), jnp.clip(-exponent, -125, 125))


@partial(jax.jit, static_argnames=("memory", "total"))
def assemble(
    rows: Float[Array, "n d"], axes: Float[Array, "d r"], memory: int, total: int | None = None
) -> Bank:
    """A float32 bank with the given axes, padded to ``total`` rows or else to whole groups."""
    count = len(rows)
    center, inverse_scale = _center_and_scale(rows)
    frame = Frame(center, inverse_scale, axes)
    reduced = reduce(rows, frame)
    squares = jnp.sum(reduced * reduced, axis=1)
    order = jnp.argsort(squares)
    padding = (0, -count % GROUP if total is None else total - count)
    squares = jnp.pad(squares[order], padding, constant_values=jnp.inf)
    return Bank(
        vectors=jnp.pad(rows[order], (padding, (0, 0))),
        places=jnp.pad(order.astype(jnp.int32), padding, constant_values=-1),
        frame=frame,
        reduced=jnp.pad(reduced[order], (padding, (0, 0))) if axes.shape[1] else jnp.zeros((0, 0)),
        bounds=squares * (1.0 - square_slack(frame)),
        errors=jnp.zeros(0),
        norms=jnp.sqrt(squares),
        size=count,
        memory=memory,
    )


def _build_on_host(host: HostRows, memory: int) -> Bank:
    """A bfloat16 bank: a pass over the rows for each quantity, a block of them at a time."""
    frame, size = frame_on_host(host), sum(map(len, host.pieces))
    width, kept = frame.axes.shape
    if kept:
        coordinates = np.concatenate(
            [np.asarray(_reduced(block, frame)) for block in host.blocks()]
        )
        squares = np.einsum("ns,ns->n", coordinates, coordinates)
    else:
        squares = np.concatenate(
            [np.asarray(_squared_norms(block, frame)) for block in host.blocks()]
        )
    order = np.argsort(squares)
    padding = (0, -size % GROUP)
    squares = np.pad(squares[order], padding, constant_values=np.inf)
    norms, errors = np.sqrt(squares), np.zeros(0, np.float32)
    if kept:
        reduced = np.pad(coordinates[order], (padding, (0, 0)))
    else:
        # Written where they belong at once: there is no room for a second copy.
        reduced = np.zeros((len(squares), width), jnp.bfloat16)
        errors = np.zeros(len(squares), np.float32)
        rank = np.empty(size, np.int64)
        rank[order] = np.arange(size)
        start = 0
        for block in host.blocks():
            own = rank[start : start + len(block)]
            rounded, squares[own], errors[own] = map(np.asarray, _rounded(block, frame))
            reduced[own] = rounded
            start += len(block)
    return Bank(
        vectors=jnp.zeros((0, width)),
        places=jnp.asarray(np.pad(order, padding, constant_values=-1), jnp.int32),
        frame=frame,
        reduced=jnp.asarray(reduced),
        bounds=jnp.asarray(squares * np.float32(1.0 - square_slack(frame))),
        errors=jnp.asarray(errors),
        norms=jnp.asarray(norms),
        size=size,
        memory=memory,
        host=host,
    )


_reduced = jax.jit(reduce)


@jax.jit
def _squared_norms(rows: Float[Array, "n d"], frame: Frame) -> Float[Array, " n"]:
    reduced = reduce(rows, frame)
    return jnp.sum(reduced * reduced, axis=1)


@jax.jit
def _rounded(
    rows: Float[Array, "n d"], frame: Frame
) -> tuple[BFloat16[Array, "n d"], Float[Array, " n"], Float[Array, " n"]]:
    """Rows in bfloat16, their squared norms, and how far they are from the rows given."""
    width = rows.shape[1]
    reduced = reduce(rows, frame)
    rounded = reduced.astype(jnp.bfloat16)
    moved = reduced - rounded.astype(jnp.float32)
    errors = jnp.linalg.norm(moved, axis=1) * (1.0 + rounding(width)) + underflow(width) ** 0.5
    return rounded, jnp.sum(rounded.astype(jnp.float32) ** 2, axis=1), errors


def _leading_axes(sample: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "d r"]:
    """The leading right singular vectors, nearly; orthonormal in any case.

    References:
      Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """
    width = sample.shape[1]
    drawn = np.random.default_rng(0).standard_normal((width, min(count + 10, width)))
    basis = drawn.astype(sample.dtype)
    for _ in range(3):
        basis = np.linalg.qr(sample.T @ np.linalg.qr(sample @ basis)[0])[0]
    right = np.linalg.svd(sample @ basis, full_matrices=False)[2]
    return basis @ right[:count].T


def principal_axes(
    rows: Callable[[], Iterator[Float[np.ndarray, "_ d"]]], size: int
) -> Float[np.ndarray, "d r"]:
    """As few of the leading principal axes as make good bounds; none where few do not.

    Args:
      rows: gives the centred, scaled rows in blocks, as often as asked.
      size: how many there are.
    """
    sample = _every(rows, -(-size // POOL))
    count, width = sample.shape
    choices = _choices(count, width)
    if not choices or not sample.any():
        return np.zeros((width, 0), np.float32)
    axes = np.ascontiguousarray(_leading_axes(sample, choices[-1]))
    stride = -(-size // PROBES)
    probes = _every(rows, stride)
    nearest = np.full(len(probes), np.inf)
    for start, block in _numbered(rows):
        nearest = np.minimum(nearest, _others(_squares(probes, block), start, stride).min(axis=1))
    # How many rows the bounds leave to each probe, by the number of axes.
    left = np.zeros((len(choices), len(probes)))
    probes_on_axes = probes @ axes
    for start, block in _numbered(rows):
        on_axes = block @ axes
        for place, kept in enumerate(choices):
            bounds = _squares(
                _coordinates(probes, probes_on_axes[:, :kept]),
                _coordinates(block, on_axes[:, :kept]),
            )
            left[place] += (_others(bounds, start, stride) <= nearest[:, None]).sum(axis=1)
    return axes[:, : _fewest(choices, left)]


def _choices(sample: int, width: int) -> tuple[int, ...]:
    """How many axes may be kept of so many columns, where so many rows tell them."""
    if width <= FEW_COLUMNS:
        return ()
    return tuple(kept for kept in AXES if LEAST_GAIN * kept <= width and 4 * kept <= sample)


def _fewest(choices: tuple[int, ...], left: Shaped[np.ndarray, "c p"]) -> int:
    """As few axes as leave few rows to most probes; 0 where none do."""
    enough = np.flatnonzero(np.quantile(left, 0.9, axis=1) <= FEW)
    return choices[enough[0]] if len(enough) else 0


def _every(
    rows: Callable[[], Iterator[Float[np.ndarray, "_ d"]]], stride: int
) -> Float[np.ndarray, "_ d"]:
    # Copies: views would keep all blocks in memory.
    return np.concatenate(
        [block[-start % stride :: stride].copy() for start, block in _numbered(rows)]
    )


def _numbered(
    rows: Callable[[], Iterator[Float[np.ndarray, "_ d"]]],
) -> Iterator[tuple[int, Float[np.ndarray, "_ d"]]]:
    """Blocks with the number of their first row."""
    start = 0
    for block in rows():
        yield start, block
        start += len(block)


def _others(squares: Float[np.ndarray, "p n"], start: int, stride: int) -> Float[np.ndarray, "p n"]:
    """The squares from ``start`` on, without each probe's own: the p-th is row ``p · stride``."""
    own = np.arange(len(squares)) * stride - start
    inside = (own >= 0) & (own < squares.shape[1])
    squares[np.flatnonzero(inside), own[inside]] = np.inf
    return squares


def _coordinates(
    rows: Float[np.ndarray, "n d"], on_axes: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "n s"]:
    """Coordinates on some axes and the norm of the rest."""
    rest = np.einsum("nd,nd->n", rows, rows) - np.einsum("nr,nr->n", on_axes, on_axes)
    return np.concatenate([on_axes, np.sqrt(np.maximum(rest, 0.0))[:, None]], axis=1)


def _squares(a: Float[np.ndarray, "p d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "p n"]:
    """Squared distances, roughly."""
    return (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)[None, :] - 2 * a @ b.T
