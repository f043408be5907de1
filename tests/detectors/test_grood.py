import itertools
import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import grood_jax as gj
from grood_jax.data import Batch
from grood_jax.detectors import GroodState, MixedTraining, Noise, Training, Validation, grood
from grood_jax.detectors.grood import compared_gradients, least_like_training
from grood_jax.evaluation import fitting

pytestmark = pytest.mark.usefixtures("bounded")

ROWS, TESTS, OOD, CLASSES, WIDTH = 60, 25, 40, 5, 6


def outputs(rows, seed, spread=2.0):
    """Features around class centres and logits that are mostly right, with their labels."""
    rng = np.random.default_rng(seed)
    centers = 2.0 * np.random.default_rng(9).normal(size=(CLASSES, WIDTH))
    labels = np.arange(rows) % CLASSES
    features = centers[labels] + spread * rng.normal(size=(rows, WIDTH))
    logits = features @ centers.T - 0.5 * (centers**2).sum(axis=1)
    found = gj.Outputs(jnp.asarray(features, jnp.float32), jnp.asarray(logits, jnp.float32))
    return found, jnp.asarray(labels, jnp.int32)


def training(ood=None, mixed=None, **changes):
    found, labels = outputs(ROWS, 0)
    parts = {"features": found.features, "logits": found.logits, "labels": labels} | changes
    return Training(gj.Outputs(parts["features"], parts["logits"]), parts["labels"], ood, mixed)


def ood_outputs(rows=OOD):
    return outputs(rows, 1, spread=4.0)[0]


def f64(array):
    return np.asarray(array).astype(np.float64)


def distances(points, prototypes):
    return np.sqrt(((f64(points)[:, None] - f64(prototypes)[None]) ** 2).sum(axis=2))


def gradients(features, prototypes, ood):
    """``softmax(−d)_ood · (h − p_ood) / ‖h − p_ood‖``."""
    to_ood = distances(features, ood[None])
    weight = np.exp(-to_ood) / (
        np.exp(-distances(features, prototypes)).sum(axis=1)[:, None] + np.exp(-to_ood)
    )
    return weight * (f64(features) - f64(ood)) / np.where(to_ood > 0, to_ood, 1.0)


def class_means(values, labels, classes=range(CLASSES)):
    return np.stack([f64(values)[np.asarray(labels) == c].mean(axis=0) for c in classes])


def correct(data):
    return np.asarray(data.outputs.logits).argmax(axis=1) == np.asarray(data.labels)


def kth_nearest(queries, bank, k):
    return np.sort(distances(queries, bank), axis=1)[:, k - 1]


def rows_of(state):
    return gj.bank_rows(state.bank)


def reference(data, test, ood, k=1):
    """Class prototypes, bank and scores in float64, of the whole method from features on."""
    prototypes = class_means(data.outputs.features, data.labels)
    bank = gradients(data.outputs.features[correct(data)], prototypes, ood)
    return prototypes, bank, kth_nearest(gradients(test.features, prototypes, ood), bank, k)


def assert_state_and_scores(detector, data, ood, key, k=1):
    test = outputs(TESTS, 2)[0]
    prototypes, bank, scores = reference(data, test, f64(ood), k)
    state = detector.fit(data, key)
    np.testing.assert_allclose(state.class_prototypes, prototypes, rtol=1e-5)
    np.testing.assert_allclose(state.ood_prototype, ood, rtol=1e-5)
    np.testing.assert_allclose(rows_of(state), bank, rtol=0, atol=1e-6)
    found = detector.score(state, test)
    assert found.shape == (TESTS,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)


def test_the_data_have_errors_of_the_network_in_them():
    assert 0.5 * ROWS < correct(training()).sum() < ROWS


@pytest.mark.parametrize("k", [1, 7])
def test_mixup_is_the_mean_of_the_mixed_features(key, k):
    ood = ood_outputs()
    expected = f64(ood.features).mean(axis=0)
    assert_state_and_scores(grood(k=k), training(ood), expected, key, k)


def test_validation_is_the_mean_of_the_held_out_features(key):
    ood = ood_outputs(OOD)
    expected = f64(ood.features).mean(axis=0)
    assert_state_and_scores(grood(ood_prototype="validation"), training(ood), expected, key)


def test_prototype_mean_is_the_mean_of_the_class_prototypes(key):
    data = training()
    expected = class_means(data.outputs.features, data.labels).mean(axis=0)
    assert_state_and_scores(grood(ood_prototype="prototype-mean"), data, expected, key)


def all_gradients(features, prototypes, ood):
    """Of C + M prototypes in one softmax: rows of M D numbers."""
    to_ood = distances(features, ood)
    shares = (
        np.exp(-to_ood)
        / (np.exp(-distances(features, prototypes)).sum(axis=1) + np.exp(-to_ood).sum(axis=1))[
            :, None
        ]
    )
    rest = f64(features)[:, None] - f64(ood)
    return (shares[:, :, None] * rest / to_ood[:, :, None]).reshape(len(rest), -1)


