"""Banks on disk: their rows, of which a bank is built again."""

from pathlib import Path

from grood_jax.neighbors.bank import Bank
from grood_jax.neighbors.building import bank_dtype, bank_rows, build_bank
from grood_jax.storage import containers
from grood_jax.storage.earlier import BANK
from grood_jax.support import manifest as manifests


def save_bank(directory: str | Path, bank: Bank) -> None:
    """Writes a bank into a directory of its own: all of it or, when killed, nothing.

    Raises:
      TypeError: ``bank`` is none, or ``directory``.
      UserError: the directory holds a checkpoint already.
    """
    rows = bank_rows(bank)
    about = {"dtype": bank_dtype(bank), "memory": bank.memory}
    with containers.manager(containers.require_unused(directory)) as opened:
        containers.save(opened, 0, BANK, about, {BANK: {"rows": rows}})


def load_bank(directory: str | Path) -> Bank:
    """Reads a bank; a search in it gives the same bits as one in the bank that was saved.

    Raises:
      TypeError: ``directory`` is none.
      UserError: there is none, or its arrays are not those that were saved.
    """
    container = containers.open_latest(directory, BANK, "make one with save_bank")
    about = container.manifest.about
    # NumPy's: rows of a bfloat16 bank may not fit the device.
    arrays = container.read(BANK)
    with manifests.described(BANK, container.directory):
        return build_bank(arrays["rows"], dtype=about["dtype"], memory=about["memory"])
