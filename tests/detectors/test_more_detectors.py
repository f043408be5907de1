"""WeiPer, relation, LTS and others of features and logits, against float64 NumPy."""

import functools
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.detectors import Training
from grood_jax.detectors.cfood import cfood
from grood_jax.detectors.global_mahalanobis import global_mahalanobis
from grood_jax.detectors.gmm import gmm
from grood_jax.detectors.lts import lts
from grood_jax.detectors.relation import relation
from grood_jax.detectors.weiper import perturbed_heads, weiper

WIDTH, CLASSES, SAMPLES, QUERIES = 12, 4, 60, 24
KEY = 3


@functools.cache
def made():
    """Training data of clusters, samples off them, and their features and logits in float64."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    labels = np.arange(SAMPLES) % CLASSES

    def outputs(features):
        features = features.astype(np.float32)
        return gj.Outputs(jnp.asarray(features), jnp.asarray(features @ weights + bias))

    training = Training(
        outputs(rng.normal(size=(SAMPLES, WIDTH)) + 0.8 * weights.T[labels]),
        jnp.asarray(labels, jnp.int32),
        head=(jnp.asarray(weights), jnp.asarray(bias)),
    )
    return training, outputs(1.5 * rng.normal(size=(QUERIES, WIDTH)))


def wide(outputs):
    return np.asarray(outputs.features, np.float64), np.asarray(outputs.logits, np.float64)


def scores(detector, training, queries):
    state = detector.fit(training, jax.random.key(KEY))
    found = jax.jit(detector.score)(state, queries)
    assert found.shape == (len(queries.logits),) and found.dtype == jnp.float32
    return np.asarray(found)


def agree(found, expected, rtol=2e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_sum(logits):
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


# WeiPer


def histogram(row, low, high, bins):
    # A rounding of float32 inside: logits were multiplied in another order.
    edge = 1e-6 * (high - low)
    return np.histogram(row, bins, (low - edge, high + edge))[0] / len(row)


def divergence(train, tried, bins, smoothing, floor):
    low, high = train.min(), train.max()
    p = np.mean([histogram(row, low, high, bins) for row in train], axis=0) + floor
    p = p / p.sum()
    found = []
    for row in tried:
        own = histogram(row, low, high, bins)
        before = (smoothing - 1) // 2
        padded = np.concatenate(
            [np.repeat(own[:1], before), own, np.repeat(own[-1:], smoothing - 1 - before)]
        )
        q = np.convolve(padded, np.ones(smoothing) / smoothing, "valid") + floor
        q = q / q.sum()
        found.append(np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p)))
    return np.array(found)


def by_weiper(training, queries, repeats, bins, smoothing, perturbed):
    weights, bias = training.head
    several = perturbed_heads(weights, 1.5, repeats, jax.random.key(KEY))
    heads = np.asarray(several, np.float64), np.tile(np.asarray(bias, np.float64), repeats)
    h, x = wide(training.outputs)[0], wide(queries)[0]
    logits, own = (rows @ heads[0] + heads[1] for rows in (h, x))
    msp = softmax(own.reshape(len(own), repeats, CLASSES)).max(axis=2).mean(axis=1)
    return (
        divergence(h, x, bins, smoothing, 0.01)
        + 0.5 * divergence(logits, own, bins, perturbed, 0.025)
        - 2.0 * msp
    )


@pytest.mark.parametrize(("smoothing", "perturbed"), [(1, 4), (3, 10)])
def test_weiper_equals_float64(smoothing, perturbed):
    training, queries = made()
    options = {"bins": 10, "smoothing": smoothing, "smoothing_perturbed": perturbed}
    detector = weiper(feature_weight=0.5, msp_weight=2, distance=1.5, repeats=7, **options)
    expected = by_weiper(training, queries, 7, 10, smoothing, perturbed)
    agree(scores(detector, training, queries), expected)


def test_weiper_in_blocks_equals_weiper_at_once(monkeypatch):
    training, _ = made()
    detector = weiper(repeats=5, bins=8, smoothing=2, smoothing_perturbed=2)
    whole = detector.fit(training, jax.random.key(KEY))
    monkeypatch.setattr(sys.modules[weiper.__module__], "VALUES", 20 * 17)
    parts = detector.fit(training, jax.random.key(KEY))
    for part, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-6)
    for part in (whole.features, whole.perturbed):
        np.testing.assert_allclose(part.share.sum(), 1, rtol=1e-6)


def test_perturbations_are_as_long_as_said_and_drawn_by_the_key():
    weights = made()[0].head[0]
    found = [perturbed_heads(weights, 1.8, 6, jax.random.key(key)) for key in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    away = np.asarray(found[0]).reshape(WIDTH, 6, CLASSES) - np.asarray(weights)[:, None]
    lengths = np.linalg.norm(np.asarray(weights), axis=0)
    np.testing.assert_allclose(
        np.linalg.norm(away, axis=0), np.tile(1.8 * lengths, (6, 1)), rtol=1e-5
    )


def test_weiper_of_features_that_do_not_vary_or_lie_outside_is_finite():
    training, queries = made()
    same = jax.tree.map(lambda array: jnp.broadcast_to(array[:1], array.shape), training.outputs)
    flat = replace(same, features=jnp.zeros_like(same.features), logits=same.logits * 0)
    weights, bias = training.head
    constant = Training(flat, training.labels, head=(weights, bias * 0))
    detector = weiper(repeats=3)
    tried = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), queries, flat)
    assert np.isfinite(scores(detector, constant, tried)).all()
    with pytest.raises(ValueError, match="training.head is None; weiper expects"):
        detector.fit(replace(training, head=None), jax.random.key(0))
    with pytest.raises(ValueError, match="smoothing is 9; expected"):
        weiper(bins=8, smoothing=9)


# Relation


def by_relation(training, queries, power, threshold):
    (h, logits), (x, z) = wide(training.outputs), wide(queries)
    edges = np.maximum(unit(x) @ unit(h).T, 0) * (softmax(z) @ softmax(logits).T)
    return -np.where(edges > threshold, edges**power, 0).sum(axis=1)


@pytest.mark.parametrize(("power", "threshold"), [(1, 0.03), (4, 0.0)])
def test_relation_equals_float64(power, threshold, monkeypatch):
    training, queries = made()
    detector = relation(power=power, threshold=threshold)
    expected = by_relation(training, queries, power, threshold)
    agree(scores(detector, training, queries), expected)
    if power == 1:
        monkeypatch.setattr(sys.modules[relation.__module__], "BLOCK_ROWS", 17)
        assert detector.fit(training, jax.random.key(0)).features.shape == (4, 15, WIDTH)
        monkeypatch.setattr(sys.modules[relation.__module__], "BLOCK_ROWS", 8)
        agree(scores(detector, training, queries), expected)


def test_zero_features_relate_to_nothing_and_a_share_of_the_samples_is_drawn():
    training, queries = made()
    zeros = replace(queries, features=jnp.zeros_like(queries.features))
    state = relation(sampling_ratio=0.5).fit(training, jax.random.key(0))
    assert state.features.shape == (1, SAMPLES // 2, WIDTH)
    np.testing.assert_array_equal(relation().score(state, zeros), 0)


# LTS


def by_lts(queries, percentile):
    x, z = wide(queries)
    positive = np.maximum(x, 0)
    count = max(1, WIDTH - round(WIDTH * percentile / 100))
    part = np.sort(positive, axis=1)[:, -count:].sum(axis=1)
    return -log_sum((positive.sum(axis=1) / part)[:, None] ** 2 * z)


@pytest.mark.parametrize("percentile", [0, 75, 100])
def test_lts_equals_float64(percentile):
    training, queries = made()
    found = scores(lts(percentile=percentile), training, queries)
    agree(found, by_lts(queries, percentile))
    if percentile == 0:
        agree(found, -log_sum(wide(queries)[1]))


def test_lts_of_no_positive_and_of_huge_features_is_that_of_their_directions():
    _, queries = made()
    none = replace(queries, features=-jnp.abs(queries.features))
    np.testing.assert_allclose(lts().score((), none), -log_sum(wide(queries)[1]), rtol=1e-5)
    huge = replace(queries, features=queries.features * 1e37)
    np.testing.assert_allclose(lts().score((), huge), by_lts(queries, 85), rtol=1e-4)


# Global Mahalanobis


@pytest.mark.parametrize(("exponent", "share"), [(None, 0.0), (1, 0.2)])
def test_global_mahalanobis_equals_float64_and_reads_no_labels(exponent, share):
    training, queries = made()
    h, x = (
        rows if exponent is None else unit(rows)
        for rows in (wide(training.outputs)[0], wide(queries)[0])
    )
    covariance = np.cov(h.T, bias=True)
    size = np.trace(covariance) / WIDTH
    precision = np.linalg.inv((1 - share) * covariance + share * size * np.eye(WIDTH))
    rest = x - h.mean(axis=0)
    detector = global_mahalanobis(exponent=exponent, shrinkage=share)
    blind = replace(training, labels=jnp.zeros_like(training.labels))
    agree(scores(detector, blind, queries), np.einsum("bd,de,be->b", rest, precision, rest))
    if exponent is None:
        flat = replace(training.outputs, features=jnp.ones_like(training.outputs.features))
        with pytest.raises(ValueError, match="training.outputs.features do not vary"):
            detector.fit(replace(training, outputs=flat), jax.random.key(0))


def test_global_mahalanobis_warns_of_fewer_samples_than_features():
    training, _ = made()
    few = Training(jax.tree.map(lambda a: a[:8], training.outputs), training.labels[:8])
    message = "global_mahalanobis has 8 training samples: .* at most rank 7, .* at least 13 samples"
    with pytest.warns(UserWarning, match=message):
        state = global_mahalanobis().fit(few, jax.random.key(0))
    assert state.whitening.shape == (WIDTH, 7)
    global_mahalanobis(shrinkage=0.1).fit(few, jax.random.key(0))


# CF-OOD


def by_cfood(training, queries, share):
    references, x = unit(wide(training.outputs)[0]), unit(wide(queries)[0])
    count = len(references)
    fractions = np.concatenate(
        [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
    )
    found = []
    for row in x:
        apart = np.linalg.norm(references - row, axis=1)
        score, last = 1.0, -1
        for fraction in fractions:
            rank = int(fraction * count - 1)
            if rank == last:
                continue
            last = rank
            knowing = 0
            for index, reference in enumerate(references):
                others = np.delete(references, index, axis=0)
                radius = np.sort(np.linalg.norm(others - reference, axis=1))[rank]
                knowing += apart[index] <= radius
            if knowing / count >= share:
                score = fraction
                break
        found.append(score)
    return np.array(found)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_cfood_equals_float64(share, monkeypatch):
    training, queries = made()
    few = jax.tree.map(lambda array: array[:6], queries)
    monkeypatch.setattr(sys.modules[cfood.__module__], "DISTANCES", 17 * SAMPLES)
    found = scores(cfood(sampling_ratio=1.0, share=share), training, few)
    np.testing.assert_allclose(found, by_cfood(training, few, share), rtol=1e-6)
    assert len(np.unique(found)) > 2


def test_cfood_far_away_is_one_and_takes_two_references_at_least():
    training, queries = made()
    features = jnp.abs(training.outputs.features) + 1
    narrow = replace(training, outputs=replace(training.outputs, features=features))
    away = replace(queries, features=-jnp.abs(queries.features) - 1)
    np.testing.assert_array_equal(scores(cfood(sampling_ratio=1.0), narrow, away), 1)
    with pytest.raises(ValueError, match="expected a share that leaves at least 2 of 60"):
        cfood(sampling_ratio=0.02).fit(training, jax.random.key(0))


# GMM


@functools.cache
def clusters():
    """Three clusters of one covariance in four dimensions of twelve, and a fitted mixture."""
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0][:4]
    own = rng.integers(3, size=300)
    points = 12 * np.eye(3, 4)[own] + rng.normal(size=(300, 4)) * [1, 2, 1, 0.5]
    features = (points @ axes + 5).astype(np.float32)
    outputs = gj.Outputs(jnp.asarray(features), jnp.zeros((300, 3)))
    training = Training(outputs, jnp.zeros(300, jnp.int32))
    return training, gmm(dim=4).fit(training, jax.random.key(KEY))


def test_gmm_finds_what_scikit_learn_finds():
    mixture = pytest.importorskip("sklearn.mixture")
    training, state = clusters()
    features = np.asarray(training.outputs.features, np.float64)
    axes = np.linalg.svd(features - features.mean(axis=0))[2][:4].T
    points = features @ axes
    theirs = mixture.GaussianMixture(3, covariance_type="tied", random_state=0).fit(points)
    tried = np.concatenate([points[:20], points[:20] * 1.2])
    wide_tried = tried @ axes.T + (features.mean(axis=0) - features.mean(axis=0) @ axes @ axes.T)
    found = np.asarray(
        gmm(dim=4).score(
            state, gj.Outputs(jnp.asarray(wide_tried, jnp.float32), jnp.zeros((40, 3)))
        )
    )
    constant = -0.5 * (4 * np.log(2 * np.pi) + np.linalg.slogdet(theirs.covariances_)[1])
    np.testing.assert_allclose(found, constant - theirs.score_samples(tried), rtol=2e-2, atol=2e-2)


def test_the_density_of_a_gmm_equals_float64_and_does_not_underflow():
    training, state = clusters()
    features = np.asarray(training.outputs.features, np.float64)
    tried = np.concatenate([features[:5], features[:5] + 1e3])
    found = gmm(dim=4).score(state, gj.Outputs(jnp.asarray(tried, jnp.float32), jnp.zeros((10, 3))))
    center, whitening, means = (np.asarray(part, np.float64) for part in jax.tree.leaves(state)[:3])
    away = ((tried - center) @ whitening)[:, None] - means
    logs = np.asarray(state.log_weights, np.float64) - 0.5 * (away**2).sum(axis=2)
    np.testing.assert_allclose(found, -log_sum(logs), rtol=1e-4)
    assert np.isfinite(found).all() and len(np.unique(found[5:])) == 5


def test_gmm_of_a_share_of_the_samples_finds_the_same_clusters():
    training, state = clusters()
    part = gmm(dim=4, samples=150).fit(training, jax.random.key(KEY))
    whole = np.exp(np.sort(np.asarray(state.log_weights)))
    np.testing.assert_allclose(np.exp(np.sort(np.asarray(part.log_weights))), whole, atol=0.1)
    assert (np.asarray(part.gaussians.center) != np.asarray(state.gaussians.center)).any()


def test_gmm_refuses_too_few_samples_and_features_that_do_not_vary():
    training, _ = made()
    with pytest.raises(ValueError, match="components is 61; expected at most 60"):
        gmm(components=61).fit(training, jax.random.key(0))
    with pytest.raises(ValueError, match="components is 4; expected at most 3, the samples fitted"):
        gmm(samples=3).fit(training, jax.random.key(0))
    flat = replace(training.outputs, features=jnp.ones_like(training.outputs.features))
    with pytest.raises(ValueError, match="training.outputs.features do not vary"):
        gmm().fit(replace(training, outputs=flat), jax.random.key(0))


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (weiper, {"repeats": 0}, "repeats is 0"),
        (weiper, {"distance": 0}, "distance is 0"),
        (weiper, {"msp_weight": float("nan")}, "msp_weight is nan"),
        (relation, {"power": 0}, "power is 0"),
        (relation, {"threshold": 2}, "threshold is 2"),
        (lts, {"percentile": 101}, "percentile is 101"),
        (global_mahalanobis, {"shrinkage": -1}, "shrinkage is -1"),
        (cfood, {"share": 0}, "share is 0"),
        (gmm, {"dim": 0}, "dim is 0"),
        (gmm, {"components": 0}, "components is 0"),
    ],
)
def test_options_out_of_range_are_refused(factory, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        factory(**options)
