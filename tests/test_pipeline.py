"""The steps of an evaluation and of a fit, one at a time, on a few digits."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grood_jax import benchmarks, models
from grood_jax.backbone.outputs import Outputs
from grood_jax.benchmarks import Benchmark
from grood_jax.data.sets import PartOfSet, labels_of
from grood_jax.deploying import pipeline as deploying
from grood_jax.deploying.pipeline import FitConfig
from grood_jax.detectors import Detector, Training, create
from grood_jax.evaluation import fitting, pipeline, results
from grood_jax.evaluation.pipeline import Failures, Passed, Scored
from grood_jax.evaluation.setting import EvalConfig, Setting
from grood_jax.evaluation.tuning import create_candidates
from grood_jax.maths.metrics import ood_metrics
from grood_jax.passes.processes import Processes
from grood_jax.storage import checkpoints
from grood_jax.storage.checkpoints import ModelSpec
from grood_jax.support.errors import UserError

WORDS = ("msp", "knn:k=3")
OOD = {"digits_8_9": "near", "photographs": "far", "uniform_noise": "far"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An untrained network: what is tested are the steps, not its figures."""
    directory = tmp_path_factory.mktemp("saved") / "small"
    preprocessing = benchmarks.get("digits").preprocessing
    model = models.create("small", num_classes=8, channels=1, rngs=nnx.Rngs(0))
    spec = ModelSpec(model="small", num_classes=8, preprocessing=preprocessing, source="untrained")
    checkpoints.save_model(directory, model, spec)
    return directory


def opened(config, candidates, said):
    benchmark, data, place = pipeline.open_sets(config, candidates, Processes(), said.append)
    return pipeline.open_inputs(config, benchmark, data, place, Processes(), said.append, False)


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def candidates():
    return create_candidates(WORDS, False)


@pytest.fixture(scope="module")
def inputs(saved, candidates, said):
    config = EvalConfig(checkpoint=saved, detectors=WORDS, limit=40, batch_size=32)
    return opened(config, candidates, said)


@pytest.fixture(scope="module")
def fitter(inputs, candidates):
    return pipeline.pass_training_set(inputs, candidates)


@pytest.fixture(scope="module")
def fitted(fitter, candidates):
    return pipeline.fit(fitter, candidates, {}, Failures())


@pytest.fixture(scope="module")
def passed(inputs, fitted):
    return pipeline.pass_test_sets(inputs, fitted)


def test_opening_finds_sets_and_classifier(inputs, saved, said):
    assert isinstance(inputs.benchmark, Benchmark) and inputs.benchmark.name == "digits"
    assert inputs.directory == saved and inputs.loaded.spec.source == "untrained"
    assert {name: group for name, (group, _) in inputs.data.ood.items()} == OOD
    assert len(inputs.data.test) == 40
    (line,) = said
    assert line == f"classifier: small from {saved} (untrained)"


def test_the_training_set_is_passed_once(inputs, fitter):
    assert fitter.seen.outputs.features.shape == (40, 64)
    assert fitter.seen.outputs.logits.shape == (40, 8)
    _, labels = inputs.data.train.read(np.arange(40))
    np.testing.assert_array_equal(fitter.seen.labels, labels)
    # Features and logits stay where detectors are fitted.
    assert isinstance(fitter.seen.outputs.features, jax.Array)


def test_fitting_gives_a_detector_for_each_word(fitted):
    assert list(fitted.detectors) == list(WORDS)
    assert fitted.detectors["knn:k=3"].detector.options["k"] == 3


def test_a_detector_for_which_the_network_lacks_something_has_failed(inputs):
    words = ("msp", "gl_mcm", "gram")
    failures = Failures()
    bare = replace(inputs.backbone, layers=None)
    tried = pipeline.that_can_be(bare, create_candidates(words, False), failures)
    assert list(tried) == ["msp"] and list(failures.reasons) == ["gl_mcm", "gram"]
    assert failures.reasons["gram"].startswith("gram needs the activations of middle layers")
    with pytest.raises(UserError, match="gl_mcm failed: gl_mcm needs features of places"):
        pipeline.that_can_be(bare, create_candidates(("gl_mcm",), False), Failures())
    asked = replace(inputs, config=replace(inputs.config, detectors=("all", "gl_mcm")))
    said = []
    tried = create_candidates(("msp", "gl_mcm", "gram"), False)
    made = pipeline.evaluate(replace(asked, backbone=bare), tried, said.append)
    assert list(made.scored) == ["msp"] and list(made.failures.reasons) == ["gl_mcm"]
    (line,) = [line for line in said if line.startswith("left out")]
    assert line.startswith("left out: gram needs the activations of middle layers")


