import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj


def auroc(negatives, positives):
    """The share of pairs that are in order; equal ones count half."""
    above = (positives[:, None] > negatives[None, :]).mean()
    return above + 0.5 * (positives[:, None] == negatives[None, :]).mean()


def thresholds(negatives, positives):
    return np.unique(np.concatenate([negatives, positives]))[::-1]


def fpr95(negatives, positives):
    """The false-positive rate at the highest threshold whose true-positive rate is 0.95."""
    for threshold in thresholds(negatives, positives):
        if 100 * (positives >= threshold).sum() >= 95 * len(positives):
            return (negatives >= threshold).mean()
    raise AssertionError("the lowest threshold has a true-positive rate of one")


def aupr(negatives, positives):
    """The area under the precision-recall curve by trapezoids, from recall 0, precision 1."""
    area, recall, precision = 0.0, 0.0, 1.0
    for threshold in thresholds(negatives, positives):
        found = (positives >= threshold).sum()
        new_recall = found / len(positives)
        new_precision = found / (found + (negatives >= threshold).sum())
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area


def expected(id_scores, ood_scores):
    inside, outside = (np.asarray(s).astype(np.float64) for s in (id_scores, ood_scores))
    return {
        "auroc": auroc(inside, outside),
        "fpr95": fpr95(inside, outside),
        "aupr_in": aupr(-outside, -inside),
        "aupr_out": aupr(inside, outside),
    }


def assert_metrics(id_scores, ood_scores):
    found = gj.ood_metrics(id_scores, ood_scores)
    assert all(type(value) is float for value in found.values())
    assert found == pytest.approx(expected(id_scores, ood_scores), abs=1e-12)


def test_metrics_of_four_scores():
    found = gj.ood_metrics([0.1, 0.4], [0.3, 0.9])
    assert found == pytest.approx(
        {
            "auroc": 3 / 4,
            "fpr95": 1 / 2,
            "aupr_in": 1 / 2 * (1 + 1) / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2,
            "aupr_out": 1 / 2 * (1 + 1) / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2,
        }
    )


def test_ood_is_the_positive_class_and_id_that_of_aupr_in():
    found = gj.ood_metrics([0.0, 1.0, 2.0, 3.0], [2.5])
    assert found["auroc"] == 3 / 4
    assert found["fpr95"] == 1 / 4
    assert found["aupr_out"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["aupr_in"] > 0.9


@pytest.mark.parametrize("sizes", [(1, 1), (30, 20), (400, 100), (57, 311)])
def test_metrics_equal_their_definitions(sizes):
    rng = np.random.default_rng(0)
    assert_metrics(rng.normal(0.0, 1.0, sizes[0]), rng.normal(0.7, 1.5, sizes[1]))


def test_metrics_with_many_ties():
    rng = np.random.default_rng(0)
    assert_metrics(rng.integers(0, 5, 200), rng.integers(2, 8, 100))


def test_metrics_with_all_scores_equal():
    assert_metrics(np.ones(30), np.ones(10))
    found = gj.ood_metrics(np.ones(30), np.ones(10))
    assert found["auroc"] == 0.5 and found["fpr95"] == 1.0


def test_perfect_separation():
    perfect = {"auroc": 1.0, "fpr95": 0.0, "aupr_in": 1.0, "aupr_out": 1.0}
    assert gj.ood_metrics(np.arange(40.0), 50 + np.arange(30.0)) == perfect


def test_inverted_separation():
    inside, outside = 50 + np.arange(30.0), np.arange(40.0)
    assert_metrics(inside, outside)
    found = gj.ood_metrics(inside, outside)
    assert found["auroc"] == 0.0 and found["fpr95"] == 1.0


@pytest.mark.parametrize("count, missed", [(20, 1), (19, 0), (40, 2), (100, 5), (101, 5)])
def test_fpr95_is_at_the_first_threshold_that_reaches_095(count, missed):
    outside = np.arange(float(count))
    for low in (missed - 0.5, missed + 0.5):
        found = gj.ood_metrics([-1.0, low], outside)["fpr95"]
        assert found == (0.5 if low > missed else 0.0)


def test_fpr95_sees_thresholds_inside_a_straight_piece_of_the_curve():
    inside, outside = np.arange(20.0), np.arange(20.0)
    assert gj.ood_metrics(inside, outside)["fpr95"] == 19 / 20


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.int8, np.int64])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_any_real_dtype(dtype, convert):
    rng = np.random.default_rng(0)
    inside, outside = (
        (10 * rng.normal(mean, 1.0, 40)).round().astype(dtype) for mean in (0.0, 1.0)
    )
    found = gj.ood_metrics(convert(inside), convert(outside))
    assert found == pytest.approx(expected(inside, outside), abs=1e-12)


def test_float64_scores_keep_their_digits():
    inside, outside = 1.0 + 1e-12 * np.arange(10), 1.0 + 1e-12 * np.arange(10, 20)
    assert gj.ood_metrics(inside, outside)["auroc"] == 1.0


@settings(deadline=None, max_examples=50)
@given(
    inside=st.lists(st.integers(-4, 4), min_size=1, max_size=30),
    outside=st.lists(st.integers(-4, 4), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_metrics_see_order_alone(inside, outside, order):
    inside, outside = np.array(inside, float), np.array(outside, float)
    assert_metrics(inside, outside)
    shuffled = np.array(order.sample(list(outside), len(outside)))
    stretched = gj.ood_metrics(np.exp(inside), np.exp(shuffled))
    assert stretched == pytest.approx(gj.ood_metrics(inside, outside), abs=1e-12)
    swapped = gj.ood_metrics(-outside, -inside)
    assert swapped["aupr_in"] == pytest.approx(gj.ood_metrics(inside, outside)["aupr_out"])


@pytest.mark.parametrize(
    "scores, error, message",
    [
        (np.zeros(0), ValueError, "has shape (0,); expected (N,) with N at least 1"),
        (np.zeros((2, 1)), ValueError, "has shape (2, 1); expected (N,) with N at least 1"),
        (np.zeros(()), ValueError, "has shape (); expected (N,) with N at least 1"),
        ([0.0, np.nan], ValueError, "holds 1 NaN or infinite values; expected finite scores"),
        ([np.inf, -np.inf], ValueError, "holds 2 NaN or infinite values; expected finite scores"),
        (jnp.full(3, jnp.nan, jnp.bfloat16), ValueError, "holds 3 NaN or infinite values"),
        ([True, False], TypeError, "has dtype bool; expected real numbers"),
        (["high"], TypeError, "has dtype <U4; expected real numbers"),
    ],
)
def test_bad_input(scores, error, message):
    good = np.ones(3)
    with pytest.raises(error, match=re.escape(f"id_scores {message}")):
        gj.ood_metrics(scores, good)
    with pytest.raises(error, match=re.escape(f"ood_scores {message}")):
        gj.ood_metrics(good, scores)


def test_scores_too_large_for_float64_are_infinite():
    with pytest.raises(ValueError, match="id_scores holds 1 NaN or infinite values"):
        gj.ood_metrics(np.array(["1e4000"], np.longdouble), [1.0])
