"""Files that are written whole or not at all, and read without waiting for anybody."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from grood_jax.support.errors import UserError

LONGEST_TEXT = 2**28
"""Bytes of a text that is read at once."""


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


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file; others may be endless, or never say anything.

    Raises:
      OSError: it is none, or cannot be opened.
    """

    def without_waiting(name: str, flags: int) -> int:
        # Opening a named pipe would wait for somebody to write to it.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        stream = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    except ValueError as error:
        # A zero byte in a path.
        raise OSError(errno.EINVAL, str(error)) from error
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return stream


def read_text(path: Path) -> str:
    """The text of a regular file, in UTF-8.

    Raises:
      OSError: it is none, is too long, or cannot be read.
      ValueError: it is no UTF-8.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > LONGEST_TEXT:
            raise OSError(errno.EFBIG, f"it has more than {LONGEST_TEXT} bytes")
        return stream.read().decode("utf-8")


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
