"""Tables of results: a detector a row and sets across, as text, Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from grood_jax.support import checks

Metric = Literal["auroc", "fpr95", "aupr_in", "aupr_out"]
Form = Literal["table", "markdown", "latex", "csv"]

TITLES: dict[str, str] = {
    "auroc": "AUROC",
    "fpr95": "FPR@95",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
}
LOWER = ("fpr95",)
"""What is better where it is lower."""

GROUPS = ("near", "far")
SHOWN: tuple[Metric, ...] = ("auroc", "fpr95")
"""The metrics that a page or a screen shows."""

NONE = "—"
"""What stands for a figure that there is not."""

LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    NONE: "--",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True)
class Column:
    """What stands across.

    Attributes:
      name: of the set; of the group, where it is the mean over its sets.
      group: near or far.
      images: how many there are; None for a mean.
    """

    name: str
    group: str
    images: int | None

    @property
    def title(self) -> str:
        """Its name and group in one line."""
        return self.name if self.images is None else f"{self.name} ({self.group})"

    def figures(self, detector: Mapping[str, Any]) -> Mapping[str, Any]:
        """A detector's figures."""
        return detector[self.group] if self.images is None else detector["datasets"][self.name]


@dataclass(frozen=True)
class Cell:
    """A figure.

    Attributes:
      value: the figure; None where the detector failed.
      spread: how far its interval of 95 % reaches to either side, if it has one.
      place: 1 for the best of the column, 2 for the second best, 0 for all others.
    """

    value: float | None
    spread: float | None = None
    place: int = 0

    @property
    def text(self) -> str:
        """The figure with its interval."""
        if self.value is None:
            return NONE
        return f"{self.value:.4f}" + ("" if self.spread is None else f" ± {self.spread:.4f}")


def columns(results: Mapping[str, Any]) -> list[Column]:
    """Means over near and over far sets, then the sets."""
    first: Mapping[str, Any] = next(iter(results["detectors"].values()), {})
    sets = [Column(n, own["group"], own["n"]) for n, own in first.get("datasets", {}).items()]
    return [Column(group, group, None) for group in GROUPS if first.get(group)] + sets


def rows(results: Mapping[str, Any], metric: Metric = "auroc") -> dict[str, list[Cell]]:
    """Each detector's figures, in the order of `columns`; detectors that failed come last.

    Args:
      results: what ``results.json`` holds.
      metric: which figure.

    Raises:
      ValueError: there is no such metric.
    """
    checks.choice("metric", metric, get_args(Metric))
    across = columns(results)
    found = {
        name: [cell(column.figures(detector), metric) for column in across]
        for name, detector in results["detectors"].items()
    }
    # Results of earlier versions say nothing of failures.
    found |= {name: [Cell(None)] * len(across) for name in results.get("failed", ())}
    return _placed(found, metric in LOWER)


def cell(figures: Mapping[str, Any], metric: Metric) -> Cell:
    """A figure, with its interval if it has one.

    Args:
      figures: of a set, or means over sets.
      metric: which.
    """
    value, ends = float(figures[metric]), figures.get("auroc_interval")
    if metric != "auroc" or ends is None:
        return Cell(value)
    # One of its ends may have met 0 or 1.
    return Cell(value, max(value - ends[0], ends[1] - value))


def _placed(found: dict[str, list[Cell]], lower: bool) -> dict[str, list[Cell]]:
    """The same, with the best and the second best of each column marked; of one row, nothing."""
    if sum(any(cell.value is not None for cell in row) for row in found.values()) < 2:
        return found
    # As they are shown: what reads the same is as good.
    by_column = [
        {round(cell.value, 4) for cell in column if cell.value is not None}
        for column in zip(*found.values(), strict=True)
    ]
    best = [sorted(values, reverse=not lower)[:2] for values in by_column]

    def placed(cell: Cell, first: Sequence[float]) -> Cell:
        if cell.value is None or round(cell.value, 4) not in first:
            return cell
        return replace(cell, place=1 + first.index(round(cell.value, 4)))

    return {
        name: [placed(cell, first) for cell, first in zip(row, best, strict=True)]
        for name, row in found.items()
    }


def text(results: Mapping[str, Any], metrics: Sequence[Metric] = SHOWN) -> str:
    """A table of each metric for a screen; the best of each column has a star."""
    return "\n\n".join(_text(results, metric) for metric in metrics)


