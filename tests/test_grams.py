"""Sums of Gram matrices against the matrices themselves, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grood_jax.maths.grams import gram_sums

POWERS = (1, 2, 3, 5)


def sums(activations, powers=POWERS):
    """The Gram matrix of each sample and power, its rows summed, and the signed root."""
    flat = np.asarray(activations).astype(np.float64)
    flat = np.moveaxis(flat.reshape(len(flat), -1, flat.shape[-1]), 2, 1)
    rows = [((flat**p) @ np.swapaxes(flat**p, 1, 2)).sum(axis=2) for p in powers]
    roots = [np.sign(r) * np.abs(r) ** (1 / p) for r, p in zip(rows, powers, strict=True)]
    return np.stack(roots, axis=1)


@pytest.mark.parametrize("shape", [(5, 4, 4, 6), (3, 1, 1, 1), (4, 7), (2, 3, 5), (1, 2, 2, 30)])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4, 1e15])
@pytest.mark.parametrize("signed", [True, False])
def test_against_the_matrices(shape, scale, signed):
    values = np.random.default_rng(0).normal(size=shape) * scale
    activations = np.asarray(values if signed else np.maximum(values, 0), np.float32)
    found = jax.jit(lambda x: gram_sums(x, POWERS))(jnp.asarray(activations))
    assert found.shape == (shape[0], len(POWERS), shape[-1]) and found.dtype == jnp.float32
    expected = sums(activations)
    # The p-th root of a sum that cancels has few digits: measured against the layer's largest.
    tolerance = 1e-4 * np.abs(expected).max(initial=1e-30)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance)


def test_activations_of_zero():
    found = gram_sums(jnp.zeros((2, 3, 3, 4)), POWERS)
    np.testing.assert_array_equal(found, np.zeros((2, len(POWERS), 4)))
