"""The report of an evaluation: one page, and its figures as files.

``report.html`` needs nothing but itself: no network, no other file. Beside it, ``figures/`` holds
the same figures as PNG and SVG.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grood_jax.evaluation.fitting import Fitted
from grood_jax.evaluation.report import figures, gallery, page, spaces, svg
from grood_jax.evaluation.report.contents import Group, Scores, ShownSet, file_names
from grood_jax.support.files import written_whole

__all__ = ["Group", "Scores", "ShownSet", "can_draw", "write"]

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
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    count = 0

    def drawn(figure: figures.Figure, name: str) -> str:
        """Writes both files; the figure as a part of the page."""
        nonlocal count
        count += 1
        vectors = figures.rendered(figure, "svg")
        (folder / f"{name}.svg").write_bytes(vectors)
        (folder / f"{name}.png").write_bytes(figures.rendered(figure, "png"))
        return svg.for_page(vectors.decode(), COLOURS, f"f{count}")

    names = file_names(scores)
    with figures.style():
        by_detector = {
            detector: page.Figures(
                drawn(figures.histograms(sets, own), f"{names[detector]}-histograms"),
                drawn(
                    figures.roc_curves(sets, own, results["detectors"][detector]["datasets"]),
                    f"{names[detector]}-roc",
                ),
            )
            for detector, own in scores.items()
        }
        views = [
            (view, drawn(figures.scatter(sets, view), f"space-{view.space}-{view.method.lower()}"))
            for view in spaces.views(sets, detectors)
        ]
    first = next(iter(scores.values()))
    pictures = [(shown, *gallery.extremes(shown, first[shown.name])) for shown in sets]
    path = directory / "report.html"
    with written_whole(path) as unfinished:
        unfinished.write_text(page.render(results, by_detector, views, pictures), "utf-8")
    return path