def test_options_are_chosen_only_where_there_are_several(inputs, fitter, candidates):
    assert pipeline.choose_options(inputs, fitter, candidates, Failures()) == {}


def test_only_classes_with_training_samples_are_expected(inputs):
    tried = create_candidates(("grood", "msp"), True)
    said = []
    train = inputs.data.train
    same = pipeline.of_present_classes(tried, train, 8, said.append)
    assert same is tried and said == []
    rows = np.flatnonzero(~np.isin(labels_of(train), [2, 5]))
    part = PartOfSet(train, rows, "without two classes")
    found = pipeline.of_present_classes(tried, part, 8, said.append)
    assert {tuple(own.options["present_classes"]) for own in found["grood"]} == {(0, 1, 3, 4, 6, 7)}
    assert found["msp"] == tried["msp"] and len(found["grood"]) == len(tried["grood"])
    (line,) = said
    assert line.startswith("2 of 8 classes have no training sample (2, 5)")
    one = deploying.of_present_classes(tried["grood"][0], part, 8, said.append)
    assert one.options == found["grood"][0].options


def test_options_are_chosen_by_validation_sets(saved):
    tried = create_candidates(("knn",), True)
    config = EvalConfig(checkpoint=saved, detectors=("knn",), limit=60, search=True)
    own = opened(config, tried, [])
    preparing = pipeline.pass_training_set(own, tried)
    chosen = pipeline.choose_options(own, preparing, tried, Failures())["knn"]
    ks = [detector.options["k"] for detector in tried["knn"] if detector.options["k"] <= 60]
    assert chosen.values["k"] in ks and chosen.tried == len(ks)
    made = pipeline.fit(preparing, tried, {"knn": chosen}, Failures())
    assert made.detectors["knn"].detector.options["k"] == chosen.values["k"]


def test_id_validation_outputs_reach_the_detectors_that_ask_for_them(saved):
    tried = create_candidates(("temperature_scaling", "msp", "msp+temperature_scaling"), False)
    config = EvalConfig(checkpoint=saved, limit=60, search=True)
    own = opened(config, tried, [])
    preparing = pipeline.pass_training_set(own, tried)
    assert preparing.id_validation is not None and own.data.id_validation is not None
    outputs, labels = preparing.id_validation
    assert len(labels) == len(own.data.id_validation) == 6
    alone = preparing.fit("temperature_scaling", tried["temperature_scaling"][0]).state
    as_training = Training(outputs, labels)
    expected = create("temperature_scaling").fit(as_training, jax.random.key(0))
    np.testing.assert_array_equal(alone.temperature, expected.temperature)
    joined = preparing.fit("both", tried["msp+temperature_scaling"][0]).state
    np.testing.assert_array_equal(joined.states[1].temperature, expected.temperature)
    assert pipeline.pass_training_set(own, create_candidates(("msp",), False)).id_validation is None


def test_the_test_sets_are_passed(passed):
    assert list(passed.inside) == ["test"] and list(passed.outside) == list(OOD)
    assert {len(outputs.logits) for outputs in passed.outputs.values()} == {40}
    outputs, labels = passed.inside["test"]
    right = np.asarray(outputs.logits).argmax(axis=1) == labels
    assert passed.accuracy == {"test": right.mean()}


def test_no_two_sets_have_one_name(passed):
    with pytest.raises(UserError, match="several sets are called test; expected a name for each"):
        _ = Passed(passed.inside, {"test": passed.outside["photographs"]}).outputs


def test_scoring_gives_figures_and_scores(fitted, passed):
    scored = pipeline.score(fitted.detectors["msp"], passed, OOD)
    own = {
        name: fitting.score(fitted.detectors["msp"].detector, (), outputs)
        for name, outputs in passed.outputs.items()
    }
    for name, scores in own.items():
        np.testing.assert_array_equal(scored.scores[name], scores)
    for name, group in OOD.items():
        row = scored.figures["datasets"][name]
        assert (row["group"], row["n"]) == (group, 40)
        assert {m: row[m] for m in ("auroc", "fpr95")} == {
            m: ood_metrics(own["test"], own[name])[m] for m in ("auroc", "fpr95")
        }
    far = [scored.figures["datasets"][name]["auroc"] for name, g in OOD.items() if g == "far"]
    np.testing.assert_allclose(scored.figures["far"]["auroc"], np.mean(far))


def test_a_record_is_json_and_says_what_was_done(inputs, passed):
    scored = {"msp": Scored({"options": {}}, {})}
    record = pipeline.record(inputs, passed, scored, Failures(), "the command")
    assert json.loads(json.dumps(record)) == record
    assert record["command"] == "the command" and record["detectors"] == {"msp": {"options": {}}}
    assert record["id_accuracy"] == passed.accuracy["test"]
    assert list(record["data"]) == ["train", "test", *OOD]
    assert record["checkpoint"]["fingerprint"] == inputs.loaded.fingerprint


