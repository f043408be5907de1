"""The ensemble by calibrated rank, against float64 NumPy and on members made for the purpose."""

import functools
import json
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import combine_pvalues, kstest

import grood_jax as gj
from grood_jax.backbone.outputs import Grams, Mix, Perturbed
from grood_jax.detectors import Detector, MixedTraining, Noise, Training, Validation
from grood_jax.detectors.combine import CombineState, combine
from grood_jax.detectors.energy import energy
from grood_jax.detectors.grood import grood
from grood_jax.detectors.knn import knn
from grood_jax.detectors.msp import msp
from grood_jax.detectors.residual import residual

HOWS = ("mean", "max", "min", "fisher")
WIDTH, CLASSES, SAMPLES, QUERIES = 8, 4, 200, 60
HELD_OUT = QUERIES / SAMPLES  # one shape, one compilation
# Members are shared by tests, for what is compiled goes with them.
ENERGY, MSP, KNN = energy(), msp(), knn(k=1)
WEIGHTS = np.random.default_rng(5).normal(size=(WIDTH, CLASSES)).astype(np.float32)


def outputs_of(features):
    features = np.asarray(features, np.float32)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(features @ WEIGHTS))


def training_of(count=SAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    features = rng.normal(size=(count, WIDTH)) + WEIGHTS.T[labels]
    head = (jnp.asarray(WEIGHTS), jnp.zeros(CLASSES))
    return Training(outputs_of(features), jnp.asarray(labels, jnp.int32), head=head)


@pytest.fixture(scope="module")
def training():
    return training_of()


@pytest.fixture(scope="module")
def fresh():
    return outputs_of(1.5 * np.random.default_rng(1).normal(size=(QUERIES, WIDTH)))


@functools.cache
def column(i=0, name="column", apply=lambda x: x, **fields):
    """A member that scores a column of the features; its state is what it was fitted on."""

    def score(state, outputs):
        return apply(jnp.asarray(outputs.features)[:, i])

    return Detector(name, lambda training, key: (training, key), score, **fields)


def scores(detector, training, outputs):
    state = detector.fit(training, jax.random.key(0))
    found = detector.score(state, outputs)
    assert found.shape == (len(outputs.logits),) and found.dtype == jnp.float32
    return np.asarray(found)


def split(training, state, place):
    """Which training rows the member in some place was fitted on, and which were held out."""
    own = np.asarray(state.states[place][0].outputs.features)[:, 0]
    kept = np.isin(np.asarray(training.outputs.features)[:, 0], own)
    return np.flatnonzero(kept), np.flatnonzero(~kept)


def mid_ranks(calibration, found):
    below = (calibration < found[:, None]).sum(axis=1)
    equal = (calibration == found[:, None]).sum(axis=1)
    return (below + equal / 2 + 0.5) / (len(calibration) + 1)


def by_energy(kept, h):
    return -logsumexp(h @ WEIGHTS.astype(np.float64), axis=1)


def by_msp(kept, h):
    logits = h @ WEIGHTS.astype(np.float64)
    return 1 - np.exp(logits.max(axis=1) - logsumexp(logits, axis=1))


def by_knn(kept, h):
    unit_h, unit_kept = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (h, kept))
    return np.linalg.norm(unit_h[:, None] - unit_kept, axis=2).min(axis=1)


JOINED = {
    "mean": lambda ranks: np.mean(ranks, axis=0),
    "max": lambda ranks: np.max(ranks, axis=0),
    "min": lambda ranks: np.min(ranks, axis=0),
    "fisher": lambda ranks: combine_pvalues(1 - np.stack(ranks), method="fisher").statistic,
}


@pytest.mark.parametrize("how", HOWS)
def test_scores_equal_float64(how, training, fresh):
    detector = combine([ENERGY, MSP, KNN, column()], how=how, held_out=HELD_OUT)
    state = detector.fit(training, jax.random.key(0))
    kept, out = split(training, state, 3)
    assert len(out) == QUERIES and state.calibration.shape == (4, QUERIES)
    # In the bank of KNN they would score 0.
    assert (state.calibration[2] > 0).all()
    h, queries = (np.asarray(o.features, np.float64) for o in (training.outputs, fresh))
    ranks = [
        mid_ranks(form(h[kept], h[out]), form(h[kept], queries))
        for form in (by_energy, by_msp, by_knn, lambda kept, h: h[:, 0])
    ]
    found = detector.score(state, fresh)
    # float32 and float64 order these samples alike; what is left are roundings of the ranks.
    np.testing.assert_allclose(found, JOINED[how](ranks), rtol=2e-6)


