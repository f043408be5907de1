"""What the command lines share: exit statuses and one clear line for what a user can mend."""

import contextlib
import gc
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

from grood_jax.cli.compiled import keep_compiled
from grood_jax.support import missing
from grood_jax.support.errors import UserError
from grood_jax.support.progress import tell, unsaid

if TYPE_CHECKING:
    from grood_jax.evaluation.setting import Setting
    from grood_jax.passes.processes import Processes

T = TypeVar("T")

NEW_OBJECTS = 10_000
"""After how many new objects a command looks for cycles among them: Python's own 700 would make
it do so 900 times while it imports and traces, a tenth of its time."""


def parse(
    default: T, module: str, description: str, argv: Sequence[str] | None, listing: str = ""
) -> T:
    """Reads a configuration from the command line.

    Args:
      default: the configuration where the command line says nothing.
      module: the module that is run, or "grood COMMAND", for the help.
      description: what the command does, for the help.
      argv: the arguments; those of the process by default.
      listing: lines that follow the description as they are.

    Raises:
      SystemExit: with status 2 after one line on stderr, for bad usage; with 0 after --help.
    """
    gc.set_threshold(max(NEW_OBJECTS, gc.get_threshold()[0]))
    import tyro

    said = io.StringIO()
    once = _saying_defaults_once(type(default))
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                once,
                prog=module if module.startswith("grood ") else f"python -m {module}",
                description=" ".join(description.split()) + listing,
                default=_as(once, default),
                args=argv,
            )
            return _as(type(default), found)
    except SystemExit as stop:
        # tyro draws a box under a title; a log wants one line.
        text = " ".join(re.sub(r"[\u2500-\u257f]+|-{5,}|[|+]", " ", said.getvalue()).split())
        title = r"^(Value error|Invalid choice|Unrecognized options|Parsing error|Missing \w+) "
        text = re.sub(r"Error parsing \w+: ", "", re.sub(title, "", text))
        if text:
            print("error:", text, file=sys.stderr)
        raise stop


def _saying_defaults_once(kind: type[Any]) -> type[Any]:
    """The same configuration, whose help has no "(default: None)": its words say what None is."""
    import tyro

    def hint(shown: str) -> str:
        return "" if shown == "None" else f"(default: {shown})"

    once = tyro.conf.arg(help_behavior_hint=hint)
    absent = [field for field in fields(kind) if field.default is None]
    annotations = {field.name: Annotated[field.type, once] for field in absent}
    made = type(kind.__name__, (kind,), {"__annotations__": annotations, "__doc__": kind.__doc__})
    return dataclass(frozen=True)(made)


def _as(kind: type[T], config: Any) -> T:
    """A configuration as another class of the same fields."""
    return kind(**{field.name: getattr(config, field.name) for field in fields(config)})


def status(work: Callable[[], object]) -> int:
    """Runs a command's work; returns 0, or 1 after one line on stderr for what a user can mend.

    What JAX compiles is kept for the next run: see `grood_jax.cli.compiled`.
    """
    keep_compiled()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            work()
    except ModuleNotFoundError as error:
        print(f"error: {missing.sentence(error)}", file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # A computation may still be under way, and the interpreter must not end under it.
        os._exit(1)
    return 0


def in_company(
    setting: "Setting",
    work: "Callable[[Processes, Callable[[str], None], bool], T]",
    say: Callable[[str], None],
    show_progress: bool,
) -> T:
    """Does the work, in several processes if the setting says so.

    Args:
      setting: what is done, and with whom.
      work: takes the processes that do it together, ``say`` and ``show_progress``.
      say: takes lines of progress, those of the first process.
      show_progress: whether that one shows bars.

    Raises:
      UserError: the processes do not come together, differ, or one of them fails.
    """
    from grood_jax.passes import processes

    if not setting.distributed:
        return work(processes.ALONE, say, show_progress)
    crew = processes.start(
        setting.coordinator, setting.num_processes, setting.process_id, setting.start_seconds
    )
    with crew.together():
        crew.require_same(setting.in_common())
        return work(crew, say, show_progress) if crew.leads else work(crew, unsaid, False)


def _say_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line, without the source that gave it."""
    del category, filename, lineno, file, line
    tell(f"warning: {' '.join(str(message).split())}")