def test_the_report_is_of_what_was_scored(inputs, passed):
    shown = pipeline.shown_sets(inputs, passed)
    assert [(s.name, s.group) for s in shown] == [("test", "ID"), *OOD.items()]


def test_all_steps_together(inputs, candidates):
    made = pipeline.evaluate(inputs, candidates)
    assert list(made.scored) == list(made.fitted.detectors) == list(WORDS)
    assert set(made.scored["msp"].scores) == {"test", *made.passed.outside}
    assert made.failures.reasons == {}


def failing(stage):
    """A detector that cannot be fitted, or whose scores are NaN."""

    def fit(training, key):
        if stage == "fit":
            raise ValueError("it cannot be fitted\nat all")
        return ()

    def score(state, outputs):
        return jnp.full(len(outputs.logits), jnp.nan)

    return Detector("failing", fit, score, {})


@pytest.mark.parametrize(
    ("stage", "reason"), [("fit", "it cannot be fitted"), ("score", "holds 40 NaN or infinite")]
)
def test_one_detector_that_fails_does_not_end_the_others(inputs, candidates, stage, reason):
    made = pipeline.evaluate(inputs, {"bad": (failing(stage),), **candidates})
    assert list(made.scored) == list(WORDS)
    assert list(made.failures.reasons) == ["bad"] and reason in made.failures.reasons["bad"]
    record = pipeline.record(inputs, made.passed, made.scored, made.failures, "")
    assert list(record["failed"]) == ["bad"] and list(record["detectors"]) == list(WORDS)
    shown = [line for line in results.table(record).splitlines() if line.startswith("bad")]
    assert [row.split() for row in shown] == [["bad", *"—————"]] * 2


@pytest.mark.parametrize("stage", ["fit", "score"])
def test_nothing_is_left_where_all_fail(inputs, stage):
    with pytest.raises(UserError, match="bad failed: "):
        pipeline.evaluate(inputs, {"bad": (failing(stage),)})


def test_what_data_made_impossible_is_the_users_to_mend():
    def fail():
        raise ValueError("no sample of class 3")

    with pytest.raises(UserError, match="no sample of class 3 .--limit 5 leaves few images"):
        pipeline.explained(5, fail)
    with pytest.raises(UserError, match="no sample of class 3$"):
        pipeline.explained(None, fail)


@pytest.mark.parametrize("kind", [EvalConfig, FitConfig])
def test_evaluating_and_fitting_share_their_setting(kind):
    assert issubclass(kind, Setting)
    for wrong in ({"seed": -1}, {"limit": 0}, {"batch_size": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(**wrong)


def test_a_fit_step_by_step(saved):
    config = FitConfig(checkpoint=saved, detector="knn:k=2", limit=60, target_tpr=0.8)
    detector = deploying.create_detector(config.detector)
    benchmark, data, place = deploying.open_sets(config, detector, Processes())
    assert not data.ood
    own = deploying.open_inputs(
        config, benchmark, data, place, Processes(), lambda line: None, False
    )
    assert len(own.held_out) == len(own.checked) == 30
    made = deploying.fit(config, detector, own)
    assert len(made.calibration_scores()) == 30 and made.class_names == tuple("01234567")
    checked = deploying.realised(made, own)
    assert checked is not None and checked.images == 30
    pixels, labels = own.checked.read(np.arange(30))
    answer = made.predict(pixels)
    assert checked.kept == (~answer.is_ood).mean()
    assert checked.accuracy == (answer.label == labels).mean()


def test_calibration_and_check_divide_the_test_set():
    test = benchmarks.open_benchmark(benchmarks.get("digits"), limit=50).test
    held_out, checked = deploying.divided_test_set(FitConfig(calibration_share=0.3), test)
    assert (len(held_out), len(checked)) == (15, 35)
    rows = [own.read(np.arange(len(own)))[0] for own in (held_out, checked)]
    everything = test.read(np.arange(50))[0]
    assert sorted(map(bytes, np.concatenate(rows))) == sorted(map(bytes, everything))
    other, _ = deploying.divided_test_set(replace(FitConfig(calibration_share=0.3), seed=1), test)
    assert (other.read(np.arange(15))[0] != rows[0]).any()


def test_one_detector_is_fitted():
    with pytest.raises(ValueError, match="detector is 'all'; expected one"):
        deploying.create_detector("all")


def test_outputs_of_no_ood_sets_have_no_figures(fitted, passed):
    scored = pipeline.score(fitted.detectors["msp"], Passed(passed.inside, {}), {})
    assert scored.figures["datasets"] == {} == scored.figures["near"]
    assert isinstance(passed.outside["photographs"], Outputs)
