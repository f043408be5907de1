"""Results: their means, file and table."""

import json

import pytest

from grood_jax.evaluation import results
from grood_jax.support import provenance


def figures(group, auroc):
    return {
        "group": group,
        "n": 10,
        "auroc": auroc,
        "fpr95": 1 - auroc,
        "aupr_in": 0.5,
        "aupr_out": 0.25,
    }


DATASETS = {"a": figures("near", 0.5), "b": figures("near", 0.75), "c": figures("far", 1.0)}
RESULTS = {
    "detectors": {
        "grood": {
            "datasets": DATASETS,
            "near": results.group_means(DATASETS, "near"),
            "far": results.group_means(DATASETS, "far"),
        }
    }
}


def test_group_means():
    assert results.group_means(DATASETS, "near") == {
        "auroc": (0.5 + 0.75) / 2,
        "fpr95": (0.5 + 0.25) / 2,
        "aupr_in": 0.5,
        "aupr_out": 0.25,
    }
    assert results.group_means({"c": DATASETS["c"]}, "near") == {}


def test_table():
    lines = results.table(RESULTS).splitlines()
    assert lines[0].split() == ["detector", "data", "set", "group", "images", "AUROC", "FPR@95"]
    assert [line.split() for line in lines[2:]] == [
        ["grood", "a", "near", "10", "0.5000", "0.5000"],
        ["grood", "b", "near", "10", "0.7500", "0.2500"],
        ["grood", "c", "far", "10", "1.0000", "0.0000"],
        ["grood", "mean", "near", "near", "0.6250", "0.3750"],
        ["grood", "mean", "far", "far", "1.0000", "0.0000"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "results.json"
    results.write({"auroc": 0.5}, path)
    with pytest.raises(ValueError, match="JSON"):
        results.write({"auroc": float("nan")}, path)
    assert json.loads(path.read_text()) == {"auroc": 0.5}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_versions_and_memory():
    found = provenance.versions()
    assert set(found) == {"python", *provenance.PACKAGES}
    assert found["jax"][0].isdigit()
    peak = provenance.peak_memory_bytes()
    assert peak is None or 2**26 < peak < 2**40
