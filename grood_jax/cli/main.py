"""The command ``grood``: every command line by one name. Only the chosen one is imported."""

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

from grood_jax.support import missing

COMMANDS = {
    "eval": "evaluates OOD detectors on a benchmark",
    "compare": "puts the results of several evaluations side by side",
    "report": "makes a report of an evaluation's results afterwards",
    "fit": "fits and calibrates a detector, and writes a directory to ship",
    "predict": "answers for images, from such a directory",
    "serve": "serves such a directory over HTTP",
    "train": "trains a classifier",
    "import-torch": "makes a checkpoint of a PyTorch state dict",
    "convert": "makes a prepared OOD set of folders of images",
}
"""What each does, by its name; the module is that of `grood_jax.cli`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
        print("usage: grood COMMAND …", "", *lines, "", "grood COMMAND --help says more", sep="\n")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"grood-jax {metadata.version('grood-jax')}")
        return 0
    if words[0] not in COMMANDS:
        print(f"error: no command {words[0]!r}; expected {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _run(words)
    except ModuleNotFoundError as error:
        print(f"error: {missing.sentence(error)}", file=sys.stderr)
        return 1


def _run(words: Sequence[str]) -> int:
    module = importlib.import_module(f"grood_jax.cli.{words[0].replace('-', '_')}")
    return int(module.main(words[1:]))
