"""The report that is made of an evaluation's files alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from example_report import HOSTILE, example

from grood_jax.cli import report as command
from grood_jax.evaluation import report, results
from grood_jax.evaluation.report import page

pytest.importorskip("matplotlib", reason="needs pip install -e '.[report]'")


@pytest.fixture(scope="module")
def made():
    return example(["msp"])


@pytest.fixture
def files(made, tmp_path) -> Path:
    """What an evaluation leaves with --no-report --save-scores."""
    results.write(made.results, tmp_path / "results.json")
    results.write_scores(made.scores, tmp_path / "scores.npz")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = command.main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_what_was_read_is_what_was_written(files, made):
    held = results.read(files / "results.json")
    assert held == made.results
    assert results.groups(held) == {shown.name: shown.group for shown in made.sets}
    scores = results.read_scores(files / "scores.npz", held)
    for name, own in made.scores["msp"].items():
        np.testing.assert_array_equal(scores["msp"][name], own)


def test_its_figures_are_those_of_the_evaluation(files, made, tmp_path, capsys):
    status, out, err = run(capsys, files / "results.json")
    assert (status, err) == (0, "")
    assert out == f"report in {files / 'report.html'}\n"
    text = (files / "report.html").read_text("utf-8")
    assert "{{" not in text.replace("{{script}}", "")
    whole = tmp_path / "whole"
    whole.mkdir()
    made.write(whole)
    for name in ("msp-histograms.svg", "msp-roc.svg"):
        assert (files / "figures" / name).read_bytes() == (whole / "figures" / name).read_bytes()
    # Spaces and images are not in the files.
    assert text.count(page.NO_OUTPUTS.replace("'", "&#x27;")) == 2
    assert page.NO_SCORES not in text and "<label hidden>" not in text and HOSTILE not in text


@pytest.mark.parametrize("drawing", [True, False])
def test_without_scores_or_matplotlib_the_table_is_left(files, capsys, monkeypatch, drawing):
    if drawing:
        (files / "scores.npz").unlink()
    else:
        monkeypatch.setattr(report, "can_draw", lambda: False)
    status, _, err = run(capsys, files / "results.json")
    assert (status, err) == (0, f"{page.NO_SCORES}\n")
    text = (files / "report.html").read_text("utf-8")
    assert page.NO_SCORES in text and "<label hidden>" in text and "<table>" in text
    assert not (files / "figures").exists()


def test_a_report_that_is_there_is_left_alone(files, capsys):
    (files / "report.html").write_text("with images")
    status, _, err = run(capsys, files / "results.json")
    assert status == 1 and "is there already" in err and "--output-dir" in err
    assert (files / "report.html").read_text() == "with images"
    status, out, _ = run(capsys, files / "results.json", "--output-dir", files / "new")
    assert status == 0 and (files / "new" / "report.html").exists()


def spoil(files: Path, change) -> None:
    held = json.loads((files / "results.json").read_text())
    change(held)
    (files / "results.json").write_text(json.dumps(held))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("device"), "holds no results of an evaluation: it has no device"),
        (lambda held: held.update(detectors=[1]), "AttributeError"),
        (
            lambda held: held["detectors"]["msp"]["datasets"]["far_away"].update(auroc=0.5),
            "of another evaluation: its scores msp/far_away do not give the AUROC",
        ),
        (
            lambda held: held["detectors"].update(knn=held["detectors"]["msp"]),
            "of another evaluation: it lacks",
        ),
    ],
)
def test_files_that_do_not_belong_together_are_refused(files, capsys, change, said):
    spoil(files, change)
    status, _, err = run(capsys, files / "results.json")
    assert status == 1 and said in err and err.count("\n") == 1
    assert not (files / "report.html").exists()


@pytest.mark.parametrize("name", ["results.json", "scores.npz"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_files_are_refused(files, capsys, name, content):
    (files / name).write_bytes(content)
    status, _, err = run(capsys, files / "results.json")
    assert status == 1 and name in err and err.count("\n") == 1


def test_no_file_is_refused(tmp_path, capsys):
    status, _, err = run(capsys, tmp_path / "results.json")
    assert status == 1 and "cannot be read: No such file" in err
