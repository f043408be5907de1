"""The report of an evaluation: one page, and its figures as files.

``report.html`` needs nothing but itself: no network, no other file. Beside it, ``figures/`` holds
the same figures as PNG and SVG.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from grood_jax.evaluation.fitting import Fitted
from grood_jax.evaluation.report import figures, gallery, page, spaces, svg
from grood_jax.evaluation.report.contents import (
    Group,
    NamedSet,
    Scores,
    ShownSet,
    file_names,
)
from grood_jax.evaluation.results import groups
from grood_jax.support.files import written_whole

__all__ = ["Group", "NamedSet", "Scores", "ShownSet", "can_draw", "write", "write_afterwards"]

COLOURS = {
    figures.INK: "currentColor",
    figures.FAINT: "var(--line)",
    figures.PAPER: "none",
    **{colour: f"var(--inside-{i})" for i, colour in enumerate(figures.INSIDE)},
    **{colour: f"var(--outside-{i})" for i, colour in enumerate(figures.OUTSIDE)},
}
"""What the page, which may be dark, makes of the figures' colours."""


def can_draw() -> bool:
    """Whether matplotlib is installed, without which there is no report."""
    return importlib.util.find_spec("matplotlib") is not None


def write(
    results: Mapping[str, Any],
    sets: Sequence[ShownSet],
    detectors: Mapping[str, Fitted],
    scores: Mapping[str, Scores],
    directory: Path,
) -> Path:
    """Writes ``report.html`` and the folder ``figures``.

    Args:
      results: what ``results.json`` holds.
      sets: what was scored: the ID test set first, then others in distribution, then OOD sets.
      detectors: all that were evaluated; the gallery and the gradient space are of the first.
      scores: by detector and set, higher for more OOD.
      directory: where to write; files of the same names are replaced, others left alone.

    Returns:
      The page's path.
    """
    drawn = _Drawn(directory / "figures")
    with figures.style():
        by_detector = _by_detector(results, sets, scores, drawn)
        views = [
            (view, drawn(figures.scatter(sets, view), f"space-{view.space}-{view.method.lower()}"))
            for view in spaces.views(sets, detectors)
        ]
    first = next(iter(scores.values()))
    pictures = [(shown, *gallery.extremes(shown, first[shown.name])) for shown in sets]
    return _written(page.render(results, by_detector, views, pictures), directory)


def write_afterwards(
    results: Mapping[str, Any], scores: Mapping[str, Scores], directory: Path
) -> Path:
    """Writes what can be made of results alone; the page says of the rest how to get it.

    Args:
      results: as `grood_jax.evaluation.results.read` gives them.
      scores: by detector and set, for histograms and ROC curves; empty where there are none.
      directory: where to write, as `write` does.

    Returns:
      The page's path.
    """
    by_detector: dict[str, page.Figures] = {}
    if scores:
        sets = [NamedSet(name, cast(Group, group)) for name, group in groups(results).items()]
        with figures.style():
            by_detector = _by_detector(results, sets, scores, _Drawn(directory / "figures"))
    return _written(page.render(results, by_detector, (), ()), directory)


class _Drawn:
    """Writes each figure in both forms, and gives it as a part of the page."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count = folder, 0

    def __call__(self, figure: figures.Figure, name: str) -> str:
        self.count += 1
        vectors = figures.rendered(figure, "svg")
        (self.folder / f"{name}.svg").write_bytes(vectors)
        (self.folder / f"{name}.png").write_bytes(figures.rendered(figure, "png"))
        return svg.for_page(vectors.decode(), COLOURS, f"f{self.count}")


def _by_detector(
    results: Mapping[str, Any],
    sets: Sequence[NamedSet],
    scores: Mapping[str, Scores],
    drawn: _Drawn,
) -> dict[str, page.Figures]:
    names = file_names(scores)
    return {
        detector: page.Figures(
            drawn(figures.histograms(sets, own), f"{names[detector]}-histograms"),
            drawn(
                figures.roc_curves(sets, own, results["detectors"][detector]["datasets"]),
                f"{names[detector]}-roc",
            ),
        )
        for detector, own in scores.items()
    }


def _written(text: str, directory: Path) -> Path:
    path = directory / "report.html"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, "utf-8")
    return path
