"""Gram against its algorithm, written out class by class in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.backbone.outputs import Grams
from grood_jax.detectors import Training, gram

POWERS, CHANNELS, CLASSES = (1, 3), (4, 6), 3
NEED = Grams(POWERS)


def outputs(count, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, CLASSES)).astype(np.float32)
    labels = np.arange(count) % CLASSES
    layers = tuple(
        (rng.normal(size=(count, len(POWERS), width)) * spread + labels[:, None, None]).astype(
            np.float32
        )
        for width in CHANNELS
    )
    features = rng.normal(size=(count, 5)).astype(np.float32)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(logits), {NEED: layers}), labels


def training(count=90, seed=0, **changes):
    found, labels = outputs(count, seed)
    labels = changes.get("labels", labels)
    return Training(found, jnp.asarray(labels, jnp.int32))


def deviation(sums, low, high):
    below = np.maximum(low - sums, 0) / np.abs(low + 1e-6)
    above = np.maximum(sums - high, 0) / np.abs(high + 1e-6)
    return (below + above).sum()


def reference(data, test, key):
    labels = np.asarray(data.labels)
    order = np.asarray(jax.random.permutation(key, len(labels)))
    held_out = []
    for label in range(CLASSES):
        own = [row for row in order if labels[row] == label]
        held_out += own[: max(1, int(0.1 * len(own)))]
    total = np.zeros(len(test.logits))
    for kept, seen in zip(data.outputs.extra[NEED], test.extra[NEED], strict=True):
        kept, seen = kept.astype(np.float64), seen.astype(np.float64)
        rows = [
            [i for i in range(len(labels)) if labels[i] == c and i not in held_out]
            for c in range(CLASSES)
        ]
        bounds = [(kept[own].min(axis=0), kept[own].max(axis=0)) for own in rows]
        mean = np.mean([deviation(kept[i], *bounds[labels[i]]) for i in held_out])
        predicted = np.asarray(test.logits).argmax(axis=1)
        own = [deviation(s, *bounds[c]) for s, c in zip(seen, predicted, strict=True)]
        total += np.array(own) / (mean if mean > 0 else 1)
    powers = np.exp(np.asarray(test.logits, np.float64))
    return total / (powers.max(axis=1) / powers.sum(axis=1))


@pytest.mark.parametrize("count", [90, 31])
def test_against_the_algorithm_in_float64(key, count):
    detector, data = gram(powers=POWERS), training(count)
    test = outputs(40, 5, spread=2.0)[0]
    state = detector.fit(data, key)
    found = jax.jit(detector.score)(state, test)
    assert found.shape == (40,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(data, test, key), rtol=2e-4)
    part = jax.tree.map(lambda a: a[7:12], test)
    np.testing.assert_allclose(detector.score(state, part), found[7:12], rtol=1e-5)


def test_samples_within_the_range_of_their_class_score_zero(key):
    detector, data = gram(powers=POWERS), training()
    state = detector.fit(data, key)
    middle = tuple((low + high) / 2 for low, high in zip(state.low, state.high, strict=True))
    logits = 5.0 * jnp.eye(CLASSES)
    test = gj.Outputs(jnp.zeros((CLASSES, 5)), logits, {NEED: middle})
    np.testing.assert_array_equal(detector.score(state, test), np.zeros(CLASSES))


def test_two_samples_a_class_and_constant_activations(key):
    found, labels = outputs(2 * CLASSES, 0)
    constant = tuple(np.ones_like(layer) for layer in found.extra[NEED])
    data = Training(
        gj.Outputs(found.features, found.logits, {NEED: constant}), jnp.asarray(labels, jnp.int32)
    )
    detector = gram(powers=POWERS)
    state = detector.fit(data, key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    test = outputs(10, 3)[0]
    assert np.isfinite(detector.score(state, test)).all()
    np.testing.assert_allclose(detector.score(state, test), reference(data, test, key), rtol=1e-4)


def test_a_class_with_one_sample_is_named(key):
    labels = np.arange(30) % 2
    labels[0] = 2
    with pytest.raises(ValueError, match="class 2"):
        gram(powers=POWERS).fit(training(30, labels=labels), key)


@pytest.mark.parametrize(
    ("powers", "error", "message"),
    [
        ((), TypeError, r"powers is \(\); expected a list of integers"),
        ("12", TypeError, "powers is '12'; expected a list"),
        ((0, 1), ValueError, "powers is 0; expected at least 1"),
        ((2, 2), ValueError, r"powers is \[2, 2\]; expected each once"),
        ((1.5,), TypeError, "powers is 1.5; expected an integer"),
    ],
)
def test_bad_powers(unchecked, powers, error, message):
    with pytest.raises(error, match=message):
        gram(powers=powers)
