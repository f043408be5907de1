"""Promises of conformal calibration, against counting and against known distributions."""

import math
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from grood_jax.conformal.calibration import (
    Calibration,
    calibrate,
    conformal_p_values,
    false_discovery,
    is_ood,
    threshold,
)

REPEATS = 1000


def exact_p_value(held_out, score):
    return Fraction(1 + sum(s >= score for s in held_out), len(held_out) + 1)


def exact_threshold(held_out, target):
    rank = math.ceil((len(held_out) + 1) * Fraction(target))
    return sorted(held_out)[rank - 1] if rank <= len(held_out) else math.inf


def by_class(scores, classes, num_classes):
    return [[s for s, c in zip(scores, classes, strict=True) if c == k] for k in range(num_classes)]


def test_p_values_of_four_held_out_scores():
    calibration = calibrate([3.0, 1.0, 2.0, 2.0])
    found = conformal_p_values(calibration, [0.0, 1.0, 1.5, 2.0, 3.0, 3.5, -np.inf, np.inf])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.array([5, 5, 4, 4, 2, 1, 5, 1]) / 5, rtol=1e-7)


def test_threshold_and_decisions_of_four_held_out_scores():
    calibration = calibrate([3.0, 1.0, 2.0, 2.0])
    found = [
        float(threshold(calibration, target)) for target in (0.1, 0.2, 0.4, 0.6, 0.8, 0.81, 1.0)
    ]
    assert found == [1.0, 1.0, 2.0, 2.0, 3.0, np.inf, np.inf]
    np.testing.assert_array_equal(is_ood(calibration, [2.0, 2.5, 3.5], 0.6), [False, True, True])


def test_each_predicted_class_has_its_own_held_out_scores():
    calibration = calibrate([5.0, 1.0, 4.0, 2.0, 3.0], [2, 0, 2, 0, 0], 4)
    scores, classes = [2.0, 2.0, 4.5, 99.0], [0, 2, 2, 1]
    found = conformal_p_values(calibration, scores, classes)
    np.testing.assert_allclose(found, [3 / 4, 3 / 3, 2 / 3, 1], rtol=1e-7)
    np.testing.assert_array_equal(threshold(calibration, 0.5), [2.0, np.inf, 5.0, np.inf])
    np.testing.assert_array_equal(
        is_ood(calibration, [2.5, 4.0, 5.5, 99.0], 0.5, classes), [True, False, True, False]
    )


few = st.integers(-3, 3).map(float)
numbers = st.floats(width=32, allow_nan=False, allow_subnormal=False)
targets = st.sampled_from(["0.5", "0.8", "0.9", "0.95", "0.975", "1"]) | st.decimals(
    "0.0001", 1, places=4
).map(str)
# Each size is compiled once.
sizes = st.sampled_from([1, 2, 7, 19, 20])


@settings(deadline=None, max_examples=100)
@given(size=sizes, values=st.sampled_from([few, numbers]), target=targets, data=st.data())
def test_decisions_are_those_of_thresholds_and_of_p_values(size, values, target, data):
    held_out = data.draw(st.lists(values, min_size=size, max_size=size))
    some = st.one_of(values, st.sampled_from([*held_out, np.inf, -np.inf]))
    scores = data.draw(st.lists(some, min_size=10, max_size=10))
    calibration, share = calibrate(held_out), float(target)
    p_values = [exact_p_value(held_out, s) for s in scores]
    found = conformal_p_values(calibration, scores)
    np.testing.assert_array_equal(found, np.array([float(p) for p in p_values], np.float32))
    limit = exact_threshold(held_out, target)
    assert float(threshold(calibration, share)) == limit
    decisions = np.asarray(is_ood(calibration, scores, share)).tolist()
    assert decisions == [s > limit for s in scores]
    assert decisions == [p <= 1 - Fraction(target) for p in p_values]


@settings(deadline=None, max_examples=100)
@given(size=sizes, target=targets, data=st.data())
def test_classes_are_calibrated_each_for_itself(size, target, data):
    pairs = st.tuples(few, st.integers(0, 3))
    samples = data.draw(st.lists(pairs, min_size=size, max_size=size))
    asked = data.draw(st.lists(pairs, min_size=10, max_size=10))
    held_out, classes = (list(column) for column in zip(*samples, strict=True))
    scores, groups = (list(column) for column in zip(*asked, strict=True))
    calibration = calibrate(held_out, classes, 4)
    apart = by_class(held_out, classes, 4)
    expected = [float(exact_p_value(apart[c], s)) for s, c in asked]
    found = conformal_p_values(calibration, scores, groups)
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    limits = [exact_threshold(own, target) for own in apart]
    np.testing.assert_array_equal(threshold(calibration, float(target)), limits)
    decisions = is_ood(calibration, scores, float(target), groups)
    np.testing.assert_array_equal(decisions, [s > limits[c] for s, c in asked])


