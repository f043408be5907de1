import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.detectors import Training, msp


def scores(logits):
    logits = jnp.asarray(logits, jnp.float32)
    found = gj.Outputs(jnp.zeros((len(logits), 2)), logits)
    labels = jnp.zeros(len(logits), jnp.int32)
    state = msp().fit(Training(found, labels), jax.random.key(0))
    assert jax.tree.leaves(state) == []
    return msp().score(state, found)


def reference(logits):
    """``1 − max softmax(z)`` in float64, as the sum of all but the largest probability."""
    logits = np.asarray(logits, np.float32).astype(np.float64)
    exponentials = np.sort(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)
    return exponentials[:, :-1].sum(axis=1) / exponentials.sum(axis=1)


def test_score_is_one_minus_the_largest_probability():
    found = scores([[np.log(3.0), 0.0], [0.0, np.log(9.0)]])
    assert found.shape == (2,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, [1 - 3 / (3 + 1), 1 - 9 / (9 + 1)], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 30.0])
def test_scores_equal_float64(scale):
    logits = scale * np.random.default_rng(0).normal(size=(50, 10))
    np.testing.assert_allclose(scores(logits), reference(logits), rtol=1e-5)


def test_confident_scores_stay_apart():
    found = scores([[30.0, 0.0], [40.0, 0.0], [80.0, 0.0]])
    np.testing.assert_allclose(found, np.exp([-30.0, -40.0, -80.0]), rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_equal_logits_score_highest(classes):
    np.testing.assert_allclose(scores(np.ones((3, classes))), [1 - 1 / classes] * 3, rtol=1e-6)


def test_golden_scores(golden):
    with np.load(golden / "g20_vectors.npz") as vectors:
        logits = vectors["test_logits"]
    np.testing.assert_allclose(scores(logits), reference(logits), rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1.0, 100.0, 1e30]))
def test_scores_lie_in_the_unit_interval_whatever_the_shift_and_order(seed, scale):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.integers(-8, 9, (20, 4))).astype(np.float32)
    found = scores(logits)
    assert (found >= 0).all() and (found <= 1 - 1 / 4 + 1e-6).all()
    rows, classes = rng.permutation(20), rng.permutation(4)
    again = scores(logits[rows][:, classes] + 2 * scale)
    np.testing.assert_allclose(again, found[rows], rtol=1e-6)


def test_msp_asks_for_nothing():
    detector = msp()
    assert (detector.ood, detector.needs, detector.rows) == (None, (), None)
    assert detector.options == {}
