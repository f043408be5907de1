"""Checkpoints: what is read is what was written, or an error that says what is wrong."""

import dataclasses
import re
import shlex

import jax
import numpy as np
import pytest
from flax import nnx

import grood_jax as gj
from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Preprocessing
from grood_jax.storage import checkpoints
from grood_jax.storage.banks import save_bank
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


def test_nothing_says_on_which_devices_arrays_lay(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        optimizer = {"momentum": jax.numpy.arange(3.0)}
        checkpoints.save(manager, 1, network(), SPEC, optimizer=optimizer)
    here = str(jax.devices()[0]).encode()
    assert not [path for path in files(tmp_path) if here in path.read_bytes()]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_it_is_can_be_asked_before_its_arrays_are_read(tmp_path):
    assert checkpoints.stored_in(tmp_path) is None
    checkpoints.save_model(tmp_path, network(), SPEC)
    for path in (tmp_path / "0" / "model").rglob("d/*"):
        path.unlink()
    stored = checkpoints.stored_in(str(tmp_path))
    assert (stored.spec, stored.step, stored.record) == (SPEC, 0, {})
    assert stored.fingerprint == checkpoints.fingerprint(network())
    with pytest.raises(UserError, match="is damaged: its model cannot be read"):
        stored.load()


def test_arrays_come_from_the_step_that_was_opened(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        checkpoints.save(manager, 1, network(1), SPEC)
        stored = checkpoints.open_classifier(tmp_path)
        checkpoints.save(manager, 2, network(2), SPEC)
    loaded = stored.load()
    assert loaded.step == 1
    assert loaded.fingerprint == checkpoints.fingerprint(loaded.model)
    assert loaded.fingerprint == checkpoints.fingerprint(network(1))


def test_a_reader_leaves_alone_what_a_writer_has_begun(tmp_path):
    checkpoints.save_model(tmp_path, network(), SPEC)
    begun = tmp_path / "1.orbax-checkpoint-tmp"
    begun.mkdir()
    checkpoints.load_model(tmp_path)
    assert begun.is_dir()


def test_another_optimizer_s_state_is_refused(tmp_path):
    with checkpoints.manager(tmp_path) as manager:
        checkpoints.save(manager, 1, network(), SPEC, optimizer={"momentum": np.zeros(3)})
        checkpoints.save(manager, 2, network(), SPEC)
    for like in ({"momentum": np.zeros(4)}, {"speed": np.zeros(3)}, {}):
        with pytest.raises(UserError, match="has another optimizer's"):
            checkpoints.load_optimizer(tmp_path, 1, like)
    with pytest.raises(UserError, match="it has no optimizer"):
        checkpoints.load_optimizer(tmp_path, 2, {"momentum": np.zeros(3)})


@pytest.mark.parametrize("name", ["resnet20.th", "net.pt", "NET.PTH", "a b.safetensors"])
def test_a_file_of_pytorch_s_is_to_be_imported(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"x")
    said = re.escape(f"grood_jax.models.import_torch {shlex.quote(str(path))} --model NAME")
    for ask in (checkpoints.stored_in, checkpoints.latest_step, checkpoints.load_model):
        with pytest.raises(UserError, match=f"is a file; expected the directory.*{said}"):
            ask(path)


def test_something_else_is_named(tmp_path):
    save_bank(tmp_path, gj.build_bank(np.ones((3, 2))))
    with pytest.raises(UserError, match="holds a bank; expected a checkpoint"):
        checkpoints.load_model(tmp_path)


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
    (tmp_path / "saved" / "0" / "manifest" / "metadata").unlink()
    with pytest.raises(UserError, match=r"saved is damaged: its manifest cannot be read \(No such"):
        checkpoints.load_model(tmp_path / "saved")