def test_ties_rank_in_their_middle():
    detector = combine([column(), column()])
    calibration = jnp.tile(jnp.asarray([0.0, 1.0, 1.0, 2.0]), (2, 1))
    queries = np.zeros((8, WIDTH))
    queries[:, 0] = [-np.inf, -1.0, -0.0, 0.5, 1.0, 2.0, 3.0, np.inf]
    logits = jnp.zeros((8, CLASSES))
    outputs = gj.Outputs(jnp.asarray(queries, jnp.float32), logits)
    found = detector.score(CombineState(((), ()), calibration), outputs)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.2, 0.3, 0.5, 0.8, 0.9, 0.9], rtol=1e-6)


@pytest.mark.parametrize("apply", [lambda x: 1e-6 * x, lambda x: jnp.exp(3 * x), jnp.arctan])
def test_only_the_order_of_a_members_scores_matters(apply, training, fresh):
    for how in HOWS:
        plain, changed = (
            scores(combine([ENERGY, member], how=how), training, fresh)
            for member in (column(1), column(1, apply=apply))
        )
        np.testing.assert_array_equal(changed, plain)


def on_random_axis(state, outputs):
    return outputs.features @ state


@pytest.mark.parametrize("how", HOWS)
def test_the_order_of_members_does_not_matter(how, training, fresh):
    axis = Detector("axis", lambda _, key: jax.random.normal(key, (WIDTH,)), on_random_axis)
    members = [ENERGY, axis, column(1), MSP]
    found = scores(combine(members, how=how), training, fresh)
    turned = scores(combine(members[::-1], how=how), training, fresh)
    # Sums of whole numbers are exact; those of logarithms are not.
    np.testing.assert_allclose(turned, found, rtol=1e-6 if how == "fisher" else 0)


@pytest.mark.parametrize("how", ["mean", "fisher"])
def test_scores_depend_neither_on_the_batch_nor_on_compilation(how, training, fresh):
    detector = combine([ENERGY, column(1), MSP], how=how)
    state = detector.fit(training, jax.random.key(0))
    found = np.asarray(detector.score(state, fresh))
    np.testing.assert_allclose(jax.jit(detector.score)(state, fresh), found, rtol=1e-6)
    part = jax.tree.map(lambda array: array[9::-1], fresh)
    np.testing.assert_allclose(detector.score(state, part), found[9::-1], rtol=1e-6)
    host = jax.tree.map(np.asarray, fresh)
    np.testing.assert_array_equal(detector.score(state, host), found)


def test_new_samples_of_the_distribution_have_uniform_ranks():
    training, new = training_of(400), training_of(2000, seed=2).outputs

    def score(state, outputs):
        return jnp.linalg.norm(outputs.features[:, None] - state, axis=2).min(axis=1)

    nearest = Detector("nearest", lambda training, key: training.outputs.features[None], score)
    # Of one member twice, the mean rank is its rank.
    found = scores(combine([nearest, nearest], held_out=0.5), training, new)
    assert (found > 0).all() and (found < 1).all()
    # 200 ranks against 2000: the distance exceeds 0.12 once in a hundred times.
    assert kstest(found, "uniform").statistic < 0.12


@pytest.mark.parametrize("how", HOWS)
def test_far_samples_score_highest(how, training, fresh):
    detector = combine([column(0, apply=jnp.abs), column(1, apply=jnp.abs)], how=how)
    near, far, farther = scores(
        detector, training, outputs_of(np.outer([1e-3, 1e3, 1e4], np.ones(WIDTH)))
    )
    assert near < far
    # There are no ranks above the top.
    assert far == farther


@pytest.mark.parametrize("how", HOWS)
def test_nan_is_not_hidden(how, training, fresh):
    features = np.asarray(fresh.features).copy()
    features[3, 1] = np.nan
    spoilt = replace(fresh, features=jnp.asarray(features))
    found = scores(combine([ENERGY, column(1), column(0)], how=how), training, spoilt)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(found)), [3])


def test_nan_scores_of_held_out_samples_are_refused(training):
    detector = combine([ENERGY, column(apply=lambda x: jnp.where(x > 0, x, jnp.nan))])
    with pytest.raises(ValueError, match=r"column scores \d+ of 20 held-out training samples NaN"):
        detector.fit(training, jax.random.key(0))


# fitting


