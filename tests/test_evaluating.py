"""gj.evaluate: figures of one's own network on one's own images, whatever form these have."""

import csv
import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny

import grood_jax as gj
from grood_jax.data import Batch
from grood_jax.detectors import Detector, Noise
from grood_jax.evaluation import fitting
from grood_jax.evaluation.evaluating import chosen, grouped, of_present_classes
from grood_jax.maths import intervals
from grood_jax.support.errors import UserError

TRAIN, TEST = tiny.pairs(120, 0, 50), tiny.pairs(60, 1)
OOD = {"near": {"wide": tiny.images(40, 2, 3.0)}, "far": {"wider": tiny.images(30, 3, 9.0)}}
NAN = np.full((4, 4, 4, 1), np.nan)
DETECTORS = ["msp", "energy:temperature=2.5", "gradnorm"]


@pytest.fixture(scope="module")
def found():
    return gj.evaluate(tiny.backbone(), TRAIN, TEST, OOD, DETECTORS)


def test_figures_are_those_of_the_steps_by_hand(found):
    backbone = tiny.backbone()
    images, labels = (np.concatenate(part) for part in zip(*TRAIN, strict=True))

    def train(rows):
        chosen = np.arange(len(images)) if rows is None else rows
        return [Batch(images[chosen], np.int32(labels[chosen]), np.ones(len(chosen), bool))]

    by_hand = fitting.fit_detectors(
        backbone, train, {"gradnorm": gj.detectors.gradnorm()}, key=jax.random.key(0)
    )
    own = by_hand.detectors["gradnorm"]
    for name, part in [("test", TEST[0][0]), ("wide", OOD["near"]["wide"])]:
        expected = fitting.score(own.detector, own.state, backbone(part))
        np.testing.assert_allclose(found.scores["gradnorm"][name], expected, rtol=1e-5)
    row = found.results["detectors"]["gradnorm"]["datasets"]["wide"]
    scores = found.scores["gradnorm"]
    metrics = gj.ood_metrics(scores["test"], scores["wide"])
    assert {name: row[name] for name in metrics} == metrics
    assert (row["group"], row["n"]) == ("near", 40)
    assert found.results["id_accuracy"] == 1.0


def test_printed_it_is_the_table(found):
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    assert lines[0].split() == ["AUROC", "near", "far", "wide", "wider"]
    assert [line.split()[0] for line in lines[3:6]] == DETECTORS
    assert lines[-1] == "ID accuracy 1.0000 (60 images)"
    assert found.to_markdown("fpr95").startswith("| FPR@95 | near | far | wide (near) |")
    assert r"\begin{tabular}" in found.to_latex()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    value = found.results["detectors"]["msp"]["far"]["auroc"]
    assert float(rows[0]["far auroc"]) == value


def test_what_is_saved_has_the_form_of_the_command_line(found, tmp_path):
    path = found.save(tmp_path / "new")
    assert json.loads(path.read_text()) == found.results
    assert list(found.results["data"]) == ["train", "test", "wide", "wider"]
    assert found.results["data"]["train"]["n"] == 120
    assert found.results["detectors"]["energy:temperature=2.5"]["options"]["temperature"] == 2.5


def test_intervals_and_differences(found):
    scores = found.scores["msp"]
    expected = intervals.bootstrap_interval(scores["test"], [scores["wide"]], resamples=50)
    assert found.interval("msp", resamples=50)["near"] == expected
    same = found.compare("msp", "msp", resamples=50)
    assert list(same) == ["near", "far"] and same["near"].p_value == 1
    other = found.compare("msp", "gradnorm", resamples=50)["far"]
    means = [found.results["detectors"][n]["far"]["auroc"] for n in ("msp", "gradnorm")]
    np.testing.assert_allclose(other.value, means[0] - means[1])
    with pytest.raises(ValueError, match="detector is 'mps'; .*did you mean 'msp'"):
        found.compare("mps", "msp")


def test_other_forms_of_the_same_sets_give_the_same(found):
    whole = tuple(np.concatenate(part) for part in zip(*TRAIN, strict=True))
    ood = {name: [own[:7], own[7:]] for sets in OOD.values() for name, own in sets.items()}
    other = gj.evaluate(
        tiny.backbone(), whole, iter(TEST), ood, {"mine": gj.detectors.msp()}, batch_size=32
    )
    for name, scores in other.scores["mine"].items():
        np.testing.assert_allclose(scores, found.scores["msp"][name], atol=1e-6)
    # Sets in no group are far ones.
    assert not other.results["detectors"]["mine"]["near"]
    data, others = found.results["data"], other.results["data"]
    assert {n: own["fingerprint"] for n, own in data.items()} == {
        n: own["fingerprint"] for n, own in others.items()
    }


