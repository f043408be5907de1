"""Files that are written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from grood_jax.support.errors import UserError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to; the file there takes the place of ``path`` when all is written.

    Where writing fails nothing is left behind, and what was at ``path`` stays.

    Args:
      path: the file.
    """
    # With the same suffix, which some writers look at.
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def require_directory(name: str, directory: Path) -> None:
    """Makes a directory before anything is computed that will be written there.

    Raises:
      UserError: it cannot be made, or not be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{name} is {directory}; it cannot be made: {why}") from error
    if not os.access(directory, os.W_OK):
        raise UserError(f"{name} is {directory}; it cannot be written to")