@pytest.mark.parametrize("target", [0.95, 0.9, 0.99, 0.8, 0.7, 0.1 + 0.2])
def test_ranks_do_not_suffer_from_binary_fractions(target):
    # A class of each size, with the scores 1, 2, …
    sizes = np.arange(1, 200)
    classes = np.repeat(sizes - 1, sizes)
    scores = np.concatenate([np.arange(1.0, size + 1) for size in sizes])
    ranks = [math.ceil((int(size) + 1) * Fraction(str(target))) for size in sizes]
    expected = np.where(ranks <= sizes, ranks, np.inf)
    np.testing.assert_array_equal(
        threshold(calibrate(scores, classes, len(sizes)), target), expected
    )


# The share of uniform scores at or below a threshold is the threshold itself.


@pytest.mark.parametrize(("size", "target"), [(200, 0.95), (99, 0.9)])
def test_the_realised_rate_has_the_promised_distribution(size, target):
    rng = np.random.default_rng(0)
    realised = [float(threshold(calibrate(rng.random(size)), target)) for _ in range(REPEATS)]
    assert_promised(realised, size, target)


def test_the_realised_rate_of_each_class_has_the_promised_distribution():
    rng = np.random.default_rng(1)
    sizes, target = {0: 150, 1: 40, 2: 333}, 0.9
    classes = np.repeat(list(sizes), list(sizes.values()))
    # Scores of a class are of its own scale, which calibration on the whole would not see.
    scales = np.array([1.0, 5.0, 0.2])
    realised = []
    for _ in range(REPEATS):
        order = rng.permutation(len(classes))
        scores = rng.random(len(classes)) * scales[classes]
        found = threshold(calibrate(scores[order], classes[order], 3), target)
        realised.append(np.asarray(found) / scales)
    for c, size in sizes.items():
        assert_promised(np.array(realised)[:, c], size, target)


def assert_promised(realised, size, target):
    rank = math.ceil((size + 1) * Fraction(str(target)))
    promised = stats.beta(rank, size + 1 - rank)
    assert stats.kstest(realised, promised.cdf).pvalue > 0.01
    error = promised.std() / math.sqrt(len(realised))
    assert np.mean(realised) == pytest.approx(rank / (size + 1), abs=3 * error)
    assert target <= rank / (size + 1) < target + 1 / (size + 1)


def test_p_values_of_new_samples_are_uniform_over_their_steps():
    rng = np.random.default_rng(2)
    # Each class is a draw of its own.
    calibration = calibrate(rng.random(9 * REPEATS), np.repeat(np.arange(REPEATS), 9), REPEATS)
    found = conformal_p_values(calibration, rng.random(REPEATS), np.arange(REPEATS))
    counts = np.bincount(np.rint(10 * np.asarray(found)).astype(int), minlength=11)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 0.01


def test_ties_only_raise_the_realised_rate():
    rng = np.random.default_rng(3)
    classes = np.repeat(np.arange(REPEATS), 99)
    limits = threshold(calibrate(rng.integers(0, 10, classes.shape), classes, REPEATS), 0.9)
    realised = np.minimum((np.asarray(limits) + 1) / 10, 1.0)
    assert realised.mean() > 0.9
    # At each rate at least as often as without ties.
    for rate in np.arange(0.8, 1.0, 0.01):
        promised = stats.beta(90, 10).sf(rate)
        assert (realised >= rate).mean() > promised - 3 * math.sqrt(0.25 / REPEATS)


def test_the_false_discovery_rate_is_kept():
    rng = np.random.default_rng(4)
    inside, outside = 160, 40
    rates = (0.05, 0.1, 0.2)
    false, power = {rate: [] for rate in rates}, {rate: [] for rate in rates}
    for _ in range(REPEATS):
        calibration = calibrate(rng.normal(size=1000))
        scores = np.concatenate([rng.normal(size=inside), rng.normal(3.0, 1.0, outside)])
        p_values = conformal_p_values(calibration, scores)
        for rate in rates:
            picked = false_discovery(p_values, rate)
            false[rate].append(picked[:inside].sum() / max(picked.sum(), 1))
            power[rate].append(picked[inside:].mean())
    for rate in rates:
        bound = rate * inside / (inside + outside)
        error = np.std(false[rate]) / math.sqrt(REPEATS)
        # For scores without ties it is close to its bound.
        assert 0.85 * bound < np.mean(false[rate]) < bound + 3 * error
        assert np.mean(power[rate]) > 0.5


