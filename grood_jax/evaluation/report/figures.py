"""The report's figures, drawn by matplotlib without its global state."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from grood_jax.evaluation.report.contents import NamedSet, Scores
from grood_jax.evaluation.report.curves import RECALL, bin_edges, bin_shares, roc
from grood_jax.evaluation.report.spaces import View

Figure = Any
Axes = Any
"""matplotlib's, which is loaded only where there is something to draw."""

INK, FAINT, PAPER = "#1a1a1b", "#c9c9cb", "#ffffff"
"""Colours that the page replaces by its own, and that nothing else has."""

INSIDE = ("#7d7d7d", "#9a7b4f", "#5f8a8b")
OUTSIDE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Of Okabe and Ito, told apart by the colour-blind."""

LINES = ("-", "--", "-.", ":", (0, (7, 2)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "^", "s", "D", "v", "P")
DPI = 200
WIDTH = 4.6
"""In inches: what still can be read when a phone shows it at 358 pixels."""


@dataclass(frozen=True)
class Look:
    """How a set is drawn; never told by the colour alone."""

    colour: str
    line: Any
    marker: str


def looks(sets: Sequence[NamedSet]) -> dict[str, Look]:
    """Looks of sets by their names: grey and brown in distribution, others in colours."""
    by_name, counts = {}, {"inside": 0, "outside": 0}
    for shown in sets:
        side, palette = ("inside", INSIDE) if shown.group == "ID" else ("outside", OUTSIDE)
        turn, place = divmod(counts[side], len(palette))
        counts[side] += 1
        # Shifted once more where colours begin again.
        style = (place + turn) % len(LINES)
        by_name[shown.name] = Look(palette[place], LINES[style], MARKERS[style])
    return by_name


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The package's own defaults with the report's on top, whatever the user's are."""
    import matplotlib.style

    ours = {
        "axes.axisbelow": True,
        "axes.edgecolor": FAINT,
        "axes.facecolor": "none",
        "axes.grid": False,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.facecolor": PAPER,
        "font.family": "sans-serif",
        "font.size": 10,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "grood-jax",
        "text.color": INK,
        # Names of sets are no formulas.
        "text.parse_math": False,
        "xtick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.color": FAINT,
        "ytick.labelcolor": INK,
    }
    with matplotlib.style.context(["default", ours]), warnings.catch_warnings():
        # A name in a script that the PNG's font lacks; the SVG has the reader's fonts.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
        yield


