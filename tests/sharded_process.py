"""One of the two processes of `test_sharding`: ``sharded_process.py NUMBER PORT FOLDER``.

Makes a bank of its own share of the rows in ``FOLDER/NUMBER.npy``, searches all queries in
``FOLDER/queries.npy``, and writes the distances to ``FOLDER/NUMBER-found.npz``. Asks for shards
that belong to both processes, in vain.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import grood_jax as gj

number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
rows, queries = np.load(folder / f"{number}.npy"), np.load(folder / "queries.npy")
devices = np.array(jax.devices()).reshape(4, 2)
assert jax.process_count() == 2
mesh = jax.sharding.Mesh(devices, ("bank", "query"))
sharded = gj.shard_bank(rows, mesh, query_axis="query")
try:
    refusal = repr(gj.shard_bank(rows, jax.sharding.Mesh(devices.T, ("bank", "query"))))
except ValueError as error:
    refusal = str(error)
distances = gj.nearest_distances(queries, sharded, 10)
axes = sharded.shards.axes
np.savez(folder / f"{number}-found.npz", distances=distances, axes=axes, refusal=refusal)
