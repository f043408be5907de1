"""Results of several evaluations on the same data, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from grood_jax.evaluation import results, tables
from grood_jax.evaluation.tables import GROUPS, NONE, SHOWN, TITLES, Cell, Form, Metric
from grood_jax.support import checks
from grood_jax.support.errors import UserError

Run = Mapping[str, Any]


def read_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Results by names that tell them apart, of the same data.

    Args:
      paths: files ``results.json``, or the folders that they lie in.

    Returns:
      What the files hold, by the name of the folder where that tells them apart, else by path.

    Raises:
      UserError: fewer than two, one twice, one that cannot be read, or of other data.
    """
    files = [path / "results.json" if path.is_dir() else path for path in paths]
    if len(files) < 2 or len(set(files)) < len(files):
        raise UserError(
            f"{len(set(files))} results are given; expected at least two different results.json"
        )
    whole = [path.absolute() for path in files]
    short = [f.parent.name if f.name == "results.json" else f.stem for f in whole]
    names = short if len(set(short)) == len(files) else [str(path) for path in files]
    runs: dict[str, Run] = {
        name: results.read(file) for name, file in zip(names, files, strict=True)
    }
    require_same_data(runs)
    return runs


def require_same_data(runs: Mapping[str, Run]) -> None:
    """Refuses results whose figures are of different images.

    Raises:
      UserError: a set that only some have, or that differs in number, content or group.
    """
    (first, own), *others = [(name, _sets(run)) for name, run in runs.items()]
    for other, theirs in others:
        for name in dict.fromkeys((*own, *theirs)):
            if name not in own or name not in theirs:
                raise UserError(
                    f"{first} and {other} are of different data: only "
                    f"{first if name in own else other} has the set {name}"
                )
            for part, said in zip(_facts(own[name]), _facts(theirs[name]), strict=True):
                if part != said and None not in (part, said):
                    raise UserError(
                        f"{first} and {other} are of different data: the set {name} has {part} in "
                        f"{first}, {said} in {other}"
                    )


def _sets(run: Run) -> dict[str, dict[str, Any]]:
    """What is known of each set that was scored."""
    groups = results.groups(run).items()
    return {name: {**run["data"].get(name, {}), "group": group} for name, group in groups}


def _facts(about: Mapping[str, Any]) -> tuple[str | None, ...]:
    """The group, the number and the fingerprint of a set, in words; None for what is not known."""
    images, mark, kind = (about.get(key) for key in ("n", "fingerprint", "fingerprint_of"))
    return (
        f"the group {about['group']}",
        None if images is None else f"{images} images",
        # Fingerprints of files depend on where these lie, those of earlier versions on more.
        f"the fingerprint {mark[:12]}…" if kind == "content" and mark else None,
    )


def rows(runs: Mapping[str, Run], group: str, metric: Metric) -> dict[str, list[Cell]]:
    """Each detector's mean figure in each run, and how far each other run is above the first.

    Args:
      runs: results by name.
      group: near or far.
      metric: which figure.
    """
    names = dict.fromkeys(name for run in runs.values() for name in run["detectors"])
    found = {}
    for name in names:
        cells = []
        for run in runs.values():
            figures = run["detectors"].get(name, {}).get(group)
            cells.append(tables.cell(figures, metric) if figures else Cell(None))
        first = cells[0].value
        found[name] = cells + [
            Cell(None if cell.value is None or first is None else cell.value - first)
            for cell in cells[1:]
        ]
    return found


def written(runs: Mapping[str, Run], form: Form) -> str:
    """AUROC and FPR@95 of the means over near and far sets, a detector a row and runs across.

    Args:
      runs: results by name, of the same data.
      form: of the tables.

    Raises:
      ValueError: there is no such form.
    """
    checks.choice("format", form, get_args(Form))
    first, *others = runs
    differences = [f"{other} − {first}" for other in others]
    groups = [g for g in GROUPS if any(own.get(g) for r in runs.values() for own in _all(r))]
    if form == "csv":
        return _csv(runs, groups, [*runs, *differences])
    parts = []
    for metric in SHOWN:
        for group in groups:
            lines = [
                [name, *(_shown(cell, i >= len(runs)) for i, cell in enumerate(cells))]
                for name, cells in rows(runs, group, metric).items()
            ]
            head = [f"{TITLES[metric]}, {group}", *runs, *differences]
            parts.append(tables.table_of(head, lines, form))
    return "\n\n".join(parts)


def _csv(runs: Mapping[str, Run], groups: Sequence[str], across: Sequence[str]) -> str:
    lines: list[list[object]] = [["detector", "group", "metric", *across]]
    for group in groups:
        for metric in SHOWN:
            for name, cells in rows(runs, group, metric).items():
                values = ("" if cell.value is None else cell.value for cell in cells)
                lines.append([name, group, metric, *values])
    return tables.csv_table(lines)


def _all(run: Run) -> list[Mapping[str, Any]]:
    return list(run["detectors"].values())


def _shown(cell: Cell, signed: bool) -> str:
    if cell.value is None:
        return NONE
    return f"{cell.value:+.4f}" if signed else cell.text
