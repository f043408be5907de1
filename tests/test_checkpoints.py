"""Checkpoints: what is read is what was written, or an error that says what is wrong."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Preprocessing
from grood_jax.storage import checkpoints
from grood_jax.storage.checkpoints import ModelSpec
from grood_jax.support.errors import UserError

SPEC = ModelSpec(
    model="small",
    num_classes=3,
    preprocessing=Preprocessing(8, 1, mean=(0.25,), std=(0.5,)),
    source="made by a test",
)


def network(seed=0):
    return models.create("small", num_classes=3, channels=1, rngs=nnx.Rngs(seed))


def test_a_model_comes_back_as_it_was(tmp_path):
    model = network()
    checkpoints.save_model(tmp_path / "saved", model, SPEC)
    loaded = checkpoints.load_model(tmp_path / "saved")
    assert loaded.spec == SPEC
    assert loaded.fingerprint == checkpoints.fingerprint(model)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
    before = Backbone.from_nnx(model, cut="layer1")(images)
    after = Backbone.from_nnx(loaded.model, cut="layer1")(images)
    np.testing.assert_array_equal(before.logits, after.logits)
    np.testing.assert_array_equal(before.features, after.features)


def test_the_fingerprint_sees_weights_and_statistics():
    model = network()
    assert checkpoints.fingerprint(model) == checkpoints.fingerprint(network())
    assert checkpoints.fingerprint(model) != checkpoints.fingerprint(network(seed=1))
    model.layer2.norm.mean[...] = model.layer2.norm.mean[...].at[0].set(1e-30)
    assert checkpoints.fingerprint(model) != checkpoints.fingerprint(network())


def test_the_newest_step_is_read_and_old_ones_go(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        for step in range(1, 5):
            checkpoints.save(manager, step, network(step), SPEC, record={"step": step})
    loaded = checkpoints.load_model(tmp_path)
    assert (loaded.step, loaded.record["step"]) == (4, 4)
    assert loaded.fingerprint == checkpoints.fingerprint(network(4))
    kept = sorted(folder.name for folder in tmp_path.iterdir() if folder.name.isdigit())
    assert kept == ["3", "4"]


def test_optimizer_state_comes_back(tmp_path):
    state = {"momentum": jax.numpy.arange(5.0), "count": jax.numpy.int32(7)}
    with checkpoints.manager(tmp_path) as manager:
        checkpoints.save(manager, 1, network(), SPEC, optimizer=state)
    found = checkpoints.load_optimizer(tmp_path, 1, jax.tree.map(jax.numpy.zeros_like, state))
    jax.tree.map(np.testing.assert_array_equal, found, state)


def test_a_gpu_s_checkpoint_is_read_without_a_gpu(tmp_path):
    optimizer = {"momentum": jax.numpy.arange(3.0)}
    with checkpoints.manager(tmp_path) as manager:
        checkpoints.save(manager, 1, network(), SPEC, optimizer=optimizer)
    for item in ("model", "optimizer"):
        # Where arrays lay is written here only; the arrays themselves are the same.
        path = tmp_path / "1" / item / "_sharding"
        here = str(jax.devices()[0])
        assert here in path.read_text()
        path.write_text(path.read_text().replace(here, "cuda:0"))
    assert checkpoints.load_model(tmp_path).fingerprint == checkpoints.fingerprint(network())
    found = checkpoints.load_optimizer(tmp_path, 1, optimizer)
    np.testing.assert_array_equal(found["momentum"], optimizer["momentum"])


@pytest.mark.parametrize("made", [False, True])
def test_no_checkpoint(tmp_path, made):
    folder = tmp_path / "absent"
    if made:
        folder.mkdir()
    with pytest.raises(UserError, match=r"no checkpoint in .*absent.*grood_jax.train"):
        checkpoints.load_model(folder)


def test_another_model(tmp_path):
    checkpoints.save_model(tmp_path / "saved", network(), SPEC)
    with pytest.raises(UserError, match=r"is of model small; expected resnet20"):
        checkpoints.load_model(tmp_path / "saved", expected_model="resnet20")


def test_a_spec_that_does_not_fit_the_arrays(tmp_path):
    wrong = dataclasses.replace(SPEC, num_classes=4)
    checkpoints.save_model(tmp_path / "saved", network(), wrong)
    expected = (
        r"does not fit small with 4 classes: head\.bias is float32\[3\]; expected float32\[4\]"
    )
    with pytest.raises(UserError, match=expected):
        checkpoints.load_model(tmp_path / "saved")


def test_nothing_is_overwritten(tmp_path):
    checkpoints.save_model(tmp_path / "saved", network(), SPEC)
    with pytest.raises(UserError, match="holds a checkpoint already"):
        checkpoints.save_model(tmp_path / "saved", network(1), SPEC)
    assert checkpoints.load_model(tmp_path / "saved").fingerprint == checkpoints.fingerprint(
        network()
    )


def test_damage_is_found(tmp_path):
    checkpoints.save_model(tmp_path / "saved", network(), SPEC)
    for path in (tmp_path / "saved" / "0" / "model").rglob("d/*"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 0x10
        path.write_bytes(damaged)
    with pytest.raises(UserError, match="saved"):
        checkpoints.load_model(tmp_path / "saved")


def test_a_lost_file(tmp_path):
    checkpoints.save_model(tmp_path / "saved", network(), SPEC)
    (tmp_path / "saved" / "0" / "about" / "metadata").unlink()
    with pytest.raises(UserError, match=r"saved is damaged or incomplete \(about\)"):
        checkpoints.load_model(tmp_path / "saved")
