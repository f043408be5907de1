"""Progress on stderr: bars on a terminal, a line now and then in a log."""

import sys
from typing import Any


def bar(total: int, description: str, *, shown: bool, done: int = 0) -> Any:
    """A tqdm bar that counts images, gone when it is closed; a context manager.

    Args:
      total: how many there are.
      description: what is being done.
      shown: whether to show it at all.
      done: how many are done already.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=" images",
        disable=not shown,
        leave=not terminal,
        mininterval=0.1 if terminal else 10.0,
        delay=0.0 if terminal else 5.0,
    )


def tell(line: str) -> None:
    """Prints a line on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