@pytest.mark.parametrize("by", ["distance", "norm"])
def test_several_prototypes_share_a_softmax(key, by):
    sources = ("validation", "prototype-mean", "mixup")
    detector = grood(ood_prototype=sources, score=by)
    assert detector.ood == detector.ood_sources == (Validation(), MixedTraining(0.5, 10_000))
    parts = outputs(OOD, 1, spread=4.0)[0], outputs(OOD, 3, spread=4.0)[0]
    data, test = training(parts), outputs(TESTS, 2)[0]
    prototypes = class_means(data.outputs.features, data.labels)
    means = [f64(part.features).mean(axis=0) for part in parts]
    ood = np.stack([means[0], prototypes.mean(axis=0), means[1]])
    state = detector.fit(data, key)
    np.testing.assert_allclose(state.ood_prototype, ood, rtol=1e-5, atol=1e-6)
    queries = all_gradients(test.features, prototypes, ood)
    if by == "norm":
        assert state.bank is None and detector.rows is None
        expected = np.linalg.norm(queries, axis=1)
    else:
        bank = all_gradients(data.outputs.features[correct(data)], prototypes, ood)
        np.testing.assert_allclose(rows_of(state), bank, rtol=0, atol=1e-6)
        expected = kth_nearest(queries, bank, 1)
    np.testing.assert_allclose(detector.score(state, test), expected, rtol=1e-4, atol=1e-6)


def of_length_one(features, data):
    del data
    return f64(features) / np.linalg.norm(f64(features), axis=-1, keepdims=True)


def white(features, data):
    """``(h − c) Λ^{−1/2} V`` with the covariance about class means, half of it its mean eigenvalue.

    Signs and order of the axes are any: distances do not see them.
    """
    known, labels = f64(data.outputs.features), np.asarray(data.labels)
    present = np.unique(labels)
    means = class_means(known, labels, present)
    rest = known - means[np.searchsorted(present, labels)]
    covariance = rest.T @ rest / len(rest)
    covariance = 0.5 * covariance + 0.5 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    values, axes = np.linalg.eigh(covariance)
    return (f64(features) - means.mean(axis=0)) @ (axes / np.sqrt(values))


@pytest.mark.parametrize(("space", "bring"), [("normalized", of_length_one), ("whitened", white)])
@pytest.mark.parametrize("present", [None, (0, 2, 3)])
def test_prototypes_lie_in_the_space_asked_for(key, space, bring, present):
    data = training(ood_outputs())
    if present is not None:
        rows = np.flatnonzero(np.isin(np.asarray(data.labels), present))
        own = gj.Outputs(data.outputs.features[rows], data.outputs.logits[rows])
        data = Training(own, data.labels[rows], data.ood)
    detector = grood(space=space, k=2, present_classes=present)
    state = detector.fit(data, key)
    test = outputs(TESTS, 2)[0]
    known, tried, ood = (bring(part.features, data) for part in (data.outputs, test, data.ood))
    center = ood.mean(axis=0)
    prototypes = class_means(known, data.labels, present or range(CLASSES))
    bank = gradients(known[correct(data)], prototypes, center)
    expected = kth_nearest(gradients(tried, prototypes, center), bank, 2)
    np.testing.assert_allclose(detector.score(state, test), expected, rtol=2e-4, atol=1e-6)
    compared = compared_gradients(detector, state, test)
    np.testing.assert_allclose(
        np.linalg.norm(compared, axis=1),
        np.linalg.norm(gradients(tried, prototypes, center), axis=1),
        rtol=1e-4,
    )


@pytest.mark.parametrize("space", ["normalized", "whitened"])
def test_mixed_copies_lie_in_the_space_too(key, space):
    mixed = jnp.stack([outputs(ROWS, seed)[0].features for seed in (3, 4)], axis=1)
    options = {"interpolate": True, "interpolate_classes": 2, "space": space}
    detector = grood(**options, ood_prototype="prototype-mean", score="norm")
    data = training(mixed=None)
    state = detector.fit(data, key)
    need = detector.needs[0]
    test = replace(outputs(ROWS, 2)[0], extra={need: mixed})
    alone = grood(ood_prototype="prototype-mean", score="norm", space=space)
    own = compared_gradients(alone, alone.fit(data, key), test)
    copies = [
        compared_gradients(alone, alone.fit(data, key), gj.Outputs(part, test.logits))
        for part in (mixed[:, 0], mixed[:, 1])
    ]
    found = compared_gradients(detector, state, test)
    np.testing.assert_allclose(found, own + (copies[0] + copies[1]) / 2, rtol=1e-4, atol=1e-6)


