"""What the README shows is what happens."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TABLES = (ROOT / "experiments" / "RESULTS.md").read_text()
NUMBER = re.compile(r"\d\.\d{4}")
RESULTS = sorted((ROOT / "experiments" / "results").glob("*.json"))


def test_the_python_examples_print_what_they_say(digits, monkeypatch, capsys):
    monkeypatch.chdir(digits[0])
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
        said = [float(n) for n in re.findall(r"\d\.\d+", capsys.readouterr().out)]
        (comment,) = re.findall(r"print\(.*\)  # (.*)", block)
        shown = [float(n) for n in re.findall(r"\d\.\d+", comment)]
        np.testing.assert_allclose(said, shown, rtol=1e-3, atol=1e-3)


def tables_module():
    path = ROOT / "experiments" / "tools" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", path)
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def results_of(*names):
    return [json.loads((ROOT / f"experiments/results/{n}.json").read_text()) for n in names]


def test_its_summaries_come_from_the_evaluations():
    tables = tables_module()
    found = results_of("digits_all", "fashion_mnist", "cifar10")
    assert tables.summary_markdown(found) in README
    found = results_of(
        "cifar10_seeds", "cifar10_resnet20_seeds", "fashion_mnist_seeds", "digits_seeds"
    )
    assert tables.seeds_summary_markdown(found) in README


def test_its_plan_for_imagenet_comes_from_the_rates():
    found = results_of("benchmark_loader", "benchmark_models", "benchmark_imagenet")
    assert tables_module().plan_markdown(*found, "resnet50") in README


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_its_tables_come_from_the_results_files(path):
    made = tables_module().tables(json.loads(path.read_text()))
    assert made
    for table in made:
        assert table in README + TABLES


def test_its_first_output_is_what_the_command_prints(digits):
    (block,) = re.findall(r"python -m grood_jax\.eval\n```\n\n```text\n(.*?)```", README, re.DOTALL)
    shown, said = block.splitlines(), digits[1].stdout.splitlines()
    assert [NUMBER.sub("#", line) for line in said] == [NUMBER.sub("#", line) for line in shown]
    for line, expected in zip(said, shown, strict=True):
        found, wanted = (list(map(float, NUMBER.findall(text))) for text in (line, expected))
        # Where roundings differ, three of the 433 ID images may lie beyond another threshold.
        tolerances = [1e-3, 0.0071] if len(wanted) == 2 else [0.0024]
        assert len(wanted) == len(tolerances) or not wanted
        for value, right, tolerance in zip(found, wanted, tolerances, strict=False):
            assert abs(value - right) <= tolerance, f"{line}; the README has: {expected}"


def test_its_first_output_is_that_of_the_committed_run():
    results = json.loads((ROOT / "experiments" / "results" / "digits.json").read_text())
    from grood_jax.evaluation.results import table

    assert table(results) in README
    assert f"ID accuracy {results['id_accuracy']:.4f}" in README
