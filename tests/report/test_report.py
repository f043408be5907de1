"""The report's numbers, files and HTML; what a browser makes of it is tested beside this."""

import base64
import io
import re
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from example_report import HOSTILE, SETS, example, shown_sets
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

from grood_jax.data.sets import UnreadableImage
from grood_jax.evaluation import report, tables
from grood_jax.evaluation.report import contents, curves, figures, gallery, spaces, svg
from grood_jax.maths import gradients
from grood_jax.maths.metrics import ood_metrics

pytest.importorskip("matplotlib", reason="needs pip install -e '.[report]'")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    made = example()
    folder = tmp_path_factory.mktemp("report")
    return made, folder, made.write(folder)


@pytest.mark.parametrize("ties", [False, True])
def test_a_roc_curve_is_that_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 3000), rng.normal(1.5, 1, 2000)
    if ties:
        inside, outside = inside.round(), outside.round()
    found = curves.roc(inside.astype(np.float32), outside.astype(np.float32))
    is_ood = np.repeat([False, True], [3000, 2000])
    scores = np.concatenate([inside, outside]).astype(np.float32)
    false, true, thresholds = roc_curve(is_ood, scores, drop_intermediate=False)
    points = set(zip(false, true, strict=True))
    own = list(zip(found.false_positive, found.true_positive, strict=True))
    assert set(own) <= points and own == sorted(own)
    assert len(own) <= curves.POINTS and own[0] == (0, 0) and own[-1] == (1, 1)
    # No straight line strays from the curve.
    own_lengths = found.false_positive + found.true_positive
    strayed = np.interp(false + true, own_lengths, found.false_positive) - false
    assert np.abs(strayed).max() < 2 / curves.POINTS
    assert (found.fpr95, found.tpr95) in own
    assert found.fpr95 == ood_metrics(*map(np.float32, (inside, outside)))["fpr95"]
    assert (outside.astype(np.float32) >= found.threshold).mean() == found.tpr95 >= 0.95
    assert (inside.astype(np.float32) >= found.threshold).mean() == found.fpr95
    assert found.threshold in thresholds


def test_histograms_count_all_scores():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0, 1, 500), rng.normal(3, 1, 200)
    edges = curves.bin_edges(inside, [inside, outside])
    assert edges[0] == inside.min() and edges[-1] == outside.max()
    np.testing.assert_allclose(
        curves.bin_shares(outside, edges) * 200, np.histogram(outside, edges)[0]
    )
    for scores in (inside, outside):
        np.testing.assert_allclose(curves.bin_shares(scores, edges).sum(), 1)


def test_scores_far_away_do_not_squeeze_the_others():
    inside = np.linspace(0, 1, 101)
    edges = curves.bin_edges(inside, [inside, np.array([1e30])])
    assert edges[0] == 0 and 3 < edges[-1] < 4.1
    assert curves.bin_shares(np.array([1e30, -1e30, 0.5]), edges)[[0, -1]].tolist() == [
        1 / 3,
        1 / 3,
    ]


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30, 1e-30])
def test_equal_scores_have_bins(value):
    scores = np.full(5, value, np.float32)
    edges = curves.bin_edges(scores, [scores])
    assert (np.diff(edges) > 0).all()
    assert curves.bin_shares(scores, edges).sum() == 1


def test_the_principal_axes_are_those_of_the_first_set():
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(50, 4)) * [5, 3, 1, 1], rng.normal(size=(20, 4))
    points, axes = spaces.principal([first, other])
    reference = PCA(2).fit(first)
    np.testing.assert_allclose(points[1], reference.transform(other), atol=1e-10)
    share = reference.explained_variance_ratio_
    assert axes == (
        f"PC 1 ({share[0]:.0%} of ID variance)",
        f"PC 2 ({share[1]:.0%} of ID variance)",
    )
    tiny, _ = spaces.principal([first * 1e-200, other * 1e-200])
    np.testing.assert_allclose(np.abs(tiny[1]) * 1e200, np.abs(points[1]), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (9, 1), (9, 3)])
def test_a_space_of_hardly_anything(shape):
    points, _ = spaces.principal([np.ones(shape), np.zeros((4, shape[1]))])
    assert [part.shape for part in points] == [(shape[0], 2), (4, 2)]
    assert np.isfinite(np.concatenate(points)).all()


@pytest.mark.slow
def test_the_gradient_space_is_groods():
    made = example()
    found = spaces.views(made.sets, made.detectors)
    assert [(view.space, view.method) for view in found] == [
        ("features", "PCA"),
        ("gradients", "PCA"),
    ]
    state = made.detectors["grood"].state
    expected = [
        np.asarray(
            gradients.gradients(
                jnp.asarray(s.outputs.features), state.class_prototypes, state.ood_prototype
            ),
            np.float64,
        )
        for s in made.sets
    ]
    points, axes = spaces.principal(expected)
    assert found[1].axes == axes
    np.testing.assert_allclose(found[1].points["far_away"], points[-1], atol=1e-5)
    only = {"msp": made.detectors["msp"]}
    assert [view.space for view in spaces.views(made.sets, only)] == ["features"]