def test_one_source_in_a_list_is_that_source(key):
    listed, bare = grood(ood_prototype=["prototype-mean"]), grood(ood_prototype="prototype-mean")
    assert listed.options == bare.options and listed.ood is None
    mixed = grood(ood_prototype=("mixup", "prototype-mean"))
    assert mixed.ood == MixedTraining(0.5, 10_000)
    assert json.loads(json.dumps(mixed.options))["ood_prototype"] == ["mixup", "prototype-mean"]


def test_the_norm_of_interpolated_gradients_needs_no_bank(key):
    options = {"ood_prototype": ("mixup", "prototype-mean"), "interpolate": True}
    detector = grood(**options, interpolate_classes=2, score="norm")
    (mix,) = detector.needs
    assert detector.rows is None
    test = with_mixed(outputs(TESTS, 2)[0], mix, 4)
    data = training(ood_outputs())
    prototypes = class_means(data.outputs.features, data.labels)
    ood = np.stack([f64(data.ood.features).mean(axis=0), prototypes.mean(axis=0)])
    parts = [test.features, test.extra[mix][:, 0], test.extra[mix][:, 1]]
    own, first, second = (all_gradients(part, prototypes, ood) for part in parts)
    expected = np.linalg.norm(own + (first + second) / 2, axis=1)
    found = detector.score(detector.fit(data, key), test)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="interpolate_classes is 5; expected from 1 to 4"):
        grood(**options, interpolate_classes=5, score="norm").fit(data, key)


def test_a_short_norm_is_no_zero(key):
    data = training()
    detector = grood(ood_prototype="prototype-mean", score="norm")
    state = detector.fit(data, key)
    far = replace(state, ood_prototype=state.ood_prototype + 25.0)
    test = outputs(TESTS, 2)[0]
    expected = np.linalg.norm(
        gradients(test.features, f64(state.class_prototypes), f64(far.ood_prototype)), axis=1
    )
    assert expected.max() < 1e-19
    np.testing.assert_allclose(detector.score(far, test), expected, rtol=1e-4)


def lowest_logsumexp(logits, start, stop, count):
    values = np.log(np.exp(f64(logits[start:stop])).sum(axis=1))
    return start + np.argsort(values)[:count]


def test_noise_is_the_mean_of_the_features_least_like_the_training_data(key):
    ood = ood_outputs(250)
    kept = np.concatenate(
        [lowest_logsumexp(ood.logits, *part) for part in ((0, 100, 10), (100, 200, 10))]
        + [lowest_logsumexp(ood.logits, 200, 250, 5)]
    )
    np.testing.assert_array_equal(least_like_training(ood.logits), kept)
    expected = f64(ood.features)[kept].mean(axis=0)
    assert_state_and_scores(grood(ood_prototype="noise"), training(ood), expected, key)


def test_least_like_training_keeps_one_of_a_few():
    logits = jnp.array([[5.0, 1.0], [0.0, -3.0], [0.5, -9.0]])
    np.testing.assert_array_equal(least_like_training(logits), [1])


