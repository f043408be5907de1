"""Results: their means, file and tables."""

import csv
import io
import json

import numpy as np
import pytest

from grood_jax.evaluation import results, tables
from grood_jax.maths.intervals import auroc_interval
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
SCORES = {"a": [0.5, 1.5, 2.5], "b": [1.5, 3.5], "c": [4.0, 5.0]}
INSIDE = [0.0, 1.0, 2.0]


def detector(*aurocs):
    """Figures of a detector with these AUROCs on the sets; intervals of ±0.05."""
    sets = zip("abc", ("near", "near", "far"), aurocs, strict=True)
    datasets = {name: figures(group, auroc) for name, group, auroc in sets}
    found = {"datasets": datasets}
    for group in ("near", "far"):
        mean = results.group_means(datasets, group)
        ends = [mean["auroc"] - 0.05, min(1.0, mean["auroc"] + 0.05)]
        found[group] = mean | {"auroc_interval": ends}
    return found


RESULTS = {
    "detectors": {
        "grood": detector(0.5, 0.75, 1.0),
        "msp": detector(0.75, 0.625, 1.0),
        "knn|x": detector(0.25, 0.5, 0.9),
    },
    "failed": {"gram": "no middle layers"},
}


def test_group_means():
    assert results.group_means(DATASETS, "near") == {
        "auroc": (0.5 + 0.75) / 2,
        "fpr95": (0.5 + 0.25) / 2,
        "aupr_in": 0.5,
        "aupr_out": 0.25,
    }
    assert results.group_means({"c": DATASETS["c"]}, "near") == {}


def test_group_figures_have_an_interval():
    scores = {name: np.array(values) for name, values in SCORES.items()}
    found = results.group_figures(DATASETS, "near", np.array(INSIDE), scores)
    expected = auroc_interval(np.array(INSIDE), [scores["a"], scores["b"]])
    assert found.pop("auroc_interval") == list(expected)
    assert found == results.group_means(DATASETS, "near")
    one = results.group_figures(DATASETS, "far", np.array([1.0]), scores)
    assert one == results.group_means(DATASETS, "far")
    assert results.group_figures({}, "far", np.array(INSIDE), {}) == {}


def test_a_table_has_a_detector_a_row_and_sets_across():
    blocks = results.table(RESULTS).split("\n\n")
    assert [block.split()[0] for block in blocks] == ["AUROC", "FPR@95"]
    lines = [line.split() for line in blocks[0].splitlines()]
    assert lines[0] == ["AUROC", "near", "far", "a", "b", "c"]
    assert lines[1] == ["near", "10", "near", "10", "far", "10"]
    rows = dict.fromkeys(["grood", "msp", "knn|x", "gram"])
    rows |= {line[0]: " ".join(line[1:]) for line in lines[3:]}
    # Both are best where they have the same figure.
    assert rows == {
        "grood": "0.6250 ± 0.0500 1.0000 ± 0.0500* 0.5000 0.7500* 1.0000*",
        "msp": "0.6875 ± 0.0500* 1.0000 ± 0.0500* 0.7500* 0.6250 1.0000*",
        "knn|x": "0.3750 ± 0.0500 0.9000 ± 0.0500 0.2500 0.5000 0.9000",
        "gram": "— — — — —",
    }
    # The lowest is best of these, and has no interval.
    assert blocks[1].splitlines()[3].split()[1:] == [
        "0.3750",
        "0.0000*",
        "0.5000",
        "0.2500*",
        "0.0000*",
    ]
    assert len({line.index("near") for line in blocks[0].splitlines()[:1]}) == 1


def test_one_detector_alone_has_no_marks():
    alone = {"detectors": {"grood": RESULTS["detectors"]["grood"]}, "failed": {"gram": ""}}
    assert "*" not in results.table(alone)
    assert "**" not in tables.markdown(alone)


def test_results_of_earlier_versions_have_no_intervals():
    earlier = json.loads(json.dumps(RESULTS))
    for own in earlier["detectors"].values():
        del own["near"]["auroc_interval"], own["far"]["auroc_interval"]
    del earlier["failed"]
    assert "±" not in results.table(earlier) and "gram" not in results.table(earlier)
    assert "auroc_low" in tables.as_csv(earlier)


def test_markdown():
    lines = tables.markdown(RESULTS).splitlines()
    assert lines[0] == "| AUROC | near | far | a (near) | b (near) | c (far) |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: |"
    # The best is bold, the second best in italics: of two that are best, both.
    best = "**1.0000 ± 0.0500**"
    assert (
        lines[2] == f"| `grood` | *0.6250 ± 0.0500* | {best} | *0.5000* | **0.7500** | **1.0000** |"
    )
    assert lines[4] == (
        r"| `knn\|x` | 0.3750 ± 0.0500 | *0.9000 ± 0.0500* | 0.2500 | 0.5000 | *0.9000* |"
    )
    assert lines[5] == "| `gram` | — | — | — | — | — |"


def test_latex():
    odd = {"detectors": {r"a_b%\~": RESULTS["detectors"]["grood"], "msp": detector(0.5, 0.5, 0.5)}}
    lines = tables.latex(odd).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrr}" and lines[1] == r"\toprule"
    assert lines[4] == (
        r"a\_b\%\textbackslash{}\textasciitilde{} & \textbf{0.6250} $\pm$ 0.0500 & "
        r"\textbf{1.0000} $\pm$ 0.0500 & \textbf{0.5000} & \textbf{0.7500} & \textbf{1.0000} \\"
    )
    assert r"\underline{0.5000}" in lines[5] and lines[-1] == r"\end{tabular}"
    assert "& -- &" in tables.latex(RESULTS)
    assert tables.written(RESULTS, "latex").count(r"\begin{tabular}") == 2


def test_csv_has_all_figures_unrounded():
    rows = list(csv.DictReader(io.StringIO(tables.written(RESULTS, "csv"))))
    assert [row["detector"] for row in rows] == ["grood", "msp", "knn|x", "gram"]
    assert float(rows[0]["near auroc"]) == 0.625 and float(rows[0]["near auroc_low"]) == 0.575
    assert float(rows[1]["b (near) fpr95"]) == 0.375 and float(rows[1]["c (far) aupr_out"]) == 0.25
    assert set(rows[3].values()) == {"gram", ""}


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_form_or_metric_is_refused():
    with pytest.raises(ValueError, match="format is 'html'; expected one of table, markdown"):
        tables.written(RESULTS, "html")
    with pytest.raises(ValueError, match="metric is 'aurocc'.*did you mean 'auroc'"):
        tables.markdown(RESULTS, "aurocc")


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