def test_members_are_fitted_on_the_others_and_given_what_they_ask_for(training):
    ood = outputs_of(np.ones((5, WIDTH)))
    perturbed, grams = Perturbed(10.0, 0.1), Grams((1, 2))
    extra = {
        perturbed: np.asarray(training.outputs.logits) + 1,
        grams: (np.asarray(training.outputs.features)[:, None], np.zeros((SAMPLES, 1, 3))),
    }
    full = replace(training, outputs=replace(training.outputs, extra=extra), ood=ood)

    def score(state, outputs):
        return jnp.asarray(outputs.extra[perturbed])[:, 0]

    members = [
        column(0),
        column(1, "with_ood", ood=Noise(5), fit_needs=(grams,)),
        column(2, "with_head", head=True, ood=Noise(5)),
        replace(column(3, "with_needs"), score=score, needs=(perturbed,)),
    ]
    detector = combine(members)
    assert detector.head and detector.ood == Noise(5) and detector.rows is None
    assert detector.needs == (perturbed,) and set(detector.fit_needs) == {perturbed, grams}
    state = detector.fit(full, jax.random.key(0))
    kept, out = split(full, state, 0)
    assert len(kept) == 180 and len(out) == 20
    for place, (given, _) in enumerate(state.states):
        np.testing.assert_array_equal(given.outputs.features, full.outputs.features[kept])
        np.testing.assert_array_equal(given.labels, full.labels[kept])
        assert (given.head is None) == (place != 2) and given.mixed is None
        assert (given.ood is None) == (place not in (1, 2))
        # What is needed at scoring only is not copied.
        assert set(given.outputs.extra) == {grams}
        np.testing.assert_array_equal(given.outputs.extra[grams][0], extra[grams][0][kept])
    apart = np.asarray(full.outputs.features)[out]
    np.testing.assert_array_equal(state.calibration[:3], np.sort(apart[:, :3], axis=0).T)
    np.testing.assert_array_equal(state.calibration[3], np.sort(extra[perturbed][out, 0]))


def test_without_members_that_ask_nothing_is_asked_for():
    detector = combine([ENERGY, knn(k=1)])
    assert not detector.head and detector.ood is None and detector.needs == ()
    assert detector.fit_needs == () and detector.compiled and detector.name == "combine"


def test_members_with_a_head_work(training, fresh):
    assert np.isfinite(scores(combine([residual(dim=2), ENERGY]), training, fresh)).all()


def test_each_member_has_a_key_of_its_own(training):
    def keys(*names, seed=0):
        detector = combine([column(0, name) for name in names])
        state = detector.fit(training, jax.random.key(seed))
        return [tuple(jax.random.key_data(key).tolist()) for _, key in state.states]

    a, b, again = keys("a", "b", "a")
    assert len({a, b, again}) == 3
    # Whatever the others are.
    assert keys("c", "a")[1] == a and keys("c", "a", seed=1)[1] != a


def test_the_key_decides_what_is_held_out(training):
    detector = combine([column(0), column(1)])
    states = [detector.fit(training, jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(states[0].calibration, states[1].calibration)
    assert (states[0].calibration != states[2].calibration).any()


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    # Of four classes, with two samples and one, each keeps one.
    [(2, 0.01, 1), (2, 0.99, 1), (7, 0.99, 3)],
)
def test_some_are_held_out_and_some_are_not(count, share, expected):
    training = training_of(count)
    state = combine([column(0), column(1)], held_out=share).fit(training, jax.random.key(0))
    assert state.calibration.shape == (2, expected)
    assert len(split(training, state, 0)[0]) == count - expected


def test_held_out_samples_are_scored_in_blocks(training, monkeypatch):
    whole = combine([column(0), ENERGY], held_out=0.3).fit(training, jax.random.key(0))
    # As a module: the package may have the function by that name.
    monkeypatch.setattr(sys.modules["grood_jax.detectors.combine"], "SCORED_ROWS", 7)
    seen = []

    def apply(x):
        seen.append(x.shape)
        return x

    members = [column(0, apply=apply, compiled=False), ENERGY]
    state = combine(members, held_out=0.3).fit(training, jax.random.key(0))
    assert seen == [(7,)] * 9  # 60 samples
    np.testing.assert_array_equal(state.calibration[0], whole.calibration[0])
    np.testing.assert_allclose(state.calibration[1], whole.calibration[1], rtol=1e-6)


def test_a_member_that_must_not_be_compiled_is_not(training, fresh):
    on_host = column(1, apply=lambda x: jnp.asarray(np.asarray(x)), compiled=False)
    detector = combine([ENERGY, on_host])
    assert not detector.compiled
    expected = scores(combine([ENERGY, column(1)]), training, fresh)
    np.testing.assert_array_equal(scores(detector, training, fresh), expected)


def test_combinations_can_be_combined(training, fresh):
    inner = combine([knn(k=2), energy()], how="max")
    outer = combine([inner, msp()], held_out=0.2)
    options = json.loads(json.dumps(outer.options))
    assert options == {
        "members": [
            {
                "name": "combine",
                "members": [
                    {"name": "knn", "k": 2, "sampling_ratio": 1.0},
                    {"name": "energy", "temperature": 1.0},
                ],
                "how": "max",
                "held_out": 0.1,
            },
            {"name": "msp"},
        ],
        "how": "mean",
        "held_out": 0.2,
    }
    found = scores(combine([combine([column(1), column()]), column()]), training, fresh)
    assert (found > 0).all() and (found < 1).all()


# what is refused


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="training.outputs has 1 samples; combine expects at le"):
        combine([energy(), msp()]).fit(training_of(1), jax.random.key(0))