def test_farthest_fifth_averages_the_fifth_farthest_from_every_class(key):
    data, ood = training(ood_outputs()), ood_outputs()
    prototypes = class_means(data.outputs.features, data.labels)
    nearest = distances(ood.features, prototypes).min(axis=1)
    kept = np.argsort(-nearest)[: OOD // 5]
    expected = f64(ood.features)[kept].mean(axis=0)
    assert_state_and_scores(grood(farthest_fifth=True), data, expected, key)


def test_farthest_fifth_of_fewer_than_five_is_one(key):
    ood = ood_outputs(3)
    state = grood(farthest_fifth=True).fit(training(ood), key)
    assert np.isclose(f64(state.ood_prototype), f64(ood.features), rtol=1e-6).all(axis=1).sum() == 1


def test_the_detector_says_what_it_needs():
    assert grood(mixup_weight=0.3, mixup_samples=7).ood == MixedTraining(0.3, 7)
    assert grood(present_classes=[3, 1, 3]).ood == MixedTraining(0.5, 10_000, (1, 3))
    assert grood(ood_prototype="noise").ood == Noise(1000)
    assert grood(ood_prototype="raw-noise").ood == Noise(1000, raw=True)
    assert grood(ood_prototype="validation").ood == Validation()
    assert grood(ood_prototype="prototype-mean").ood is None
    assert grood().needs == () and grood().rows is None
    mixing = grood(interpolate=True, interpolate_classes=2, interpolate_weight=0.7)
    assert mixing.needs == (gj.Mix(2, 0.7),) and mixing.rows is not None


def test_options_are_plain_values():
    options = grood(k=3, present_classes=np.array([4, 0]).tolist()).options
    assert json.loads(json.dumps(options)) == options
    assert options["k"] == 3 and options["present_classes"] == [0, 4]


def test_numpy_labels_are_made_plain(unchecked):
    options = grood(present_classes=np.array([4, 0])).options
    assert json.loads(json.dumps(options))["present_classes"] == [0, 4]


def mean_training():
    return training(), grood(ood_prototype="prototype-mean")


def test_sampling_ratio_keeps_that_share_of_the_bank(key):
    data, detector = mean_training()
    whole = rows_of(detector.fit(data, key))
    sampling = grood(ood_prototype="prototype-mean", sampling_ratio=0.4)
    kept = rows_of(sampling.fit(data, key))
    assert len(whole) == correct(data).sum() and len(kept) == round(0.4 * len(whole))
    assert np.isclose(kept[:, None], whole[None], atol=1e-7).all(axis=2).any(axis=1).all()
    other = rows_of(sampling.fit(data, jax.random.key(1)))
    assert not np.array_equal(kept, other)
    np.testing.assert_array_equal(kept, rows_of(sampling.fit(data, key)))


@pytest.mark.slow
def test_a_bank_on_the_host_gives_the_same_scores(key):
    data = training()
    detector = grood(ood_prototype="prototype-mean")
    on_host = grood(ood_prototype="prototype-mean", bank_dtype="bfloat16")
    assert detector.compiled and not on_host.compiled
    state = on_host.fit(data, key)
    assert state.bank.host is not None and state.bank.vectors.shape[0] == 0
    np.testing.assert_array_equal(
        fitting.score(on_host, state, data.outputs),
        fitting.score(detector, detector.fit(data, key), data.outputs),
    )


def test_the_whole_bank_does_not_depend_on_the_key(key):
    data, detector = mean_training()
    first, second = detector.fit(data, key), detector.fit(data, jax.random.key(1))
    np.testing.assert_array_equal(rows_of(first), rows_of(second))


def test_present_classes_leaves_the_others_out(key):
    present = [0, 2, 3]
    data = training()
    state = grood(ood_prototype="prototype-mean", present_classes=present).fit(data, key)
    prototypes = class_means(data.outputs.features, data.labels, present)
    np.testing.assert_allclose(state.class_prototypes, prototypes, rtol=1e-5)
    chosen = correct(data) & np.isin(np.asarray(data.labels), present)
    bank = gradients(data.outputs.features[chosen], prototypes, prototypes.mean(axis=0))
    np.testing.assert_allclose(rows_of(state), bank, rtol=0, atol=1e-6)


def test_present_classes_makes_do_without_samples_of_the_others(key):
    data, absent = training(), 4
    kept = np.flatnonzero(np.asarray(data.labels) != absent)
    data = training(
        features=data.outputs.features[kept],
        logits=data.outputs.logits[kept],
        labels=data.labels[kept],
    )
    with pytest.raises(ValueError, match="labels: no sample of class 4"):
        grood(ood_prototype="prototype-mean").fit(data, key)
    detector = grood(ood_prototype="prototype-mean", present_classes=[0, 1, 2, 3])
    assert detector.fit(data, key).class_prototypes.shape == (4, WIDTH)


def with_mixed(found, mix, seed):
    copies = np.random.default_rng(seed).normal(size=(len(found.logits), mix.classes, WIDTH))
    mixed = found.features[:, None, :] + jnp.asarray(copies, jnp.float32)
    return gj.Outputs(found.features, found.logits, {mix: mixed})


def test_interpolate_adds_the_mean_gradient_of_the_mixed_copies(key):
    detector = grood(ood_prototype="prototype-mean", interpolate=True, interpolate_classes=2)
    assert detector.rows is not None
    (mix,) = detector.needs
    rows = np.asarray(detector.rows(training(), key))
    np.testing.assert_array_equal(rows, np.flatnonzero(correct(training())))
    copies = with_mixed(training().outputs, mix, 3).extra[mix][rows]
    data = training(mixed=copies)
    test = with_mixed(outputs(TESTS, 2)[0], mix, 4)

    prototypes = class_means(data.outputs.features, data.labels)
    ood = prototypes.mean(axis=0)

    def summed(features, mixed):
        own = gradients(features, prototypes, ood)
        return own + np.mean([gradients(mixed[:, i], prototypes, ood) for i in (0, 1)], axis=0)

    bank = summed(data.outputs.features[rows], copies)
    scores = kth_nearest(summed(test.features, test.extra[mix]), bank, 1)

    state = detector.fit(data, key)
    np.testing.assert_allclose(rows_of(state), bank, rtol=0, atol=1e-6)
    np.testing.assert_allclose(detector.score(state, test), scores, rtol=1e-4, atol=1e-6)


def test_a_feature_at_the_ood_prototype_scores_and_enters_the_bank(key):
    data = training(ood_outputs())
    at_ood = f64(ood_outputs().features).mean(axis=0).astype(np.float32)
    state = grood().fit(data, key)
    test = gj.Outputs(state.ood_prototype[None], jnp.zeros((1, CLASSES)))
    expected = np.linalg.norm(f64(rows_of(state)), axis=1).min()
    np.testing.assert_allclose(grood().score(state, test), [expected], rtol=1e-5)
    np.testing.assert_allclose(state.ood_prototype, at_ood, rtol=1e-5)

    features = data.outputs.features.at[np.flatnonzero(correct(data))[0]].set(at_ood)
    ood = gj.Outputs(jnp.asarray(at_ood)[None], jnp.zeros((1, CLASSES)))
    state = grood().fit(training(ood, features=features), key)
    np.testing.assert_array_equal(rows_of(state)[0], np.zeros(WIDTH))
    np.testing.assert_array_equal(grood().score(state, ood), [0.0])


def test_training_samples_of_the_bank_score_zero_and_strange_ones_higher(key):
    data, detector = mean_training()
    state = detector.fit(data, key)
    inside = gj.Outputs(data.outputs.features[correct(data)], data.outputs.logits[correct(data)])
    np.testing.assert_allclose(detector.score(state, inside), 0.0, atol=1e-6)
    center = jnp.tile(state.ood_prototype[None], (3, 1))
    strange = gj.Outputs(center + jnp.eye(3, WIDTH), jnp.zeros((3, CLASSES)))
    typical = outputs(TESTS, 2)[0]
    assert detector.score(state, strange).min() > np.median(detector.score(state, typical))


def test_scores_are_the_same_compiled_and_in_any_batch(key):
    data, detector = mean_training()
    state, test = detector.fit(data, key), outputs(33, 2)[0]
    together = np.asarray(jax.jit(detector.score)(state, test))
    first = gj.Outputs(test.features[:1], test.logits[:1])
    np.testing.assert_allclose(detector.score(state, first), together[:1], atol=1e-6)
    np.testing.assert_allclose(fitting.score(detector, state, test), together, atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 1e-30, 1.0, 1e4]))