def rendered(figure: Figure, form: str) -> bytes:
    """A figure as ``"svg"`` or ``"png"``, the same bytes each time."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def histograms(sets: Sequence[NamedSet], scores: Scores) -> Figure:
    """A histogram of each set's scores, one below the other, on the same axis.

    Each is as high as its highest bin. Beside OOD sets the ID scores are outlined, and a dashed
    line marks the score above which 95 % of the set lie.

    Args:
      sets: ID sets first.
      scores: by the names of the sets.
    """
    inside = joined_inside(sets, scores)
    edges = bin_edges(inside, [scores[shown.name] for shown in sets])
    outline = bin_shares(inside, edges)
    drawn = looks(sets)
    # As high as a ROC curve beside it, if they can.
    row = min(max(4.0 / len(sets), 0.7), 1.1)
    height = row * len(sets) + 0.55
    figure = _figure(height)
    for i, shown in enumerate(sets):
        top = row * i
        axes = _axes(figure, (0.15, top + 0.26, WIDTH - 0.3, row - 0.26))
        shares = bin_shares(scores[shown.name], edges)
        colour = drawn[shown.name].colour
        axes.stairs(shares / shares.max(), edges, fill=True, color=colour, alpha=0.8, linewidth=0)
        if shown.group != "ID":
            axes.stairs(outline / outline.max(), edges, color=INK, linewidth=0.8)
            curve = roc(inside, scores[shown.name])
            place = min(max(curve.threshold, edges[0]), edges[-1])
            axes.plot([place, place], [0, 1.06], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, 1.06)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        figure.text(0.15 / WIDTH, 1 - (top + 0.08) / height, shown.title, va="top", fontsize=9)
        if i < len(sets) - 1:
            axes.tick_params(labelbottom=False, length=0)
        else:
            axes.set_xlabel("score (higher is more out of distribution)")
            axes.locator_params(axis="x", nbins=6)
    return figure


def roc_curves(sets: Sequence[NamedSet], scores: Scores, figures: Mapping[str, Any]) -> Figure:
    """The ROC curve of each OOD set, with a dot where 95 % of its images are found.

    Args:
      sets: ID and OOD.
      scores: by the names of the sets.
      figures: AUROC and FPR@95 of each OOD set, by its name.
    """
    inside, drawn = joined_inside(sets, scores), looks(sets)
    outside = [shown for shown in sets if shown.group != "ID"]
    figure, axes = _with_legend(0.5, len(outside) + 1)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    axes.plot([0, 1], [RECALL, RECALL], color=FAINT, linewidth=1, linestyle=":")
    lines, labels = [], []
    for shown in outside:
        curve, look = roc(inside, scores[shown.name]), drawn[shown.name]
        (line,) = axes.plot(
            curve.false_positive,
            curve.true_positive,
            color=look.colour,
            linestyle=look.line,
            linewidth=1.6,
        )
        (dot,) = axes.plot(
            [curve.fpr95],
            [curve.tpr95],
            color=look.colour,
            marker=look.marker,
            markeredgecolor=INK,
            linestyle="",
            clip_on=False,
            zorder=3,
        )
        row = figures[shown.name]
        lines.append((line, dot))
        labels.append(f"{shown.title}  {row['auroc']:.4f} / {row['fpr95']:.4f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.set_xlabel("false-positive rate (ID taken for OOD)")
    axes.set_ylabel("true-positive rate (OOD found)")
    _legend(figure, lines, labels, "AUROC / FPR@95 (marked)")
    return figure


def scatter(sets: Sequence[NamedSet], view: View) -> Figure:
    """Samples of all sets in two dimensions.

    Args:
      sets: ID sets first; these are drawn below the others.
      view: where the samples lie.
    """
    drawn = looks(sets)
    figure, axes = _with_legend(0.3, len(sets))
    lines = []
    for shown in sets:
        look, points = drawn[shown.name], view.points[shown.name]
        lines += axes.plot(
            points[:, 0],
            points[:, 1],
            color=look.colour,
            marker=look.marker,
            markersize=3,
            markeredgewidth=0,
            linestyle="",
            alpha=0.7,
        )
    axes.set_xlabel(view.axes[0])
    axes.set_ylabel(view.axes[1])
    axes.set_xticks([])
    axes.set_yticks([])
    _legend(figure, lines, [f"{s.title} ({len(view.points[s.name])})" for s in sets], None)
    return figure


def joined_inside(sets: Sequence[NamedSet], scores: Scores) -> Float[np.ndarray, " n"]:
    """Scores of all that counts as in distribution."""
    return np.concatenate([scores[shown.name] for shown in sets if shown.group == "ID"])


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((WIDTH, height))


def _axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes in a box of left, top, width and height in inches from the figure's upper left."""
    left, top, width, height = box
    across, down = figure.get_size_inches()
    return figure.add_axes(
        (left / across, 1 - (top + height) / down, width / across, height / down)
    )


def _with_legend(labels: float, rows: int) -> tuple[Figure, Axes]:
    """A figure of square axes, with room for their labels and for a legend of some rows below."""
    side = WIDTH - 0.7
    figure = _figure(0.08 + side + labels + 0.165 * rows)
    return figure, _axes(figure, (0.58, 0.08, side, side))


def _legend(figure: Figure, lines: Any, labels: Sequence[str], title: str | None) -> None:
    from matplotlib.legend_handler import HandlerTuple

    figure.legend(
        lines,
        labels,
        title=title,
        loc="lower left",
        bbox_to_anchor=(0.1, 0.0),
        borderaxespad=0.1,
        borderpad=0.1,
        labelspacing=0.25,
        alignment="left",
        fontsize=9,
        title_fontsize=9,
        markerscale=1 if title else 2,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )
