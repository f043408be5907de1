"""Moved images against the gradient of a linear network, by hand in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax.maths.perturbation import perturb

SHAPE, CLASSES = (2, 3, 2), 4
WEIGHTS = np.random.default_rng(0).normal(size=(12, CLASSES))


def logits_of(images):
    return images.reshape(len(images), -1) @ jnp.asarray(WEIGHTS, jnp.float32)


def moved(images, std, temperature, noise, most=None):
    scaled = images.reshape(len(images), -1).astype(np.float64) @ WEIGHTS / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(CLASSES)[scaled.argmax(axis=1)]) @ WEIGHTS.T
    for row in gradient if most else ():
        row[np.argsort(-np.abs(row), kind="stable")[most:]] = 0
    return images - noise * np.sign(gradient).reshape(images.shape) / np.asarray(std)


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
@pytest.mark.parametrize("noise", [0.0, 0.0014, 0.3])
def test_against_the_gradient_by_hand(temperature, noise):
    images = np.random.default_rng(1).normal(size=(20, *SHAPE)).astype(np.float32)
    std = (0.25, 0.5)
    expected = moved(images, std, temperature, noise)
    run = jax.jit(lambda x: perturb(logits_of, x, std, temperature, noise))
    np.testing.assert_allclose(run(jnp.asarray(images)), expected, atol=1e-6)
    # No sample moves another.
    np.testing.assert_allclose(run(jnp.asarray(images[:3])), expected[:3], atol=1e-6)


@pytest.mark.parametrize("most", [1, 5, 99])
def test_only_what_matters_most_is_moved(most):
    images = np.random.default_rng(1).normal(size=(20, *SHAPE)).astype(np.float32)
    std = (0.25, 0.5)
    run = jax.jit(lambda x: perturb(logits_of, x, std, 10.0, 0.1, most))
    found = np.asarray(run(jnp.asarray(images)))
    np.testing.assert_allclose(found, moved(images, std, 10.0, 0.1, most), atol=1e-6)
    assert ((found != images).sum(axis=(1, 2, 3)) == min(most, 12)).all()


def test_a_gradient_of_zero_counts_as_positive():
    images = jnp.ones((2, *SHAPE))
    found = perturb(lambda x: jnp.zeros((len(x), CLASSES)), images, (0.5, 0.5), 1.0, 0.1)
    np.testing.assert_allclose(found, 1.0 - 0.2, rtol=1e-6)
