"""What holds of every detector, whatever its scores mean."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax import detectors
from grood_jax.backbone.outputs import (
    Deflated,
    Grams,
    LayerExtremes,
    LayerMeans,
    LocalConcepts,
    Nudged,
    Perturbed,
)
from grood_jax.detectors import Detector, Training

WIDTH, CLASSES, SAMPLES, QUERIES = 12, 4, 80, 10
SMALL = {
    "cfood": {"sampling_ratio": 1.0},
    "combood": {"k": 5},
    "knn": {"k": 5},
    "nnguide": {"k": 5},
    "grood": {"ood_prototype": "prototype-mean"},
    "weiper": {"repeats": 5},
}
NAMES = [name for name in detectors.names()]
every_detector = pytest.mark.parametrize("name", NAMES)

WITHIN_ROUNDING = 2e-5
"""What the order of float32 sums may change, relative to the largest score."""

SEE_NO_SCALE = {
    "cfood": "features are normalised",
    "combood": "features are normalised, and extremes are given",
    "global_mahalanobis": "distances are in deviations of the features",
    "knn": "features are normalised",
    "nnguide": "features are normalised",
    "lts": "ratios of sums of features",
    "mahalanobis": "distances are in deviations of the features",
    "relation": "features are normalised",
    "relative_mahalanobis": "distances are in deviations of the features",
}
"""Detectors whose papers' scores do not depend on the unit of features, the logits being given."""


def create(name):
    return detectors.create(name, **SMALL.get(name, {}))


def outputs(features, weights, bias, detector):
    features = np.asarray(features, np.float32)
    logits = features @ weights + bias
    extra = {}
    for need in detector.needs:
        if isinstance(need, Perturbed):
            extra[need] = jnp.asarray(logits * np.float32(1.1))
        if isinstance(need, Grams):
            powers = np.arange(1, len(need.powers) + 1, dtype=np.float32)[None, :, None]
            extra[need] = (np.abs(features)[:, None, :] * powers,)
        if isinstance(need, Deflated):
            extra[need] = jnp.asarray((features if need.where == "last" else logits) / 2)
        if isinstance(need, Nudged):
            extra[need] = jnp.asarray(features * np.float32(0.9))
        if isinstance(need, LayerMeans):
            extra[need] = (features, features[:, ::2])
        if isinstance(need, LocalConcepts):
            extra[need] = np.exp(-features.max(axis=1)).astype(np.float32)
        if isinstance(need, LayerExtremes):
            extra[need] = (np.stack([features.max(axis=1), features.min(axis=1)], axis=1),)
    return gj.Outputs(jnp.asarray(features), jnp.asarray(logits), extra)


@functools.cache
def made(name):
    """A detector, what it is fitted on, samples to score, and its state."""
    rng = np.random.default_rng(0)
    detector = create(name)
    weights = rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    bias = rng.normal(size=CLASSES).astype(np.float32)
    labels = np.arange(SAMPLES) % CLASSES
    features = np.maximum(rng.normal(size=(SAMPLES, WIDTH)) + weights.T[labels], 0)
    tried = np.maximum(1.5 * rng.normal(size=(QUERIES, WIDTH)), 0)
    training = Training(
        outputs(features, weights, bias, detector),
        jnp.asarray(labels, jnp.int32),
        head=(jnp.asarray(weights), jnp.asarray(bias)) if detector.head else None,
    )
    state = detector.fit(training, jax.random.key(0))
    return detector, training, outputs(tried, weights, bias, detector), state


@functools.cache
def compiled(score):
    return jax.jit(score)


def score(detector, state, queries):
    """Compiled, as evaluations score: one program, not one for each operation."""
    return (compiled(detector.score) if detector.compiled else detector.score)(state, queries)


def agree(found, expected):
    size = np.abs(np.asarray(expected)).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=WITHIN_ROUNDING * size)


@every_detector
def test_a_score_depends_neither_on_the_batch_nor_on_the_order_nor_on_other_samples(name):
    detector, _, queries, state = made(name)
    whole = np.asarray(score(detector, state, queries))
    turned = score(detector, state, jax.tree.map(lambda array: array[::-1], queries))
    agree(turned, whole[::-1])
    lone = score(detector, state, jax.tree.map(lambda array: array[4:5], queries))
    agree(np.pad(lone, (0, 1), constant_values=np.abs(whole).max())[:1], whole[4:5])


