"""Tables of results come from the files of results; what training over seeds records."""

import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
RESULTS = sorted((EXPERIMENTS / "results").glob("*.json"))


def script(path):
    path = EXPERIMENTS / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = script("tools/tables.py")


def results_of(*names):
    return [json.loads((EXPERIMENTS / "results" / f"{name}.json").read_text()) for name in names]


def text(path):
    return (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_results_file_has_its_tables(path):
    made = TABLES.tables(json.loads(path.read_text()))
    assert made
    for table in made:
        assert table in text("experiments/RESULTS.md")


def test_the_readme_has_a_small_table():
    names = ("cifar10_seeds", "cifar10_resnet20_seeds", "fashion_mnist_seeds")
    table = TABLES.seeds_summary_markdown(results_of(*names))
    assert table in text("README.md")
    assert len(table.splitlines()) - 2 <= 10


def test_the_tables_of_all_detectors_and_over_seeds_come_from_the_evaluations():
    results = text("experiments/RESULTS.md")
    found = results_of("digits_all", "fashion_mnist", "cifar10")
    assert TABLES.summary_markdown(found) in results
    names = ("cifar10_seeds", "cifar10_resnet20_seeds", "fashion_mnist_seeds", "digits_seeds")
    assert TABLES.seeds_summary_markdown(results_of(*names)) in results


def test_the_plan_for_imagenet_comes_from_the_rates():
    found = results_of("benchmark_loader", "benchmark_models", "benchmark_imagenet")
    assert TABLES.plan_markdown(*found, "resnet50") in text("docs/how-to/imagenet.md")


def of_seeds(aurocs, fpr95s):
    """A results file with one value for each detector and seed."""

    def figures(name, seed):
        return {"auroc": aurocs[name][seed], "fpr95": fpr95s[name][seed]}

    return {
        "benchmark": "digits",
        "model": "small",
        "command": "python experiments/studies/reproduce.py",
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


def test_the_summary_over_seeds_has_a_column_for_each_group_that_was_there():
    one = of_seeds({"a": [0.8, 0.9], "b": [0.7, 0.7]}, {"a": [0.2, 0.2], "b": [0.1, 0.3]})
    other = of_seeds({"b": [0.4], "c": [0.6]}, {"b": [0.1], "c": [0.2]}) | {"model": "large"}
    assert TABLES.seeds_summary_markdown([one, other]).split("\n") == [
        "| detector | digits, small, far | digits, large, far |",
        "| --- | --- | --- |",
        "| `a` | **0.8500 ± 0.0707** |  |",
        "| `b` | *0.7000 ± 0.0000* | *0.4000* |",
        "| `c` |  | **0.6000** |",
    ]


@pytest.mark.parametrize("count", [1, 6, 7, 100])
def test_of_long_training_some_epochs_are_shown(count):
    shown = TABLES._some(range(count))
    assert len(shown) == min(count, 6)
    assert (shown[0], shown[-1]) == (0, count - 1)


def test_an_evaluation_is_not_repeated(digits_checkpoint, tmp_path, monkeypatch):
    reproduce = script("studies/reproduce.py")
    config = reproduce.ReproduceConfig(
        detectors=("msp",),
        seeds=(0,),
        checkpoint_root=digits_checkpoint.parent,
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


@pytest.mark.slow
def test_training_takes_the_epochs_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reproduce = script("studies/reproduce.py")
    config = reproduce.ReproduceConfig(
        detectors=("msp",), seeds=(3,), model="resnet20", epochs=1, evaluations=Path("own")
    )
    made = reproduce.main(config)
    assert [len(run["history"]) for run in made["seeds"].values()] == [1]
    assert "--epochs 1" in made["command"]
    # The benchmark's own network has the name without the model.
    assert Path("experiments/results/digits_resnet20_seeds.json").exists()


def test_there_is_at_least_one_epoch():
    with pytest.raises(ValueError, match="epochs is 0"):
        script("studies/reproduce.py").ReproduceConfig(epochs=0)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_some_and_differ(seeds):
    with pytest.raises(ValueError, match="seeds is"):
        script("studies/reproduce.py").ReproduceConfig(seeds=seeds)


def test_an_ablation_has_a_row_for_each_value_of_what_is_changed():
    def row(auroc, extra):
        return {"near": {}, "far": {"auroc": auroc, "fpr95": 1 - auroc}, "extra": {"rows": extra}}

    (found,) = TABLES.tables(
        {
            "ablations": {
                "k": {
                    "title": "Which neighbour",
                    "rows_are": "k",
                    "scale": "log",
                    "rows": {"1": row(0.75, "9"), "2": row(0.5, "8"), "5": row(0.25, "7")},
                }
            },
            **{key: "x" for key in ("benchmark", "model", "device", "command", "date")},
            "versions": {"jax": "1"},
            "limit": 3,
        }
    )
    assert found.split("\n")[2:] == [
        "| k | mean far | rows |",
        "| --- | --- | --- |",
        "| 1 | **0.7500** / **0.2500** | 9 |",
        "| 2 | *0.5000* / *0.5000* | 8 |",
        "| 5 | 0.2500 / 0.7500 | 7 |",
    ]


def test_what_a_gradient_is_compared_by():
    ablations = script("studies/ablations.py")
    prototypes, center = np.array([[0.0, 3.0], [0.0, -5.0]]), np.array([4.0, 0.0])
    rows = [jnp.asarray(each, jnp.float32) for each in (prototypes, center)]
    state = ablations.GroodState(*rows, ablations.build_bank(rows[0]))
    features = np.array([[1.0, 1.0], [2.0, -3.0]])
    outputs = ablations.Outputs(features.astype(np.float32), np.zeros((2, 2), np.float32))
    to_classes = np.linalg.norm(features[:, None] - prototypes, axis=2)
    to_center = np.linalg.norm(features - center, axis=1)
    # The share of p_ood in a softmax over negative distances.
    share = np.exp(-to_center) / (np.exp(-to_center) + np.exp(-to_classes).sum(axis=1))
    np.testing.assert_allclose(ablations.gradient_norm(state, outputs), share, rtol=1e-5)
    np.testing.assert_allclose(ablations.nearness(state, outputs), -to_center, rtol=1e-6)


def test_figures_are_drawn(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    assert matplotlib
    values = {"auroc": 0.75, "fpr95": 0.5}
    found = {"rows_are": "k", "rows": {k: {"near": {}, "far": values} for k in ("1%", "50%")}}
    for scale in ("log", None):
        script("studies/ablations.py").draw(found | {"scale": scale}, tmp_path / "own")
        for suffix in (".png", ".svg"):
            assert 0 < (tmp_path / f"own{suffix}").stat().st_size < 200_000


def test_the_search_by_lists_finds_all_with_all_probes():
    faiss = pytest.importorskip("faiss")
    ablations = script("studies/ablations.py")
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    places = ablations.by_lists(faiss, rows, 10)
    queries = rows[:50] + np.float32(0.1)
    distances = np.linalg.norm(queries[:, None] - rows, axis=2)
    assert (places(queries, 10) == distances.argmin(axis=1)).all()
    assert (places(queries, 1) == distances.argmin(axis=1)).mean() < 1


def test_auto_among_others_over_settings():
    study = script("studies/auto.py")
    rows = {
        "a": {"near": {"knn": 0.875, "auto": 0.75, "msp": 0.5}, "far": {"auto": 1.0, "msp": 0.5}},
        "b": {"near": {"auto": 0.75, "msp": 0.75, "odin": 0.625, "knn": 0.25}},
    }
    near = study.summary(rows, 0)["near"]
    # What is not in all settings has no mean, but may be the best of the others.
    assert list(near["detectors"]) == ["auto", "msp", "knn"]
    auto, msp = near["detectors"]["auto"], near["detectors"]["msp"]
    assert auto["auroc"] == [0.75, 0.75, 0.75] and auto["rank"][0] == (2 + 1.5) / 2
    assert msp["auroc"][0] == 0.625 and msp["auto ahead by"][0] == 0.125
    assert msp["auto ahead by"][1] == 0 and msp["auto ahead by"][2] == 0.25
    assert near["best of the others"] == {
        "a": {"to": "knn", "by": 0.125},
        "b": {"to": "msp", "by": 0.0},
    }
    assert near["lowest of auto"] == 0.75
    about = {"rules chosen on it": True, "explanation": "grood + nci, calibrated by 3"}
    written = script("tools/tables.py").tables(
        {
            **{"settings": {name: row | about for name, row in rows.items()}},
            **{"summary": {"all": {"near": near}}, "device": "cpu", "versions": {"jax": "1"}},
            "command": "python auto.py",
        }
    )
    assert "| a | yes | 0.7500 | `knn` 0.8750 | 1.0000 | `msp` 0.5000 | grood + nci |" in written[0]
    assert "| `msp` | 0.6250 (0.5000 to 0.7500) | 2.2500 " in written[1]


def test_few_samples_of_each_class():
    few = script("studies/auto.py").few
    labels = np.array([2, 0, 0, 2, 2, 0, 1])
    rows = few(labels, 2, 0)
    assert sorted(labels[rows]) == [0, 0, 1, 2, 2]
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(rows, few(labels, 2, 0))