def test_what_members_raise_is_passed_on(training):
    with pytest.raises(ValueError, match="k is 181; expected at most 180, the features in the ba"):
        combine([energy(), knn(k=181)]).fit(training, jax.random.key(0))
    with pytest.raises(ValueError, match="training.head is None; residual expects"):
        combine([energy(), residual()]).fit(replace(training, head=None), jax.random.key(0))


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([], ValueError, "members has length 0; expected at least two detectors"),
        ([energy()], ValueError, "members has length 1; expected at least two detectors"),
        (energy(), TypeError, "members is Detector(name='energy'"),
        (["knn", "msp"], TypeError, "members holds 'knn'; expected detectors"),
        (
            [grood(ood_prototype="noise"), energy(), grood(ood_prototype="validation")],
            ValueError,
            "member grood needs Noise(images=1000, raw=False) and member grood needs Validation(); "
            "expected at most one kind of OOD samples",
        ),
        (
            [grood(), grood(mixup_weight=0.4)],
            ValueError,
            f"member grood needs {MixedTraining(0.5, 10_000)} and member grood needs "
            f"{MixedTraining(0.4, 10_000)}",
        ),
        ([energy(), grood(interpolate=True)], ValueError, "member grood needs mixed copies"),
        ([column(needs=(Mix(1, 0.5),)), energy()], ValueError, "member column needs mixed copies"),
    ],
)
def test_members_are_checked(members, error, message, unchecked):
    with pytest.raises(error, match=re.escape(message)):
        combine(members)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"how": "median"}, ValueError, "how is 'median'; expected one of mean, max, min, fisher"),
        ({"held_out": 0}, ValueError, "held_out is 0.0; expected a number in (0, 1)"),
        ({"held_out": 1.0}, ValueError, "held_out is 1.0; expected a number in (0, 1)"),
        ({"held_out": -0.1}, ValueError, "held_out is -0.1; expected a number"),
        ({"held_out": 1.5}, ValueError, "held_out is 1.5; expected a number"),
        ({"held_out": True}, TypeError, "held_out is True; expected a number"),
        ({"held_out": "a tenth"}, TypeError, "held_out is 'a tenth'; expected a number"),
    ],
)
def test_options_are_checked(options, error, message, unchecked):
    with pytest.raises(error, match=re.escape(message)):
        combine([energy(), msp()], **options)


def test_members_of_one_kind_of_ood_samples_go_together():
    members = [column(ood=Validation()), grood(ood_prototype="validation"), energy()]
    assert combine(members).ood == Validation()


def test_classes_of_two_samples_can_be_combined_whatever_is_drawn():
    rng = np.random.default_rng(0)
    classes = 20
    labels = np.repeat(np.arange(classes), 2)
    logits = rng.normal(size=(2 * classes, classes)) + 9 * np.eye(classes)[labels]
    features = rng.normal(size=(2 * classes, WIDTH))
    training = Training(
        gj.Outputs(jnp.asarray(features, jnp.float32), jnp.asarray(logits, jnp.float32)),
        jnp.asarray(labels, jnp.int32),
    )
    members = [column(0), column(1)]
    for seed in range(5):
        state = combine(members, held_out=0.5).fit(training, jax.random.key(seed))
        assert set(np.asarray(state.states[0][0].labels)) == set(range(classes))


def test_a_members_option_called_name_is_refused():
    with pytest.raises(ValueError, match="member column has an option called 'name'"):
        combine([ENERGY, replace(column(0), options={"name": 3})])