def test_large_sets_are_sampled(monkeypatch):
    monkeypatch.setattr(spaces, "ID_SAMPLES", 30)
    monkeypatch.setattr(spaces, "OTHER_SAMPLES", 20)
    (view,) = spaces.views(shown_sets(), {})
    assert [len(points) for points in view.points.values()] == [30, 20, 20, 20]


@pytest.mark.slow
def test_umap_where_it_is_installed(monkeypatch):
    """Of a stand-in: the package itself is slow, and not needed by anything else."""
    given = {}

    class UMAP:
        def __init__(self, **options):
            given.update(options)

        def fit_transform(self, rows):
            given["rows"] = rows
            return rows[:, :2] * 2

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    made = example()
    found = spaces.views(made.sets, made.detectors)
    assert [(view.space, view.method) for view in found] == [
        ("features", "PCA"),
        ("gradients", "PCA"),
        ("features", "UMAP"),
        ("gradients", "UMAP"),
    ]
    assert given["random_state"] == 0 and given["n_neighbors"] == 15
    assert len(given["rows"]) == sum(count for _, count in SETS.values())
    assert {name: len(points) for name, points in found[2].points.items()} == {
        name: count for name, (_, count) in SETS.items()
    }


def test_the_most_and_the_least_ood_looking_images():
    shown = shown_sets()[0]
    # Rows that were left out: scores are of the others.
    rows = np.delete(np.arange(90), [3, 4])
    shown = replace(shown, rows=rows)
    scores = np.sin(rows).astype(np.float32)
    most, least = gallery.extremes(shown, scores)
    order = np.argsort(scores, kind="stable")
    assert [picture.row for picture in least] == rows[order[:8]].tolist()
    assert [picture.row for picture in most] == rows[order[::-1][:8]].tolist()
    assert [picture.score for picture in most] == sorted(scores.tolist())[::-1][:8]
    for picture in most:
        assert pixels_of(picture.address).mean() == picture.row


def pixels_of(address):
    from PIL import Image

    content = base64.b64decode(address.partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("shape", "form", "wanted"),
    [
        ((8, 8, 1), "png", (8, 8)),
        ((32, 32, 3), "png", (32, 32, 3)),
        ((224, 112, 3), "jpeg", (128, 64, 3)),
    ],
)
def test_images_are_embedded_small(shape, form, wanted):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    address = gallery.data_uri(image)
    assert address.startswith(f"data:image/{form};base64,")
    pixels = pixels_of(address)
    assert pixels.shape == wanted
    assert form == "jpeg" or (pixels == image.reshape(wanted)).all()
    assert len(address) < 40_000


def test_images_that_cannot_be_shown():
    shown = shown_sets()[0]
    assert gallery.extremes(replace(shown, rows=np.arange(5)), np.zeros(6)) == ([], [])

    class Broken:
        name, source = "broken", "nowhere"

        def __len__(self):
            return 90

        def read(self, indices):
            if 7 in indices:
                raise UnreadableImage("gone")
            return shown.images.read(indices)

    scores = np.arange(90, dtype=np.float32)
    _, least = gallery.extremes(replace(shown, images=Broken()), scores)
    assert [picture.row for picture in least] == [0, 1, 2, 3, 4, 5, 6]


def test_file_names_differ_and_are_plain():
    words = ["grood:k=5,ood_prototype=noise", "grood:k=5;ood_prototype=noise", "../../x", "$(rm)"]
    words += ["GROOD", "grood", "é", "ü", "a" * 300]
    found = contents.file_names(words)
    assert list(found) == words
    assert len({name.lower() for name in found.values()}) == len(words)
    assert all(re.fullmatch(r"[\w=+-]{1,63}", name, re.ASCII) for name in found.values())


def test_looks_differ():
    sets = [replace(shown_sets()[2], name=str(i), group="far") for i in range(18)]
    found = figures.looks(sets)
    assert len({(look.colour, str(look.line)) for look in found.values()}) == 18
    assert len({(look.colour, look.marker) for look in found.values()}) == 18


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_small(written):
    made, _, text = written
    page = Page(text)
    assert "{{" not in text.replace("{{script}}", "")
    cells = [
        f"{cell.value:.4f}"
        for metric in tables.SHOWN
        for row in tables.rows(made.results, metric).values()
        for cell in row
    ]
    numbers = [word for word in page.words if re.fullmatch(r"\d\.\d{4}", word)]
    # Beyond these are scores of images.
    assert numbers[: len(cells)] == cells
    assert page.tags.count("svg") == 6
    assert page.tags.count("img") == 8 * 2 * len(SETS)
    assert len(text) < 500_000
    # Each identity once, and none that is referred to is missing.
    names = [value for _, key, value in page.attributes if key == "id"]
    assert len(names) == len(set(names))
    referred = {
        found
        for _, key, value in page.attributes
        for found in re.findall(r"(?:url\(|^)#([\w-]+)", value or "")
        if key in ("style", "href", "xlink:href", "clip-path")
    }
    assert referred and referred <= set(names)