def picked_by_definition(p_values, rate):
    """Whether there is a k with p <= k rate / m and at least k p-values so small."""
    count = len(p_values)
    limits = [Fraction(k) * Fraction(str(rate)) / count for k in range(count + 1)]
    best = max(k for k in range(count + 1) if sum(p <= limits[k] for p in p_values) >= k)
    return [p <= limits[best] for p in p_values]


@settings(deadline=None, max_examples=150)
@given(
    numerators=st.lists(st.integers(1, 20), min_size=1, max_size=20),
    rate=st.sampled_from([0.05, 0.1, 0.25, 0.5, 1.0]),
)
def test_false_discovery_is_benjamini_and_hochbergs_procedure(numerators, rate):
    exact = [Fraction(n, 20) for n in numerators]
    found = false_discovery(np.array([float(p) for p in exact], np.float32), rate)
    assert found.tolist() == picked_by_definition(exact, rate)


def test_false_discovery_of_no_samples_and_of_none_that_is_ood():
    assert false_discovery(np.zeros(0), 0.1).shape == (0,)
    assert not false_discovery(np.ones(5), 0.1).any()
    assert false_discovery(np.zeros(5), 0.1).all()


def test_a_single_held_out_score():
    calibration = calibrate([2.0])
    np.testing.assert_array_equal(conformal_p_values(calibration, [1.0, 2.0, 3.0]), [1, 1, 0.5])
    assert float(threshold(calibration, 0.5)) == 2.0
    assert float(threshold(calibration, 0.51)) == np.inf


def test_too_few_held_out_scores_let_everything_pass():
    assert float(threshold(calibrate(np.arange(18.0)), 0.95)) == np.inf
    assert float(threshold(calibrate(np.arange(19.0)), 0.95)) == 18.0
    assert not is_ood(calibrate(np.arange(18.0)), [1e9, np.inf], 0.95).any()


def test_no_scores():
    calibration = calibrate([1.0])
    assert conformal_p_values(calibration, np.zeros(0)).shape == (0,)
    assert is_ood(calibration, np.zeros(0), 0.5).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.int32])
def test_any_real_dtype(dtype):
    held_out, scores = np.arange(9).astype(dtype), np.array([3, 8, 9]).astype(dtype)
    np.testing.assert_allclose(
        conformal_p_values(calibrate(held_out), scores), [0.7, 0.2, 0.1], rtol=1e-6
    )


def drawn(num_classes=None):
    rng = np.random.default_rng(5)
    # Rounded, so that there are ties.
    held_out, scores = rng.normal(size=300).round(1), rng.normal(0.5, 1.0, 50).round(1)
    if num_classes is None:
        return calibrate(held_out), scores, None
    held_out_classes = rng.integers(0, num_classes - 1, 300)
    calibration = calibrate(held_out, held_out_classes, num_classes)
    return calibration, scores, rng.integers(0, num_classes, 50)


