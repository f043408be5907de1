"""Detectors that need more of the forward pass, against float64 forms written from the papers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from sklearn.preprocessing import PowerTransformer, StandardScaler

import grood_jax as gj
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import LayerExtremes, LayerMeans
from grood_jax.detectors import (
    Training,
    adascale,
    combood,
    create,
    gl_mcm,
    i_odin,
    mahalanobis,
    mahalanobis_ensemble,
    nac_ue,
    odin,
    rankfeat,
)
from grood_jax.detectors.adascale import AdaScaleState
from grood_jax.detectors.nac_ue import _balanced
from grood_jax.maths.deflation import without_largest_component
from grood_jax.maths.perturbation import nudge, perturb
from grood_jax.passes import forward
from grood_jax.support.errors import UserError

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


def extremes64(backbone, outputs, pixels):
    logits = np.asarray(outputs.logits, np.float64)
    layers = [layer.reshape(len(layer), -1) for layer in layers64(backbone, pixels)]
    both = [[part.max(axis=1), part.min(axis=1)] for part in (*layers, logits)]
    return np.stack([column for pair in both for column in pair], axis=1)


def test_combood_is_neighbours_and_a_gaussian_of_extremes(backbone, key):
    k, added = 3, 0.25
    detector = combood(k=k, regularization=added)
    training = training_of(backbone, detector)
    seen = outputs_of(backbone, detector, QUERIES, 2)
    state = detector.fit(training, key)
    train = extremes64(backbone, training.outputs, images(SAMPLES, 1))
    test = extremes64(backbone, seen, images(QUERIES, 2))
    scaler, bend = StandardScaler().fit(train), PowerTransformer()
    own = bend.fit_transform(scaler.transform(train))
    far = bend.transform(scaler.transform(test))
    inverse = np.linalg.inv(np.cov(own, rowvar=False) + added * np.eye(own.shape[1]))
    gaussian = np.einsum("bp,pq,bq->b", far, inverse, far)
    unit, bank = (np.asarray(part.features, np.float64) for part in (seen, training.outputs))
    unit, bank = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (unit, bank))
    squared = np.sort(((unit[:, None] - bank[None]) ** 2).sum(axis=2), axis=1)[:, k - 1]
    expected = gaussian + np.sqrt(WIDTH) * np.log(squared)
    np.testing.assert_allclose(detector.score(state, seen), expected, rtol=1e-3, atol=1e-3)
    together = detector.each["k"]((k, k + 2))(state, seen)
    np.testing.assert_array_equal(together[:, 0], detector.score(state, seen))


def test_combood_of_extremes_that_do_not_vary_and_of_a_training_sample(backbone, key):
    detector = combood(k=1)
    training = training_of(backbone, detector)
    first, second = training.outputs.extra[LayerExtremes()]
    # After a ReLU the least number is 0 in many a layer.
    same = first.at[:, 1].set(0.0)
    outputs = replace(training.outputs, extra={LayerExtremes(): (same, second)})
    state = detector.fit(replace(training, outputs=outputs), key)
    found = np.asarray(detector.score(state, outputs))
    assert np.isfinite(found).all() and (found < 0).all()
    away = replace(outputs, extra={LayerExtremes(): (same + 1e30, second)})
    far = np.asarray(detector.score(state, away))
    assert np.isfinite(far).all() and (far > found).all()
    bad = replace(outputs, extra={LayerExtremes(): (same, second.at[0, 0].set(jnp.inf))})
    with pytest.raises(ValueError, match=r"outputs.extra\[LayerExtremes\(\)\]\[1\] holds"):
        detector.fit(replace(training, outputs=bad), key)
    with pytest.raises(ValueError, match="k is 1000; expected at most"):
        combood(k=1000).fit(training, key)


@pytest.mark.parametrize("name", ["mahalanobis_ensemble", "rankfeat", "combood"])
def test_a_backbone_that_cannot_is_refused(backbone, name):
    bare = Backbone.from_functions(backbone.arrays, first_layer, last_layers)
    needs = dict.fromkeys(create(name).needs, "mine")
    with pytest.raises(UserError, match="^mine needs "):
        forward.require_needs(bare, needs, images(2, 0))


def gradients64(backbone, pixels):
    """Of each image's predicted logit, by the chain rule."""
    arrays, pixels = wide(backbone), np.asarray(pixels, np.float64)
    first, second = layers64(backbone, pixels)
    logits = second.mean(axis=(1, 2)) @ arrays["head"] + arrays["bias"]
    back = arrays["head"].T[logits.argmax(axis=1)][:, None, None] / SIZE**2
    back = (back * (second > 0)) @ arrays["two"].T
    return (back * (first > 0)) @ arrays["one"].T