def test_order_of_training_samples_does_not_matter_and_scores_are_finite(seed, scale):
    rng = np.random.default_rng(seed)
    found, labels = outputs(ROWS, 0)
    features = jnp.asarray(scale * rng.normal(size=(ROWS, WIDTH)), jnp.float32)
    detector, key = grood(ood_prototype="prototype-mean"), jax.random.key(0)
    test = gj.Outputs(features[:TESTS] * 1.5, found.logits[:TESTS])
    order = rng.permutation(ROWS)

    first = detector.score(detector.fit(training(features=features), key), test)
    shuffled = training(features=features[order], logits=found.logits[order], labels=labels[order])
    second = detector.score(detector.fit(shuffled, key), test)

    assert np.isfinite(first).all() and (first >= 0).all() and (first <= 2).all()
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)


def test_golden_scores(golden):
    with np.load(golden / "g20_vectors.npz") as vectors:
        right = vectors["train_logits"].argmax(axis=1) == vectors["train_labels"]
        spots = (
            jnp.asarray(vectors["class_prototypes"]),
            jnp.asarray(vectors["ood_prototype_mixup"]),
        )
        bank = gj.ood_gradients(vectors["train_features"][right], *spots)
        test = gj.Outputs(
            jnp.asarray(vectors["test_features"]), jnp.asarray(vectors["test_logits"])
        )
        expected = {1: vectors["nearest_distance"], 10: vectors["tenth_nearest_distance"]}
    state = GroodState(*spots, gj.build_bank(bank))
    for k, scores in expected.items():
        np.testing.assert_allclose(grood(k=k).score(state, test), scores, rtol=1e-5)


def test_golden_prototype_mean(golden, key):
    with np.load(golden / "g20_vectors.npz") as vectors:
        prototypes, expected = vectors["class_prototypes"], vectors["ood_prototype_mean"]
    data = Training(
        gj.Outputs(jnp.asarray(prototypes), jnp.eye(10)), jnp.arange(10, dtype=jnp.int32)
    )
    state = grood(ood_prototype="prototype-mean").fit(data, key)
    np.testing.assert_allclose(state.ood_prototype, expected, rtol=1e-5, atol=1e-6)


# Options that act through the harness: a network of two dense layers, written twice.

EARLY, PIXELS, BATCH = 8, (2, 3, 1), 16


def early(arrays, images):
    return jnp.tanh(images.reshape(len(images), -1) @ arrays["early"])


def late(arrays, hidden):
    features = jnp.tanh(hidden @ arrays["late"])
    return features, features @ arrays["head"]


