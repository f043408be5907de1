"""Divides a bank over the devices of a mesh, of one process or of many."""

from dataclasses import replace

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from grood_jax.neighbors.bank import GROUP, ShardedBank
from grood_jax.neighbors.building import assemble, checked, checked_memory, choose_axes


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
    the rows never travel.

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
    rows = np.asarray(checked(vectors))
    owned = _owned(mesh, bank_axis)
    if len(rows) < len(owned):
        raise ValueError(
            f"bank has shape {rows.shape}; expected at least {len(owned)} rows, one for each "
            f"device along {bank_axis!r}"
        )
    columns = choose_axes(rows)
    largest = -(-len(rows) // len(owned))
    own = [len(rows), -(-largest // GROUP) * GROUP, *columns.shape]
    sizes, totals, widths, counts = _all_processes(np.array(own)).T
    if len(set(widths)) > 1:
        raise ValueError(f"bank has shape {rows.shape}; expected one width in all processes")
    size, total, most = int(sizes.sum()), int(totals.max()), int(counts.max())
    # Columns of zeros bound nothing and harm nothing.
    columns = np.pad(columns, ((0, 0), (0, most - columns.shape[1])))
    parts = dict(zip(owned, np.array_split(rows, len(owned)), strict=True))
    local = {
        # Sizes are static, and must be the same everywhere: padding is known by its place, −1.
        place: replace(assemble(part, columns, memory, total), size=0)
        for place, part in parts.items()
    }
    # Axes of automatic type, whatever the caller's: `shard_map` divides the queries itself.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    sharding = NamedSharding(mesh, PartitionSpec(bank_axis))

    def spread(*shards: jax.Array) -> jax.Array:
        by_place = dict(zip(local, shards, strict=True))
        shape = (mesh.shape[bank_axis], *shards[0].shape)

        def part(index: tuple[slice, ...] | None) -> npt.NDArray:
            places = range(*(index[0] if index else slice(None)).indices(shape[0]))
            return np.stack([np.asarray(by_place[place]) for place in places])

        return jax.make_array_from_callback(shape, sharding, part)

    return ShardedBank(jax.tree.map(spread, *local.values()), size, mesh, bank_axis, query_axis)


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