def nudged64(backbone, pixels, share, step):
    moved = np.array(pixels, np.float64).reshape(len(pixels), -1)
    slopes = gradients64(backbone, pixels).reshape(moved.shape)
    for image, slope in zip(moved, slopes, strict=True):
        least = np.argsort(np.abs(slope), kind="stable")[: max(1, int(share * slope.size))]
        image[least] += step * np.sign(slope[least])
    return moved.reshape(pixels.shape)


def test_images_are_nudged_where_the_gradient_is_smallest(backbone):
    pixels = images(QUERIES, 2)
    found = jax.jit(lambda x: nudge(lambda y: backbone(y).logits, x, 0.6, 0.5))(pixels)
    np.testing.assert_allclose(found, nudged64(backbone, pixels, 0.6, 0.5), atol=1e-5)
    slopes = gradients64(backbone, pixels)
    assert ((found == pixels) == (slopes == 0)).mean() > 0.5 and (slopes == 0).any()


def adascale64(backbone, pixels, share):
    features = layers64(backbone, pixels)[1].mean(axis=(1, 2))
    moved = layers64(backbone, nudged64(backbone, pixels, share, 0.5))[1].mean(axis=(1, 2))
    shifts = []
    for own, other in zip(features, moved, strict=True):
        order = np.argsort(-own, kind="stable")
        shift = np.abs(own - other)[order[:2]].sum()
        shifts.append(10 * shift + np.maximum(other, 0)[order[:3]].sum())
    return features, np.array(shifts)


@pytest.mark.parametrize("variant", ["a", "l"])
def test_adascale_scales_by_a_percentile_of_its_own(backbone, key, variant):
    detector = adascale(
        variant=variant,
        percentiles=(20, 80),
        shift_share=40,
        correction_share=60,
        pixel_share=0.6,
    )
    state = detector.fit(training_of(backbone, detector), key)
    found = jax.jit(detector.score)(state, outputs_of(backbone, detector, QUERIES, 2))
    known = adascale64(backbone, images(SAMPLES, 1), 0.6)[1]
    arrays = wide(backbone)
    for score, own, shift in zip(
        found, *adascale64(backbone, images(QUERIES, 2), 0.6), strict=True
    ):
        percentile = 20 + (1 - np.mean(known <= shift)) * 60
        kept = np.sort(own)[::-1][: WIDTH - round(WIDTH * percentile / 100)]
        ratio = own.sum() / kept.sum()
        scaled = own * np.exp(ratio) if variant == "a" else own
        logits = scaled @ arrays["head"] + arrays["bias"]
        logits = logits if variant == "a" else logits * ratio**2
        np.testing.assert_allclose(score, -np.log(np.exp(logits).sum()), rtol=1e-4)


def test_adascale_without_a_positive_feature_scales_by_one():
    detector, features = adascale(variant="l"), jnp.asarray([[-1.0, -2.0], [0.0, 0.0]])
    (need,) = detector.needs
    logits = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    state = AdaScaleState(jnp.zeros(1), None)
    found = jax.jit(detector.score)(state, gj.Outputs(features, logits, {need: features}))
    np.testing.assert_allclose(found, -jax.nn.logsumexp(logits, axis=1), rtol=1e-6)


