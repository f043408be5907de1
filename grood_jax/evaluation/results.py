"""Results of an evaluation: their figures and their files."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from grood_jax.evaluation import tables
from grood_jax.maths.intervals import auroc_interval
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


def group_figures(
    datasets: Mapping[str, Mapping[str, Any]],
    group: str,
    inside: Float[np.ndarray, " n"],
    scores: Mapping[str, Float[np.ndarray, " _"]],
) -> dict[str, Any]:
    """`group_means`, and the interval of 95 % of the mean AUROC as ``auroc_interval``.

    Args:
      datasets: figures by set.
      group: whose sets count.
      inside: scores of the ID samples.
      scores: of the OOD samples by set.
    """
    outside = [scores[name] for name, own in datasets.items() if own["group"] == group]
    found: dict[str, Any] = dict(group_means(datasets, group))
    ends = auroc_interval(inside, outside) if outside else None
    return found if ends is None else found | {"auroc_interval": list(ends)}


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


def table(results: Mapping[str, Any]) -> str:
    """AUROC and FPR@95 of each detector on each data set: `grood_jax.evaluation.tables.text`."""
    return tables.text(results)
