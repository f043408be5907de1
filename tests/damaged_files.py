"""What may happen to a file of arrays on disk."""

import numpy as np


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def changed(path):
    """Class means, or features where there are none, are not what was written."""
    with np.load(path) as file:
        arrays = dict(file)
    name = "means" if "means" in arrays else "features"
    arrays[name] = arrays[name] + 1
    np.savez(path, **arrays)
