"""Progress on stderr: bars on a terminal, a line for each in a log."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def bar(total: int, description: str, *, shown: bool, done: int = 0, unit: str = "images") -> Any:
    """A tqdm bar that counts images or other things, gone when it is closed; a context manager.

    Where stderr is no terminal, one line says what is being done.

    Args:
      total: how many there are.
      description: what is being done.
      shown: whether to show it at all.
      done: how many are done already.
      unit: what is counted.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    if shown and not terminal:
        tell(f"{description}: {total - done} {unit}")
    return tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=f" {unit}",
        disable=not (shown and terminal),
        leave=False,
    )


def tell(line: str) -> None:
    """Prints a line on stderr, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)


def unsaid(line: str) -> None:
    """Takes a line of progress that nobody wants."""
    del line


def says(run: Callable[P, T]) -> Callable[P, T]:
    """Lets what takes lines of progress, ``say``, be given by its earlier name, ``report``."""

    @functools.wraps(run)
    def renamed(*args: P.args, **options: P.kwargs) -> T:
        if "report" in options:
            warnings.warn("report= is called say= now", DeprecationWarning, stacklevel=2)
            options["say"] = options.pop("report")
        return run(*args, **options)

    return renamed
