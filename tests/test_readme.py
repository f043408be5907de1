"""What the README shows is what happens, and it stays a page."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.evaluation.results import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NUMBER = re.compile(r"\d\.\d+")
FIGURE = re.compile(r"\d\.\d{4}")


def test_it_is_a_page():
    assert len(README.splitlines()) <= 150
    assert len(README.encode()) <= 8192


def test_it_includes_nothing_and_nothing_is_included_from_it():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    included = {
        name for page in pages for name in re.findall(r'--8<-- "?(.*?)"?\n', page.read_text())
    }
    assert included == {"CHANGELOG.md", "CONTRIBUTING.md", "experiments/RESULTS.md"}


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [link for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if not (ROOT / link).is_file()] == []


@pytest.mark.slow
def test_its_python_prints_what_it_says(capsys, unchecked):
    namespace = {"__name__": "__readme__"}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        capsys.readouterr()
        # A reader's own network may add a bias to a batch.
        with jax.numpy_rank_promotion("allow"):
            exec(compile(block, "README.md", "exec"), namespace)
        said = capsys.readouterr().out.splitlines()
        shown = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        assert [NUMBER.sub("#", line) for line in said] == [NUMBER.sub("#", line) for line in shown]
        numbers = [[float(n) for n in NUMBER.findall(" ".join(lines))] for lines in (said, shown)]
        # Rounded to two digits: another processor may be on the other side of a half.
        np.testing.assert_allclose(*numbers, rtol=0, atol=0.0101)


def test_it_counts_the_detectors():
    assert f"{len(gj.detectors.names())} of them" in README


def test_its_first_output_is_what_the_command_prints(digits):
    (block,) = re.findall(r"python -m grood_jax\.eval\n```\n\n```text\n(.*?)```", README, re.DOTALL)
    shown, said = block.splitlines(), digits[1].stdout.splitlines()
    assert [FIGURE.sub("#", line) for line in said] == [FIGURE.sub("#", line) for line in shown]
    is_auroc = True
    for line, expected in zip(said, shown, strict=True):
        is_auroc = is_auroc and not line.startswith("FPR@95")
        found, wanted = (list(map(float, FIGURE.findall(text))) for text in (line, expected))
        # Where roundings differ, three of the 433 ID images may lie beyond another threshold.
        tolerance = 0.0024 if line.startswith("ID") else 1e-3 if is_auroc else 0.0071
        for value, right in zip(found, wanted, strict=True):
            assert abs(value - right) <= tolerance, f"{line}; the README has: {expected}"


def test_its_first_output_is_that_of_the_committed_run():
    results = json.loads((ROOT / "experiments" / "results" / "digits.json").read_text())
    assert table(results) in README
    assert f"ID accuracy {results['id_accuracy']:.4f}" in README
