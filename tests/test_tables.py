"""The arithmetic of experiments/tables.py, and what experiments/reproduce.py records."""

import importlib.util
import json
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = script("tables")


def of_seeds(aurocs, fpr95s):
    """A results file with one value for each detector and seed."""

    def figures(name, seed):
        return {"auroc": aurocs[name][seed], "fpr95": fpr95s[name][seed]}

    return {
        "benchmark": "digits",
        "model": "small",
        "command": "python experiments/reproduce.py",
        "versions": {"jax": "1"},
        "device": "abacus",
        "date": "2026-01-02",
        "data": {"train": {"n": 9}, "test": {"n": 5}},
        "seeds": {
            str(seed): {
                "id_accuracy": 0.5 + seed / 10,
                "checkpoint": "f" * 64,
                "history": [{"loss": 1.0, "accuracy": 0.25, "learning_rate": 0.1}],
                "detectors": {
                    name: {
                        "datasets": {"odd": {"group": "far", "n": 7, **figures(name, seed)}},
                        "near": {},
                        "far": figures(name, seed),
                    }
                    for name in aurocs
                },
            }
            for seed in range(len(next(iter(aurocs.values()))))
        },
    }


def test_deviations_are_those_of_a_sample():
    # Deviations from 0.6 of −0.1, 0 and 0.1: the sum of squares 0.02 over n − 1 = 2.
    assert TABLES.mean_and_deviation([0.5, 0.6, 0.7]) == "0.6000 ± 0.1000"
    assert TABLES.mean_and_deviation([0.25]) == "0.2500"


def test_the_highest_or_the_lowest_is_best():
    values = [[0.1, 0.3], [0.4, 0.4], [0.3, 0.3]]
    assert [cell.count("*") for cell in TABLES.marked(values, True)] == [0, 4, 2]
    assert [cell.count("*") for cell in TABLES.marked(values, False)] == [4, 0, 2]


def test_equals_as_far_as_is_shown_share_a_mark():
    assert TABLES.marked([[0.50001], [0.5], [0.4], [0.3]], True) == [
        *["**0.5000**"] * 2,
        "*0.4000*",
        "0.3000",
    ]


def test_the_table_over_seeds():
    found = TABLES.seeds_markdown(
        of_seeds({"a": [0.8, 0.9], "b": [0.7, 0.7]}, {"a": [0.2, 0.2], "b": [0.1, 0.3]})
    )
    head, _, header, _, a, b = found.split("\n")
    assert "2 seeds (0, 1): ID accuracy 0.5500 ± 0.0707 (5 images)" in head
    assert header == "| detector | odd (far, 7) | mean far |"
    cell = "**0.8500 ± 0.0707** / **0.2000 ± 0.0000**"
    assert a == f"| `a` | {cell} | {cell} |"
    assert b.startswith("| `b` | *0.7000 ± 0.0000* / **0.2000 ± 0.1414** |")


@pytest.mark.parametrize("count", [1, 6, 7, 100])
def test_of_long_training_some_epochs_are_shown(count):
    shown = TABLES._some(range(count))
    assert len(shown) == min(count, 6)
    assert (shown[0], shown[-1]) == (0, count - 1)


def test_an_evaluation_is_not_repeated(digits, tmp_path, monkeypatch):
    reproduce = script("reproduce")
    config = reproduce.ReproduceConfig(
        detectors=("msp",),
        seeds=(0,),
        checkpoint_root=digits[0] / "checkpoints",
        evaluations=tmp_path / "own",
        output=tmp_path / "found.json",
    )
    made = reproduce.main(config)
    assert json.loads(config.output.read_text()) == made
    assert list(made["seeds"]) == ["0"] and len(made["seeds"]["0"]["history"]) == 20
    # No folder of this machine is recorded.
    assert str(tmp_path) not in config.output.read_text()
    assert "--evaluations own" in made["command"]
    assert TABLES.tables(made)

    def forbidden(*given, **options):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(reproduce.evaluation, "run", forbidden)
    assert reproduce.main(config)["seeds"] == made["seeds"]
    with pytest.raises(AssertionError, match="evaluated again"):
        reproduce.main(reproduce.replace(config, detectors=("energy",)))


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_some_and_differ(seeds):
    with pytest.raises(ValueError, match="seeds is"):
        script("reproduce").ReproduceConfig(seeds=seeds)
