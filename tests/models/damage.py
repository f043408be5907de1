"""Damage to files of weights."""

from pathlib import Path

import numpy as np

from grood_jax.models.torch.files import read_state_dict
from grood_jax.support.errors import UserError


def require_arrays_or_a_user_error(path: Path, content: bytes) -> None:
    """Changes each byte in turn: the file is refused in words, or read as arrays; both happen."""
    outcomes = set()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(changed)
        try:
            read = read_state_dict(path)
        except UserError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert all(isinstance(array, np.ndarray) for array in read.values())
    assert outcomes == {"refused", "read"}
