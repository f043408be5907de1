"""Results of an evaluation: their file and their table."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.support.files import written_whole

METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out")


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
