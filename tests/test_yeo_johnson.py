"""The power transformation against scikit-learn's, and where it meets its limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import PowerTransformer

from grood_jax.maths.yeo_johnson import REACH, likeliest_powers, yeo_johnson


def columns():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(400, 4))
    skewed = np.stack([np.exp(normal[:, 0]), -np.exp(normal[:, 1]), normal[:, 2]], axis=1)
    return (skewed - skewed.mean(axis=0)) / skewed.std(axis=0)


def test_powers_and_numbers_are_those_of_scikit_learn():
    values = columns()
    reference = PowerTransformer(standardize=False).fit(values)
    powers = likeliest_powers(values)
    np.testing.assert_allclose(powers, reference.lambdas_, atol=1e-5)
    np.testing.assert_allclose(yeo_johnson(values, powers), reference.transform(values), atol=1e-5)
    assert powers[0] < 1 < powers[1] and powers[2] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("power", [-5.0, 0.0, 1e-9, 1.0, 2.0, 5.0])
def test_float32_is_float64_rounded(power):
    values = np.array([[-300.0], [-1.0], [-1e-6], [0.0], [1e-6], [0.5], [300.0]])
    powers = np.array([power])
    x = values[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        up = np.log1p(np.abs(x)) if power == 0 else ((1 + np.abs(x)) ** power - 1) / power
        down = (
            np.log1p(np.abs(x))
            if power == 2
            else ((1 + np.abs(x)) ** (2 - power) - 1) / (2 - power)
        )
    expected = np.where(x >= 0, up, -down)[:, None]
    found = yeo_johnson(values, powers)
    # Of small powers the plain form loses digits.
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-7)
    single = yeo_johnson(jnp.asarray(values, jnp.float32), jnp.asarray(powers, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, found, rtol=2e-5, atol=1e-12)
    if power == 1:
        np.testing.assert_allclose(found, values)


def test_what_is_far_stays_finite_and_what_does_not_vary_stays_as_it_is():
    far = jnp.asarray([[-3e38, 3e38]], jnp.float32).T
    for power in (-REACH, REACH):
        found = np.asarray(yeo_johnson(far, jnp.asarray([power], jnp.float32)))
        assert np.isfinite(found**2).all() and found[0] < found[1]
    np.testing.assert_array_equal(likeliest_powers(np.zeros((5, 2))), [1, 1])
    one_sided = np.append(np.zeros(99), 1e3)[:, None]
    assert likeliest_powers(one_sided) == pytest.approx(-REACH, abs=1e-6)
