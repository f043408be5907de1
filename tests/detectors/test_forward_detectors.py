"""Detectors that need more of the forward pass, against float64 forms written from the papers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import LayerMeans
from grood_jax.detectors import Training, create, mahalanobis, mahalanobis_ensemble
from grood_jax.passes import forward

CLASSES, WIDTH, SIZE = 3, 5, 4
SAMPLES, QUERIES = 60, 9


def first_layer(arrays, images):
    return jax.nn.relu(images @ arrays["one"])


def second_layer(arrays, hidden):
    return jax.nn.relu(hidden @ arrays["two"])


def last_layers(arrays, hidden):
    features = second_layer(arrays, hidden).mean(axis=(1, 2))
    return features, features @ arrays["head"] + arrays["bias"][None]


def middle_layers(arrays, images):
    hidden = first_layer(arrays, images)
    return hidden, second_layer(arrays, hidden)


def head(arrays):
    return arrays["head"], arrays["bias"]


@pytest.fixture(scope="module")
def backbone():
    rng = np.random.default_rng(0)
    shapes = {"one": (2, 4), "two": (4, WIDTH), "head": (WIDTH, CLASSES), "bias": (CLASSES,)}
    arrays = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    return Backbone.from_functions(
        arrays, first_layer, last_layers, head, layers=middle_layers, input_std=(0.25, 0.5)
    )


def images(count, seed):
    pixels = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, 2))
    return jnp.asarray(pixels, jnp.float32)


def outputs_of(backbone, detector, count, seed):
    needs = tuple(dict.fromkeys((*detector.needs, *detector.fit_needs)))
    return forward.network_outputs(backbone, images(count, seed), None, needs)


def training_of(backbone, detector):
    outputs = outputs_of(backbone, detector, SAMPLES, 1)
    labels = jnp.arange(SAMPLES, dtype=jnp.int32) % CLASSES
    return Training(outputs, labels, head=head(backbone.arrays) if detector.head else None)


def wide(backbone):
    return {name: np.asarray(array, np.float64) for name, array in backbone.arrays.items()}


def layers64(backbone, pixels):
    arrays = wide(backbone)
    first = np.maximum(np.asarray(pixels, np.float64) @ arrays["one"], 0)
    return first, np.maximum(first @ arrays["two"], 0)


def squared_distances(train, labels, test):
    means = np.stack([train[labels == label].mean(axis=0) for label in range(CLASSES)])
    rest = train - means[labels]
    inverse = np.linalg.pinv(rest.T @ rest / len(train), hermitian=True)
    apart = test[:, None] - means[None]
    distances = np.einsum("bcd,de,bce->bc", apart, inverse, apart).min(axis=1)
    return distances, np.linalg.matrix_rank(inverse)


@pytest.mark.parametrize("standardize", [True, False])
def test_the_ensemble_is_a_sum_of_distances_in_the_layers(backbone, key, standardize):
    detector = mahalanobis_ensemble(standardize=standardize)
    training = training_of(backbone, detector)
    state = detector.fit(training, key)
    found = detector.score(state, outputs_of(backbone, detector, QUERIES, 2))
    labels, expected = np.asarray(training.labels), np.zeros(QUERIES)
    sides = layers64(backbone, images(SAMPLES, 1)), layers64(backbone, images(QUERIES, 2))
    for train, test in zip(*sides, strict=True):
        # A channel may be 0 everywhere.
        own, rank = squared_distances(train.mean(axis=(1, 2)), labels, test.mean(axis=(1, 2)))
        expected += (own - rank) / np.sqrt(2 * rank) if standardize else own
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_an_ensemble_of_the_features_alone_is_mahalanobis(backbone, key):
    detector, alone = mahalanobis_ensemble(standardize=False, shrinkage=0.2), mahalanobis
    training = training_of(backbone, detector)
    only = replace(backbone, layers=lambda arrays, images: middle_layers(arrays, images)[1:])
    seen = outputs_of(only, detector, QUERIES, 2)
    training = replace(training, outputs=outputs_of(only, detector, SAMPLES, 1))
    found = detector.score(detector.fit(training, key), seen)
    other = alone(shrinkage=0.2)
    np.testing.assert_allclose(found, other.score(other.fit(training, key), seen), rtol=1e-4)


def test_layer_means_are_float32_whatever_the_network_computes_in(backbone):
    def layers(arrays, images):
        # Numbers that bfloat16 holds; their mean it does not.
        return (2 * jnp.round(images) + 256).astype(jnp.bfloat16), images[:, 0, 0]

    pixels, half = images(2, 3), replace(backbone, layers=layers)
    outputs = forward.network_outputs(half, pixels, None, (LayerMeans(),))
    places, vectors = outputs.extra[LayerMeans()]
    expected = (2 * np.round(np.asarray(pixels, np.float64)) + 256).mean(axis=(1, 2))
    assert places.dtype == jnp.float32
    np.testing.assert_allclose(places, expected, rtol=1e-6)
    np.testing.assert_array_equal(vectors, pixels[:, 0, 0])


def test_the_ensemble_names_the_layer_of_which_it_complains(backbone, key):
    detector = mahalanobis_ensemble()
    training = training_of(backbone, detector)
    first, second = training.outputs.extra[LayerMeans()]

    def fit(*layers):
        outputs = replace(training.outputs, extra={LayerMeans(): layers})
        return detector.fit(replace(training, outputs=outputs), key)

    with pytest.raises(ValueError, match="do not vary within a class.*ensemble in layer 1 expects"):
        fit(first, jnp.ones_like(second))
    with pytest.raises(ValueError, match=r"^training.outputs.extra\[LayerMeans\(\)\]\[0\] holds"):
        fit(first.at[3, 1].set(jnp.nan), second)
    with pytest.warns(UserWarning, match="ensemble in layer 0 has 60 training samples"):
        fit(jnp.tile(first, (1, 20)), second)


@pytest.mark.parametrize("name", ["mahalanobis_ensemble"])
def test_a_backbone_that_cannot_is_refused(backbone, name):
    bare = Backbone.from_functions(backbone.arrays, first_layer, last_layers)
    needs = dict.fromkeys(create(name).needs, "mine")
    with pytest.raises(gj.UserError, match="^mine needs "):
        forward.require_needs(bare, needs, images(2, 0))
