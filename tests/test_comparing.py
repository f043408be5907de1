"""Results side by side: of the same data, or refused in a sentence."""

import csv
import io
import json
import re

import pytest

from grood_jax.cli import compare
from grood_jax.evaluation import comparing
from grood_jax.support.errors import UserError


def figures(auroc):
    return {"auroc": auroc, "fpr95": 1 - auroc, "aupr_in": 0.5, "aupr_out": 0.5}


def results(**aurocs):
    """Results of detectors with these AUROCs on one near set."""
    detectors = {
        name: {
            "datasets": {"svhn": {"group": "near", "n": 20, **figures(auroc)}},
            "near": figures(auroc) | {"auroc_interval": [auroc - 0.125, auroc + 0.125]},
            "far": {},
        }
        for name, auroc in aurocs.items()
    }
    mark = {"fingerprint": "0" * 64, "fingerprint_of": "content"}
    return {
        **dict.fromkeys(("benchmark", "model", "command", "device"), "x"),
        "checkpoint": {},
        "versions": {},
        "id_accuracy": 0.5,
        "shifted_accuracy": {},
        "data": {"test": {"n": 30, **mark}, "svhn": {"n": 20, **mark}},
        "detectors": detectors,
    }


FIRST, SECOND = results(grood=0.5, msp=0.75), results(msp=0.5, knn=0.25)


def write(folder, name, held):
    path = folder / name / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(held))
    return path


def test_runs_stand_across(tmp_path, capsys):
    first, second = write(tmp_path, "one", FIRST), write(tmp_path, "two", SECOND)
    # A folder stands for the file in it.
    assert compare.main([str(first), str(second.parent)]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0].split() for block in blocks] == [
        ["AUROC,", "near", "one", "two", "two", "−", "one"],
        ["FPR@95,", "near", "one", "two", "two", "−", "one"],
    ]
    assert [line.split() for line in blocks[0].splitlines()[2:]] == [
        ["grood", "0.5000", "±", "0.1250", "—", "—"],
        ["msp", "0.7500", "±", "0.1250", "0.5000", "±", "0.1250", "-0.2500"],
        ["knn", "—", "0.2500", "±", "0.1250", "—"],
    ]
    assert blocks[1].splitlines()[3].split() == ["msp", "0.2500", "0.5000", "+0.2500"]


def test_other_forms(tmp_path, capsys):
    paths = [str(write(tmp_path, name, FIRST)) for name in ("a_1", "b", "c")]
    assert compare.main([*paths, "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "| AUROC, near | a_1 | b | c | b − a_1 | c − a_1 |"
    assert compare.main([*paths, "--format", "latex"]) == 0
    assert r"0.5000 $\pm$ 0.1250 & +0.0000 & +0.0000 \\" in (said := capsys.readouterr().out)
    assert r"b $-$ a\_1" in said
    assert compare.main([*paths, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (rows[0]["detector"], rows[0]["metric"], float(rows[0]["a_1"])) == (
        "grood",
        "auroc",
        0.5,
    )


def test_runs_of_one_name_are_told_apart_by_path(tmp_path):
    paths = [write(tmp_path / part, "digits", FIRST) for part in ("x", "y")]
    assert list(comparing.read_runs(paths)) == [str(path) for path in paths]


def changed(part, **facts):
    held = json.loads(json.dumps(FIRST))
    held["data"][part] |= facts
    return held


def without_far():
    held = json.loads(json.dumps(FIRST))
    for own in held["detectors"].values():
        own["datasets"]["more"] = own["datasets"]["svhn"]
    return held


def in_another_group():
    held = json.loads(json.dumps(FIRST))
    for own in held["detectors"].values():
        own["datasets"]["svhn"]["group"] = "far"
    return held


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed("svhn", n=9), "the set svhn has 20 images in one, 9 images in two"),
        (
            changed("test", fingerprint="1" * 64),
            "test has the fingerprint 000000000000… in one",
        ),
        (without_far(), "only two has the set more"),
        (in_another_group(), "the set svhn has the group near in one, the group far in two"),
    ],
)
def test_results_of_other_data_are_refused(tmp_path, capsys, other, said):
    paths = [write(tmp_path, "one", FIRST), write(tmp_path, "two", other)]
    assert compare.main([str(path) for path in paths]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: one and two are of different data: ") and said in line


def test_what_is_not_known_of_both_is_no_difference():
    runs = {"a": FIRST, "b": changed("svhn", fingerprint="1" * 64, fingerprint_of="files")}
    comparing.require_same_data(runs)


def test_fewer_than_two_are_refused(tmp_path):
    path = write(tmp_path, "one", FIRST)
    for given in ([], [path], [path, path.parent]):
        with pytest.raises(UserError, match="expected at least two different results.json"):
            comparing.read_runs(given)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=re.escape("other.json holds no results")):
        comparing.read_runs([path, tmp_path / "other.json"])
