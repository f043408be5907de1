"""Intervals of AUROCs against DeLong's definition, and the bootstrap beside them."""

import itertools

import numpy as np
import pytest

from grood_jax.maths import intervals
from grood_jax.maths.metrics import ood_metrics


def drawn(seed=0, noise=0.0):
    """Scores of 150 ID samples and of two OOD sets, one with ties; noisier ones on request."""
    rng = np.random.default_rng(seed)
    other = np.random.default_rng(seed + 1)
    inside, near, far = rng.normal(size=150), rng.normal(1, 1, 60), rng.normal(2, 1, 90)
    found = [part + noise * other.normal(size=len(part)) for part in (inside, near, far)]
    return found[0].round(1), [found[1].round(1), found[2]]


def delong(inside, outside):
    """The mean AUROC and its variance from all pairs, as the paper writes them."""
    of_inside, variance, means = np.zeros(len(inside)), 0.0, []
    for own in outside:
        wins = (own[None] > inside[:, None]) + 0.5 * (own[None] == inside[:, None])
        of_inside += wins.mean(axis=1) / len(outside)
        variance += np.var(wins.mean(axis=0), ddof=1) / len(own) / len(outside) ** 2
        means.append(wins.mean())
    return np.mean(means), variance + np.var(of_inside, ddof=1) / len(inside)


@pytest.mark.parametrize("sets", [1, 2])
def test_the_interval_is_delongs(sets):
    inside, outside = drawn()
    mean, variance = delong(inside, outside[:sets])
    expected = np.mean([ood_metrics(inside, own)["auroc"] for own in outside[:sets]])
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    low, high = intervals.auroc_interval(inside, outside[:sets])
    np.testing.assert_allclose((low + high) / 2, mean, rtol=1e-12)
    np.testing.assert_allclose((high - low) / 2, 1.959964 * variance**0.5, rtol=1e-6)
    wide = intervals.auroc_interval(inside, outside[:sets], level=0.99)
    assert wide[0] < low < high < wide[1]


def test_the_bootstrap_comes_to_the_same():
    inside, outside = drawn()
    low, high = intervals.auroc_interval(inside, outside)
    found = intervals.bootstrap_interval(inside, outside, resamples=2000)
    np.testing.assert_allclose(found, (low, high), atol=0.15 * (high - low))
    again = intervals.bootstrap_interval(inside, outside, resamples=2000)
    assert again == found != intervals.bootstrap_interval(inside, outside, seed=1)


def test_sets_without_doubt_have_intervals_of_no_width():
    inside, outside = np.arange(5.0), [np.arange(5.0) + 9]
    assert intervals.auroc_interval(inside, outside) == (1.0, 1.0)
    assert intervals.bootstrap_interval(inside, outside) == (1.0, 1.0)
    assert intervals.auroc_interval(inside[:1], outside) is None


def test_two_detectors_on_the_same_images():
    """Pairs that move together tell more than two intervals that overlap."""
    sharp, blunt = drawn(), drawn(noise=0.8)
    found = intervals.compare_aurocs(sharp, blunt)
    means = [
        np.mean([ood_metrics(inside, own)["auroc"] for own in outside])
        for inside, outside in (sharp, blunt)
    ]
    np.testing.assert_allclose(found.value, means[0] - means[1], rtol=1e-9)
    assert found.low < found.value < found.high
    widths = [np.diff(intervals.auroc_interval(*part))[0] for part in (sharp, blunt)]
    assert found.high - found.low < np.hypot(*widths)
    assert found.p_value < 0.05
    turned = intervals.compare_aurocs(blunt, sharp)
    assert turned.value == -found.value and turned.p_value == found.p_value
    same = intervals.compare_aurocs(sharp, sharp)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_differences_by_chance_are_not_taken_for_more():
    """Of detectors that are equally good, one test in twenty or so is below 0.05."""
    rng = np.random.default_rng(0)
    found = [
        intervals.compare_aurocs(
            (rng.normal(size=40), [rng.normal(1, 1, 40)]),
            (rng.normal(size=40), [rng.normal(1, 1, 40)]),
            resamples=200,
            seed=seed,
        ).p_value
        for seed in range(60)
    ]
    assert np.mean(np.less(found, 0.05)) < 0.15


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: intervals.auroc_interval(x, []), "outside is empty"),
        (lambda x: intervals.auroc_interval(x, [x], level=1.0), r"level is 1.0; expected"),
        (lambda x: intervals.bootstrap_interval(x, [x[:1]]), "at least two in each"),
        (lambda x: intervals.bootstrap_interval(x, [x], resamples=0), "resamples is 0"),
        (lambda x: intervals.compare_aurocs((x, [x]), (x, [x[1:]])), r"sets of \[4, 4\] samples"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(np.arange(4.0))


def test_every_place_counts():
    """All orders of few samples, ties among them."""
    for values in itertools.islice(itertools.product((0.0, 1.0, 2.0), repeat=5), 0, None, 7):
        inside, outside = np.array(values[:3]), [np.array(values[3:])]
        mean, variance = delong(inside, outside)
        low, high = intervals.auroc_interval(inside, outside)
        half = 1.959964 * variance**0.5
        expected = np.clip([mean - half, mean + half], 0, 1)
        np.testing.assert_allclose((low, high), expected, atol=1e-6)