@every_detector
def test_a_score_does_not_depend_on_the_number_of_devices(name):
    detector, _, queries, state = made(name)
    if not detector.compiled:
        pytest.skip("its bank lies on the host")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("rows",))
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    shared = jax.device_put(queries, by_rows)
    agree(score(detector, state, shared), score(detector, state, queries))


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("name", SEE_NO_SCALE)
def test_a_score_does_not_depend_on_the_scale_of_features_where_its_paper_says_so(name, scale):
    detector, training, queries, state = made(name)

    def scaled(given):
        return replace(given, features=given.features * jnp.float32(scale))

    other = detector.fit(replace(training, outputs=scaled(training.outputs)), jax.random.key(0))
    expected = np.asarray(score(detector, state, queries))
    found = score(detector, other, scaled(queries))
    # Scaling is not by a power of two, and a float32 subtraction follows it.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@every_detector
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_scores_of_half_precision_are_those_of_the_same_numbers_in_float32(name, dtype):
    detector, training, queries, _ = made(name)
    halved = jax.tree.map(lambda array: jnp.asarray(array, dtype), queries)
    single = jax.tree.map(lambda array: array.astype(jnp.float32), halved)
    half = replace(
        training, outputs=jax.tree.map(lambda a: jnp.asarray(a, dtype), training.outputs)
    )
    state = detector.fit(half, jax.random.key(0))
    found = score(detector, state, halved)
    assert found.dtype == jnp.float32 and np.isfinite(np.asarray(found)).all()
    np.testing.assert_array_equal(found, score(detector, state, single))
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@every_detector
@pytest.mark.parametrize("part", ["features", "logits"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_training_row_that_is_not_finite_is_refused_by_its_index(name, part, value):
    detector, training, _, _ = made(name)
    spoilt = np.array(getattr(training.outputs, part))
    spoilt[7, 1] = value
    bad = replace(training, outputs=replace(training.outputs, **{part: jnp.asarray(spoilt)}))
    message = rf"training.outputs.{part} holds 1 values that are NaN .* at index \(7, 1\)"
    with pytest.raises(ValueError, match=message):
        detector.fit(bad, jax.random.key(0))


@every_detector
def test_a_label_that_is_no_class_is_refused(name):
    detector, training, _, _ = made(name)
    bad = replace(training, labels=training.labels.at[5].set(CLASSES))
    with pytest.raises(ValueError, match="training.labels holds 4; expected classes from 0 to 3"):
        detector.fit(bad, jax.random.key(0))


@every_detector
@pytest.mark.parametrize("key", [0, None])
def test_what_is_no_key_is_refused_whether_or_not_anything_is_drawn(name, key, unchecked):
    detector, training, _, _ = made(name)
    with pytest.raises(TypeError, match="key is .*; expected a random key"):
        detector.fit(training, key)


# With two samples a class some tell that they are few.
@pytest.mark.filterwarnings("ignore:.*classes have fewer")
@every_detector
def test_gigantic_features_give_an_error_of_ones_own_or_finite_scores(name):
    detector, training, _, _ = made(name)
    weights, bias = training.head or (np.eye(WIDTH, CLASSES), np.zeros(CLASSES))
    features = 1e20 * np.asarray(training.outputs.features)
    huge = outputs(features, np.asarray(weights) / 1e20, np.asarray(bias), detector)
    head = None if training.head is None else (weights / 1e20, bias)
    given = Training(huge, training.labels, head=head)
    try:
        state = detector.fit(given, jax.random.key(0))
    except ValueError as error:
        assert "expected at most 1e+18" in str(error)
        return
    assert np.isfinite(np.asarray(score(detector, state, huge))).all()


@pytest.mark.parametrize("name", [name for name in NAMES if create(name).needs])
def test_bare_outputs_are_refused_by_detectors_that_need_more(name):
    detector, training, queries, state = made(name)
    bare = gj.Outputs(queries.features, queries.logits)
    with pytest.raises(ValueError, match=rf"^outputs.extra has no .*; {name} expects it"):
        detector.score(state, bare)
    if detector.fit_needs:
        bare = gj.Outputs(training.outputs.features, training.outputs.logits)
        with pytest.raises(ValueError, match=rf"^training.outputs.extra has no .*; {name} expects"):
            detector.fit(replace(training, outputs=bare), jax.random.key(0))


def test_rows_without_a_mix_are_refused():
    with pytest.raises(ValueError, match="'mine' has rows, and needs .*; expected a Mix"):
        Detector("mine", lambda t, key: (), lambda s, o: o.logits[:, 0], rows=lambda t, key: [0])


def test_a_detector_made_of_another_is_checked_for_itself():
    detector, training, queries, _ = made("msp")
    need = Perturbed(10.0, 0.1)
    other = replace(detector, name="other", needs=(need,))
    with pytest.raises(ValueError, match="other expects it"):
        other.score((), queries)
    again = replace(other, needs=())
    np.testing.assert_array_equal(again.score((), queries), detector.score((), queries))
