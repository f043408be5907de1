"""What the README shows is what happens, and it stays a page."""

import json
import re
from pathlib import Path

import pytest

import grood_jax as gj
from grood_jax.evaluation.results import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
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


def assert_like_the_table(said, block, images):
    """Compares a table with what is shown of it, on so many ID images."""
    shown = block.splitlines()
    assert [FIGURE.sub("#", line) for line in said] == [FIGURE.sub("#", line) for line in shown]
    is_auroc = True
    for line, expected in zip(said, shown, strict=True):
        is_auroc = is_auroc and not line.startswith("FPR@95")
        values, wanted = (list(map(float, FIGURE.findall(text))) for text in (line, expected))
        # Where roundings differ, three ID images may lie beyond another threshold.
        tolerance = (1.05 if line.startswith("ID") else 3.1) / images
        for value, right in zip(values, wanted, strict=True):
            assert abs(value - right) <= (1e-3 if is_auroc else tolerance), (line, expected)


@pytest.mark.slow
def test_its_python_prints_what_it_says(capsys, unchecked):
    namespace = {"__name__": "__readme__"}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (table_block,) = re.findall(r"```python\n.*?```\n\n```text\n(.*?)```", README, re.DOTALL)
    said = []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
        said.append(capsys.readouterr().out.splitlines())
    assert_like_the_table(said[0], table_block, len(namespace["digits"].test.labels))
    assert said[1:] == [re.findall(r"^print\(.*\)  # (.*)$", blocks[1], re.MULTILINE)]


def test_it_counts_the_detectors():
    assert f"{len(gj.detectors.names())} of them" in README


def test_its_first_output_is_what_the_command_prints(digits):
    (block,) = re.findall(r"python -m grood_jax\.eval\n```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert_like_the_table(digits[1].stdout.splitlines(), block, 433)


def test_its_first_output_is_that_of_the_committed_run():
    results = json.loads((ROOT / "experiments" / "results" / "digits.json").read_text())
    assert table(results) in README
    assert f"ID accuracy {results['id_accuracy']:.4f}" in README
