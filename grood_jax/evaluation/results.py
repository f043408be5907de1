"""Results of an evaluation: their files and their table."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.maths.metrics import ood_metrics
from grood_jax.support import checks, npz
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.files import open_regular, read_text, written_whole

METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out")

ENTRIES = (
    *("benchmark", "model", "checkpoint", "command", "versions", "device"),
    *("id_accuracy", "data", "detectors"),
)
"""What results of every version have."""


def group_means(datasets: Mapping[str, Mapping[str, Any]], group: str) -> dict[str, float]:
    """Means of the metrics over the data sets of a group; empty where there are none."""
    members = [figures for figures in datasets.values() if figures["group"] == group]
    if not members:
        return {}
    return {m: math.fsum(figures[m] for figures in members) / len(members) for m in METRICS}


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes results as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
      TypeError: ``path`` is none.
      UserError: there is no such file, or it holds no results of an evaluation.
    """
    try:
        held = json.loads(read_text(checks.path("path", path)))
    except (OSError, ValueError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"{path} cannot be read: {why}") from error
    lacking = [name for name in ENTRIES if not isinstance(held, dict) or name not in held]
    if lacking:
        raise UserError(f"{path} holds no results of an evaluation: it has no {', '.join(lacking)}")
    return {"shifted_accuracy": {}, **held}


def groups(results: Mapping[str, Any]) -> dict[str, str]:
    """The sets that were scored, in their order, and whether each is "ID", "near" or "far"."""
    inside = dict.fromkeys(("test", *results["shifted_accuracy"]), "ID")
    return inside | {
        name: figures["group"]
        for detector in results["detectors"].values()
        for name, figures in detector["datasets"].items()
    }


def read_scores(path: Path, results: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """What `write_scores` wrote beside results, by detector and set.

    Args:
      path: the file.
      results: as `read` gives them; the scores must be what these were made of.

    Raises:
      TypeError: ``path`` is none.
      UserError: the file is damaged, or of another evaluation.
    """
    path, sets = checks.path("path", path), groups(results)
    wanted = [f"{detector}/{name}" for detector in results["detectors"] for name in sets]
    try:
        with open_regular(path) as stream:
            held = npz.read(stream, wanted)
    except KeyError as error:
        raise UserError(f"{path} is of another evaluation: it lacks {error.args[0]}") from error
    except Exception as error:
        # Whatever damage makes the readers of archives and arrays raise.
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    scores = {
        detector: {name: held[f"{detector}/{name}"] for name in sets}
        for detector in results["detectors"]
    }
    for detector, own in scores.items():
        inside = np.concatenate([own[name] for name, group in sets.items() if group == "ID"])
        for name, figures in results["detectors"][detector]["datasets"].items():
            if abs(ood_metrics(inside, own[name])["auroc"] - figures["auroc"]) > 1e-9:
                raise UserError(
                    f"{path} is of another evaluation: its scores {detector}/{name} do not give "
                    f"the AUROC of the results, {figures['auroc']:.4f}"
                )
    return scores


def write_scores(scores: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """Writes scores by detector and set as a ``.npz`` of float32 arrays called DETECTOR/SET."""
    # No such name is that of an argument.
    named: dict[str, Any] = {
        f"{name}/{part}": array for name, own in scores.items() for part, array in own.items()
    }
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **named)


def table_rows(results: Mapping[str, Any]) -> list[Sequence[str]]:
    """The cells of the table of results, under a row of titles; means are of no images."""
    rows: list[Sequence[str]] = [("detector", "data set", "group", "images", "AUROC", "FPR@95")]
    for name, detector in results["detectors"].items():
        for dataset, figures in detector["datasets"].items():
            rows.append((name, dataset, figures["group"], str(figures["n"]), *_cells(figures)))
        for group in ("near", "far"):
            if detector[group]:
                rows.append((name, f"mean {group}", group, "", *_cells(detector[group])))
    # Results of earlier versions say nothing of failures.
    rows += [(name, "failed", "", "", "—", "—") for name in results.get("failed", ())]
    return rows


def table(results: Mapping[str, Any]) -> str:
    """AUROC and FPR@95 of each detector on each data set, as text in columns."""
    rows = table_rows(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(figures: Mapping[str, Any]) -> tuple[str, str]:
    return f"{figures['auroc']:.4f}", f"{figures['fpr95']:.4f}"