def network():
    rng = np.random.default_rng(12)
    shapes = {"early": (6, EARLY), "late": (EARLY, WIDTH), "head": (WIDTH, CLASSES)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return gj.Backbone.from_functions(arrays, early, late), arrays


def images(rows=ROWS, seed=6):
    return np.random.default_rng(seed).normal(size=(rows, *PIXELS)).astype(np.float32)


def batches(pixels, labels):
    def generate(indices):
        chosen = np.arange(len(pixels)) if indices is None else indices
        for start in range(0, len(chosen), BATCH):
            rows = chosen[start : start + BATCH]
            missing = BATCH - len(rows)
            yield Batch(
                np.pad(pixels[rows], ((0, missing), (0, 0), (0, 0), (0, 0))),
                np.pad(labels[rows].astype(np.int32), (0, missing)),
                np.arange(BATCH) < len(rows),
            )

    return generate


class Reference:
    """The network, its training set and the method in float64."""

    def __init__(self):
        _, arrays = network()
        self.early, self.late, self.head = (f64(arrays[n]) for n in ("early", "late", "head"))
        self.hidden = np.tanh(f64(images()).reshape(ROWS, -1) @ self.early)
        self.logits = self.features(self.hidden) @ self.head
        # Every third label is wrong, and every class has a correct sample.
        predicted = self.logits.argmax(axis=1)
        self.labels = np.where(np.arange(ROWS) % 3 == 0, (predicted + 1) % CLASSES, predicted)
        self.correct = self.labels == predicted
        assert set(predicted[self.correct]) == set(range(CLASSES))
        self.prototypes = class_means(self.features(self.hidden), self.labels)

    def features(self, hidden):
        return np.tanh(hidden @ self.late)

    def others(self, logits, count, present=range(CLASSES)):
        """The likeliest classes after the predicted one, of those present."""
        order = [[c for c in row if c in present] for row in np.argsort(-logits, axis=1)]
        predicted = logits.argmax(axis=1)
        return np.array(
            [
                [c for c in row if c != own][:count]
                for row, own in zip(order, predicted, strict=True)
            ]
        )

    def mixed(self, hidden, targets, weight):
        """Features (B, K, D) of copies mixed at the cut with early prototypes."""
        prototypes = class_means(self.hidden, self.labels)
        return self.features(weight * hidden[:, None] + (1 - weight) * prototypes[targets])

    def mixed_training(self, weight, present=range(CLASSES)):
        return self.mixed(self.hidden, self.others(self.logits, 1, present), weight)[:, 0]


def fitted(detector, key):
    backbone, _ = network()
    train = batches(images(), Reference().labels)
    return fitting.fit_detectors(backbone, train, {"grood": detector}, key=key)


def state_of(detector, key):
    return fitted(detector, key).detectors["grood"].state


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_mixup_weight_is_that_on_the_sample(key, weight):
    expected = Reference().mixed_training(weight).mean(axis=0)
    found = state_of(grood(mixup_weight=weight), key).ood_prototype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2])
def test_mixup_samples_is_how_many_training_samples_are_mixed(key, samples):
    mixed = Reference().mixed_training(0.5)
    found = f64(state_of(grood(mixup_samples=samples), key).ood_prototype)
    means = [
        mixed[list(rows)].mean(axis=0) for rows in itertools.combinations(range(ROWS), samples)
    ]
    assert np.isclose(found, means, rtol=0, atol=1e-6).all(axis=1).sum() == 1


def test_mixup_chooses_among_the_present_classes(key):
    present = [0, 1, 3]
    expected = Reference().mixed_training(0.5, present).mean(axis=0)
    assert np.abs(expected - Reference().mixed_training(0.5).mean(axis=0)).max() > 1e-3
    found = state_of(grood(present_classes=present), key).ood_prototype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "count, weight, present",
    [(3, 0.8, None), (1, 0.25, None), (2, 0.8, [0, 2, 3])],
)
def test_interpolation_from_images_to_scores(key, count, weight, present):
    net, backbone = Reference(), network()[0]
    classes = present or range(CLASSES)
    hidden = np.tanh(f64(images(TESTS, 7)).reshape(TESTS, -1) @ net.early)
    ood = net.mixed_training(0.5, classes).mean(axis=0)
    prototypes = net.prototypes[list(classes)]

    def summed(hidden):
        features = net.features(hidden)
        targets = net.others(features @ net.head, count, classes)
        copies = net.mixed(hidden, targets, weight).reshape(-1, WIDTH)
        mixed = gradients(copies, prototypes, ood).reshape(len(hidden), count, WIDTH)
        return gradients(features, prototypes, ood) + mixed.mean(axis=1)

    bank = summed(net.hidden[net.correct & np.isin(net.labels, classes)])
    scores = kth_nearest(summed(hidden), bank, 1)

    detector = grood(
        interpolate=True,
        interpolate_classes=count,
        interpolate_weight=weight,
        present_classes=present,
    )
    found = fitted(detector, key)
    state = found.detectors["grood"].state
    np.testing.assert_allclose(rows_of(state), bank, rtol=0, atol=1e-6)
    test = fitting.extract(
        backbone,
        batches(images(TESTS, 7), np.zeros(TESTS))(None),
        needs=found.needs,
        early_prototypes=found.early_prototypes,
    )
    np.testing.assert_allclose(fitting.score(detector, state, test), scores, rtol=1e-4, atol=1e-6)


