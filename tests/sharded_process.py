"""One of the two processes of `test_sharding`: ``sharded_process.py NUMBER PORT FOLDER``.

Makes a bank of its own share of the rows in ``FOLDER/NUMBER.npy``, searches all queries in
``FOLDER/queries.npy``, and writes the distances to ``FOLDER/NUMBER-found.npz``; once more with
the queries divided too. Asks for shards that belong to both processes, in vain.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import grood_jax as gj

number, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
rows, queries = np.load(folder / f"{number}.npy"), np.load(folder / "queries.npy")
devices = np.array(jax.devices())
assert len(devices) == 4 and jax.process_count() == 2
along = gj.shard_bank(rows, jax.sharding.Mesh(devices, ("bank",)))
mesh = jax.sharding.Mesh(devices.reshape(2, 2), ("bank", "query"))
across = gj.shard_bank(rows, mesh, query_axis="query")
assert along.size == across.size
try:
    turned = jax.sharding.Mesh(devices.reshape(2, 2), ("query", "bank"))
    refusal = repr(gj.shard_bank(rows, turned))
except ValueError as error:
    refusal = str(error)
np.savez(
    folder / f"{number}-found.npz",
    along=gj.nearest_distances(queries, along, 10),
    across=gj.nearest_distances(queries, across, 10),
    refusal=refusal,
)