def _text(results: Mapping[str, Any], metric: Metric) -> str:
    across = columns(results)
    about = ["" if c.images is None else f"{c.group} {c.images}" for c in across]
    lines = [[TITLES[metric], *(f"{column.name} " for column in across)]]
    lines.append(["", *(f"{words} " for words in about)])
    for name, row in rows(results, metric).items():
        lines.append([name, *(cell.text + ("*" if cell.place == 1 else " ") for cell in row)])
    return aligned(lines, 2)


def aligned(lines: Sequence[Sequence[str]], heads: int = 1) -> str:
    """Cells in columns, the first to the left and the others to the right, a rule below heads."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    drawn = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "-" * max(map(len, drawn))
    return "\n".join([*(line for line in drawn[:heads] if line), rule, *drawn[heads:]])


def markdown(results: Mapping[str, Any], metric: Metric = "auroc") -> str:
    """A table in Markdown, **the best** and *the second best* of each column marked."""
    marks = {0: "", 1: "**", 2: "*"}
    lines = [
        [f"`{name}`", *(f"{marks[c.place]}{c.text}{marks[c.place]}" for c in row)]
        for name, row in rows(results, metric).items()
    ]
    return markdown_table([TITLES[metric], *(c.title for c in columns(results))], lines)


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells as a table in Markdown."""
    written = [[cell.replace("|", r"\|") for cell in line] for line in (head, *lines)]
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (written[0], rule, *written[1:]))


def latex(results: Mapping[str, Any], metric: Metric = "auroc") -> str:
    """A table for LaTeX with booktabs: the best of each column bold, the second best underlined."""
    marks = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}

    def written(cell: Cell) -> str:
        if cell.value is None:
            return "--"
        spread = "" if cell.spread is None else rf" $\pm$ {cell.spread:.4f}"
        return marks[cell.place].format(f"{cell.value:.4f}") + spread

    lines = [[_for_latex(name), *map(written, row)] for name, row in rows(results, metric).items()]
    head = [_for_latex(word) for word in (TITLES[metric], *(c.title for c in columns(results)))]
    return latex_table(head, lines)


def latex_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Cells that LaTeX can read as a table for booktabs."""
    body = [rf"{' & '.join(line)} \\" for line in lines]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(head)} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def table_of(head: Sequence[str], lines: Sequence[Sequence[str]], form: Form) -> str:
    """Cells as a table on a screen, in Markdown or in LaTeX.

    Args:
      head: the titles.
      lines: cells as text.
      form: "table", "markdown" or "latex".
    """
    if form == "markdown":
        return markdown_table(head, lines)
    if form == "latex":
        escaped = [[_for_latex(word) for word in line] for line in (head, *lines)]
        return latex_table(escaped[0], escaped[1:])
    return aligned([head, *lines])


def _for_latex(words: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in words)


def as_csv(results: Mapping[str, Any]) -> str:
    """All metrics of all sets, a detector a row; figures unrounded, empty where it failed."""
    metrics: tuple[str, ...] = get_args(Metric)
    across = columns(results)
    names = [(c, m) for c in across for m in (*metrics, *(ENDS if c.images is None else ()))]
    lines: list[list[object]] = [["detector", *(f"{c.title} {m}" for c, m in names)]]
    for name, detector in results["detectors"].items():
        lines.append([name, *(_number(column.figures(detector), m) for column, m in names)])
    lines += [[name, *("" for _ in names)] for name in results.get("failed", ())]
    return csv_table(lines)


ENDS = ("auroc_low", "auroc_high")


def _number(figures: Mapping[str, Any], metric: str) -> object:
    if metric in ENDS:
        return figures.get("auroc_interval", ("", ""))[ENDS.index(metric)]
    return figures[metric]


def csv_table(lines: Sequence[Sequence[object]]) -> str:
    """Cells as CSV, without the last end of line."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue().rstrip("\n")


def accuracies(results: Mapping[str, Any]) -> list[str]:
    """The classifier's accuracy on each set in distribution, in lines."""
    images = {name: about["n"] for name, about in results["data"].items()}
    lines = [f"ID accuracy {results['id_accuracy']:.4f} ({images['test']} images)"]
    for name, share in results["shifted_accuracy"].items():
        lines.append(f"accuracy on {name} {share:.4f} ({images[name]} images)")
    return lines


def written(results: Mapping[str, Any], form: Form) -> str:
    """The tables of the shown metrics in a form; as CSV, one of all.

    Raises:
      ValueError: there is no such form.
    """
    checks.choice("format", form, get_args(Form))
    if form == "table":
        return text(results)
    if form == "csv":
        return as_csv(results)
    write = markdown if form == "markdown" else latex
    return "\n\n".join(write(results, metric) for metric in SHOWN)