def test_bytes_are_normalised_and_make_noise():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 4, 4, 1), dtype=np.uint8)
    backbone = replace(tiny.backbone(), input_std=())
    normal = np.float32(pixels / 255 - 0.5) / np.float32(0.25)
    labels = np.asarray(backbone(normal).logits).argmax(axis=1)
    noisy = Detector(
        "noisy",
        lambda training, key: training.ood.features.mean(axis=0),
        lambda mean, outputs: -jnp.abs(outputs.features - mean[None]).sum(axis=1),
        ood=Noise(20),
    )
    preparing = ((0.5,), (0.25,), 4)
    made = gj.evaluate(
        backbone,
        (pixels[:60], labels[:60]),
        (pixels[60:], labels[60:]),
        {"far": {"other": 255 - pixels}},
        ["msp", noisy],
        preprocessing=preparing,
    )
    expected = 1 - jax.nn.softmax(backbone(normal[60:]).logits).max(axis=1)
    np.testing.assert_allclose(made.scores["msp"]["test"], expected, atol=1e-5)
    assert set(made.scores) == {"msp", "noisy"} and made.results["id_accuracy"] == 1
    assert made.results["preprocessing"]["std"] == [0.25]
    # Normalised images say nothing of how noise would be prepared.
    sets = ((normal[:60], labels[:60]), (normal[60:], labels[60:]), {"o": normal})
    without = gj.evaluate(backbone, *sets, ["msp", noisy])
    assert "needs noise images" in without.failed["noisy"] and list(without.scores) == ["msp"]


def failing(training, key):
    raise ValueError("it cannot be fitted")


def test_one_failure_is_not_the_end():
    backbone = replace(tiny.backbone(), head=None, layers=None, input_std=())
    bad = Detector("bad", failing, lambda state, outputs: outputs.logits[:, 0])
    nan = Detector("nan", lambda training, key: None, lambda s, o: jnp.full(len(o.logits), jnp.nan))
    words = ["msp", "react", "gram", "odin", bad, nan]
    found = gj.evaluate(backbone, TRAIN, TEST, OOD, words)
    assert list(found.scores) == ["msp"]
    assert list(found.failed) == ["react", "gram", "odin", "bad", "nan"]
    assert "react needs the class head" in found.failed["react"]
    assert found.failed["bad"] == "it cannot be fitted"
    row = next(line for line in str(found).splitlines() if line.startswith("gram"))
    assert row.split() == ["gram", *"————"]
    assert "nan failed: " in str(found)
    with pytest.raises(UserError, match="bad failed: it cannot be fitted"):
        gj.evaluate(backbone, TRAIN, TEST, OOD, [bad])


def test_a_report(found, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = found.report(tmp_path / "new")
    assert page == tmp_path / "new" / "report.html"
    text = page.read_text("utf-8")
    assert text.count("<li><img") == 16 * 3
    from grood_jax.evaluation import report

    monkeypatch.setattr(report, "can_draw", lambda: False)
    with pytest.raises(UserError, match="pip install matplotlib"):
        found.report(tmp_path)


def test_detectors_are_names_or_values():
    msp, energy = gj.detectors.msp(), gj.detectors.energy()
    assert list(chosen(None)) == ["grood", "msp"]
    assert list(chosen("all")) == list(gj.detectors.names())
    assert list(chosen(["energy:temperature=2.5", msp])) == ["energy:temperature=2.5", "msp"]
    assert list(chosen(msp)) == ["msp"]
    assert chosen({"mine": energy}) == {"mine": (energy,)}


def test_detectors_expect_the_classes_of_the_data():
    wanted = chosen(["grood", "msp"])
    found = of_present_classes(wanted, np.array([3, 0, 3]))
    assert found["grood"][0].options["present_classes"] == [0, 3]
    assert found["msp"] == wanted["msp"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("detectors", "error", "said"),
    [
        ([], ValueError, "detectors is empty"),
        (["mps"], ValueError, "did you mean 'msp'"),
        (3, TypeError, "detectors is 3; expected names or detectors"),
        ([3], TypeError, "detectors holds 3"),
        ({"a": "msp"}, TypeError, r"detectors\['a'\] is 'msp'; expected a Detector"),
        ([gj.detectors.knn(k=2), gj.detectors.knn(k=3)], ValueError, "two by the name of 'knn'"),
    ],
)
def test_no_detectors_are_refused(detectors, error, said):
    with pytest.raises(error, match=said):
        chosen(detectors)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("ood", "error", "said"),
    [
        ({}, UserError, "ood is empty"),
        ([tiny.images(4, 0)], TypeError, "ood is a list; expected sets by name"),
        ({"test": 1}, UserError, "ood: far holds a set called 'test'"),
        ({"near": {"a": 1}, "far": {"a": 1}}, UserError, "far holds a set called 'a', as near"),
    ],
)
def test_no_ood_sets_are_refused(ood, error, said):
    with pytest.raises(error, match=said):
        grouped(ood)


def test_sets_may_be_called_near_or_far():
    images = tiny.images(4, 0)
    assert list(grouped({"near": images})) == ["near"]
    assert grouped({"near": images})["near"][0] == "far"
    assert grouped({"near": {"a": images}})["a"][0] == "near"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"backbone": "resnet"}, TypeError, "backbone is a str; expected a Backbone"),
        (
            {"train": iter(TRAIN)},
            TypeError,
            "train is .*, which can be read only once",
        ),
        ({"test": tiny.images(4, 0)}, TypeError, "test has no labels"),
        (
            {"ood": {"a": np.full((4, 4, 4, 1), np.nan)}},
            UserError,
            r"ood\['a'\]: image 0 holds NaN",
        ),
        ({"ood": {"a": tiny.images(1, 0)}}, UserError, r"ood\['a'\] has 1 images"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"present_classes": "none"}, ValueError, "present_classes is 'none'; expected one of all"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_refused(change, error, said):
    given = {"backbone": tiny.backbone(), "train": TRAIN, "test": TEST, "ood": OOD} | change
    with pytest.raises(error, match=said):
        gj.evaluate(detectors=["msp"], **given)