@pytest.mark.parametrize("num_classes", [None, 1 + 4])
def test_compiled_code_finds_the_same(num_classes):
    calibration, scores, classes = drawn(num_classes)
    p_values = conformal_p_values(calibration, scores, classes)
    decisions = is_ood(calibration, scores, 0.9, classes)
    limits = threshold(calibration, 0.9)

    def all_three(calibration, scores, classes):
        return (
            conformal_p_values(calibration, scores, classes),
            is_ood(calibration, scores, 0.9, classes),
            threshold(calibration, 0.9),
        )

    # As an argument, and as a constant.
    for found in (
        jax.jit(all_three)(calibration, scores, classes),
        jax.jit(lambda s, c: all_three(calibration, s, c))(scores, classes),
    ):
        for one, other in zip(found, (p_values, decisions, limits), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_classes", [None, 1 + 4])
@pytest.mark.parametrize("constant", [False, True])
def test_exported_code_takes_any_batch(num_classes, constant):
    pytest.importorskip("flatbuffers")
    from jax import export

    calibration, scores, classes = drawn(num_classes)

    def both(held_out, starts, scores, classes):
        own = calibration if constant else Calibration(held_out, starts)
        return conformal_p_values(own, scores, classes), is_ood(own, scores, 0.9, classes)

    batch = export.symbolic_shape("b")
    like = (
        calibration.scores,
        calibration.starts,
        jax.ShapeDtypeStruct(batch, jnp.float32),
        None if classes is None else jax.ShapeDtypeStruct(batch, jnp.int32),
    )
    loaded = export.deserialize(export.export(jax.jit(both))(*like).serialize())
    for size in (1, 7, 50):
        some = jnp.asarray(scores[:size], jnp.float32)
        groups = None if classes is None else jnp.asarray(classes[:size], jnp.int32)
        p_values, decisions = loaded.call(calibration.scores, calibration.starts, some, groups)
        np.testing.assert_array_equal(p_values, conformal_p_values(calibration, some, groups))
        np.testing.assert_array_equal(decisions, is_ood(calibration, some, 0.9, groups))


def test_nan_in_compiled_code_is_never_taken_for_in_distribution():
    calibration = calibrate([1.0])
    scores = jnp.array([jnp.nan, 0.0])
    p_values = jax.jit(lambda s: conformal_p_values(calibration, s))(scores)
    np.testing.assert_array_equal(p_values, [np.nan, 1.0])
    # Even where the threshold is infinite.
    found = jax.jit(lambda s: is_ood(calibration, s, 0.99))(scores)
    np.testing.assert_array_equal(found, [True, False])


@pytest.mark.parametrize(
    "given, error, message",
    [
        (([],), ValueError, "scores has shape (0,); expected (N,) with N at least 1"),
        ((np.zeros((2, 1)),), ValueError, "scores has shape (2, 1); expected (N,)"),
        (([1.0, np.nan],), ValueError, "scores holds 1 values that are NaN, the first at index 1"),
        (([True],), TypeError, "scores has dtype bool; expected real numbers"),
        (([1.0], [0]), ValueError, "num_classes is None; expected both classes and num_classes"),
        (([1.0], None, 2), ValueError, "classes is None; expected both classes and num_classes"),
        (([1.0], [0], 0), ValueError, "num_classes is 0; expected at least 1"),
        (([1.0], [2], 2), ValueError, "classes holds 2; expected classes from 0 to 1"),
        (([1.0], [0.0], 2), TypeError, "classes has dtype float64; expected integers"),
        (([1.0], [0, 0], 2), ValueError, "classes has shape (2,); expected (1,)"),
    ],
)
def test_bad_calibration(unchecked, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        calibrate(*given)


@pytest.mark.parametrize(
    "num_classes, scores, classes, error, message",
    [
        (None, [np.nan], None, ValueError, "scores holds 1 values that are NaN"),
        (None, 1.0, None, ValueError, "scores has shape (); expected (N,)"),
        (None, [1.0], [0], ValueError, "classes are given; expected None"),
        (5, [1.0], None, ValueError, "classes is None; expected the predicted classes"),
        (5, [1.0], [5], ValueError, "classes holds 5; expected classes from 0 to 4"),
        (5, [1.0], [0, 1], ValueError, "classes has shape (2,); expected (1,)"),
    ],
)
def test_bad_scores(unchecked, num_classes, scores, classes, error, message):
    calibration, _, _ = drawn(num_classes)
    with pytest.raises(error, match=re.escape(message)):
        conformal_p_values(calibration, scores, classes)
    with pytest.raises(error, match=re.escape(message)):
        is_ood(calibration, scores, 0.9, classes)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_bad_rates(value):
    with pytest.raises(ValueError, match=r"target_tpr is .*; expected a number in \(0, 1\]"):
        threshold(calibrate([1.0]), value)
    with pytest.raises(ValueError, match=r"rate is .*; expected a number in \(0, 1\]"):
        false_discovery([0.5], value)


@pytest.mark.parametrize(
    "p_values, message",
    [
        ([0.5, 1.5], "p_values holds 1.5; expected numbers in [0, 1]"),
        ([-0.5], "p_values holds -0.5; expected numbers in [0, 1]"),
        ([np.nan], "p_values holds 1 values that are NaN, the first at index 0"),
        (0.5, "p_values has shape (); expected (N,)"),
    ],
)
def test_bad_p_values(unchecked, p_values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        false_discovery(p_values, 0.1)
