"""The report as the command line of evaluation writes it."""

import base64
import io
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grood_jax import benchmarks
from grood_jax.cli import eval
from grood_jax.data import ArraySet
from grood_jax.data.sets import UnreadableImage
from grood_jax.evaluation import report, tables
from grood_jax.maths.metrics import ood_metrics

pytest.importorskip("matplotlib", reason="needs pip install -e '.[report]'")


@pytest.fixture
def in_digits(digits, monkeypatch):
    monkeypatch.chdir(digits[0])
    return digits[0]


def test_the_default_command_writes_it(digits):
    folder = digits[0] / "results" / "digits"
    assert "report in results/digits/report.html" in digits[1].stderr
    text = (folder / "report.html").read_text("utf-8")
    found = json.loads((folder / "results.json").read_text())
    for metric in ("auroc", "fpr95"):
        for name, row in tables.rows(found, metric).items():
            cells = "".join(
                rf"<td[^>]*>(<[bu]>)?{cell.value:.4f}(</[bu]>)?(<small>.*?</small>)?</td>"
                for cell in row
            )
            assert re.search(rf'<tr><th scope="row">{name}</th>{cells}</tr>', text), (name, metric)
    assert len(text) < 1_000_000
    names = [
        f"{detector}-{kind}" for detector in ("grood", "msp") for kind in ("histograms", "roc")
    ]
    names += [f"space-{space}-pca" for space in ("features", "gradients")]
    files = {path.name for path in (folder / "figures").iterdir()}
    assert files >= {f"{name}.{form}" for name in names for form in ("svg", "png")}


def test_its_images_are_those_of_the_sets(digits):
    text = (digits[0] / "results" / "digits" / "report.html").read_text("utf-8")
    data = benchmarks.open_benchmark(benchmarks.get("digits"))
    for name, images in [("test", data.test), *((n, s) for n, (_, s) in data.ood.items())]:
        section = text.partition(f"<h3>{name} <span")[2].partition("</section>")[0]
        found = re.findall(r'base64,([\w+/=]+)" alt="image (\d+), score ([\d.e-]+)"', section)
        assert len(found) == 16
        scores = [float(score) for _, _, score in found]
        assert scores[:8] == sorted(scores[:8], reverse=True) and scores[8:] == sorted(scores[8:])
        assert scores[7] > scores[15]
        for content, row, _ in found:
            with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
                np.testing.assert_array_equal(
                    np.asarray(picture), images.read(np.array([int(row)]))[0][0, :, :, 0]
                )


def run(*words: str) -> int:
    return eval.main(["--detectors", "msp", "--limit", "64", *words])


def test_it_can_be_left_out(in_digits, tmp_path):
    assert run("--output-dir", str(tmp_path), "--no-report") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    found = eval.run(
        eval.EvalConfig(detectors=("msp",), limit=64, report=False, output_dir=tmp_path)
    )
    assert found["command"].endswith("--no-report") and "False" not in found["command"]


def test_scores_are_saved_if_asked(in_digits, tmp_path):
    assert run("--output-dir", str(tmp_path), "--no-report", "--save-scores") == 0
    found = json.loads((tmp_path / "results.json").read_text())["detectors"]["msp"]["datasets"]
    with np.load(tmp_path / "scores.npz") as scores:
        assert set(scores) == {f"msp/{name}" for name in ("test", *found)}
        for name, figures in found.items():
            assert scores[f"msp/{name}"].dtype == np.float32
            again = ood_metrics(scores["msp/test"], scores[f"msp/{name}"])
            assert {metric: figures[metric] for metric in again} == again


def test_without_matplotlib_it_says_how_to_get_it(in_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "can_draw", lambda: False)
    assert run("--output-dir", str(tmp_path)) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "report" in line)
    assert line.startswith("report.html will not be written: matplotlib is missing")
    assert "pip install matplotlib, or" in line
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.slow
def test_images_that_could_not_be_read_are_not_taken_for_others(in_digits, tmp_path, monkeypatch):
    read, bad = ArraySet.read, 5

    def broken(self, indices):
        if self.name == "uniform_noise" and bad in indices:
            raise UnreadableImage("gone")
        return read(self, indices)

    monkeypatch.setattr(ArraySet, "read", broken)
    words = ("--skip-bad-images", "--cache-dir", str(tmp_path / "cache"), "--limit", "1000")
    assert run("--output-dir", str(tmp_path / "first"), *words) == 0
    first = shown(tmp_path / "first", "uniform_noise")
    data = benchmarks.open_benchmark(benchmarks.get("digits"))
    images = data.ood["uniform_noise"][1]
    rows = [int(row) for row in re.findall(r'alt="image (\d+)', first)]
    assert len(rows) == 16 and bad not in rows
    content = re.findall(r"base64,([\w+/=]+)", first)[0]
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        expected = read(images, np.array(rows[:1]))[0][0, :, :, 0]
        np.testing.assert_array_equal(np.asarray(picture), expected)
    # Which could not be read is remembered with the outputs.
    assert run("--output-dir", str(tmp_path / "again"), *words) == 0
    again = shown(tmp_path / "again", "uniform_noise")
    assert [int(row) for row in re.findall(r'alt="image (\d+)', again)] == rows


def shown(folder: Path, name: str) -> str:
    text = (folder / "report.html").read_text("utf-8")
    return unescape(text.partition(f"<h3>{name} <span")[2].partition("</section>")[0])
