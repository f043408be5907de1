"""The classifier that comes with the package: what it gives hardly differs between machines.

A network trained anew gets other weights on another processor, and other figures. These are the
weights that one machine gave; ``experiments/tools/include_digits.py`` made the files.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grood_jax.storage import checkpoints
from grood_jax.storage.checkpoints import Loaded
from grood_jax.support import manifest as manifests
from grood_jax.support.structures import by_name

KIND = "network of the digits"
NAME = "digits_small"
PLACE = Path("grood_jax", "models", "weights", f"{NAME}.npz")
"""The file of its arrays, as results name it."""


def find(dataset: str, model: str, seed: int) -> Loaded | None:
    """The network that comes with the package, if it is the one asked for.

    Args:
      dataset: the benchmark on whose training images it was trained.
      model: the network's name.
      seed: of its training.
    """
    return digits() if (dataset, model, seed) == ("digits", "small", 0) else None


def digits() -> Loaded:
    """The network that ``python -m grood_jax.train --dataset digits`` made on one machine.

    Raises:
      UserError: its files are damaged.
    """
    return read(resources.files("grood_jax") / "models" / "weights")


def read(folder: Traversable) -> Loaded:
    """Reads what `write` wrote.

    Raises:
      UserError: the files are missing or damaged.
    """
    with manifests.described(KIND, folder):
        about = json.loads((folder / f"{NAME}.json").read_text("utf-8"))
        with (folder / f"{NAME}.npz").open("rb") as file, np.load(file) as stored:
            arrays = _nested({name: jax.device_put(stored[name]) for name in stored})
        spec = checkpoints.spec_of(Path(NAME), about["spec"])
        model = checkpoints.model_of(spec, arrays)
        fingerprint = checkpoints.fingerprint(model)
        if fingerprint != about["fingerprint"]:
            raise manifests.damaged(KIND, folder, "its arrays are not those that were saved")
        spec = replace(spec, source=f"{spec.source}; comes with the package")
        return Loaded(model, spec, about["record"], fingerprint, about["epochs"])


def write(folder: Path, loaded: Loaded, about: Mapping[str, Any]) -> None:
    """Writes a network as two files: arrays, and what they are.

    Args:
      folder: where to.
      loaded: the network, as it was trained.
      about: how it was made, and how good it is: kept beside it for the reader.
    """
    facts = {
        **about,
        "spec": asdict(loaded.spec),
        "epochs": loaded.step,
        "fingerprint": loaded.fingerprint,
        "record": loaded.record,
    }
    arrays: dict[str, Any] = dict(by_name(checkpoints.arrays_of(loaded.model)))
    np.savez(folder / f"{NAME}.npz", **arrays)
    (folder / f"{NAME}.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries in dictionaries, from names with dots."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *outer, last = name.split(".")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[last] = array
    return tree
