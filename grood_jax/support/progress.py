"""Progress on stderr: bars on a terminal, a line for each in a log."""

import sys
from typing import Any


def bar(total: int, description: str, *, shown: bool, done: int = 0) -> Any:
    """A tqdm bar that counts images, gone when it is closed; a context manager.

    Where stderr is no terminal, one line says what is being done.

    Args:
      total: how many there are.
      description: what is being done.
      shown: whether to show it at all.
      done: how many are done already.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    if shown and not terminal:
        tell(f"{description}: {total - done} images")
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=" images",
        disable=not (shown and terminal),
        leave=False,
    )


def tell(line: str) -> None:
    """Prints a line on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
