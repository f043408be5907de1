"""Detectors of penultimate features, against float64 NumPy written from the papers."""

import functools
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.detectors import Training
from grood_jax.detectors import _statistics as statistics
from grood_jax.detectors.fdbd import fdbd
from grood_jax.detectors.knn import knn
from grood_jax.detectors.mahalanobis import mahalanobis
from grood_jax.detectors.nci import nci
from grood_jax.detectors.nnguide import nnguide
from grood_jax.detectors.relative_mahalanobis import relative_mahalanobis
from grood_jax.detectors.residual import residual
from grood_jax.detectors.she import she
from grood_jax.detectors.vim import vim

WIDTH, CLASSES, SAMPLES, QUERIES = 12, 4, 60, 24


def training_of(features, weights, bias, labels=None):
    """Training data of given features; labels are the predictions unless given."""
    features = np.asarray(features, np.float32)
    weights, bias = np.asarray(weights, np.float32), np.asarray(bias, np.float32)
    logits = features @ weights + bias
    labels = logits.argmax(axis=1) if labels is None else labels
    return Training(
        gj.Outputs(jnp.asarray(features), jnp.asarray(logits)),
        jnp.asarray(labels, jnp.int32),
        head=(jnp.asarray(weights), jnp.asarray(bias)),
    )


def outputs_of(training, features):
    weights, bias = map(np.asarray, training.head)
    features = np.asarray(features, np.float32)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(features @ weights + bias))


def make(seed=0, offset=0.0, scales=1.0):
    """Clusters, a head that gets most of them right, and samples off them.

    The offset moves all features, and the bias with them: the logits stay.
    """
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=(WIDTH, CLASSES)), rng.normal(size=CLASSES)
    bias = bias - offset * weights.sum(axis=0)
    labels = np.arange(SAMPLES) % CLASSES
    features = rng.normal(size=(SAMPLES, WIDTH)) * scales + 0.8 * weights.T[labels] + offset
    training = training_of(features, weights, bias, labels)
    correct = np.asarray(training.outputs.logits).argmax(axis=1) == labels
    assert 0 < correct.sum() < SAMPLES and set(labels[correct]) == set(range(CLASSES))
    return training, outputs_of(training, 1.5 * rng.normal(size=(QUERIES, WIDTH)) + offset)


def wide(outputs):
    return np.asarray(outputs.features, np.float64), np.asarray(outputs.logits, np.float64)


@functools.cache
def compiled(score):
    # A search of a bank is compiled code already, and shared by all that search alike.
    return score if "knn" in score.__module__ else jax.jit(score)


def scores(detector, training, outputs, key=0):
    state = detector.fit(training, jax.random.key(key))
    found = compiled(detector.score)(state, outputs)
    assert found.shape == (len(outputs.logits),) and found.dtype == jnp.float32
    return np.asarray(found)


def log_sum(logits):
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shrunk(covariance, share):
    size = np.trace(covariance) / len(covariance)
    return (1 - share) * covariance + share * size * np.eye(len(covariance))


def class_distances(training, x, share=0.0):
    h, _ = wide(training.outputs)
    y = np.asarray(training.labels)
    means = np.stack([h[y == c].mean(axis=0) for c in range(CLASSES)])
    precision = np.linalg.inv(shrunk((h - means[y]).T @ (h - means[y]) / len(h), share))
    rest = x[:, None] - means
    return np.einsum("bcd,de,bce->bc", rest, precision, rest)


def by_knn(training, x, z):
    distances = np.linalg.norm(unit(x)[:, None] - unit(wide(training.outputs)[0]), axis=2)
    return np.sort(distances, axis=1)[:, 4]


def by_mahalanobis(training, x, z, share=0.0):
    return class_distances(training, x, share).min(axis=1)


def by_relative_mahalanobis(training, x, z, share=0.0):
    h, _ = wide(training.outputs)
    precision = np.linalg.inv(shrunk(np.cov(h.T, bias=True), share))
    rest = x - h.mean(axis=0)
    background = np.einsum("bd,de,be->b", rest, precision, rest)
    return (class_distances(training, x, share) - background[:, None]).min(axis=1)