@pytest.mark.parametrize("percentiles", [(60,), (80, 70), (0, 50), (50, 100), (1, 2, 3)])
def test_percentiles_that_do_not_ascend_are_refused(percentiles):
    with pytest.raises(ValueError, match="percentiles is .*; expected two, 0 < p_min < p_max"):
        adascale(percentiles=percentiles)
    assert len(adascale().grid["percentiles"]) == 36


def test_adascale_needs_a_gradient(backbone):
    def closed(arrays, images):
        return jax.pure_callback(np.asarray, jax.typeof(images), images)

    bare = Backbone.from_functions({}, closed, lambda arrays, x: (x[:, 0, 0], x[:, 0, 0]))
    with pytest.raises(UserError, match="^mine needs the gradient of the logits"):
        forward.require_needs(bare, dict.fromkeys(adascale().needs, "mine"), images(2, 0))


@pytest.mark.slow
def test_i_odin_is_odin_of_images_moved_at_one_number(backbone, key):
    detector, pixels = i_odin(temperature=10.0, noise=0.05), images(QUERIES, 2)
    found = detector.score((), outputs_of(backbone, detector, QUERIES, 2))
    moved = perturb(lambda x: backbone(x).logits, pixels, backbone.input_std, 10.0, 0.05, 1)
    arrays = wide(backbone)
    features = layers64(backbone, moved)[1].mean(axis=(1, 2))
    powers = np.exp((features @ arrays["head"] + arrays["bias"]) / 10.0)
    np.testing.assert_allclose(found, 1 - powers.max(axis=1) / powers.sum(axis=1), rtol=1e-5)
    every = i_odin(temperature=10.0, noise=0.05, numbers=SIZE * SIZE * 2)
    whole = odin(temperature=10.0, noise=0.05)
    expected = whole.score((), outputs_of(backbone, whole, QUERIES, 2))
    np.testing.assert_array_equal(
        every.score((), outputs_of(backbone, every, QUERIES, 2)), expected
    )
    assert every.grid == whole.grid


def deflated64(activations):
    flat = activations.reshape(len(activations), -1, activations.shape[-1])
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    return (flat - s[:, :1, None] * u[:, :, :1] * v[:, :1]).reshape(activations.shape)


@pytest.mark.parametrize("shape", [(6, 3, 3, 4), (6, 5, 12), (6, 1, 3), (6, 3, 1)])
def test_the_largest_component_is_that_of_the_svd(shape):
    activations = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    activations[0] = 0
    expected, run = deflated64(activations.astype(np.float64)), jax.jit(without_largest_component)
    for scale in (1e-15, 1.0, 1e25):
        found = run(jnp.asarray(activations * np.float32(scale)))
        np.testing.assert_allclose(np.asarray(found, np.float64) / scale, expected, atol=1e-5)


@pytest.mark.parametrize("where", ["last", "cut", "both"])
def test_rankfeat_is_the_energy_of_what_is_left(backbone, key, where):
    detector = rankfeat(where=where)
    state = detector.fit(training_of(backbone, detector), key)
    found = detector.score(state, outputs_of(backbone, detector, QUERIES, 2))
    arrays, (first, second) = wide(backbone), layers64(backbone, images(QUERIES, 2))
    through = np.maximum(deflated64(first) @ arrays["two"], 0)
    kinds = {"last": deflated64(second).mean(axis=(1, 2)), "cut": through.mean(axis=(1, 2))}
    taken = kinds if where == "both" else (where,)
    logits = np.mean([kinds[kind] for kind in taken], axis=0) @ arrays["head"] + arrays["bias"]
    np.testing.assert_allclose(found, -np.log(np.exp(logits).sum(axis=1)), rtol=1e-4, atol=1e-5)


