"""Divides the rows of each batch over this process's devices.

A backbone whose arrays lie on all of them (see `spread`) says so by itself; each device then runs
the very program that one device alone would run, on its share of the rows, and nothing travels
between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from grood_jax.backbone.backbone import Backbone
from grood_jax.maths.prototypes import ClassMeans, empty_means, merge

T = TypeVar("T")

AT_ONCE = 64
"""Images that a CPU works on at once."""

LARGE = 2**18
"""Numbers in a batch's images from which on they are divided so."""

AXIS = "rows of a batch"
ALL, DIVIDED = PartitionSpec(), PartitionSpec(AXIS)
"""What each device has of an array: all of it, or a share of its rows."""


def spread(backbone: Backbone) -> Backbone:
    """The backbone on all local devices, so that forward passes divide each batch over them.

    With one device, the backbone itself.
    """
    devices = jax.local_devices()
    if len(devices) == 1:
        return backbone
    mesh = Mesh(np.array(devices), (AXIS,))
    return replace(backbone, arrays=everywhere(backbone.arrays, mesh))


def mesh_of(backbone: Backbone) -> Mesh | None:
    """The devices over which the backbone is spread, if it is."""
    for leaf in jax.tree.leaves(backbone.arrays):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (AXIS,):
            return sharding.mesh if isinstance(sharding.mesh, Mesh) else None
    return None


def everywhere(tree: T, mesh: Mesh | None) -> T:
    """All of the arrays on each device."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, ALL))


def on_one(tree: T) -> T:
    """The arrays that lie whole on each of several devices, on the first of them only."""

    def first(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated else leaf

    return jax.tree.map(first, tree)


def divided(array: np.ndarray, mesh: Mesh | None) -> Any:
    """A batch's array, each device's share of the rows on it; zeros fill the last shares up."""
    if mesh is None:
        return array
    missing = -len(array) % mesh.size
    if missing:
        array = np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return jax.device_put(array, NamedSharding(mesh, DIVIDED))


def by_rows(
    function: Callable[..., Any], mesh: Mesh | None, given: tuple[PartitionSpec, ...]
) -> Callable[..., Any]:
    """The function, run by each device on what it is given; all results are divided by rows.

    Not left to the compiler's partitioning: loops over rows or classes, and what it does not know
    how to divide, would have it send activations about.

    Args:
      function: works on each row by itself.
      mesh: the devices; None for one.
      given: `ALL` or `DIVIDED` for each argument.
    """
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=given, out_specs=DIVIDED, check_vma=False)


def by_parts(function: Callable[[Any], T], images: Shaped[Array, "b ..."]) -> T:
    """The function of a batch; on a CPU of `AT_ONCE` images after another, where they are large.

    Activations of more images than these leave the cache, and a CPU's memory for them is asked of
    the system with each batch, which takes a quarter of the time of a small network.

    Args:
      function: works on each row by itself; whatever it returns is divided by rows.
      images: the batch, of one device.
    """
    count = images.shape[0]
    if (
        jax.default_backend() != "cpu"
        # A program that is exported may leave open how many there are.
        or not isinstance(count, int)
        or images.size < LARGE
        or count % AT_ONCE
        or count == AT_ONCE
    ):
        return function(images)
    structures = []

    def leaves(part: Shaped[Array, "n ..."]) -> list[Array]:
        # What they are part of may check that rows are their first axis, and parts come before.
        found, structure = jax.tree.flatten(function(part))
        structures.append(structure)
        return found

    found = jax.lax.map(leaves, images.reshape(-1, AT_ONCE, *images.shape[1:]))
    return jax.tree.unflatten(structures[-1], [leaf.reshape(-1, *leaf.shape[2:]) for leaf in found])


def no_means(num_classes: int, shape: Sequence[int], mesh: Mesh | None) -> ClassMeans:
    """Means of nothing yet; with several devices those of each, one after the other by class."""
    if mesh is None:
        return empty_means(num_classes, shape)
    make = partial(empty_means, num_classes * mesh.size, shape)
    return jax.jit(make, out_shardings=NamedSharding(mesh, DIVIDED))()


def of_all_devices(means: ClassMeans, mesh: Mesh | None) -> ClassMeans:
    """The devices' means, merged."""
    if mesh is None:
        return means
    home = mesh.devices.flat[0]
    parts = (
        jax.tree.map(lambda array, i=i: jax.device_put(array.addressable_data(i), home), means)
        for i in range(mesh.size)
    )
    return reduce(merge, parts)
