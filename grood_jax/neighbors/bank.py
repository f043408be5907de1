"""What a search needs of a bank of vectors: coordinates that bound distances, sorted by norm.

The rows are given coordinates on their leading principal axes, and the norm of the rest. These
few columns bound every distance from below,
``‖q_r − b_r‖² + (‖q_⊥‖ − ‖b_⊥‖)² ≤ ‖q − b‖²``, and so do the norms alone,
``(‖q‖ − ‖b‖)² ≤ ‖q − b‖²``: only rows of like norms need to be looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, BFloat16, Float, Int

LARGEST = 1e37
"""Larger values than this are refused: differences of them may overflow float32."""

FEW_NUMBERS = 2**18
"""Of a bank, up to which it keeps no axes, and a search makes no longer lists: what is uncertain is
searched directly at once. To choose axes or to make longer lists takes a second to compile, and
saves a tenth of a millisecond a query at most."""

GROUP = 8
"""Rows that share one lower bound in the first selection; a bank is padded to whole groups."""

HOST_BLOCK = 2**27
"""Bytes of rows on the host that are read at once."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """The coordinates in which bounds are computed.

    Attributes:
      center: what is subtracted, so that data far from the origin keep their digits, (D,) float32.
      inverse_scale: power of two that is multiplied by, so that no square over- or underflows,
        () float32.
      axes: orthonormal columns, (D, r) float32; r = 0 where bounds use all coordinates.
    """

    center: Float[Array, "*p d"]
    inverse_scale: Float[Array, "*p"]
    axes: Float[Array, "*p d r"]


@dataclass(frozen=True, eq=False)
class HostRows:
    """Float32 rows in the host's memory, or in files mapped into it.

    Attributes:
      pieces: arrays (N_i, D), in order.
    """

    pieces: tuple[Float[np.ndarray, "_ d"], ...]

    def take(self, rows: Int[np.ndarray, "*s"]) -> Float[np.ndarray, "*s d"]:
        """The rows of these numbers."""
        starts = np.cumsum([0] + [len(piece) for piece in self.pieces])
        owners = np.searchsorted(starts, rows, side="right") - 1
        taken = np.empty((*rows.shape, self.pieces[0].shape[1]), np.float32)
        for number in np.unique(owners):
            own = owners == number
            taken[own] = self.pieces[number][rows[own] - starts[number]]
        return taken

    def blocks(self) -> Iterator[Float[np.ndarray, "_ d"]]:
        """The rows in order, some at a time."""
        for piece in self.pieces:
            yield from row_blocks(piece)


def row_blocks(rows: npt.NDArray) -> Iterator[npt.NDArray]:
    """The rows of an array in order, as many at a time as `HOST_BLOCK` allows."""
    step = max(1, HOST_BLOCK // (4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """Vectors made ready for searching; immutable, a pytree.

    The shards of a `ShardedBank` have a leading axis more.

    Attributes:
      vectors: the rows, sorted by their norms in the frame, then padding, (M, D) float32; (0, D)
        where they lie on the host.
      places: each sorted row's place among the rows given; −1 for the padding, (M,) int32.
      frame: the coordinates of the bounds.
      reduced: the sorted rows in the frame: r coordinates and the norm of the rest, (M, r + 1)
        float32. For r = 0 all D coordinates in bfloat16 in a bfloat16 bank; else (0, 0), and
        they are computed from ``vectors``.
      bounds: squared norms of the reduced rows, less the rounding error that a bound may have;
        infinite for the padding, (M,) float32.
      errors: how far rounding to bfloat16 has moved each row, (M,) float32; else (0,).
      norms: of the rows in the frame, ascending; infinite for the padding, (M,) float32.
      size: how many rows there are without the padding, N.
      memory: bytes that the bounds of a block of queries may take.
      host: the rows as given, where they lie on the host.
    """

    vectors: Float[Array, "*p _ d"]
    places: Int[Array, "*p m"]
    frame: Frame
    reduced: Float[Array, "*p _ s"] | BFloat16[Array, "*p _ s"]
    bounds: Float[Array, "*p m"]
    errors: Float[Array, "*p e"]
    norms: Float[Array, "*p m"]
    size: int = field(metadata={"static": True})
    memory: int = field(metadata={"static": True})
    host: HostRows | None = field(default=None, metadata={"static": True})

    def __repr__(self) -> str:
        """One line: rows, columns, and where the rows lie."""
        place = "the device" if self.host is None else "the host"
        return f"Bank({self.size} rows of {self.width}, {self.axes} axes, on {place})"

    @property
    def width(self) -> int:
        """Columns, D."""
        return self.vectors.shape[-1]

    @property
    def axes(self) -> int:
        """Principal axes in use, r; 0 where bounds use all columns, because few do not help."""
        return self.frame.axes.shape[-1]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ShardedBank:
    """A bank whose rows are divided over the devices of a mesh; immutable, a pytree.

    Attributes:
      shards: a `Bank` of each share of the rows: its arrays have a leading axis over shards,
        which is divided over ``bank_axis``.
      size: rows in all shards together, N.
      mesh: the devices, of this process and of others.
      bank_axis: the mesh's axis over which rows are divided.
      query_axis: the mesh's axis over which queries are divided, if there is one.
    """

    shards: Bank
    size: int = field(metadata={"static": True})
    mesh: Mesh = field(metadata={"static": True})
    bank_axis: str = field(metadata={"static": True})
    query_axis: str | None = field(metadata={"static": True})

    def __repr__(self) -> str:
        """One line: rows, columns, and over which devices they are divided."""
        axes = dict(self.mesh.shape)
        return f"ShardedBank({self.size} rows of {self.width}, over {self.bank_axis!r} of {axes})"

    @property
    def width(self) -> int:
        """Columns, D."""
        return self.shards.width


def rounding(width: int) -> float:
    """Bound on the relative rounding error of a float32 dot product of ``width`` terms.

    References:
      Higham, Accuracy and Stability of Numerical Algorithms, section 3.1; twice its γ.
    """
    return 2 * (width + 32) * 2.0**-24


def square_slack(frame: Frame) -> float:
    """Bound on the error of a squared bound, relative to both squared norms together.

    A coordinate on an axis errs by at most γ‖x‖, r of them and the norm of the rest by
    γ(√r + 1)‖x‖, and the square of a difference of two such by four times that.
    """
    width, axes = frame.axes.shape
    return rounding(width) if axes == 0 else 4 * (axes**0.5 + 1) * rounding(width)


def underflow(width: int) -> float:
    """What terms below float32's least normal number may take from a sum of squares."""
    return 8 * width * float(np.finfo(np.float32).tiny)


def reduce(points: Float[Array, "q d"], frame: Frame) -> Float[Array, "q s"]:
    """Centred, scaled coordinates on the frame's axes and the norm of the rest, (Q, r + 1).

    All D coordinates where the frame has no axes.
    """
    centred = (points - frame.center[None, :]) * frame.inverse_scale
    if frame.axes.shape[1] == 0:
        return centred
    on_axes = jnp.matmul(centred, frame.axes, precision=lax.Precision.HIGHEST)
    rest = centred - jnp.matmul(on_axes, frame.axes.T, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([on_axes, jnp.linalg.norm(rest, axis=1, keepdims=True)], axis=1)
