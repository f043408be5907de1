"""The page: everything in one file, and nothing in it that its makers did not write."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from grood_jax.evaluation import tables
from grood_jax.evaluation.report.contents import ShownSet
from grood_jax.evaluation.report.gallery import Picture
from grood_jax.evaluation.report.spaces import View
from grood_jax.evaluation.tables import Cell, Column

NO_SCORES = (
    "Not drawn: histograms and ROC curves need scores.npz, which an evaluation writes with "
    "--save-scores, and matplotlib."
)
NO_OUTPUTS = (
    "Not drawn: results.json holds neither the network's outputs nor images. The evaluation draws "
    "them; with --cache-dir it runs no network that it has run before."
)

SPACE_TITLES = {"features": "Feature space", "gradients": "Gradient space"}


@dataclass(frozen=True)
class Figures:
    """A detector's figures, as SVG elements."""

    histograms: str
    roc: str


def render(
    results: Mapping[str, Any],
    detectors: Mapping[str, Figures],
    views: Sequence[tuple[View, str]],
    pictures: Sequence[tuple[ShownSet, list[Picture], list[Picture]]],
) -> str:
    """The page's HTML.

    Args:
      results: what ``results.json`` holds.
      detectors: figures of each; where there are none the page says how to get them, as with the
        next two.
      views: of spaces, each with its figure.
      pictures: the most and the least OOD-looking images of each set.
    """
    text = resources.files("grood_jax.evaluation.report").joinpath("page.html").read_text("utf-8")
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": f"script-src 'sha256-{digest}'",
        "benchmark": _text(results["benchmark"]),
        "about": _about(results),
        "tables": "\n".join(_table(results, metric) for metric in tables.SHOWN),
        "detectors": _options(detectors),
        "hidden": "" if detectors else " hidden",
        "figures": "\n".join(_of_detector(name, made) for name, made in detectors.items())
        or _absent(NO_SCORES),
        "spaces": _spaces(views),
        "gallery": _gallery(detectors, pictures),
        "details": _details(results),
    }
    # In one pass: what is put in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def _text(value: object) -> str:
    return escape("".join(c if c.isprintable() else "�" for c in str(value)))


def _about(results: Mapping[str, Any]) -> str:
    test = results["data"]["test"]["n"]
    words = [f"{_text(results['model'])}, ID accuracy {results['id_accuracy']:.4f} ({test} images)"]
    for name, share in results["shifted_accuracy"].items():
        words.append(f"on {_text(name)} {share:.4f} ({results['data'][name]['n']} images)")
    return ", ".join(words)


def _options(names: Mapping[str, Any]) -> str:
    return "".join(f'<option value="{_text(n)}">{_text(n)}</option>' for n in names)


def _table(results: Mapping[str, Any], metric: tables.Metric) -> str:
    title = tables.TITLES[metric]
    across = tables.columns(results)
    head = _heading("detector", "") + "".join(map(_column, across))
    body = "\n".join(
        f'<tr><th scope="row">{_text(name)}</th>{"".join(map(_cell, row))}</tr>'
        for name, row in tables.rows(results, metric).items()
    )
    return (
        f'<h3>{title}</h3>\n<div class="rows" tabindex="0" role="region" '
        f'aria-label="{title} by detector and data set"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _column(column: Column) -> str:
    about = "mean" if column.images is None else f"{column.group}, {column.images}"
    return _heading(column.name, about)


def _heading(name: str, about: str) -> str:
    kind = ' class="number"' if about else ""
    small = f"<small>{_text(about)}</small>" if about else ""
    return (
        f'<th scope="col"{kind} aria-sort="none"><button type="button">{_text(name)}{small}'
        "</button></th>"
    )


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return f'<td class="number">{tables.NONE}</td>'
    spread = "" if cell.spread is None else f"<small>± {cell.spread:.4f}</small>"
    figure = ("{:.4f}", "<b>{:.4f}</b>", "<u>{:.4f}</u>")[cell.place].format(cell.value)
    return f'<td class="number" data-value="{cell.value}">{figure}{spread}</td>'


def _figure(svg: str, label: str, caption: str) -> str:
    return (
        f'<figure><div class="drawing" role="img" aria-label="{_text(label)}">{svg}</div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _of_detector(name: str, made: Figures) -> str:
    histograms = _figure(
        made.histograms,
        f"Histograms of the scores of {name}",
        "Scores by set, each as high as its highest bin; outlined: scores in distribution; "
        "dashed: 95 % of the set lie above. What lies beyond is in the outermost bins.",
    )
    roc = _figure(
        made.roc,
        f"ROC curves of {name}",
        "ROC curves; dots: the first threshold that finds 95 % of the set.",
    )
    return (
        f'<section class="detector"><h3>{_text(name)}</h3><div class="pair">{histograms}{roc}'
        "</div></section>"
    )


def _spaces(views: Sequence[tuple[View, str]]) -> str:
    if not views:
        return _absent(NO_OUTPUTS)
    made = []
    for view, svg in views:
        how = (
            "on the principal axes of the ID test images"
            if view.method == "PCA"
            else "as UMAP places all of them"
        )
        title = f"{SPACE_TITLES[view.space]}, {view.method}"
        made.append(_figure(svg, title, f"{title}: samples of all sets {how}."))
    return f'<div class="pair">{"".join(made)}</div>'


def _absent(why: str) -> str:
    return f'<p class="dim">{_text(why)}</p>'


def _gallery(
    detectors: Mapping[str, Figures],
    pictures: Sequence[tuple[ShownSet, list[Picture], list[Picture]]],
) -> str:
    if not pictures:
        return _absent(NO_OUTPUTS)
    sets = "\n".join(_of_set(*entry) for entry in pictures)
    return f'<p class="dim">By their scores from {_text(next(iter(detectors)))}.</p>\n{sets}'


def _of_set(shown: ShownSet, most: list[Picture], least: list[Picture]) -> str:
    strips = "".join(
        f"<div><h4>{title}</h4><ol>{''.join(map(_picture, chosen))}</ol></div>"
        for title, chosen in (("most OOD-looking", most), ("least OOD-looking", least))
    )
    if not most:
        strips = (
            '<p class="dim">Not shown: there are outputs alone, or images that can be read once; '
            "or some could not be read, and the network's outputs come from the cache, which does "
            "not say of which images they are.</p>"
        )
    return (
        f'<section class="set"><h3>{_text(shown.name)} <span class="dim">{shown.group}</span></h3>'
        f'<div class="pair">{strips}</div></section>'
    )


def _picture(picture: Picture) -> str:
    score = f"{picture.score:.3g}"
    kind = ' class="small"' if picture.small else ""
    return (
        f'<li><img{kind} src="{picture.address}" alt="image {picture.row}, score {score}" '
        f'title="image {picture.row}">{score}</li>'
    )


def _details(results: Mapping[str, Any]) -> str:
    checkpoint = results["checkpoint"]
    rows = {
        "command": f"<code>{_text(results['command'])}</code>",
        "classifier": f"{_text(results['model'])} from {_text(checkpoint['directory'])} "
        f"({_text(checkpoint['source'])}), fingerprint {_text(checkpoint['fingerprint'])}",
        "device": _text(results["device"]),
        "versions": _text(", ".join(f"{k} {v}" for k, v in results["versions"].items())),
    }
    for name, about in results["data"].items():
        rows[f"set {_text(name)}"] = f"{about['n']} images, {_text(about['source'])}"
    for name, detector in results["detectors"].items():
        options = json.dumps(detector["options"], ensure_ascii=False)
        rows[f"options of {_text(name)}"] = f"<code>{_text(options)}</code>"
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
