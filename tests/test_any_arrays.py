"""Whatever arrays a backbone holds, it can be fitted, fingerprinted, saved, loaded and exported."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from flax import nnx

import grood_jax as gj
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.detectors import msp
from grood_jax.evaluation import fitting
from grood_jax.support.errors import UserError
from grood_jax.support.manifest import fingerprint_of


class WithDropout(nnx.Module):
    def __init__(self, rngs):
        width = int(np.prod(tiny.images(1, 0).shape[1:]))
        self.hidden = nnx.Linear(width, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, tiny.CLASSES, rngs=rngs)


def early(model, images):
    return jax.nn.relu(model.hidden(images.reshape(images.shape[0], -1)))


def late(model, hidden):
    features = model.drop(hidden)
    return features, model.head(features)


def dropout(seed=0):
    return gj.Backbone.from_nnx(WithDropout(nnx.Rngs(seed)), cut=(early, late))


def mixed_early(arrays, images):
    return images.reshape(images.shape[0], -1) * arrays["scale"]


def mixed_late(arrays, hidden):
    weights = arrays["low"].astype(jnp.float32) + arrays["lower"].astype(jnp.float32)
    logits = hidden @ jnp.where(arrays["mask"], weights, 0.0) + arrays["count"]
    return hidden, logits


def mixed(count=1):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(int(np.prod(tiny.images(1, 0).shape[1:])), tiny.CLASSES))
    arrays = {
        "scale": np.float32(2),
        "low": jnp.asarray(weights, jnp.bfloat16),
        "lower": jnp.asarray(weights, jnp.float8_e4m3fn),
        "mask": weights > -1,
        "count": np.int64(count),
        "key": jax.random.key(3, impl="rbg"),
        "plain": 1.5,
    }
    return gj.Backbone.from_functions(arrays, mixed_early, mixed_late)


@pytest.mark.slow
@pytest.mark.parametrize("make", [dropout, mixed])
def test_from_fit_to_file(tmp_path, make):
    backbone = make()
    train, held_out = tiny.pairs(60, 0), [tiny.images(40, 1)]
    fitted = OODClassifier.fit(
        backbone, train, detector=msp(), calibration=held_out, key=jax.random.key(0)
    )
    fresh = tiny.images(5, 2)
    expected = fitted.predict(fresh)
    fitted.save(str(tmp_path / "saved"))
    loaded = OODClassifier.load(tmp_path / "saved", make())
    np.testing.assert_array_equal(loaded.predict(fresh).score, expected.score)
    with pytest.raises(UserError, match="was fitted on the classifier"):
        OODClassifier.load(tmp_path / "saved", make(7))
    pytest.importorskip("flatbuffers", reason="needs pip install -e '.[export]'")
    loaded.export(tmp_path / "file", platforms=["cpu"])
    exported = jax.export.deserialize(bytearray((tmp_path / "file").read_bytes()))
    answers = exported.call(jnp.asarray(fresh, jnp.float32))
    np.testing.assert_allclose(answers["score"], expected.score, rtol=1e-5)


def test_a_fingerprint_tells_keys_apart():
    one, same, other = (jax.random.key(seed) for seed in (0, 0, 1))
    assert fingerprint_of([one]) == fingerprint_of([same])
    others = (other, jax.random.key(0, impl="rbg"), jax.random.key_data(one), one[None])
    assert len({fingerprint_of([each]) for each in (one, *others)}) == 5


def test_all_is_one_line_on_a_screen():
    backbone = tiny.backbone()
    made = OODClassifier.fit(
        backbone,
        tiny.pairs(60, 0),
        detector=msp(),
        calibration=[tiny.images(40, 1)],
        key=jax.random.key(0),
    )
    bank = gj.build_bank(np.ones((700, 24), np.float32))
    many = made.predict(tiny.images(300, 2))
    for value in (backbone, made, bank, many):
        assert "\n" not in repr(value) and len(repr(value)) < 400
    assert repr(bank).startswith("Bank(700 rows of 24, ")
    count = len(jax.tree.leaves(backbone.arrays))
    assert repr(backbone).startswith(f"Backbone({count} arrays, ")
    assert "calibrated on 40, target_tpr=0.95" in repr(made)
    assert "..." in repr(many)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("key", [0, None, "x", np.zeros(2), jnp.zeros(3, jnp.uint32)])
def test_a_bad_key_is_refused_at_every_door(key):
    options = {"detector": msp(), "calibration": [tiny.images(40, 1)], "key": key}
    outputs = tiny.backbone()(tiny.images(60, 0))
    training = gj.detectors.Training(outputs, jnp.asarray(outputs.logits.argmax(axis=1)))
    for ask in (
        lambda: OODClassifier.fit(tiny.backbone(), tiny.pairs(60, 0), **options),
        lambda: fitting.fit_detectors(tiny.backbone(), lambda _: [], {"a": msp()}, key=key),
        lambda: gj.detectors.knn(k=1).fit(training, key),
    ):
        with pytest.raises(TypeError, match=r"key is .*; expected a random key, as jax.random.key"):
            ask()


@pytest.mark.usefixtures("unchecked")
def test_a_model_is_no_backbone(tmp_path):
    model = WithDropout(nnx.Rngs(0))
    options = {"detector": msp(), "calibration": [], "key": jax.random.key(0)}
    for ask in (
        lambda: OODClassifier.fit(model, tiny.pairs(60, 0), **options),
        lambda: fitting.fit_detectors(model, lambda _: [], {}, key=jax.random.key(0)),
    ):
        with pytest.raises(TypeError, match="is a WithDropout; expected a Backbone: make it with"):
            ask()


def test_a_gigantic_number_of_classes():
    with pytest.raises(ValueError, match="num_classes is 4611686018427387904; expected at most"):
        gj.conformal.calibration.calibrate(np.zeros(3), np.zeros(3, int), 2**62)
