"""Options are chosen by the AUROC on validation sets, and by nothing else."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax import detectors
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors import Detector, combine, create
from grood_jax.evaluation import fitting, tuning
from grood_jax.passes.training_pass import TrainingPass

ROWS = 30

grood_module = sys.modules["grood_jax.detectors.grood"]
build = grood_module.build_bank


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


COLUMNS = 4
"""Of features, of which column j has the AUROC (j + 1) / 4."""


def columned(*, color=0, size=0, k=0):
    """Scores are the feature's column that the options name."""
    grid = {"color": (0, 1, 2), "size": (0, 1, 5), "k": (0, 1)}

    def fit(training, key):
        if size == 5:
            raise ValueError("size 5 is too large")
        FITS.append((color, size))
        return ()

    def score(state, outputs):
        return outputs.features[:, max(color + size - k, 0)]

    return Detector(
        "columned",
        fit,
        score,
        {"color": color, "size": size, "k": k},
        grid={option: own for option, own in grid.items() if color != 1 or option != "size"},
        stages=(("color", "k"), ("size",)),
        fit_key=(color, size),
        each={"k": of_each},
    )


def of_each(ks):
    EACH.append(ks)

    def score(state, outputs):
        return outputs.features[:, :1] - jnp.zeros((1, len(ks)))

    return score


FITS, EACH = [], []


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(detectors._factories, "columned", columned)
    FITS.clear()
    EACH.clear()


def in_columns(rows):
    return Outputs(jnp.asarray(rows, jnp.float32), jnp.zeros((len(rows), 2)))


ID_COLUMNS = in_columns([[0.0] * COLUMNS])
OOD_COLUMNS = in_columns([[1.0 if row <= j else -1.0 for j in range(COLUMNS)] for row in range(4)])


@pytest.mark.usefixtures("registered")
def test_stages_go_on_from_the_best_so_far(key, monkeypatch):
    tried = tuning.candidates("columned", {})
    options = [tuple(d.options.values()) for d in tried]
    first = [(color, 0, k) for color in (0, 1, 2) for k in (0, 1)]
    assert options == [*first, (0, 1, 0), (0, 5, 0)]
    monkeypatch.setattr(tuning, "_runs", lambda found: [[detector] for detector in found])
    steps = []
    found = tuning.choose(fitter(key), "c", tried, ID_COLUMNS, OOD_COLUMNS, steps.append)
    # The best color is 2, and with it the best size is 1; (0, 1) is never fitted.
    assert found.values == {"color": 2, "size": 1, "k": 0} and found.auroc == 1.0
    assert FITS == [(0, 0), (1, 0), (2, 0), (2, 1)]
    assert (found.tried, found.failed, len(steps)) == (7, ("size 5 is too large",), 8)


@pytest.mark.usefixtures("registered")
def test_values_that_can_be_are_scored_together(key):
    tried = tuning.candidates("columned", {"size": 0})
    found = tuning.choose(fitter(key), "c", tried, ID_COLUMNS, OOD_COLUMNS)
    assert EACH == [(0, 1)] * 3 and FITS == [(0, 0), (1, 0), (2, 0)]
    assert (found.auroc, found.tried) == (0.25, 6)
    assert found.values == {"color": 0, "size": 0, "k": 0}


@pytest.mark.usefixtures("registered")
def test_options_that_the_best_does_not_have_are_not_searched(key):
    tried = tuning.candidates("columned", {"color": 1})
    assert [tuple(d.options.values()) for d in tried] == [(1, 0, 0), (1, 0, 1)]
    found = tuning.choose(fitter(key), "c", tried, ID_COLUMNS, OOD_COLUMNS)
    assert set(found.values) == {"color", "k"}


def test_only_the_last_fitted_state_is_kept(key):
    fits, own = [], fitter(key)
    for sign in (1.0, 1.0, 2.0, 1.0):
        own.fit("s", signed(sign, fits, fit_key=sign))
    own.fit("t", signed(1.0, fits, fit_key=1.0))
    assert fits == [1.0, 2.0, 1.0, 1.0] and set(own.fits) == {"s", "t"}
    own.fit("s", signed(3.0, fits))
    assert set(own.fits) == {"t"}


def test_equal_scores_of_detectors_made_anew_are_one():
    first, second = create("grood", mixup_weight=0.3), create("grood", sampling_ratio=0.5)
    assert first.score == second.score and hash(first.score) == hash(second.score)
    assert first.score != create("grood", k=2).score


def test_what_grood_is_given_is_of_all_that_the_search_may_come_to():
    tried = tuning.candidates("grood", {})
    # 4 sources with 6 k; 2 further spaces with 6 k; 5 further λ; the farthest fifth; 5 shares.
    assert len(tried) == 24 + 12 + 5 + 1 + 5
    prepared_for = {source for detector in tried for source in detector.ood_sources}
    weights = {source.weight for source in prepared_for if hasattr(source, "weight")}
    assert weights == {0.5, 0.1, 0.3, 0.6, 0.8, 0.9} and len(prepared_for) == 7
    assert len(tuning.candidates("grood", {"k": 3, "ood_prototype": "noise"})) == 1 + 2 + 5


def test_grood_is_fitted_once_for_all_k(key, monkeypatch):
    rng = np.random.default_rng(0)
    labels = jnp.arange(60, dtype=jnp.int32) % 2
    features = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32) + 3 * labels[:, None]
    own = prepared(Outputs(features, jax.nn.one_hot(labels, 2)), labels, key)
    given = {"ood_prototype": "prototype-mean", "space": "raw", "sampling_ratio": 1.0}
    tried = tuning.candidates("grood", given)
    assert [d.options["k"] for d in tried] == [1, 5, 10, 20, 50, 100]
    fits = []
    monkeypatch.setattr(grood_module, "build_bank", lambda rows, **o: fits.append(1) or build(rows))
    inside = Outputs(features[:9] + 0.1, jnp.zeros((9, 2)))
    outside = Outputs(features[:9] + 20, jnp.zeros((9, 2)))
    found = tuning.choose(own, "grood", tried[:3], inside, outside)
    assert len(fits) == 1 and (found.tried, found.failed) == (3, ())
    # More neighbours than there are rows: the others are scored one by one.
    found = tuning.choose(own, "grood", tried[4:], inside, outside)
    assert found.tried == 1 and "k is 100; expected at most" in found.failed[0]
