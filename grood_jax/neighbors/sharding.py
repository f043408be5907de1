"""Divides a bank over the devices of a mesh, of one process or of many."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from grood_jax.neighbors.bank import GROUP, Bank, HostRows, ShardedBank
from grood_jax.neighbors.building import (
    assemble,
    checked_memory,
    checked_on_host,
    frame_on_host,
)


def shard_bank(
    vectors: npt.ArrayLike,
    mesh: Mesh,
    *,
    bank_axis: str = "bank",
    query_axis: str | None = None,
    memory: int | None = None,
) -> ShardedBank:
    """Makes a bank whose rows are divided over the devices along an axis of a mesh.

    Each device searches its own rows and sends the k nearest distances of each query, 4·k bytes;
    the rows never travel. Each share is assembled on its own device: no other holds more than a
    block of the rows.

    Args:
      vectors: the rows, (N, D). With several processes each gives the rows that it has, at least
        one for each of its devices along ``bank_axis``; no row of two processes.
      mesh: the devices. With several processes, those of one process must not share their place
        on ``bank_axis`` with another process's.
      bank_axis: the mesh's axis over which rows are divided.
      query_axis: the mesh's axis over which queries are divided, if any.
      memory: as in `grood_jax.build_bank`, for each device.

    Raises:
      TypeError: as `grood_jax.build_bank`, or ``mesh`` is none.
      ValueError: as `grood_jax.build_bank`; an axis that the mesh does not have, or fewer rows
        than devices to divide them over.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh")
    axes = [bank_axis, *([] if query_axis is None else [query_axis])]
    missing = [axis for axis in axes if axis not in mesh.axis_names]
    if missing or len(set(axes)) < len(axes):
        raise ValueError(
            f"bank_axis is {bank_axis!r} and query_axis {query_axis!r}; expected different axes "
            f"of the mesh, which has {', '.join(map(repr, mesh.axis_names))}"
        )
    memory = checked_memory(memory)
    rows = checked_on_host(vectors)
    owned = _owned(mesh, bank_axis)
    if len(rows) < len(owned):
        raise ValueError(
            f"bank has shape {rows.shape}; expected at least {len(owned)} rows, one for each "
            f"device along {bank_axis!r}"
        )
    columns = np.asarray(frame_on_host(HostRows((rows,))).axes)
    largest = -(-len(rows) // len(owned))
    own = [len(rows), -(-largest // GROUP) * GROUP, *columns.shape]
    sizes, totals, widths, counts = _all_processes(np.array(own)).T
    if len(set(widths)) > 1:
        raise ValueError(f"bank has shape {rows.shape}; expected one width in all processes")
    size, total, most = int(sizes.sum()), int(totals.max()), int(counts.max())
    # Columns of zeros bound nothing and harm nothing.
    columns = np.pad(columns, ((0, 0), (0, most - columns.shape[1])))
    # Axes of automatic type, whatever the caller's: `shard_map` divides the queries itself.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(bank_axis), 0)
    parts = zip(owned, np.array_split(rows, len(owned)), strict=True)
    made = [
        _shard(part, columns, memory, total, list(along[place : place + 1].flat))
        for place, part in parts
    ]
    sharding = NamedSharding(mesh, PartitionSpec(bank_axis))

    def joined(*copies: jax.Array) -> jax.Array:
        shape = (mesh.shape[bank_axis], *copies[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(copies))

    shards = [shard for copies in made for shard in copies]
    return ShardedBank(jax.tree.map(joined, *shards), size, mesh, bank_axis, query_axis)


def _shard(
    rows: Float[np.ndarray, "n d"],
    axes: Float[np.ndarray, "d r"],
    memory: int,
    total: int,
    devices: list[jax.Device],
) -> list[Bank]:
    """A shard, its arrays with a leading axis of one, on each of the devices at its place."""
    given = jax.device_put((rows, axes), devices[0])
    own = _with_leading_axis(*given, memory, total)
    return [own, *(jax.device_put(own, device) for device in devices[1:])]


@partial(jax.jit, static_argnames=("memory", "total"))
def _with_leading_axis(
    rows: Float[Array, "n d"], axes: Float[Array, "d r"], memory: int, total: int
) -> Bank:
    bank = assemble(rows, axes, memory, total)
    # Sizes are static, and must be the same everywhere: padding is known by its place, −1.
    return replace(jax.tree.map(lambda array: array[None], bank), size=0)


def _owned(mesh: Mesh, bank_axis: str) -> list[int]:
    """This process's places along the bank's axis."""
    along = np.moveaxis(mesh.devices, mesh.axis_names.index(bank_axis), 0)
    owners = [{device.process_index for device in place.flat} for place in along[:, None]]
    for place, processes in enumerate(owners):
        if len(processes) > 1:
            raise ValueError(
                f"mesh has devices of the processes {sorted(processes)} at place {place} of "
                f"{bank_axis!r}; expected those of one process"
            )
    return [place for place, own in enumerate(owners) if own == {jax.process_index()}]


def _all_processes(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, "p n"]:
    """Every process's numbers."""
    if jax.process_count() == 1:
        return numbers[None]
    return np.asarray(multihost_utils.process_allgather(numbers)).reshape(-1, len(numbers))