def test_the_bank_of_a_sampled_interpolation_holds_the_rows_that_were_mixed(key):
    whole = rows_of(state_of(grood(interpolate=True), key))
    kept = rows_of(state_of(grood(interpolate=True, sampling_ratio=0.5), key))
    assert len(kept) == round(0.5 * len(whole))
    assert np.isclose(kept[:, None], whole[None], atol=1e-6).all(axis=2).any(axis=1).all()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"ood_prototype": "mixip"}, ValueError, "ood_prototype is 'mixip'; expected one of mixup"),
        ({"ood_prototype": ["noise", "n"]}, ValueError, "ood_prototype is 'n'; expected one of mi"),
        ({"ood_prototype": ()}, ValueError, "ood_prototype is (); expected some of mixup, noise"),
        ({"ood_prototype": ["noise"] * 2}, ValueError, "expected some of mixup, noise, raw-noise"),
        ({"score": "size"}, ValueError, "score is 'size'; expected one of distance, norm"),
        ({"space": "white"}, ValueError, "space is 'white'; expected one of raw, normalized"),
        ({"score": "norm", "k": 5}, ValueError, "k is 5 with score 'norm', for which there is no"),
        ({"score": "norm", "sampling_ratio": 0.5}, ValueError, "sampling_ratio is 0.5 with score"),
        ({"score": "norm", "bank_dtype": "bfloat16"}, ValueError, "bank_dtype is 'bfloat16' with"),
        ({"k": 0}, ValueError, "k is 0; expected at least 1"),
        ({"k": 1.5}, TypeError, "k is 1.5; expected an integer of at least 1"),
        ({"mixup_weight": 1.5}, ValueError, "mixup_weight is 1.5; expected a number in [0, 1]"),
        ({"mixup_weight": "half"}, TypeError, "mixup_weight is 'half'; expected a number"),
        ({"mixup_samples": 0}, ValueError, "mixup_samples is 0; expected at least 1"),
        ({"sampling_ratio": 0.0}, ValueError, "sampling_ratio is 0.0; expected a number in (0, 1]"),
        ({"sampling_ratio": 1.1}, ValueError, "sampling_ratio is 1.1; expected a number in (0, 1]"),
        ({"interpolate_classes": 0}, ValueError, "interpolate_classes is 0; expected at least 1"),
        ({"interpolate_weight": -1.0}, ValueError, "interpolate_weight is -1.0; expected a number"),
        ({"present_classes": [3]}, ValueError, "present_classes is (3,); expected at least two"),
        ({"present_classes": []}, ValueError, "present_classes is (); expected at least two"),
        ({"present_classes": [-1, 2]}, ValueError, "present_classes is -1; expected at least 0"),
        ({"present_classes": [1.5, 2]}, TypeError, "present_classes is 1.5; expected an integer"),
        (
            {"farthest_fifth": True, "ood_prototype": "noise"},
            ValueError,
            "farthest_fifth is True with ood_prototype 'noise'; expected 'mixup'",
        ),
    ],
)
def test_bad_options(unchecked, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        grood(**options)


def wrong_logits(classes):
    data = training()
    of_class = np.isin(np.asarray(data.labels), classes)
    shifted = jnp.roll(jax.nn.one_hot(data.labels, CLASSES), 1, axis=1)
    return jnp.where(of_class[:, None], shifted, data.outputs.logits)


@pytest.mark.parametrize(
    "options, changes, error, message",
    [
        (
            {},
            {"labels": jnp.zeros(ROWS, jnp.int32)},
            ValueError,
            "labels: no sample of class 1, 2, 3, 4 (4 of 5 classes); expected at least one of each",
        ),
        (
            {"present_classes": [0, 7]},
            {},
            ValueError,
            "present_classes holds 7; expected classes from 0 to 4",
        ),
        (
            {"k": ROWS},
            {},
            ValueError,
            f"k is {ROWS}; expected at most {correct(training()).sum()}, the gradients in the bank",
        ),
        (
            {"k": 10, "sampling_ratio": 0.1},
            {},
            ValueError,
            "sampling_ratio 0.1)",
        ),
        (
            {},
            {"features": jnp.full((ROWS, WIDTH), jnp.nan)},
            ValueError,
            f"features holds {ROWS * WIDTH} values that are NaN or infinite",
        ),
        (
            {},
            {"labels": jnp.full(ROWS, CLASSES, jnp.int32)},
            ValueError,
            "labels holds 5; expected classes from 0 to 4",
        ),
        (
            {"ood_prototype": "mixup"},
            {},
            ValueError,
            "training.ood is empty; expected outputs for ood_prototype 'mixup'",
        ),
        (
            {"ood_prototype": "validation"},
            {"ood": gj.Outputs(jnp.zeros((0, WIDTH)), jnp.zeros((0, CLASSES)))},
            ValueError,
            "training.ood is empty; expected outputs for ood_prototype 'validation'",
        ),
        (
            {"ood_prototype": "validation"},
            {"ood": gj.Outputs(jnp.full((2, WIDTH), jnp.inf), jnp.zeros((2, CLASSES)))},
            ValueError,
            f"training.ood.features holds {2 * WIDTH} values that are NaN or infinite",
        ),
        (
            {"interpolate": True},
            {},
            ValueError,
            "training.mixed is None; expected mixed features (R, K, D)",
        ),
    ],
)
def test_bad_training(key, options, changes, error, message):
    detector = grood(**{"ood_prototype": "prototype-mean"} | options)
    with pytest.raises(error, match=re.escape(message)):
        detector.fit(training(**changes), key)


@pytest.mark.parametrize(
    ("present", "named"), [(None, "1, 3 (2 of 5 classes)"), ([1, 2], "1 (1 of 2 classes)")]
)
def test_a_class_that_is_never_classified_correctly_is_left_out_of_the_bank(key, present, named):
    data = training(logits=wrong_logits([1, 3]))
    message = re.escape(f"grood: no correctly classified sample of class {named}")
    with pytest.warns(UserWarning, match=message):
        state = grood(ood_prototype="prototype-mean", present_classes=present).fit(data, key)
    kept = correct(data) & (np.isin(np.asarray(data.labels), present) if present else True)
    assert len(rows_of(state)) == kept.sum()
    classes = range(CLASSES) if present is None else present
    prototypes = class_means(data.outputs.features, data.labels, classes)
    np.testing.assert_allclose(state.class_prototypes, prototypes, rtol=1e-5)


def test_an_absent_present_class_is_named_before_mixed_copies_are_asked_for(key):
    detector = grood(interpolate=True, present_classes=[0, 7])
    assert detector.rows is not None
    with pytest.raises(ValueError, match="present_classes holds 7; expected classes from 0 to 4"):
        detector.rows(training(), key)


def test_present_classes_that_are_no_list(unchecked):
    with pytest.raises(TypeError, match="present_classes is 3; expected a list of classes"):
        grood(present_classes=3)


def test_more_classes_to_mix_with_than_there_are(key):
    detector = grood(interpolate=True, interpolate_classes=5)
    with pytest.raises(ValueError, match="interpolate_classes is 5; expected from 1 to 4"):
        detector.rows(training(), key)


def test_what_is_searched_can_be_made_and_begins_with_the_default():
    usual = grood()
    assert all(values[0] == usual.options[option] for option, values in usual.grid.items())
    assert {option for stage in usual.stages for option in stage} == set(usual.grid)
    of_norm = set(usual.grid) - {"k", "sampling_ratio"}
    assert set(grood(score="norm").grid) == of_norm
    assert set(grood(ood_prototype="noise", score="norm").grid) == {"ood_prototype", "space"}
    farthest = grood(farthest_fifth=True)
    for source in farthest.grid["ood_prototype"]:
        assert grood(farthest_fifth=True, ood_prototype=source).options["farthest_fifth"]
    assert len(farthest.grid["ood_prototype"]) == 2


def test_what_fitting_does_not_depend_on_is_not_in_the_key():
    key = grood().fit_key
    assert grood(k=7).fit_key == key
    fitted_anew = {"space": "normalized", "mixup_weight": 0.3, "farthest_fifth": True}
    for option, value in {**fitted_anew, "sampling_ratio": 0.5, "score": "norm"}.items():
        assert grood(**{option: value}).fit_key != key
    assert grood(ood_prototype="noise").fit_key == grood(ood_prototype="noise", k=2).fit_key


def test_scores_with_several_k_are_those_with_each(key):
    data = training(ood_outputs())
    test = outputs(TESTS, 2)[0]
    state = grood().fit(data, key)
    together = grood().each["k"]((3, 1, 5))(state, test)
    for column, k in enumerate((3, 1, 5)):
        np.testing.assert_array_equal(together[:, column], grood(k=k).score(state, test))
    with pytest.raises(ValueError, match="k is 10000; expected at most"):
        grood().each["k"]((1, 10_000))(state, test)