def on_the_sphere(reference, share, exponent=1.0):
    """A reference for features divided by a power of their norms, and a shrunk covariance."""

    def scaled(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) ** exponent

    def found(training, x, z):
        h = scaled(wide(training.outputs)[0])
        outputs = gj.Outputs(h, training.outputs.logits)
        return reference(replace(training, outputs=outputs), scaled(x), z, share)

    return found


def residuals(training, x, dim):
    weights, bias = (np.asarray(part, np.float64) for part in training.head)
    h, _ = wide(training.outputs)
    # The least-norm solution of Wᵀu = −b, and projection onto the leading right singular vectors.
    origin = np.linalg.lstsq(weights.T, -bias, rcond=None)[0]
    axes = np.linalg.svd(h - origin)[2][:dim]
    rest = x - origin
    return np.linalg.norm(rest - rest @ axes.T @ axes, axis=1)


def by_residual(training, x, z):
    return residuals(training, x, WIDTH // 2)


def by_vim(training, x, z):
    h, logits = wide(training.outputs)
    alpha = logits.max(axis=1).mean() / residuals(training, h, 5).mean()
    return alpha * residuals(training, x, 5) - log_sum(z)


def by_she(training, x, z):
    h, logits = wide(training.outputs)
    y, found = np.asarray(training.labels), logits.argmax(axis=1)
    patterns = np.stack([h[(y == c) & (found == c)].mean(axis=0) for c in range(CLASSES)])
    return -(x * patterns[z.argmax(axis=1)]).sum(axis=1)


def by_nnguide(training, x, z):
    h, logits = wide(training.outputs)
    guides = np.sort(unit(x) @ (unit(h) * log_sum(logits)[:, None]).T, axis=1)[:, -7:]
    return -log_sum(z) * guides.mean(axis=1)


def by_fdbd(training, x, z):
    weights, bias = (np.asarray(part, np.float64) for part in training.head)
    mean = wide(training.outputs)[0].mean(axis=0)
    found = []
    for h in x:
        own = (h @ weights + bias).argmax()
        distances = [
            abs((weights[:, own] - weights[:, c]) @ h + bias[own] - bias[c])
            / np.linalg.norm(weights[:, own] - weights[:, c])
            for c in range(CLASSES)
            if c != own
        ]
        found.append(-np.mean(distances) / np.linalg.norm(h - mean))
    return np.array(found)


def by_nci(training, x, z):
    weights = np.asarray(training.head[0], np.float64)
    rest = x - wide(training.outputs)[0].mean(axis=0)
    nearness = (weights.T[z.argmax(axis=1)] * unit(rest)).sum(axis=1)
    return -nearness - 0.01 * np.abs(x).sum(axis=1)


MADE = {
    "knn": (knn(k=5), by_knn),
    "mahalanobis": (mahalanobis(), by_mahalanobis),
    "relative_mahalanobis": (relative_mahalanobis(), by_relative_mahalanobis),
    "mahalanobis++": (
        mahalanobis(normalize=True, shrinkage=0.1),
        on_the_sphere(by_mahalanobis, 0.1),
    ),
    "relative_mahalanobis++": (
        relative_mahalanobis(normalize=True, shrinkage=0.3),
        on_the_sphere(by_relative_mahalanobis, 0.3),
    ),
    "mahalanobis-beta++": (
        mahalanobis(exponent=0.5, shrinkage=0.1),
        on_the_sphere(by_mahalanobis, 0.1, 0.5),
    ),
    "relative_mahalanobis-beta++": (
        relative_mahalanobis(exponent=-0.5, shrinkage=0.1),
        on_the_sphere(by_relative_mahalanobis, 0.1, -0.5),
    ),
    "residual": (residual(), by_residual),
    "vim": (vim(dim=5), by_vim),
    "she": (she(), by_she),
    "nnguide": (nnguide(k=7, sampling_ratio=1.0), by_nnguide),
    "fdbd": (fdbd(), by_fdbd),
    "nci": (nci(alpha=0.01), by_nci),
}
DETECTORS = {name: made[0] for name, made in MADE.items()}
NEEDING_HEAD = ["residual", "vim", "fdbd", "nci"]
every_detector = pytest.mark.parametrize("name", MADE)


@every_detector
def test_scores_equal_float64(name):
    training, queries = make()
    detector, reference = MADE[name]
    found, expected = scores(detector, training, queries), reference(training, *wide(queries))
    # Sums of a dozen float32 products; differences of like numbers lose a digit or two more.
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@every_detector
def test_neither_batch_nor_order_nor_compilation_changes_a_score(name):
    training, queries = make()
    detector = DETECTORS[name]
    state = detector.fit(training, jax.random.key(0))
    found = np.asarray(jax.jit(detector.score)(state, queries))
    order = np.random.default_rng(0).permutation(QUERIES)
    again = compiled(detector.score)(state, jax.tree.map(lambda array: array[order], queries))
    np.testing.assert_allclose(again, found[order], rtol=1e-5, atol=1e-5)
    three = detector.score(state, jax.tree.map(lambda array: array[:3], queries))
    np.testing.assert_allclose(three, found[:3], rtol=1e-5, atol=1e-5)


@every_detector
@pytest.mark.parametrize("kind", ["zero", "constant", "few samples", "dead units"])
def test_degenerate_features_give_finite_scores(name, kind):
    training, queries = make()
    features, labels = np.asarray(training.outputs.features), np.asarray(training.labels)
    if kind == "zero":
        features = np.zeros_like(features)
    elif kind == "constant":
        features = np.full_like(features, 0.1)
    elif kind == "few samples":
        # No more samples than columns, and of some classes two or one of them.
        features, labels = features[:12], np.array([0, 1, 2, 3, 0, 1, 0, 0, 0, 0, 0, 0])
    else:
        features = features * (np.arange(WIDTH) % 2)
    weights, bias = training.head
    if name == "she" and kind in ("zero", "constant"):
        # All predictions are alike, and every class must have a correct one.
        weights, bias, labels = weights[:, :1], bias[:1], np.zeros(SAMPLES)
    training = training_of(features, weights, bias, labels)
    if name == "she" and kind == "few samples":
        training = training_of(features, weights, bias)
        if len(np.unique(training.labels)) < CLASSES:
            features = np.concatenate([features, 9 * np.asarray(weights).T])
            training = training_of(features, weights, bias)
    if "mahalanobis" in name and kind in ("zero", "constant"):
        with pytest.raises(ValueError, match="do not vary within a class .* expects at least"):
            DETECTORS[name].fit(training, jax.random.key(0))
        return
    if "mahalanobis" in name and "++" not in name and kind == "few samples":
        state = None
        with pytest.warns(UserWarning, match="12 features has at most rank 8"):
            state = DETECTORS[name].fit(training, jax.random.key(0))
        tried = outputs_of(training, queries.features)
        assert np.isfinite(DETECTORS[name].score(state, tried)).all()
        return
    tried = np.concatenate([queries.features[2:], features[:1], np.zeros((1, WIDTH))])
    assert np.isfinite(scores(DETECTORS[name], training, outputs_of(training, tried))).all()


@every_detector
def test_features_that_are_not_finite_are_refused(name):
    training, _ = make()
    features = np.array(training.outputs.features)
    features[3, 2] = np.nan
    bad = Training(
        gj.Outputs(jnp.asarray(features), training.outputs.logits),
        training.labels,
        head=training.head,
    )
    with pytest.raises(ValueError, match=r"training.outputs.features holds 1 values .* \(3, 2\)"):
        DETECTORS[name].fit(bad, jax.random.key(0))


@every_detector
def test_no_features_are_refused(name):
    training, _ = make()
    none = jax.tree.map(lambda array: array[:0], training.outputs)
    with pytest.raises(ValueError, match=r"shape \(0, 12\); expected at least one sample"):
        DETECTORS[name].fit(
            Training(none, training.labels[:0], head=training.head), jax.random.key(0)
        )


@every_detector
def test_the_head_is_asked_for_where_it_is_needed(name):
    training, _ = make()
    without = Training(training.outputs, training.labels)
    assert DETECTORS[name].head == (name in NEEDING_HEAD)
    if name in NEEDING_HEAD:
        with pytest.raises(ValueError, match=f"training.head is None; {name} expects"):
            DETECTORS[name].fit(without, jax.random.key(0))
    else:
        DETECTORS[name].fit(without, jax.random.key(0))


@pytest.mark.parametrize(
    ("factory", "options", "error", "message"),
    [
        (knn, {"k": 0}, ValueError, "k is 0"),
        (knn, {"k": 2.0}, TypeError, "k is 2.0"),
        (knn, {"sampling_ratio": 0}, ValueError, "sampling_ratio is 0"),
        (mahalanobis, {"shrinkage": 1.5}, ValueError, "shrinkage is 1.5"),
        (mahalanobis, {"normalize": 1}, TypeError, "normalize is 1"),
        (mahalanobis, {"normalize": True, "exponent": 2}, ValueError, "exponent is 2; expected"),
        (mahalanobis, {"exponent": float("inf")}, ValueError, "exponent is inf"),
        (relative_mahalanobis, {"exponent": "no"}, TypeError, "exponent is 'no'"),
        (relative_mahalanobis, {"shrinkage": "no"}, TypeError, "shrinkage is 'no'"),
        (relative_mahalanobis, {"normalize": None}, TypeError, "normalize is None"),
        (vim, {"dim": 0}, ValueError, "dim is 0"),
        (vim, {"dim": "512"}, TypeError, "dim is '512'"),
        (residual, {"dim": -1}, ValueError, "dim is -1"),
        (she, {"metric": "cosin"}, ValueError, "metric is 'cosin'.*did you mean 'cosine'"),
        (nnguide, {"k": True}, TypeError, "k is True"),
        (nnguide, {"sampling_ratio": 1.5}, ValueError, "sampling_ratio is 1.5"),
        (fdbd, {"distance_as_normalizer": 1}, TypeError, "distance_as_normalizer is 1"),
        (nci, {"alpha": -0.1}, ValueError, "alpha is -0.1"),
        (nci, {"alpha": "no"}, TypeError, "alpha is 'no'"),
    ],
)
def test_bad_options_are_refused(factory, options, error, message, unchecked):
    with pytest.raises(error, match=message):
        factory(**options)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (knn, {"k": 50, "sampling_ratio": 1.0}),
        (mahalanobis, {"normalize": False, "exponent": None, "shrinkage": 0.0}),
        (relative_mahalanobis, {"normalize": False, "exponent": None, "shrinkage": 0.0}),
        (vim, {"dim": None}),
        (residual, {"dim": None}),
        (she, {"metric": "inner_product"}),
        (nnguide, {"k": 100, "sampling_ratio": None}),
        (fdbd, {"distance_as_normalizer": True}),
        (nci, {"alpha": 1e-4}),
    ],
)
def test_names_and_options_are_kept(factory, options):
    detector = factory()
    assert (detector.name, detector.options) == (factory.__name__, options)
    wants = (detector.ood, detector.needs, detector.fit_needs, detector.rows, detector.compiled)
    assert wants == (None, (), (), None, True)


