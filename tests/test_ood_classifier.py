"""A classifier with a detector and a threshold: what it promises, keeps on disk and refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from PIL import Image

import grood_jax as gj
from grood_jax import detectors
from grood_jax.conformal import calibration
from grood_jax.data import Batch
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.detectors import (
    Detector,
    Training,
    auto,
    combine,
    energy,
    gram,
    grood,
    msp,
    odin,
    temperature_scaling,
)
from grood_jax.evaluation import fitting
from grood_jax.support.errors import UserError

TRAIN, HELD_OUT = 200, 99


def fit(detector, key, **options):
    given = {"calibration": [tiny.images(HELD_OUT, 1)]} | options
    backbone = given.pop("backbone", tiny.backbone())
    train = given.pop("train", tiny.pairs(TRAIN, 0))
    return OODClassifier.fit(backbone, train, detector=detector, key=key, **given)


@pytest.fixture(scope="module")
def fitted():
    return fit(grood(), jax.random.key(0))


def test_scores_are_those_of_the_harness(fitted):
    pairs = tiny.pairs(TRAIN, 0)
    # The same, without OODClassifier: one batch of all, and the detector fitted by hand.
    images, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    every = Batch(images, labels.astype(np.int32), np.ones(TRAIN, bool))

    def train(rows):
        rows = np.arange(TRAIN) if rows is None else rows
        return [Batch(every.images[rows], every.labels[rows], every.valid[rows])]

    backbone = tiny.backbone()
    by_hand = fitting.fit_detectors(backbone, train, {"grood": grood()}, key=jax.random.key(0))
    fresh = tiny.images(37, 2)
    outputs = backbone(fresh)
    expected = fitting.score(grood(), by_hand.detectors["grood"].state, outputs)
    found = fitted.predict(fresh)
    np.testing.assert_allclose(found.score, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found.label, np.asarray(outputs.logits).argmax(axis=1))


@pytest.mark.usefixtures("unchecked")
def test_a_temperature_is_fitted_on_id_validation_images(key):
    held_in = tiny.pairs(40, 9)
    made = fit(temperature_scaling(), key, id_validation=held_in)
    images, labels = (np.concatenate(parts) for parts in zip(*held_in, strict=True))
    outputs = tiny.backbone()(images)
    training = Training(outputs, jnp.asarray(labels, jnp.int32))
    # The same outputs, as if they were those of the training set.
    expected = temperature_scaling().fit(training, key).temperature
    np.testing.assert_allclose(made.state.temperature, expected, rtol=1e-5)
    with pytest.raises(TypeError, match="id_validation has no labels"):
        fit(temperature_scaling(), key, id_validation=[tiny.images(4, 1)])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of another size than the network's, in a folder for each class it gives them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)
    network = replace(tiny.backbone(), input_mean=(0.5,), input_std=(0.25,))
    labels = np.asarray(network(pixels).logits).argmax(axis=1)
    root = tmp_path_factory.mktemp("photos")
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        folder = root / f"class{label}"
        folder.mkdir(exist_ok=True)
        # Twice the size: brought back to what it was by averaging.
        Image.fromarray(image[..., 0].repeat(2, 0).repeat(2, 1)).save(folder / f"{row:02}.png")
    return root


PREPARING = gj.Preprocessing(4, 1, (0.5,), (0.25,))


def test_folders_and_pictures(photos, key, tmp_path):
    bare = replace(tiny.backbone(), input_std=())
    options = {"backbone": bare, "preprocessing": PREPARING, "target_tpr": 0.9}
    made = fit(energy(), key, train=photos, calibration=photos, **options)
    paths = sorted(photos.rglob("*.png"))
    pixels = np.stack([PREPARING.decode(path.read_bytes()) for path in paths])
    expected = made.predict(pixels)
    np.testing.assert_allclose(made.held_out_scores, expected.score, rtol=1e-5)
    normal = made.predict(np.asarray(PREPARING.normalize(pixels)))
    np.testing.assert_allclose(normal.score, expected.score, rtol=1e-5)
    made.save(tmp_path / "saved")
    loaded = OODClassifier.load(tmp_path / "saved", bare)
    assert loaded.preprocessing == PREPARING
    pictures = [Image.open(path) for path in paths]
    encoded = [path.read_bytes() for path in paths]
    arrays = [np.asarray(picture) for picture in pictures]
    for given in (paths, list(map(str, paths)), pictures, encoded, arrays, pixels):
        np.testing.assert_array_equal(loaded.predict(given).score, expected.score)
    assert len(loaded.predict(paths[0])) == len(loaded.predict(pictures[0])) == 1
    with pytest.raises(UserError, match="images: image 1: .*nowhere"):
        loaded.predict([paths[0], "nowhere.png"])
    with pytest.raises(UserError, match="nothing says how images are brought"):
        fit(energy(), key, train=photos, backbone=bare)


def test_without_calibration_images_training_images_set_the_threshold(key):
    images, labels = (np.concatenate(parts) for parts in zip(*tiny.pairs(TRAIN, 0), strict=True))
    seen = []

    def remembered(training, own_key):
        seen.append(np.asarray(training.outputs.features))
        return ()

    detector = replace(msp(), fit=remembered)
    with pytest.warns(UserWarning, match="20 of 200 training images, drawn at random, are held"):
        made = fit(detector, key, train=(images, labels), calibration=None)
    assert len(made.held_out_scores) == 20 and len(seen[0]) == 180
    every = np.asarray(tiny.backbone()(images).features)
    held = [row for row in every.round(5).tolist() if row not in seen[0].round(5).tolist()]
    assert len(held) == 20
    given = {"train": (images, labels), "calibration": None, "target_tpr": 0.99}
    with pytest.warns(UserWarning, match="fewer than 0.99"):
        with pytest.raises(UserError, match="at least 99"):
            fit(msp(), key, **given)


def test_decisions_follow_from_the_calibration_scores(fitted):
    found = fitted.predict(tiny.images(300, 3, spread=1.5))
    held_out = fitted.held_out_scores
    np.testing.assert_array_equal(found.is_ood, found.score > np.sort(held_out)[95 - 1])
    larger = (held_out[None, :] >= found.score[:, None]).sum(axis=1)
    np.testing.assert_allclose(found.p_value, (1 + larger) / 100, rtol=1e-6)
    assert 0 < found.is_ood.sum() < 300
    assert fitted.thresholds.shape == () and fitted.thresholds == np.sort(held_out)[94]


def test_types_and_shapes(fitted):
    for count in (0, 1, 3, 257):
        found = fitted.predict(tiny.images(count, 4))
        kinds = {n: getattr(found, n).dtype for n in ("label", "score", "is_ood", "p_value")}
        assert kinds == {
            "label": "int32",
            "score": "float32",
            "is_ood": "bool",
            "p_value": "float32",
        }
        assert len(found) == count and found.p_value.shape == (count,)


def test_answers_do_not_depend_on_the_batch(fitted):
    images = tiny.images(300, 5)
    whole = fitted.predict(images)
    parts = [fitted.predict(images[i : i + 7]) for i in range(0, 300, 7)]
    joined = np.concatenate([part.score for part in parts])
    np.testing.assert_allclose(joined, whole.score, rtol=1e-5, atol=1e-7)
    assert (np.concatenate([part.label for part in parts]) == whole.label).all()


def test_odd_memory_is_read_as_it_is(fitted):
    images = tiny.images(8, 6)
    expected = fitted.predict(images).score
    strided = np.repeat(images, 2, axis=0)[::2]
    reversed_twice = images[::-1][::-1]
    locked = images.copy()
    locked.flags.writeable = False
    for odd in (strided, reversed_twice, locked, np.asfortranarray(images), jnp.asarray(images)):
        np.testing.assert_array_equal(fitted.predict(odd).score, expected)
    double = fitted.predict(images.astype(np.float64)).score
    np.testing.assert_array_equal(double, expected)


def test_the_rate_holds_within_each_class(key):
    many = [tiny.images(2000, 7)]
    made = fit(msp(), key, calibration=many, per_class=True, target_tpr=0.8)
    assert made.thresholds.shape == (tiny.CLASSES,)
    found = made.predict(tiny.images(5000, 8))
    for label in range(tiny.CLASSES):
        own = found.label == label
        assert own.sum() > 300
        assert (~found.is_ood[own]).mean() == pytest.approx(0.8, abs=0.06)


def test_targets_change_without_fitting(fitted):
    images = tiny.images(200, 9, spread=1.5)
    loose, strict = fitted.with_target(0.99), fitted.with_target(0.5)
    assert loose.predict(images).is_ood.sum() < strict.predict(images).is_ood.sum()
    np.testing.assert_array_equal(loose.predict(images).score, strict.predict(images).score)
    by_class = fitted.with_target(0.5, per_class=True)
    assert by_class.target_tpr == 0.5 and by_class.thresholds.shape == (tiny.CLASSES,)
    assert fitted.target_tpr == 0.95 and not fitted.per_class


def test_discoveries_are_those_of_benjamini_and_hochberg(fitted):
    mixed = np.concatenate([tiny.images(100, 10), tiny.images(100, 11, spread=6.0)])
    found = fitted.discoveries(mixed, 0.2)
    alone = fitted.predict(mixed)
    expected = calibration.false_discovery(alone.p_value, 0.2)
    np.testing.assert_array_equal(found.is_ood, expected)
    np.testing.assert_array_equal(found.p_value, alone.p_value)
    assert len(fitted.discoveries(tiny.images(0, 0), 0.2)) == 0


def test_the_nearest_training_samples(fitted):
    images, labels = (np.concatenate(p) for p in zip(*tiny.pairs(TRAIN, 0), strict=True))
    classes, distances = fitted.nearest(images[:5], k=3)
    np.testing.assert_array_equal(classes[:, 0], labels[:5])
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-5)
    features = np.asarray(tiny.backbone()(images).features, np.float64)
    every = np.linalg.norm(features[:5, None] - features[None], axis=2)
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :3], atol=1e-5)
    assert fitted.nearest(images[:0], k=3)[0].shape == (0, 3)


def test_both_answers_are_those_of_each_alone(fitted):
    images = tiny.images(300, 6)
    prediction, classes, distances = fitted.predict_and_nearest(images, k=3)
    np.testing.assert_array_equal(prediction.score, fitted.predict(images).score)
    for found, alone in zip((classes, distances), fitted.nearest(images, k=3), strict=True):
        np.testing.assert_array_equal(found, alone)


def test_a_function_gives_training_batches_too(fitted, key):
    pairs = tiny.pairs(TRAIN, 0)
    images, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))

    def train(rows):
        rows = np.arange(TRAIN) if rows is None else rows
        for start in range(0, len(rows), 64):
            own = rows[start : start + 64]
            yield Batch(images[own], labels[own].astype(np.int32), np.ones(len(own), bool))

    made = fit(grood(), key, train=train)
    np.testing.assert_array_equal(made.held_out_scores, fitted.held_out_scores)


DETECTORS = {
    "grood": grood(k=3),
    "host rows": grood(bank_dtype="bfloat16"),
    "mixing": grood(interpolate=True, interpolate_classes=2),
    "no state": msp(),
    "moved images": odin(noise=0.01),
    "middle layers": gram(powers=(1, 2)),
    "combination": combine([energy(), msp()], how="fisher", held_out=0.3),
    "recipe": auto(),
    "no bank": grood(ood_prototype=("mixup", "prototype-mean"), score="norm"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_scores_have_the_same_bits_after_loading(kind, tmp_path, key):
    made = fit(DETECTORS[kind], key, per_class=kind == "no state", target_tpr=0.9)
    made.save(tmp_path / "saved")
    loaded = gj.OODClassifier.load(tmp_path / "saved", tiny.backbone())
    fresh = tiny.images(50, 12)
    before, after = made.predict(fresh), loaded.predict(fresh)
    for name in ("label", "score", "is_ood", "p_value"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert dict(loaded.detector.options) == dict(made.detector.options)
    assert loaded.detector.name == made.detector.name
    np.testing.assert_array_equal(loaded.nearest(fresh)[0], made.nearest(fresh)[0])


def test_another_classifier_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    with pytest.raises(UserError, match="was fitted on the classifier .*; the backbone given is"):
        OODClassifier.load(tmp_path / "saved", tiny.backbone(seed=1))


def norm():
    """Features far out: a user's own detector."""
    return Detector(
        "norm",
        lambda training, key: None,
        lambda state, outputs: jnp.linalg.norm(jnp.asarray(outputs.features), axis=1),
    )


