import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import weibull_min

import grood_jax as gj
from grood_jax.detectors.base import Training
from grood_jax.detectors.openmax import STEEPEST, openmax

CLASSES, TRAINED, SCORED = 5, 300, 40


def outputs(logits):
    logits = jnp.asarray(logits, jnp.float32)
    return gj.Outputs(jnp.zeros((len(logits), 2)), logits)


def noisy(rng, labels):
    return (rng.normal(size=(len(labels), CLASSES)) + 4.0 * np.eye(CLASSES)[labels]).astype("f4")


def trained_on(logits, labels):
    return Training(outputs(logits), jnp.asarray(labels, jnp.int32))


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, TRAINED)
    labels[:2] = 0
    labels[labels == 4] = np.where(np.arange(np.sum(labels == 4)) < 7, 4, 3)  # below a full tail
    return trained_on(noisy(rng, labels), labels)


@pytest.fixture(scope="module")
def fresh():
    rng = np.random.default_rng(1)
    near = noisy(rng, rng.integers(0, CLASSES, SCORED // 2))
    return np.concatenate([near, (3 * rng.normal(size=near.shape)).astype("f4")])


def fitted(detector, training):
    return detector.fit(training, jax.random.key(0))


def scores(detector, training, logits):
    """In a batch of SCORED rows: another shape would be another second of compilation."""
    padded = np.pad(np.asarray(logits), ((0, SCORED - len(logits)), (0, 0)), mode="edge")
    return np.asarray(detector.score(fitted(detector, training), outputs(padded)))[: len(logits)]


def distance(x, mean, kind):
    euclidean = np.sqrt(((x - mean) ** 2).sum())
    cosine = 1 - x @ mean / np.sqrt((x @ x) * (mean @ mean))
    return {"euclidean": euclidean, "cosine": cosine, "eucos": euclidean / 2 + cosine}[kind]


def weibull(x):
    """Shape and scale with the highest likelihood, by the root of its slope."""
    share = x / x.max()

    def slope(k):
        return (share**k @ np.log(x)) / (share**k).sum() - 1 / k - np.log(x).mean()

    shape = brentq(slope, 0.1, 1000.0, xtol=1e-12)
    return shape, x.max() * (share**shape).mean() ** (1 / shape)


def reference_fit(training, tail, kind):
    logits, labels = np.asarray(training.outputs.logits, np.float64), np.asarray(training.labels)
    models = []
    for c in range(CLASSES):
        own = logits[(labels == c) & (logits.argmax(axis=1) == c)]
        mean = own.mean(axis=0)
        largest = np.sort([distance(x, mean, kind) for x in own])[-tail:]
        models.append((mean, largest[0], *weibull(largest - largest[0] + 1)))
    return models


def reference(training, logits, tail=20, alpha=3, kind="euclidean"):
    """Sample by sample and class by class, in float64."""
    models = reference_fit(training, tail, kind)
    found = []
    for z in np.asarray(logits, np.float64):
        revised, unknown = z.copy(), 0.0
        for i, c in enumerate(np.argsort(-z)[:alpha], start=1):
            mean, start, shape, scale = models[c]
            x = distance(z, mean, kind) - start + 1
            w = weibull_min.cdf(x, shape, scale=scale)
            revised[c] = z[c] * (1 - w * (alpha + 1 - i) / alpha)
            unknown += z[c] - revised[c]
        found.append(np.exp(unknown) / (np.exp(revised).sum() + np.exp(unknown)))
    return np.asarray(found)


@pytest.mark.parametrize(
    "options",
    [{}, {"tail": 8, "alpha": 1}, {"distance": "cosine"}, {"distance": "eucos", "alpha": 5}],
)
def test_scores_equal_float64(options, training, fresh):
    found = scores(openmax(**options), training, fresh)
    assert found.shape == (SCORED,) and found.dtype == np.float32
    given = {"kind" if name == "distance" else name: value for name, value in options.items()}
    # A distance is rounded by 1e-6, which the fitted shapes, some 10, and the logits multiply;
    # cosine distances have shapes of some 100.
    np.testing.assert_allclose(found, reference(training, fresh, **given), rtol=3e-4)
    assert found.min() < 0.1 and found.max() > 0.5


def test_the_tails_are_fitted_with_the_highest_likelihood(training):
    state = fitted(openmax(tail=12), training)
    models = reference_fit(training, 12, "euclidean")
    for c, (mean, start, shape, scale) in enumerate(models):
        np.testing.assert_allclose(state.means[c], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.starts[c], start, rtol=1e-5)
        np.testing.assert_allclose(state.shapes[c], shape, rtol=1e-4)
        np.testing.assert_allclose(state.log_scales[c], np.log(scale), rtol=1e-4)
    assert np.bincount(np.asarray(training.labels))[4] < 12


def test_only_samples_classified_right_are_fitted(training, fresh):
    logits, labels = np.asarray(training.outputs.logits), np.asarray(training.labels)
    right = logits.argmax(axis=1) == labels
    assert 0 < np.sum(~right)
    np.testing.assert_allclose(
        scores(openmax(), trained_on(logits[right], labels[right]), fresh),
        scores(openmax(), training, fresh),
        rtol=1e-6,
    )


def test_scores_depend_neither_on_the_batch_nor_on_compilation(training, fresh):
    detector = openmax()
    state = fitted(detector, training)
    found = np.asarray(detector.score(state, outputs(fresh)))
    compiled = jax.jit(detector.score)
    np.testing.assert_allclose(compiled(state, outputs(fresh)), found, rtol=2e-5)
    np.testing.assert_allclose(compiled(state, outputs(fresh[9::-1])), found[9::-1], rtol=2e-5)
    host = gj.Outputs(np.zeros((SCORED, 2), np.float32), fresh)
    np.testing.assert_allclose(detector.score(state, host), found, rtol=2e-5)


def test_far_from_every_mean_the_first_class_loses_everything(training):
    far = np.asarray([[60.0, 0, 0, 0, 0], [0, 0, 60.0, 0, 0]], np.float32)
    np.testing.assert_allclose(scores(openmax(alpha=1), training, far), [1, 1], rtol=1e-6)


def test_at_its_mean_a_class_loses_nothing(training):
    state = fitted(openmax(alpha=1), training)
    assert (state.starts > 1).all()
    means = np.asarray(state.means, np.float64)
    expected = 1 / (1 + np.exp(means).sum(axis=1))
    np.testing.assert_allclose(scores(openmax(alpha=1), training, means), expected, rtol=1e-5)


def test_more_ranks_than_classes_revise_all(training, fresh):
    found = scores(openmax(alpha=7), training, fresh)
    np.testing.assert_allclose(found, reference(training, fresh, alpha=7), rtol=3e-4)


@pytest.mark.filterwarnings("ignore:openmax")
@pytest.mark.parametrize(
    ("copies", "distance"), [(1, "euclidean"), (2, "euclidean"), (2, "eucos"), (3, "cosine")]
)
def test_classes_without_a_spread_of_distances_give_steps(copies, distance):
    """One sample, two as far from their mean as each other, or three alike."""
    logits = np.repeat(4.0 * np.eye(CLASSES, dtype=np.float32), copies, axis=0)
    if copies == 2:
        logits[1::2, :] *= 1.5
    training = trained_on(logits, np.repeat(np.arange(CLASSES), copies))
    state = fitted(openmax(distance=distance), training)
    np.testing.assert_allclose(state.shapes, [STEEPEST] * CLASSES, rtol=1e-5)
    on, off = np.eye(CLASSES) * 4.0, np.eye(CLASSES) * 4.0 + 3.0 * np.eye(CLASSES)[::-1]
    found = scores(openmax(distance=distance), training, np.concatenate([on, off, 0 * on]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("copies", [1, 2])
def test_classes_without_a_spread_of_distances_are_told_of(copies):
    logits = np.repeat(4.0 * np.eye(CLASSES, dtype=np.float32), copies, axis=0)
    training = trained_on(logits, np.repeat(np.arange(CLASSES), copies))
    with pytest.warns(UserWarning, match="openmax: 5 of 5 classes have fewer than 3 samples"):
        fitted(openmax(), training)


@pytest.mark.filterwarnings("ignore:openmax")
def test_a_class_with_two_samples_among_full_ones_is_fitted(training, fresh):
    logits, labels = np.asarray(training.outputs.logits), np.asarray(training.labels)
    right = logits.argmax(axis=1) == labels
    kept = (labels != 1) | (np.cumsum(right & (labels == 1)) <= 2)
    few = trained_on(logits[kept], labels[kept])
    state, full = fitted(openmax(), few), fitted(openmax(), training)
    assert np.isfinite(scores(openmax(), few, fresh)).all()
    others = np.asarray([0, 2, 3, 4])
    np.testing.assert_allclose(state.shapes[others], full.shapes[others], rtol=1e-6)
    assert state.shapes[1] > 10 * full.shapes[1]


def test_logits_of_zeros_are_scored(training):
    found = scores(openmax(distance="cosine"), training, np.zeros((2, CLASSES)))
    np.testing.assert_allclose(found, [1 / (CLASSES + 1)] * 2, rtol=1e-6)


def test_all_samples_are_taken_of_a_class_that_is_never_classified_right(training):
    logits = np.asarray(training.outputs.logits).copy()
    logits[:, 3] = -10.0
    with pytest.warns(UserWarning, match="openmax: no correctly classified sample of class 3 "):
        state = fitted(openmax(), trained_on(logits, training.labels))
    own = logits[np.asarray(training.labels) == 3]
    np.testing.assert_allclose(state.means[3], own.mean(axis=0), rtol=1e-5)
    without = np.where(np.asarray(training.labels) == 3, 0, training.labels)
    with pytest.raises(ValueError, match=r"no sample of class 3 .* of each$"):
        fitted(openmax(), trained_on(logits, without))


@pytest.mark.parametrize(
    ("given", "error", "complaint"),
    [
        ({"tail": 0}, ValueError, "tail is 0"),
        ({"tail": 2.5}, TypeError, "tail is 2.5"),
        ({"alpha": 0}, ValueError, "alpha is 0"),
        ({"alpha": True}, TypeError, "alpha is True"),
        ({"distance": "cosin"}, ValueError, "distance is 'cosin'.*did you mean 'cosine'"),
    ],
)
def test_options_are_checked(given, error, complaint, unchecked):
    with pytest.raises(error, match=complaint):
        openmax(**given)


def test_options_are_recorded():
    detector = openmax(tail=5)
    assert detector.options == {"tail": 5, "alpha": 3, "distance": "euclidean"}
    assert not detector.head