# KNN and NNGuide: banks


@pytest.mark.parametrize("scale", [1e-20, 1e3, 1e30])
def test_knn_does_not_see_the_scale_of_features(scale):
    training, queries = make()
    found = scores(DETECTORS["knn"], training, queries)
    scaled = gj.Outputs(jnp.float32(scale) * queries.features, queries.logits)
    np.testing.assert_allclose(scores(DETECTORS["knn"], training, scaled), found, rtol=1e-5)


def test_zero_features_are_at_distance_one_from_every_direction():
    training, queries = make()
    zeros = gj.Outputs(jnp.zeros_like(queries.features), queries.logits)
    np.testing.assert_allclose(scores(DETECTORS["knn"], training, zeros), 1.0, rtol=1e-6)


def test_a_training_feature_is_at_distance_zero_from_as_many_copies_of_it():
    training, _ = make()
    features = np.asarray(training.outputs.features)
    training = training_of(np.repeat(features[:12], 5, axis=0), *training.head)
    found = scores(DETECTORS["knn"], training, outputs_of(training, features[:QUERIES]))
    assert (found[:12] == 0).all() and (found[12:] > 0.1).all()


@pytest.mark.parametrize("factory", [knn, nnguide])
def test_the_key_draws_the_bank(factory):
    training, queries = make()
    detector = factory(k=5, sampling_ratio=0.2)
    found = [scores(detector, training, queries, key) for key in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()
    # The k-th nearest of a share is no nearer than that of all; the likeness no larger.
    whole = scores(
        DETECTORS["knn"] if factory is knn else factory(k=5, sampling_ratio=1.0), training, queries
    )
    if factory is knn:
        assert (found[0] >= whole).all() and (found[0] > whole).any()
    else:
        energies = log_sum(wide(queries)[1])
        assert (found[0] / energies >= whole / energies - 1e-5).all()


@pytest.mark.parametrize("factory", [knn, nnguide])
def test_a_bank_smaller_than_k_is_refused(factory):
    training, _ = make()
    message = r"k is 13; expected at most 12, .*\(60 training samples, sampling_ratio 0.2\)"
    with pytest.raises(ValueError, match=message):
        factory(k=13, sampling_ratio=0.2).fit(training, jax.random.key(0))
    factory(k=12, sampling_ratio=0.2).fit(training, jax.random.key(0))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nnguide_in_blocks_equals_nnguide_at_once(sign, monkeypatch):
    # With negative energies every product may be negative, and padding must not win.
    training, queries = make()
    shifted = gj.Outputs(training.outputs.features, sign * 50 + training.outputs.logits)
    training = Training(shifted, training.labels, head=training.head)
    whole = nnguide(k=7, sampling_ratio=1.0).fit(training, jax.random.key(0))
    monkeypatch.setattr(sys.modules[nnguide.__module__], "BANK_ROWS", 17)
    parts = nnguide(k=7, sampling_ratio=1.0).fit(training, jax.random.key(0))
    assert whole.bank.shape == (1, 60, WIDTH) and parts.bank.shape == (4, 15, WIDTH)
    monkeypatch.setattr(sys.modules[nnguide.__module__], "BANK_ROWS", 8)
    padded = nnguide(k=7, sampling_ratio=1.0).fit(training, jax.random.key(0))
    assert padded.bank.shape[0] * padded.bank.shape[1] > 60
    expected = by_nnguide(training, *wide(queries))
    for state in (whole, parts, padded):
        np.testing.assert_allclose(
            nnguide(k=7).score(state, queries), expected, rtol=1e-4, atol=1e-3
        )


# Mahalanobis: covariances


def test_an_exponent_of_one_is_normalisation_and_of_zero_none():
    training, queries = make()
    for exponent, normalize in ((1, True), (0, False)):
        found = scores(mahalanobis(exponent=exponent), training, queries)
        np.testing.assert_array_equal(
            found, scores(mahalanobis(normalize=normalize), training, queries)
        )


@pytest.mark.parametrize("exponent", [-1.0, 0.5, 1.0, 2.0])
def test_rows_scaled_by_a_power_of_their_norms(exponent):
    rows = np.array([[3.0, -4.0], [0.0, 0.0], [6e-4, 8e-4], [3e12, 4e12]], np.float32)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(norms > 0, rows / norms * np.minimum(norms ** (1 - exponent), 1e18), 0)
    found = statistics.scaled_rows(jnp.asarray(rows), exponent)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mahalanobis_is_the_same_in_other_coordinates():
    training, queries = make()
    mixing = np.random.default_rng(5).normal(size=(WIDTH, WIDTH)) + 3 * np.eye(WIDTH)

    def mixed(outputs):
        return gj.Outputs(jnp.asarray(wide(outputs)[0] @ mixing + 7, jnp.float32), outputs.logits)

    other = Training(mixed(training.outputs), training.labels)
    for detector in (mahalanobis(), relative_mahalanobis()):
        found = scores(detector, training, queries)
        # The mixing's condition number is about 30.
        np.testing.assert_allclose(
            scores(detector, other, mixed(queries)), found, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("scales", [1.0, np.logspace(0, -2, WIDTH)])
def test_mahalanobis_of_steep_features_far_from_the_origin(scales):
    training, queries = make(offset=100.0, scales=scales)
    expected = by_mahalanobis(training, *wide(queries))
    np.testing.assert_allclose(scores(mahalanobis(), training, queries), expected, rtol=2e-4)


def test_columns_that_repeat_others_or_never_vary_change_nothing():
    training, queries = make()

    def widened(outputs):
        h = np.asarray(outputs.features)
        # The last half is held constant in training only.
        extra = np.concatenate([h[:, :6], np.full((len(h), 6), 0.1)], axis=1)
        return gj.Outputs(jnp.asarray(np.concatenate([h, extra], axis=1)), outputs.logits)

    other = Training(widened(training.outputs), training.labels)
    for detector in (mahalanobis(), relative_mahalanobis()):
        np.testing.assert_allclose(
            scores(detector, other, widened(queries)),
            scores(detector, training, queries),
            rtol=1e-4,
            atol=1e-4,
        )


def test_relative_mahalanobis_of_one_class_is_zero():
    training, queries = make()
    outputs = gj.Outputs(training.outputs.features, training.outputs.logits[:, :1])
    found = scores(
        relative_mahalanobis(), Training(outputs, jnp.zeros(SAMPLES, jnp.int32)), queries
    )
    assert (found == 0).all()


@pytest.mark.parametrize("rows", [7, 20, 59])
def test_second_moments_do_not_depend_on_the_blocks(rows, monkeypatch):
    training, _ = make()
    h, y = np.asarray(training.outputs.features, np.float64), np.asarray(training.labels)
    centers = np.random.default_rng(1).normal(size=(CLASSES, WIDTH)).astype(np.float32)
    monkeypatch.setattr(statistics, "MOMENT_ROWS", rows)
    found = statistics.second_moment(
        training.outputs.features, jnp.asarray(centers), training.labels
    )
    expected = (h - centers[y]).T @ (h - centers[y]) / SAMPLES
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factory", [mahalanobis, relative_mahalanobis])
def test_one_sample_a_class_is_refused(factory):
    # Distances to the samples' mean alone would rank, and the relative ones the wrong way round.
    rng = np.random.default_rng(0)
    features = rng.normal(size=(CLASSES, WIDTH)) + 5
    training = training_of(features, rng.normal(size=(WIDTH, CLASSES)), np.zeros(4), np.arange(4))
    message = r"do not vary within a class \(4 samples of 4 classes\); \w+ expects at least two"
    with pytest.raises(ValueError, match=message):
        factory().fit(training, jax.random.key(0))


def steep(condition, samples=1200, width=64, tried=100):
    """Features of which the least varying direction alone tells what is OOD."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    spread = np.logspace(0, -np.log10(condition) / 2, width)
    centers = 3 * rng.normal(size=(CLASSES, width))

    def drawn(count, last=1.0):
        labels = np.arange(count) % CLASSES
        rest = rng.normal(size=(count, width)) * spread
        rest[:, -1] *= last
        return (centers[labels] + rest @ axes.T).astype(np.float32), labels

    (seen, labels), (inside, _), (outside, _) = drawn(samples), drawn(tried), drawn(tried, 60.0)
    training = training_of(seen, rng.normal(size=(width, CLASSES)), np.zeros(CLASSES), labels)
    return training, inside, outside


def by_float64(training, x, relative):
    h, _ = wide(training.outputs)
    y = np.asarray(training.labels)
    x = np.asarray(x, np.float64)
    means = np.stack([h[y == c].mean(axis=0) for c in range(CLASSES)])

    def squared(means, labels):
        precision = np.linalg.pinv(np.cov((h - means[labels]).T, bias=True), hermitian=True)
        rest = x[:, None] - means
        return np.einsum("bcd,de,bce->bc", rest, precision, rest).min(axis=1)

    background = squared(h.mean(axis=0)[None], np.zeros(len(h), int)) if relative else 0.0
    return squared(means, y) - background


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("condition", "rtol"), [(4096.0, 1e-4), (1e7, 1e-4), (1e9, 2e-3)])
def test_a_direction_of_small_variance_counts(condition, rtol, relative):
    training, inside, outside = steep(condition)
    detector = (relative_mahalanobis if relative else mahalanobis)()
    tried = np.concatenate([inside, outside])
    found = scores(detector, training, outputs_of(training, tried))
    expected = by_float64(training, tried, relative)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    assert (found[: len(inside)].max() < np.median(found[len(inside) :])).all()


@pytest.mark.parametrize("factory", [mahalanobis, relative_mahalanobis])
def test_a_class_without_samples_is_named(factory):
    training, _ = make()
    missing = Training(training.outputs, jnp.where(training.labels == 2, 1, training.labels))
    with pytest.raises(ValueError, match="no sample of class 2"):
        factory().fit(missing, jax.random.key(0))


# ViM and residual: subspaces


@pytest.mark.parametrize(
    ("width", "dim"), [(1, 0), (12, 6), (767, 383), (768, 512), (2047, 512), (2048, 1000)]
)
def test_the_principal_dimension_follows_the_authors(width, dim):
    assert statistics.principal_dimension(width) == dim


@pytest.mark.parametrize("factory", [vim, residual])
def test_a_subspace_that_leaves_nothing_is_refused(factory):
    training, _ = make()
    with pytest.raises(ValueError, match="dim is 12; expected at most 11"):
        factory(dim=12).fit(training, jax.random.key(0))


def test_the_mean_virtual_logit_of_training_samples_is_their_mean_largest_logit():
    training, _ = make()
    found = scores(vim(), training, training.outputs)
    _, logits = wide(training.outputs)
    virtual = found + log_sum(logits)
    np.testing.assert_allclose(virtual.mean(), logits.max(axis=1).mean(), rtol=1e-5)


@pytest.mark.parametrize("shift", [-200.0, -9.0, 30.0])
def test_a_constant_added_to_all_logits_does_not_turn_vim_round(shift):
    rng = np.random.default_rng(0)
    weights = 2 * rng.normal(size=(WIDTH, CLASSES))
    labels = np.arange(500) % CLASSES
    seen = np.maximum(weights.T[labels] + rng.normal(size=(500, WIDTH)), 0)
    inside = np.maximum(weights.T[labels[:200]] + rng.normal(size=(200, WIDTH)), 0)
    outside = np.maximum(6 * rng.normal(size=(200, WIDTH)), 0)
    training = training_of(seen, weights, np.full(CLASSES, shift), labels)
    largest = np.asarray(training.outputs.logits).max(axis=1).mean()
    if largest <= 0:
        with pytest.warns(UserWarning, match="vim: the largest logits .* not above 0"):
            state = vim().fit(training, jax.random.key(0))
    else:
        state = vim().fit(training, jax.random.key(0))
    tried = outputs_of(training, np.concatenate([inside, outside]))
    found = np.asarray(vim().score(state, tried))
    assert state.alpha > 0
    assert gj.ood_metrics(found[:200], found[200:])["auroc"] > 0.9


def test_vim_of_negative_logits_is_that_of_logits_about_their_mean():
    training, queries = make()
    h, logits = wide(training.outputs)
    moved = Training(
        gj.Outputs(training.outputs.features, training.outputs.logits - 100),
        training.labels,
        head=(training.head[0], training.head[1] - 100),
    )
    with pytest.warns(UserWarning, match="not above 0"):
        state = vim(dim=5).fit(moved, jax.random.key(0))
    x, z = wide(queries)
    found = vim(dim=5).score(state, gj.Outputs(queries.features, queries.logits - 100))
    # The origin follows the bias; the residuals are taken as they are.
    own, own_x = (residuals(moved, rows, 5) for rows in (h, x))
    alpha = (logits.max(axis=1) - logits.mean(axis=1)).mean() / own.mean()
    expected = alpha * own_x - log_sum(z) + z.mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_features_within_a_plane_have_no_residual_and_those_off_it_stand_out():
    rng = np.random.default_rng(2)
    plane = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    # Without a bias the origin is 0, which lies within the plane.
    training = training_of(
        rng.normal(size=(SAMPLES, 3)) @ plane[:3], rng.normal(size=(WIDTH, CLASSES)), np.zeros(4)
    )
    within = outputs_of(training, rng.normal(size=(QUERIES, 3)) @ plane[:3])
    off = outputs_of(training, np.asarray(within.features) + 0.1 * plane[5])
    assert (scores(residual(dim=3), training, within) < 1e-5).all()
    np.testing.assert_allclose(scores(residual(dim=3), training, off), 0.1, rtol=1e-4)
    near, far = (scores(vim(dim=3), training, outputs) for outputs in (within, off))
    assert np.isfinite(far).all() and far.min() > near.max()


def test_a_head_that_repeats_a_class_has_the_origin_of_the_head_without_it():
    training, queries = make()
    weights, bias = map(np.asarray, training.head)
    # Repeated but for rounding, which the pseudo-inverse must not blow up.
    doubled = np.concatenate([weights, weights[:, :1] * np.float32(1 + 1e-7)], axis=1)
    other = training_of(
        training.outputs.features, doubled, np.append(bias, bias[0]), training.labels
    )
    np.testing.assert_allclose(
        scores(residual(), other, outputs_of(other, queries.features)),
        scores(residual(), training, queries),
        rtol=1e-4,
    )


# SHE


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_she_by_other_metrics(metric):
    training, queries = make()
    h, logits = wide(training.outputs)
    x, z = wide(queries)
    right = logits.argmax(axis=1) == np.asarray(training.labels)
    own = [h[right & (logits.argmax(axis=1) == c)].mean(axis=0) for c in z.argmax(axis=1)]
    expected = {
        "euclidean": np.linalg.norm(x - own, axis=1),
        "cosine": -(unit(x) * unit(np.array(own))).sum(axis=1),
    }
    found = scores(she(metric=metric), training, queries)
    np.testing.assert_allclose(found, expected[metric], rtol=1e-5, atol=1e-6)


def test_she_takes_all_samples_of_a_class_that_is_never_classified_correctly():
    training, _ = make()
    logits = training.outputs.logits.at[:, 3].set(-1e3)
    missing = Training(gj.Outputs(training.outputs.features, logits), training.labels)
    with pytest.warns(UserWarning, match="she: no correctly classified sample of class 3 .1 of 4"):
        patterns = she().fit(missing, jax.random.key(0))
    h, y = wide(training.outputs)[0], np.asarray(training.labels)
    np.testing.assert_allclose(patterns[3], h[y == 3].mean(axis=0), rtol=1e-5)
    none = Training(missing.outputs, jnp.where(training.labels == 3, 0, training.labels))
    with pytest.raises(ValueError, match=r"no sample of class 3 .* of each$"):
        she().fit(none, jax.random.key(0))


# fDBD and NCI: the head's geometry


def test_fdbd_measures_the_way_to_the_boundaries_of_a_known_head():
    # Boundaries between three axes' weights: |a − b| / √2 apart; the training mean is 0.
    training = training_of([[3, 0, 0], [-3, 0, 0]], np.eye(3), np.zeros(3))
    queries = outputs_of(training, [[4, 1, 2], [0, 5, 5]])
    expected = [-(3 + 2) / 2 / np.sqrt(2) / np.sqrt(21), -(5 + 0) / 2 / np.sqrt(2) / np.sqrt(50)]
    np.testing.assert_allclose(scores(fdbd(), training, queries), expected, rtol=1e-6)


def test_fdbd_may_divide_by_the_norm_of_the_features():
    training, queries = make(offset=2.0)
    x, z = wide(queries)
    to_mean = np.linalg.norm(x - wide(training.outputs)[0].mean(axis=0), axis=1)
    expected = by_fdbd(training, x, z) * to_mean / np.linalg.norm(x, axis=1)
    found = scores(fdbd(distance_as_normalizer=False), training, queries)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_fdbd_passes_over_classes_of_equal_weights():
    weights = np.eye(3)[:, [0, 1, 1]]
    training = training_of([[3, 0, 0], [-3, 0, 0]], weights, np.zeros(3))
    found = scores(fdbd(), training, outputs_of(training, [[0, 4, 3]]))
    # Of the two others, only the first has a boundary, 4/√2 away.
    np.testing.assert_allclose(found, -4 / np.sqrt(2) / 2 / 5, rtol=1e-6)


def test_nci_of_features_along_the_weights_is_the_weights_norm():
    training, _ = make()
    mean = np.asarray(training.outputs.features).mean(axis=0)
    weights = np.asarray(training.head[0])
    along = outputs_of(training, mean + 50 * weights.T)
    assert (along.logits.argmax(axis=1) == np.arange(CLASSES)).all()
    found = scores(nci(alpha=0.0), training, along)
    np.testing.assert_allclose(found, -np.linalg.norm(weights, axis=0), rtol=1e-5)


@pytest.mark.parametrize("detector", [fdbd(), nci(alpha=0.0)], ids=lambda each: each.name)
def test_the_training_mean_itself_scores_zero(detector):
    training = training_of([[3, 1, 0], [-3, -1, 0]], np.eye(3), np.arange(3))
    found = scores(detector, training, outputs_of(training, np.zeros((1, 3))))
    assert found == 0
