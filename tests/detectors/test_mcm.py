"""MCM against float64 NumPy written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.detectors import Training
from grood_jax.detectors.mcm import mcm

RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(4, 6)).astype(np.float32)
FEATURES = RNG.normal(size=(9, 6)).astype(np.float32)


def scores(detector, features, temperature):
    """Scores where the head is that of text embeddings at a temperature."""
    encode = gj.Backbone.from_encoder(lambda _, x: x, text=(EMBEDDINGS, temperature))
    outputs = encode(features)
    training = Training(
        outputs, jnp.zeros(len(features), jnp.int32), head=encode.head(encode.arrays)
    )
    return np.asarray(detector.score(detector.fit(training, jax.random.key(0)), outputs))


def reference(features, tau):
    images, concepts = (
        rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        for rows in (features, EMBEDDINGS)
    )
    exponentials = np.exp(images @ concepts.T / tau)
    return 1 - (exponentials / exponentials.sum(axis=1, keepdims=True)).max(axis=1)


@pytest.mark.parametrize("tau", [1.0, 0.1, 7.0])
@pytest.mark.parametrize("of_head", [1.0, 0.01])
def test_cosines_with_the_concepts_whatever_the_heads_own_temperature(tau, of_head):
    found = scores(mcm(temperature=tau), FEATURES, of_head)
    np.testing.assert_allclose(found, reference(FEATURES, tau), rtol=1e-5)
    np.testing.assert_allclose(
        scores(mcm(temperature=tau), 1e6 * FEATURES, of_head), found, rtol=1e-5
    )


def test_an_image_without_features_is_as_far_from_all_concepts():
    np.testing.assert_allclose(scores(mcm(), np.zeros((2, 6), np.float32), 1.0), 0.75)


@pytest.mark.parametrize(
    ("value", "error"), [(0.0, ValueError), (-1.0, ValueError), ("1", TypeError)]
)
def test_temperatures_that_are_none(value, error, unchecked):
    with pytest.raises(error, match=f"temperature is {value!r}; expected a positive number"):
        mcm(temperature=value)


def test_without_a_head_it_cannot_be_fitted():
    outputs = gj.Outputs(FEATURES, FEATURES[:, :3])
    with pytest.raises(ValueError, match="training.head is None; mcm expects weights"):
        mcm().fit(Training(outputs, jnp.zeros(9, jnp.int32)), jax.random.key(0))
