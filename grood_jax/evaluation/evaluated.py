"""What an evaluation in Python gives: figures, scores, and what can be made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from grood_jax.evaluation import report as reports
from grood_jax.evaluation import results, tables
from grood_jax.evaluation.fitting import Fitted
from grood_jax.evaluation.pipeline import Passed, Scored
from grood_jax.evaluation.report import ShownSet
from grood_jax.evaluation.tables import Metric
from grood_jax.maths.intervals import Difference, bootstrap_interval, compare_aurocs
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Detectors, evaluated. Printed, it is a table of AUROC and one of FPR@95.

    Attributes:
      results: what ``results.json`` holds.
      scores: by detector and set, (N,) float32, higher for more OOD; the ID test images are "test".
    """

    results: dict[str, Any]
    scores: dict[str, dict[str, Float[np.ndarray, " _"]]]
    _sets: Sequence[ShownSet] = field(default=(), repr=False)
    _fitted: Mapping[str, Fitted] = field(default_factory=dict, repr=False)

    @property
    def failed(self) -> dict[str, str]:
        """Why detectors are not among the others, by name."""
        return dict(self.results["failed"])

    @property
    def left_out(self) -> dict[str, str]:
        """Why detectors were not tried, by name: they need what there is not."""
        return dict(self.results.get("left_out", {}))

    def __repr__(self) -> str:
        """The tables, the accuracy, and what failed."""
        lines = [tables.text(self.results)] if self.scores else []
        lines += tables.accuracies(self.results)
        lines += [f"{name} failed: {reason}" for name, reason in self.failed.items()]
        lines += [f"{name} left out: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)

    def to_markdown(self, metric: Metric = "auroc") -> str:
        """A table, **the best** and *the second best* of each set marked.

        Args:
          metric: "auroc", "fpr95", "aupr_in" or "aupr_out".
        """
        return tables.markdown(self.results, metric)

    def to_latex(self, metric: Metric = "auroc") -> str:
        """A table with booktabs: the best of each set bold, the second best underlined.

        Args:
          metric: as for `to_markdown`.
        """
        return tables.latex(self.results, metric)

    def to_csv(self) -> str:
        """All metrics of all sets, unrounded, a detector a row."""
        return tables.as_csv(self.results)

    def save(self, directory: str | Path) -> Path:
        """Writes ``results.json`` into a directory; returns its path."""
        path = Path(directory) / "results.json"
        results.write(self.results, path)
        return path

    def report(self, directory: str | Path) -> Path:
        """Writes ``report.html`` and its figures into a directory; returns the page's path.

        Raises:
          UserError: matplotlib is missing, or no detector has scores.
        """
        if not reports.can_draw():
            raise UserError("report needs matplotlib, which is missing; pip install matplotlib")
        if not self.scores:
            raise UserError("report needs scores, and every detector failed")
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        return reports.write(self.results, self._sets, self._fitted, self.scores, folder)

    def interval(
        self, detector: str, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of a detector's mean AUROC over near and over far sets.

        Images are drawn anew, those in distribution and those of each set by themselves. (The
        intervals of the tables are DeLong's, which need no drawing.)

        Args:
          detector: its name.
          level: how often an interval holds the AUROC of the distribution.
          resamples: how often images are drawn.
          seed: of the drawing.

        Returns:
          Both ends, by group.

        Raises:
          ValueError: no detector of that name has scores, or a level out of range.
        """
        return {
            group: bootstrap_interval(
                *self._of(detector, names), level=level, resamples=resamples, seed=seed
            )
            for group, names in self._groups().items()
        }

    def compare(
        self, first: str, second: str, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Difference]:
        """How much a detector's mean AUROC is above another's: a paired bootstrap.

        Args:
          first: a detector's name.
          second: another's.
          level: how often an interval holds the difference.
          resamples: how often images are drawn, the same for both.
          seed: of the drawing.

        Returns:
          The difference with its interval and p-value, by group.

        Raises:
          ValueError: no detector of such a name has scores, or a level out of range.
        """
        return {
            group: compare_aurocs(
                self._of(first, names),
                self._of(second, names),
                level=level,
                resamples=resamples,
                seed=seed,
            )
            for group, names in self._groups().items()
        }

    def _groups(self) -> dict[str, list[str]]:
        """Names of sets by group, of the groups that have any."""
        sets: Mapping[str, Any] = next(iter(self.results["detectors"].values()), {"datasets": {}})
        by_group: dict[str, list[str]] = {}
        for name, own in sets["datasets"].items():
            by_group.setdefault(own["group"], []).append(name)
        return {group: by_group[group] for group in tables.GROUPS if group in by_group}

    def _of(
        self, detector: str, names: Iterable[str]
    ) -> tuple[Float[np.ndarray, " n"], list[Float[np.ndarray, " _"]]]:
        own = self.scores[checks.choice("detector", detector, tuple(self.scores))]
        return own["test"], [own[name] for name in names]


def collected(
    passed: Passed,
    scored: Mapping[str, Scored],
    failed: Mapping[str, str],
    about: Mapping[str, Any],
    sets: Sequence[ShownSet] = (),
    fitted: Mapping[str, Fitted] | None = None,
) -> Evaluated:
    """An evaluation's outcome, with the parts of its record that are the same for all.

    Args:
      passed: the network's outputs.
      scored: by detector.
      failed: reasons of the other detectors.
      about: what the record says of the network and the data.
      sets: for the report.
      fitted: likewise, by detector.
    """
    record = {
        "cut": None,
        "limit": None,
        "train_share": 1.0,
        "full_spectrum": False,
        **about,
        "versions": provenance.versions(),
        "device": provenance.device(),
        "validation": {},
        "skipped": [],
        "id_accuracy": passed.accuracy["test"],
        "shifted_accuracy": {},
        "detectors": {name: own.figures for name, own in scored.items()},
        "failed": dict(failed),
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }
    scores = {name: own.scores for name, own in scored.items()}
    return Evaluated(record, scores, sets, dict(fitted or {}))
