"""The recipe: what it chooses, why it says so, and its scores against float64 NumPy."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.detectors import Training, auto, create, rebuild
from grood_jax.detectors.auto import OVERLAPPING, AutoState
from grood_jax.detectors.combine import CombineState
from grood_jax.detectors.spec import parse_spec
from grood_jax.support.structures import put_together, take_apart

WIDTH, CLASSES = 6, 3
WEIGHTS = np.random.default_rng(5).normal(size=(WIDTH, CLASSES)).astype(np.float32)
UNREAD = np.linalg.svd(WEIGHTS)[0][:, -1]
"""A direction of the features that the logits do not see."""

AUTO = auto()


def outputs_of(features):
    features = np.asarray(features, np.float32)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(features @ WEIGHTS))


def training_of(count=120, spread=0.3, head=True, ood=None, unread=0.0):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    features = spread * rng.normal(size=(count, WIDTH)) + 3 * WEIGHTS.T[labels]
    features += unread * rng.normal(size=(count, 1)) * UNREAD
    given = (jnp.asarray(WEIGHTS), jnp.zeros(CLASSES)) if head else None
    return Training(outputs_of(features), jnp.asarray(labels, jnp.int32), ood, head=given)


QUERIES = outputs_of(3 * np.random.default_rng(1).normal(size=(40, WIDTH)))
STAND_INS = (QUERIES, outputs_of(np.random.default_rng(2).normal(size=(200, WIDTH))))


def explained(training, key):
    state = AUTO.fit(training, key)
    return state, AUTO.explain(state)


def test_where_class_means_explain_the_samples_distances_are_taken(key):
    state, text = explained(training_of(ood=STAND_INS), key)
    assert state.members == ("grood", "mahalanobis++", "fdbd")
    assert state.fitted.calibration.shape == (3, 60)
    assert state.fitted.states[0].ood_prototype.shape == (3, WIDTH)
    assert text.splitlines()[0] == (
        "grood + mahalanobis++ + fdbd, calibrated by 60 of 120 training samples"
    )
    assert "of 60 training samples left out 100.0% lie nearest to the mean" in text
    assert "grood has OOD prototypes of mixup, noise, prototype-mean" in text


def test_what_there_is_not_is_left_out(key):
    state, text = explained(training_of(head=False, ood=(None, STAND_INS[1])), key)
    assert state.members == ("grood", "mahalanobis++")
    assert state.fitted.states[0].ood_prototype.shape == (2, WIDTH)
    assert "fdbd is left out: there is no class head" in text
    assert "grood has OOD prototypes of noise, prototype-mean" in text
    state, text = explained(training_of(), key)
    assert state.fitted.states[0].ood_prototype.shape == (WIDTH,)


def test_where_classes_overlap_their_covariance_is_taken(key):
    state, text = explained(training_of(count=600, unread=30.0), key)
    assert state.members == (*OVERLAPPING, "fdbd")
    assert state.fitted.calibration.shape == (3, 100)
    euclidean, whitened = map(float, re.findall(r"([\d.]+)%", text.splitlines()[1])[::2])
    assert 100 - whitened <= 0.75 * (100 - euclidean)
    assert f"by the classes' covariance {whitened}%: it explains a quarter" in text


def test_where_that_does_not_help_probabilities_are(key):
    state, text = explained(training_of(count=60, spread=8.0), key)
    assert state.members == ("entropy", "gen", "fdbd")
    assert "it does not explain a quarter of the others" in text
    # They keep no samples: none is left out.
    assert state.fitted.calibration.shape == (3, 60)


def without(training, label):
    rows = np.flatnonzero(np.asarray(training.labels) != label)
    outputs, labels = jax.tree.map(lambda a: a[rows], (training.outputs, training.labels))
    return replace(training, outputs=outputs, labels=labels)


@pytest.mark.slow
@pytest.mark.parametrize("unread", [0.0, 300.0])
def test_an_absent_class_is_not_expected(key, unread):
    whole = training_of(count=600, unread=unread)
    made = auto(present_classes=[2, 0])
    assert made.options == {"present_classes": [0, 2]}
    assert made.ood_sources[0].present == (0, 2)
    state = made.fit(without(whole, 1), key)
    if unread:
        assert state.members[0] == OVERLAPPING[0]
    else:
        assert len(state.fitted.states[0].class_prototypes) == 2
    # Samples of other classes make no difference.
    again = made.fit(whole, key)
    assert made.explain(again) == made.explain(state)
    np.testing.assert_allclose(made.score(again, QUERIES), made.score(state, QUERIES), rtol=1e-5)


def test_an_absent_class_that_is_expected(key):
    state, text = explained(without(training_of(), 1), key)
    assert state.members[:2] == ("entropy", "gen")
    assert "class 1 has 0 training samples" in text
    with pytest.raises(ValueError, match="no sample of class 1"):
        auto(present_classes=[0, 1]).fit(without(training_of(), 1), key)
    with pytest.raises(ValueError, match="at least two classes"):
        auto(present_classes=[1])


@pytest.mark.parametrize("count", [1, 3, 8])
def test_one_or_two_samples_a_class(key, count):
    state, text = explained(training_of(count=count), key)
    assert state.members == ("entropy", "gen", "fdbd")
    assert re.search(r"class \d has [012] training samples, fewer than 3", text)
    assert np.isfinite(AUTO.score(state, QUERIES)).all()


@pytest.mark.parametrize("negative, member", [(0.0, "vra"), (0.05, "vra"), (0.2, "entropy")])
def test_activations_are_shaped_where_a_relu_leaves_them(key, negative, member):
    training = training_of(count=5)
    features = np.abs(training.outputs.features).ravel()
    features[: round(negative * features.size)] *= -1
    given = replace(training, outputs=outputs_of(features.reshape(-1, WIDTH)))
    state, text = explained(given, key)
    assert state.members == (member, "gen", "fdbd")
    assert f"of the features are negative, {'as' if member == 'vra' else 'unlike'}" in text
    assert AUTO.fit(replace(given, head=None), key).members == ("entropy", "gen")


def test_features_that_do_not_vary_within_classes(key):
    state, text = explained(training_of(spread=0.0), key)
    assert state.members == ("entropy", "gen", "fdbd")
    assert "features do not vary within classes" in text


def fisher(scores, calibration):
    """``−2 Σ log p``: ranks, and beyond the largest tenth an exponential tail."""
    total = np.zeros(scores.shape[1])
    for own, held in zip(scores, calibration, strict=True):
        count = len(held)
        tail = max(1, count // 10, min(5, count // 2))
        start, excess = held[-tail - 1], held[-tail:].mean() - held[-tail - 1]
        above = (held > own[:, None]).sum(axis=1) + (held == own[:, None]).sum(axis=1) / 2
        p = (above + 0.5) / (count + 1)
        far = (tail + 0.5) / (count + 1) * np.exp(-(own - start) / excess)
        total -= 2 * np.log(np.where(own > start, far, p))
    return total


def test_scores_equal_float64(key):
    training = training_of(count=600, unread=30.0)
    state = AUTO.fit(training, key)
    members = [create(name, **options) for name, options in map(parse_spec, state.members)]
    scores = np.stack(
        [m.score(s, QUERIES) for m, s in zip(members, state.fitted.states, strict=True)]
    )
    expected = fisher(scores.astype(np.float64), np.float64(state.fitted.calibration))
    found = AUTO.score(state, QUERIES)
    assert found.shape == (40,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_p_values_of_ranks_and_of_the_tail(key):
    fitted = CombineState(((),), jnp.arange(20.0)[None] / 20)
    state = AutoState(fitted, ("entropy",), ())
    logits = np.array([[0.0, 0], [9, 0], [1, 0], [2, 0], [np.nan, 0]], np.float32)
    outputs = gj.Outputs(jnp.zeros((5, 1)), jnp.asarray(logits))
    scores = np.asarray(create("entropy").score((), outputs), np.float64)
    expected = fisher(scores[None, :4], np.float64(fitted.calibration))
    found = np.asarray(AUTO.score(state, outputs))
    np.testing.assert_allclose(found[:4], expected, rtol=1e-4)
    assert np.isnan(found[4])
    # One sample has no tail.
    lone = replace(state, fitted=CombineState(((),), jnp.zeros((1, 1))))
    np.testing.assert_allclose(AUTO.score(lone, outputs)[:4], -2 * np.log(0.25), rtol=1e-5)


@pytest.mark.slow
def test_it_is_rebuilt_from_what_is_written_of_it(key):
    state = AUTO.fit(training_of(ood=STAND_INS), key)
    about, arrays = take_apart("auto", (state, dict(AUTO.options)))
    again, options = put_together(json.loads(json.dumps(about)), arrays)
    made = rebuild("auto", options)
    assert made.explain(again) == AUTO.explain(state)
    np.testing.assert_array_equal(made.score(again, QUERIES), AUTO.score(state, QUERIES))


def test_the_key_decides_what_is_left_out():
    training = training_of(count=600, unread=30.0)
    first, again, other = (AUTO.fit(training, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first.fitted.calibration, again.fitted.calibration)
    assert (np.asarray(first.fitted.calibration) != other.fitted.calibration).any()


def test_no_other_detector_explains_anything():
    assert create("msp").explain(()) == ""