def test_rankfeat_refuses_features_that_are_no_mean_of_the_last_layer(backbone):
    pixels, needs = images(2, 0), dict.fromkeys(rankfeat().needs, "mine")
    forward.require_needs(backbone, needs, pixels)
    first = replace(backbone, layers=lambda arrays, images: (first_layer(arrays, images),))
    with pytest.raises(UserError, match=r"^mine .*; found a layer \(2, 4, 4, 4\) and features "):
        forward.require_needs(first, needs, pixels)

    def doubled(arrays, images):
        return (2 * middle_layers(arrays, images)[1],)

    with pytest.raises(UserError, match="^mine .*; the mean differs from the features by up to"):
        forward.require_needs(replace(backbone, layers=doubled), needs, pixels)

    def one_place(arrays, images):
        return (middle_layers(arrays, images)[1].mean(axis=(1, 2)),)

    with pytest.raises(UserError, match=r"^mine .*; found a layer \(2, 5\)"):
        forward.require_needs(replace(backbone, layers=one_place), needs, pixels)


def test_nac_ue_counts_the_states_of_training_samples_in_the_same_bin(backbone, key):
    detector = nac_ue(steepness=5.0, enough=7, bins=10, samples=SAMPLES)
    state = detector.fit(training_of(backbone, detector), key)
    found = jax.jit(detector.score)(state, outputs_of(backbone, detector, QUERIES, 2))
    arrays = wide(backbone)

    def states(pixels):
        features = layers64(backbone, pixels)[1].mean(axis=(1, 2))
        powers = np.exp(features @ arrays["head"] + arrays["bias"])
        slopes = (powers / powers.sum(axis=1, keepdims=True) - 1 / CLASSES) @ arrays["head"].T
        return 1 / (1 + np.exp(-5.0 * features * slopes))

    lower = np.log(np.linspace(1, np.sqrt(1000), 5)) / np.log(1000)
    edges = np.array([*lower[:-1], 0.5, *(1 - lower[:-1])[::-1]])
    known, test = states(images(SAMPLES, 1)), states(images(QUERIES, 2))
    covered = np.zeros(test.shape)
    for row, feature in np.ndindex(*test.shape):
        where = np.searchsorted(edges, test[row, feature], side="right")
        same = np.searchsorted(edges, known[:, feature], side="right") == where
        covered[row, feature] = min(same.sum() / 7, 1)
    np.testing.assert_allclose(found, 1 - covered.mean(axis=1), atol=1e-6)


def test_the_gradient_of_nac_ue_is_that_of_the_divergence(backbone):
    arrays = backbone.arrays
    features = jnp.asarray(np.random.default_rng(3).normal(size=WIDTH), jnp.float32)

    def divergence(features):
        logits = features @ arrays["head"] + arrays["bias"]
        return -jax.nn.log_softmax(logits).mean() - jnp.log(CLASSES)

    p = jax.nn.softmax(features @ arrays["head"] + arrays["bias"])
    by_hand = arrays["head"] @ (p - 1 / CLASSES)
    np.testing.assert_allclose(jax.grad(divergence)(features), by_hand, rtol=1e-4, atol=1e-6)


def test_nac_ue_takes_equally_many_of_each_class(key):
    labels = np.array([0] * 10 + [2] * 4)
    assert (np.bincount(labels[_balanced(labels, 6, key)]) == [3, 0, 3]).all()
    assert (np.bincount(labels[_balanced(labels, 99, key)]) == [4, 0, 4]).all()
    assert (np.bincount(labels[_balanced(labels, 1, key)]) == [1, 0, 1]).all()


def test_an_odd_number_of_bins_is_refused():
    with pytest.raises(ValueError, match="bins is 51; expected an even number"):
        nac_ue(bins=51)


def test_what_is_needed_can_be_exported_for_any_number_of_images(backbone):
    made = (
        mahalanobis_ensemble(),
        adascale(),
        i_odin(),
        rankfeat(where="both"),
        combood(),
        gl_mcm(),
    )
    backbone = replace(backbone, local=lambda arrays, images: middle_layers(arrays, images)[1])
    needs = tuple(need for detector in made for need in detector.needs)
    (count,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((count, SIZE, SIZE, 2), jnp.float32)
    run = jax.jit(lambda images: forward.network_outputs(backbone, images, None, needs).extra)
    exported = export.export(run, platforms=("cpu", "cuda", "tpu"))(shape)
    assert {leaf.shape[0] for leaf in exported.out_avals} == {count}
