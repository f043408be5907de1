"""What grood-jax 0.1.0 wrote is read, or refused with a sentence that says why.

``written_by_0_1_0.tar.xz`` was made by that version: a checkpoint of the network ``small`` whose
arrays are 0/7, 1/7, … 6/7, 0/7, … in order, a bank, arrays saved under a kind of their own, and a
saved `OODClassifier` of `early` and `late` below.
"""

import json
import re
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import grood_jax as gj
from grood_jax.storage import checkpoints, saving
from grood_jax.storage.banks import load_bank
from grood_jax.support.errors import UserError


@pytest.fixture
def old(tmp_path):
    with tarfile.open(Path(__file__).with_name("written_by_0_1_0.tar.xz")) as archive:
        # Python 3.11.0 to 3.11.3 know no filters; from 3.12 on one is expected.
        options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **options)
    return tmp_path


def early(arrays, images):
    del arrays
    return images.reshape(len(images), -1)


def late(arrays, hidden):
    return hidden, hidden @ arrays["w"]


def backbone(scale=1.0):
    weights = scale * np.eye(4, 2, dtype=np.float32)
    return gj.Backbone.from_functions({"w": weights}, early, late)


def test_a_checkpoint(old):
    stored = checkpoints.open_classifier(old / "checkpoint")
    assert (stored.step, stored.spec.model, stored.record) == (1, "small", {"epochs": 1})
    loaded = stored.load(expected_model="small")
    assert loaded.fingerprint == checkpoints.fingerprint(loaded.model)
    kernel = np.asarray(loaded.model.head.kernel[...])
    np.testing.assert_allclose(kernel.ravel(), np.arange(kernel.size) % 7 / 7, rtol=1e-6)
    state = checkpoints.load_optimizer(old / "checkpoint", 1, {"momentum": jnp.zeros(3)})
    np.testing.assert_array_equal(state["momentum"], np.arange(3.0))


def test_a_run_goes_on_from_a_checkpoint(old):
    loaded = checkpoints.load_model(old / "checkpoint")
    with checkpoints.manager(old / "checkpoint") as manager:
        checkpoints.save(manager, 2, loaded.model, loaded.spec)
    again = checkpoints.load_model(old / "checkpoint")
    assert (again.step, again.fingerprint) == (2, loaded.fingerprint)


def test_a_bank(old):
    rows = gj.bank_rows(load_bank(old / "bank"))
    np.testing.assert_array_equal(rows, np.arange(12, dtype=np.float32).reshape(4, 3))


def test_what_was_saved(old):
    about, arrays = saving.load(old / "saved", "thing", "make one")
    assert about == {"rate": 0.1}
    assert {name: (str(a.dtype), a.shape) for name, a in arrays.items()} == {
        "a": ("float32", (3,)),
        "half": ("bfloat16", (3,)),
        "none": ("int32", (0, 3)),
    }
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    saving.save(old / "saved", "thing", {"b": np.ones(2)}, {})
    assert list(saving.load(old / "saved", "thing", "make one")[1]) == ["b"]


def test_a_classifier(old):
    loaded = gj.OODClassifier.load(old / "classifier", backbone())
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(5, 2, 2, 1)).astype(np.float32)
    bank = gj.bank_rows(loaded.state)
    rows = images.reshape(5, 4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.linalg.norm(rows[:, None] - bank, axis=2).min(axis=1)
    np.testing.assert_allclose(loaded.predict(images).score, expected, rtol=1e-5)
    with pytest.raises(UserError, match="was fitted on the classifier"):
        gj.OODClassifier.load(old / "classifier", backbone(2.0))


@pytest.mark.parametrize(
    ("name", "item", "load"),
    [
        ("checkpoint/1", "about", lambda path: checkpoints.load_model(path.parent)),
        ("bank/0", "about", lambda path: load_bank(path.parent)),
        ("saved/0", "thing", lambda path: saving.load(path.parent, "thing", "make one")),
    ],
)
def test_what_was_altered_since_is_refused(old, name, item, load):
    path = old / name
    description = path / item / "metadata"
    whole = description.read_text()
    digit = next(i for i in reversed(range(len(whole))) if whole[i] in "0123456789")
    fingerprint = whole.replace('"fingerprint": "', '"fingerprint": "x')
    for text in (
        fingerprint if fingerprint != whole else whole[:digit] + "x" + whole[digit + 1 :],
        whole[:-9],
        "[]",
        "{}",
        json.dumps({"format": 1}),
    ):
        description.write_text(text)
        with pytest.raises(UserError, match=re.escape(str(path.parent)) + " is damaged"):
            load(path)
    description.write_text(whole)
    load(path)
    for part in path.rglob("d/*"):
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path.parent)) + " is damaged"):
        load(path)


def test_one_is_not_taken_for_another(old):
    for said, load in (
        ("checkpoint holds a checkpoint; expected a bank", lambda: load_bank(old / "checkpoint")),
        ("bank holds a bank; expected a checkpoint", lambda: checkpoints.load_model(old / "bank")),
        (
            "classifier holds an OOD_classifier; expected a thing",
            lambda: saving.save(old / "classifier", "thing", {}, {}),
        ),
    ):
        with pytest.raises(UserError, match=said):
            load()
