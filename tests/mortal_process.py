"""One of the processes of `test_deaths`: ``mortal_process.py NUMBER HOST:PORT FOLDER COUNT STAGE``.

At some stages one process does not go on, once it has made ``FOLDER/there``: it is to be killed
then. At others it differs from the rest. The others do what they can and say how it ended.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np

import grood_jax as gj
from grood_jax.backbone.backbone import Backbone
from grood_jax.cli import command
from grood_jax.data import Batch
from grood_jax.passes import forward, processes, runtime
from grood_jax.support import provenance

number, address, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[4])
folder, stage = Path(sys.argv[3]), sys.argv[5]
odd = number == (0 if stage == "save" else count - 1)
if stage in ("start", "pass", "search", "fit", "save"):
    runtime.HEARTBEAT = 6
jax.config.update("jax_num_cpu_devices", 2 if odd and stage == "devices" else 1)


def stay_if(wanted):
    if odd and stage == wanted:
        (folder / "there").touch()
        time.sleep(600)


def read(rows):
    stay_if("pass")
    images = np.ones((len(rows), 3), np.float32)
    yield Batch(images, np.zeros(len(rows), np.int32), np.ones(len(rows), bool))


def work():
    if stage == "start":
        runtime.meet(address, count, number, 60)
        stay_if("start")
    if odd and stage == "versions":
        known = provenance.versions() | {"jax": "0.0.1"}
        provenance.versions = lambda: known
    crew = processes.start(address, count, number, 2 if stage == "absent" else 60)
    same = Backbone.from_functions({}, lambda arrays, x: x, lambda arrays, x: (x, x))
    with crew.together():
        outputs = forward.extract(same, crew.share(read, np.arange(5)))
        assert outputs.features.shape == (5, 3)
        mesh = jax.make_mesh((count,), ("bank",))
        bank = gj.shard_bank(np.eye(3) + number, mesh)
        stay_if("search")
        gj.nearest_distances(np.eye(3), bank)
        stay_if("fit")
        crew.known_to_all({"fitted": number})
        crew.in_turn(lambda: stay_if("save"))


sys.exit(command.status(work))