def test_a_detector_must_be_known_by_name(key, tmp_path, monkeypatch):
    made = fit(norm(), key)
    with pytest.raises(UserError, match="'norm' could not be loaded again"):
        made.save(tmp_path / "saved")
    factories = dict(detectors._factories)
    monkeypatch.setattr(detectors, "_factories", factories)
    detectors.register(norm)
    made.save(tmp_path / "saved")
    loaded = OODClassifier.load(tmp_path / "saved", tiny.backbone())
    images = tiny.images(5, 13)
    np.testing.assert_array_equal(loaded.predict(images).score, made.predict(images).score)
    del factories["norm"]
    with pytest.raises(UserError, match="not known here.*'norm'"):
        OODClassifier.load(tmp_path / "saved", tiny.backbone())


BAD_IMAGES = {
    "nan": (np.full((2, 4, 4, 1), np.nan, np.float32), ValueError, "NaN or infinite values for 2"),
    "infinite": (np.full((1, 4, 4, 1), np.inf, np.float32), ValueError, "index 0"),
    "too large": (np.full((1, 4, 4, 1), 1e300), ValueError, "NaN or infinite values"),
    "bytes": (np.zeros((2, 4, 4, 1), np.uint8), TypeError, "dtype uint8; expected floating"),
    "words": (np.array([["a"]]), TypeError, "expected floating-point"),
    "objects": (np.array([None]), TypeError, "dtype object"),
    "one image": (np.zeros((4, 4, 1), np.float32), ValueError, r"\(4, 4, 1\); expected norm"),
    "another size": (np.zeros((2, 5, 4, 1), np.float32), ValueError, r"expected .*\(B, 4, 4, 1\)"),
    "a number": (np.float32(1.0), ValueError, r"shape \(\)"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.usefixtures("unchecked")
def test_bad_images_are_refused(fitted, kind):
    images, error, said = BAD_IMAGES[kind]
    with pytest.raises(error, match=said):
        fitted.predict(images)


def test_outputs_that_are_not_finite_are_refused(key):
    def late(arrays, hidden):
        features, logits = tiny.late(arrays, hidden)
        return features / (hidden[:, :1] > 0), logits

    made = fit(energy(), key)
    broken = replace(made, backbone=replace(made.backbone, late=late))
    images = np.concatenate([np.zeros((1, 4, 4, 1), np.float32), tiny.images(9, 0)])
    with pytest.raises(ValueError, match="outputs are NaN or infinite for .* of 10 images"):
        broken.predict(images)
    found = broken.answers(jnp.asarray(images))
    unknown = np.isnan(found["score"])
    assert unknown[0] and found["is_ood"][unknown].all()
    assert np.isnan(found["p_value"][unknown]).all()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target_tpr": 1.0}, ValueError, r"target_tpr is 1.0; expected a number in \(0, 1\)"),
        ({"target_tpr": "0.9"}, TypeError, "target_tpr is '0.9'"),
        ({"per_class": 1}, TypeError, "per_class is 1"),
        ({"calibration": [tiny.images(18, 1)]}, UserError, "18 images; .* at least 19"),
        ({"calibration": []}, UserError, "calibration holds no image"),
        ({"calibration": [np.zeros((2, 4, 4), np.float32)]}, UserError, "calibration holds images"),
        (
            {"calibration": [tiny.images(30, 1), tiny.images(30, 1)[:, :3]]},
            ValueError,
            "calibration holds images",
        ),
        (
            {"calibration": [np.full((30, 4, 4, 1), np.nan, np.float32)]},
            ValueError,
            "calibration: image 0 holds NaN",
        ),
        ({"train": iter(tiny.pairs(20, 0))}, TypeError, "can be read only once"),
        ({"train": 3}, TypeError, "train_batches is a int"),
        ({"train": [(tiny.images(4, 0), [0, 1])]}, TypeError, r"labels of dtype .* \(4,\)"),
        (
            {"train": [(tiny.images(2, 0).astype(np.uint8), [0, 1])]},
            TypeError,
            "train_batches holds images of dtype uint8",
        ),
        ({"train": [(tiny.images(2, 0), [0, 9])]}, ValueError, "label 9 of row 1 is no class"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments_are_refused(key, options, error, said):
    with pytest.raises(error, match=said):
        fit(msp(), key, **options)


@pytest.mark.usefixtures("unchecked")
def test_a_name_is_no_detector(key):
    with pytest.raises(TypeError, match="detector is 'msp'; expected a Detector"):
        fit("msp", key)


def test_without_a_detector_the_training_outputs_choose(key):
    made = fit(None, key)
    assert made.detector.name == "auto"
    assert "calibrated by" in made.detector.explain(made.state)


def test_a_bad_number_of_neighbours_is_refused(fitted):
    for k in (0, TRAIN + 1):
        with pytest.raises(ValueError, match=f"k is {k}"):
            fitted.nearest(tiny.images(1, 0), k)


@pytest.mark.parametrize(
    "change",
    [
        {"target_tpr": 2.0},
        {"per_class": 1},
        {"num_classes": None},
        {"image_shape": ["x"]},
        {"detector": "nothing"},
        {"parts": {}},
        {"parts": []},
    ],
)
def test_a_description_that_somebody_else_wrote_is_refused(fitted, tmp_path, change):
    arrays, about = fitted.take_apart()
    with pytest.raises(UserError):
        OODClassifier.put_together(tmp_path, about | change, arrays, tiny.backbone())
    about.pop(next(iter(change)))
    with pytest.raises(UserError):
        OODClassifier.put_together(tmp_path, about, arrays, tiny.backbone())


@pytest.mark.usefixtures("unchecked")
def test_gigantic_images_are_refused(fitted, key):
    gigantic = np.broadcast_to(np.float32(1), (2**44, *tiny.SHAPE))
    with pytest.raises(ValueError, match="images has shape .* fits into memory"):
        fitted.predict(gigantic)
    with pytest.raises(ValueError, match="calibration has shape .* fits into memory"):
        fit(msp(), key, calibration=[gigantic])
