"""MCM and GL-MCM against float64 NumPy written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.detectors import Training
from grood_jax.detectors.gl_mcm import gl_mcm
from grood_jax.detectors.mcm import mcm
from grood_jax.maths.concepts import unlike_all_concepts
from grood_jax.passes import forward
from grood_jax.support.errors import UserError

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


def whole(arrays, images):
    return images.mean(axis=(1, 2)) @ arrays


def places(arrays, images):
    return images @ arrays


MATRIX = RNG.normal(size=(3, 6)).astype(np.float32)
IMAGES = RNG.normal(size=(9, 4, 2, 3)).astype(np.float32)


def placed(**given):
    return gj.Backbone.from_encoder(
        whole, jnp.asarray(MATRIX), **{"text": (EMBEDDINGS, 0.01), "local": places, **given}
    )


def scored(backbone, detector):
    outputs = forward.network_outputs(backbone, IMAGES, None, detector.needs)
    training = Training(
        outputs, jnp.zeros(len(IMAGES), jnp.int32), head=backbone.head(backbone.arrays)
    )
    return np.asarray(detector.score(detector.fit(training, jax.random.key(0)), outputs))


@pytest.mark.parametrize(("tau", "weight"), [(1.0, 1.0), (0.1, 0.5), (1.0, 0)])
def test_the_whole_and_the_surest_place(tau, weight):
    detector = gl_mcm(temperature=tau, weight=weight)
    local = (IMAGES.astype(np.float64) @ MATRIX).reshape(-1, 6)
    surest = reference(local, tau).reshape(len(IMAGES), -1).min(axis=1)
    features = IMAGES.astype(np.float64).mean(axis=(1, 2)) @ MATRIX
    expected = reference(features, tau) + weight * surest
    np.testing.assert_allclose(scored(placed(), detector), expected, rtol=1e-5)


def test_places_of_any_size_and_none_are_compared_by_angle():
    concepts = jnp.asarray(EMBEDDINGS)
    local = jnp.asarray(IMAGES @ MATRIX)
    expected = unlike_all_concepts(local, concepts, 0.2)
    for size in (1e-30, 1e30):
        found = unlike_all_concepts(local * size, concepts, 0.2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(unlike_all_concepts(0 * local, concepts, 0.2), 0.75)
    half = unlike_all_concepts(local.astype(jnp.bfloat16), concepts, 0.2)
    assert half.dtype == jnp.float32
    # Where one is as good as sure, what is left has its digits.
    own = EMBEDDINGS.astype(np.float64)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    powers = np.exp((own @ own.T - 1) / 0.02)
    left = (powers.sum(axis=1) - 1) / powers.sum(axis=1)
    sure = unlike_all_concepts(concepts[:, None], concepts, 0.02)
    np.testing.assert_allclose(sure, left, rtol=1e-3, atol=1e-7)


def test_an_encoder_without_features_of_places_is_refused():
    needs = dict.fromkeys(gl_mcm().needs, "mine")
    with pytest.raises(UserError, match="^mine needs features of places .* give `local`"):
        forward.require_needs(placed(local=None), needs, IMAGES)
    narrow = placed(local=lambda arrays, images: images)
    with pytest.raises(UserError, match="local gives width 3, and the encoder 6"):
        forward.require_needs(narrow, needs, IMAGES)
    forward.require_needs(placed(), needs, IMAGES)
    with pytest.raises(ValueError, match="backbone has no class head"):
        forward.network_outputs(placed(text=None), IMAGES, None, gl_mcm().needs)


@pytest.mark.parametrize(
    ("option", "value", "error", "match"),
    [
        ("weight", -0.5, ValueError, "weight is -0.5; expected at least 0"),
        ("weight", "1", TypeError, "weight is '1'; expected"),
        ("temperature", 0.0, ValueError, "temperature is 0.0; expected a positive number"),
    ],
)
def test_options_that_are_none(option, value, error, match, unchecked):
    with pytest.raises(error, match=match):
        gl_mcm(**{option: value})