def test_the_page_asks_nothing_of_anyone(written):
    page = Page(written[2])
    addresses = [v for _, key, v in page.attributes if key in ("src", "href", "xlink:href")]
    assert addresses
    assert [v for v in addresses if not v.startswith(("data:", "#"))] == []
    (policy,) = (v for _, _, v in page.attributes if v and v.startswith("default-src"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "url(http" not in written[2] and "@import" not in written[2]


def test_names_that_mean_harm_are_only_words(written):
    page = Page(written[2])
    assert page.tags.count("script") == 1
    assert [key for _, key, _ in page.attributes if key.startswith("on")] == []
    shown = HOSTILE.replace("\x1b", "�").replace("\n", "�")
    assert shown in page.words
    assert written[2].count("\x1b") == 0


def test_figures_are_files_too(written):
    _, folder, text = written
    names = ["grood-histograms", "grood-roc", "msp-histograms", "msp-roc"]
    names += ["space-features-pca", "space-gradients-pca"]
    found = {path.name for path in (folder / "figures").iterdir()}
    assert {f"{name}.{form}" for name in names for form in ("png", "svg")} <= found
    for name in names:
        drawn = (folder / "figures" / f"{name}.svg").read_text("utf-8")
        words = "".join(ElementTree.fromstring(drawn).itertext())
        assert contents.printable(HOSTILE) in words
        content = (folder / "figures" / f"{name}.png").read_bytes()
        pixels = pixels_of("base64," + base64.b64encode(content).decode())
        assert pixels.shape[1] == round(figures.WIDTH * figures.DPI)
        assert pixels.min() < 128 and pixels.max() == 255


def test_the_curves_of_a_figure_are_the_numbers():
    made = example(["msp"])
    scores, rows = made.scores["msp"], made.results["detectors"]["msp"]["datasets"]
    with figures.style():
        figure = figures.roc_curves(made.sets, scores, rows)
        histograms = figures.histograms(made.sets, scores)
    inside = figures.joined_inside(made.sets, scores)
    assert len(inside) == 130
    lines = figure.axes[0].lines[2:]
    for name, line, dot in zip([HOSTILE, "far_away"], lines[::2], lines[1::2], strict=True):
        curve = curves.roc(inside, scores[name])
        np.testing.assert_array_equal(line.get_xdata(), curve.false_positive)
        np.testing.assert_array_equal(line.get_ydata(), curve.true_positive)
        assert dot.get_xdata()[0] == rows[name]["fpr95"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        labels[1]
        == f"far: far_away  {rows['far_away']['auroc']:.4f} / {rows['far_away']['fpr95']:.4f}"
    )
    edges = curves.bin_edges(inside, list(scores.values()))
    for axes, shown in zip(histograms.axes, made.sets, strict=True):
        drawn = axes.patches[0].get_data().values
        expected = np.histogram(scores[shown.name], edges)[0]
        np.testing.assert_allclose(drawn, expected / expected.max())


def test_a_second_report_replaces_the_first_and_nothing_else(tmp_path):
    (tmp_path / "figures").mkdir()
    own = tmp_path / "figures" / "figure1.png"
    own.write_text("of the user")
    example(["msp"]).write(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    example(["grood"]).write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() != first
    example(["msp"]).write(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert own.read_text() == "of the user"
    assert not list(tmp_path.glob(".*"))


def test_the_users_own_settings_change_nothing(tmp_path):
    import matplotlib

    first = example(["msp"]).write(tmp_path)
    with matplotlib.rc_context({"font.size": 30, "savefig.facecolor": "red", "text.usetex": True}):
        assert example(["msp"]).write(tmp_path) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_inline_figures_keep_words_as_they_are():
    drawn = (
        '<?xml version="1.0"?>\n<svg width="3pt" viewBox="0 0 3 3"><metadata><x>y</x></metadata>'
        '<!-- 1.23456 --><g id="a"><path id="b" d="M 1.23456 2.5" style="fill: #1a1a1b"/></g>'
        '<use href="#b"/><text>v1.23456 #1a1a1b id="b"</text></svg>'
    )
    found = svg.for_page(drawn, {"#1a1a1b": "currentColor"}, "f1")
    assert found == (
        '<svg aria-hidden="true" viewBox="0 0 3 3"><g><path id="f1-0" d="M 1.23 2.5" '
        'style="fill: currentColor"/></g><use href="#f1-0"/>'
        '<text>v1.23456 #1a1a1b id="b"</text></svg>'
    )


def test_it_says_whether_it_can_draw(monkeypatch):
    assert report.can_draw()
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    assert not report.can_draw()
