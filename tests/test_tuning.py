"""Options are chosen by the AUROC on validation sets, and by nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors import Detector, combine, create
from grood_jax.evaluation import fitting, tuning
from grood_jax.passes.training_pass import TrainingPass

ROWS = 30


def outputs(values):
    features = jnp.asarray(values, jnp.float32)[:, None]
    return Outputs(features, jnp.zeros((len(features), 2)))


def prepared(seen, labels, key):
    backbone = Backbone.from_functions({}, lambda a, x: x, lambda a, h: (h, h))
    training = TrainingPass(backbone, lambda rows: [], seen, labels, None)
    return fitting.Fitter(training, {}, None, key)


def fitter(key):
    labels = jnp.arange(ROWS, dtype=jnp.int32) % 2
    return prepared(outputs(np.arange(ROWS)), labels, key)


def signed(sign, fits=None, *, fit_key=None, fails=False):
    """Scores are the feature times ``sign``."""

    def fit(training, key):
        if fails:
            raise ValueError(f"sign {sign} cannot be fitted")
        if fits is not None:
            fits.append(sign)
        return ()

    return Detector(
        "signed",
        fit,
        lambda state, outputs: sign * outputs.features[:, 0],
        {"sign": sign},
        grid={"sign": (1, 2)},
        fit_key=fit_key,
    )


INSIDE, OUTSIDE = outputs([0.0, 1.0, 2.0]), outputs([1.5, 3.0])


def test_the_best_auroc_chooses(key):
    found = tuning.choose(fitter(key), "s", [signed(-1.0), signed(1.0)], INSIDE, OUTSIDE)
    # Five of the six pairs are in order.
    assert found.detector.options == {"sign": 1.0} and found.values == {"sign": 1.0}
    assert found.auroc == pytest.approx(5 / 6)
    assert (found.tried, found.failed) == (2, ())


def test_the_first_of_equals_is_taken(key):
    found = tuning.choose(fitter(key), "s", [signed(2.0), signed(1.0)], INSIDE, OUTSIDE)
    assert found.values == {"sign": 2.0}


def test_a_fitted_state_is_shared_where_it_can_be(key):
    fits = []
    tried = [signed(s, fits, fit_key="same") for s in (1.0, 2.0, 3.0)]
    tuning.choose(fitter(key), "s", tried, INSIDE, OUTSIDE)
    assert fits == [1.0]
    tuning.choose(fitter(key), "s", [signed(s, fits) for s in (4.0, 5.0)], INSIDE, OUTSIDE)
    assert fits == [1.0, 4.0, 5.0]


def test_values_that_cannot_be_fitted_are_left_out_and_listed(key):
    tried = [signed(1.0), signed(-1.0, fails=True)]
    for order in (tried, tried[::-1]):
        found = tuning.choose(fitter(key), "s", order, INSIDE, OUTSIDE)
        assert (found.tried, found.failed) == (1, ("sign -1.0 cannot be fitted",))
    with pytest.raises(ValueError, match="sign -1.0 cannot be fitted"):
        tuning.choose(fitter(key), "s", tried[1:], INSIDE, OUTSIDE)


def test_candidates_are_the_grid_without_what_is_given():
    assert [d.options["k"] for d in tuning.candidates("knn", {})] == [50, 100, 200, 500, 1000]
    (one,) = tuning.candidates("knn", {"k": 7})
    assert one.options["k"] == 7
    found = tuning.candidates("odin", {"noise": 0.0})
    assert [d.options["temperature"] for d in found] == [1.0, 10.0, 100.0, 1000.0]
    assert {d.options["noise"] for d in found} == {0.0}
    (plain,) = tuning.candidates("msp", {})
    assert plain.name == "msp"


def test_more_neighbours_than_the_shared_bank_has_are_refused(key):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32)
    labels = jnp.arange(60, dtype=jnp.int32) % 2
    many = Outputs(features, jnp.zeros((60, 2)))
    tried = [create("knn", k=k) for k in (50, 100)]
    part = Outputs(features[:9], jnp.zeros((9, 2)))
    found = tuning.choose(prepared(many, labels, key), "knn", tried, part, part)
    assert found.values == {"k": 50}
    assert "expected at most the bank's 60 rows" in found.failed[0]


def test_detectors_are_told_which_classes_are_there():
    grood = tuning.for_present(create("grood", k=2), [0, 3, 4])
    assert grood.options["present_classes"] == [0, 3, 4] and grood.options["k"] == 2
    given = create("grood", present_classes=[0, 1])
    assert tuning.for_present(given, [0, 3]) is given
    msp = create("msp")
    assert tuning.for_present(msp, [0, 3]) is msp
    both = combine([create("grood"), create("msp")])
    members = tuning.for_present(both, [0, 3]).options["members"]
    assert members[0]["present_classes"] == [0, 3] and "present_classes" not in members[1]


def test_what_was_chosen_is_said(key):
    found = tuning.choose(fitter(key), "s", [signed(-1.0), signed(1.0)], INSIDE, OUTSIDE)
    assert found.line("s") == "chosen for s: sign=1.0 (AUROC 0.8333 on validation images; 2 tried)"
    failed = [signed(1.0), signed(-1.0, fails=True)]
    steps = []
    found = tuning.choose(fitter(key), "s", failed, INSIDE, OUTSIDE, steps.append)
    assert found.line("s").endswith("1 tried, 1 could not be fitted)") and steps == [1, 1]
