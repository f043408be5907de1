"""Banks on disk: orbax checkpoints of their rows, with a fingerprint."""

from pathlib import Path

import numpy as np

from grood_jax.neighbors.bank import Bank
from grood_jax.neighbors.building import bank_dtype, bank_rows, build_bank
from grood_jax.storage import checkpoints
from grood_jax.support.errors import UserError


def save_bank(directory: Path, bank: Bank) -> None:
    """Writes a bank into a directory of its own: all of it or, when killed, nothing.

    Raises:
      UserError: the directory holds a checkpoint already.
    """
    import orbax.checkpoint as ocp

    checkpoints.require_no_checkpoint(directory)
    arrays = {"rows": bank_rows(bank)}
    about = {
        "shape": [bank.size, bank.width],
        "dtype": bank_dtype(bank),
        "memory": bank.memory,
        "fingerprint": checkpoints.fingerprint_of(arrays),
    }
    items = {"bank": ocp.args.StandardSave(arrays), "about": ocp.args.JsonSave(about)}
    with checkpoints.manager(directory) as opened:
        opened.save(0, args=ocp.args.Composite(**items))


def load_bank(directory: Path) -> Bank:
    """Reads a bank; a search in it gives the same bits as one in the bank that was saved.

    Raises:
      UserError: there is none, or its arrays are not those that were saved.
    """
    step = checkpoints.latest_step(directory)
    if step is None:
        raise UserError(f"there is no bank in {directory}; make one with save_bank")
    with checkpoints.manager(directory) as opened:
        about = checkpoints.restore(opened, directory, step, "about")
        with checkpoints.described(f"the bank in {directory}"):
            missing = {"shape", "dtype", "memory", "fingerprint"} - set(about)
            if missing:
                raise UserError(
                    f"{directory} holds no bank: it has no " + ", ".join(sorted(missing))
                )
            # NumPy in and out: rows of a bfloat16 bank may not fit the device.
            like = {"rows": np.empty(about["shape"], np.float32)}
        arrays = checkpoints.restore(opened, directory, step, "bank", like)
    if checkpoints.fingerprint_of(arrays) != about["fingerprint"]:
        raise UserError(f"the bank in {directory} is damaged: its fingerprint is another")
    with checkpoints.described(f"the bank in {directory}"):
        return build_bank(arrays["rows"], dtype=about["dtype"], memory=about["memory"])
