"""Training: augmentation, schedules, and runs that resume to the same curve."""

import dataclasses
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grood_jax import models
from grood_jax.data import ArraySet, Preprocessing
from grood_jax.storage import checkpoints
from grood_jax.support.errors import UserError
from grood_jax.training import loop as training
from grood_jax.training.loop import TrainOptions

SIZE = 8
PREPROCESSING = Preprocessing(SIZE, 1, mean=(0.5,), std=(0.25,))
OPTIONS = TrainOptions(epochs=3, batch_size=16, crop_padding=1, learning_rate=0.05)


def stripes(count=70, seed=0):
    """Vertical stripes (class 0) and horizontal ones (class 1), in noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    pattern = np.where(np.arange(SIZE) % 2, 200, 50)
    images = np.stack([np.broadcast_to(pattern, (SIZE, SIZE))] * count)
    images = np.where(labels[:, None, None] == 1, images.transpose(0, 2, 1), images)
    noisy = images + generator.integers(-40, 40, images.shape)
    return ArraySet("stripes", "made by a test", noisy[..., None].astype(np.uint8), labels)


def run(directory, options=OPTIONS, **changes):
    given = {"dataset": "stripes", "model": "small", "num_classes": 2} | changes
    images = given.pop("images", None) or stripes()
    return training.train(images, PREPROCESSING, options=options, directory=directory, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole"))


def test_it_learns(whole):
    history = whole.record["history"]
    assert len(history) == OPTIONS.epochs == whole.step
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert training.accuracy(whole.model, stripes(50, seed=1), PREPROCESSING) == 1.0


def test_the_same_seed_gives_the_same_curve_and_another_does_not(whole, tmp_path):
    again = run(tmp_path / "again")
    assert again.record["history"] == whole.record["history"]
    assert again.fingerprint == whole.fingerprint
    other = run(tmp_path / "other", dataclasses.replace(OPTIONS, seed=1))
    assert other.record["history"] != whole.record["history"]


def test_a_finished_run_is_only_read(whole, tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(training, "_prepare", lambda *_: pytest.fail("trained again"))
    # Lines of progress may go where the earlier name says.
    with pytest.warns(DeprecationWarning, match="report= is called say= now"):
        assert run(tmp_path, report=print).fingerprint == whole.fingerprint


class Stop(Exception):
    pass


def test_a_run_stopped_between_epochs_resumes_to_the_same_curve(whole, tmp_path):
    def stop(line):
        if line.startswith("epoch 2"):
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path, say=stop)
    lines = []
    resumed = run(tmp_path, say=lines.append)
    assert "after epoch 2 of 3" in lines[0]
    assert resumed.record["history"] == whole.record["history"]
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_curve(tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from grood_jax.train import TrainConfig, run
        from grood_jax.training.loop import TrainOptions
        options = TrainOptions(epochs=6, batch_size=64, crop_padding=1, flip=False)
        run(TrainConfig(output_dir=Path(sys.argv[1]), limit=256, options=options))
        """
    )

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
        )

    killed = start(tmp_path / "killed")
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("epoch 2"):
            break
    # In the middle of whatever comes next: a step, or the writing of a checkpoint.
    time.sleep(0.05)
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert (checkpoints.latest_step(tmp_path / "killed") or 0) < 6
    for folder in ("killed", "whole"):
        with start(tmp_path / folder) as process:
            process.communicate()
            assert process.returncode == 0
    one = checkpoints.load_model(tmp_path / "killed")
    other = checkpoints.load_model(tmp_path / "whole")
    assert one.step == other.step == 6
    assert one.record["history"] == other.record["history"]
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": dataclasses.replace(OPTIONS, learning_rate=0.01)}, r"learning_rate 0.05"),
        ({"dataset": "spots"}, r"trained on stripes; expected spots"),
        ({"model": "resnet20"}, r"is of model small; expected resnet20"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    short = dataclasses.replace(OPTIONS, epochs=1)
    run(tmp_path, short)
    with pytest.raises(UserError, match=message):
        run(tmp_path, **({"options": short} | changes))


def test_bad_training_sets(tmp_path):
    with pytest.raises(UserError, match=r"batch_size is 16, but stripes has 5 training images"):
        run(tmp_path, images=stripes(5))
    with pytest.raises(UserError, match=r"labels \[1\]; expected 0 to 0"):
        run(tmp_path, num_classes=1)
    with pytest.raises(UserError, match=r"the loss is (nan|inf).*lower learning rate than 1e\+30"):
        run(tmp_path, dataclasses.replace(OPTIONS, learning_rate=1e30))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs is 0; expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"schedule": "linear"}, "schedule is 'linear'; expected one of cosine, one-cycle"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_outside_their_range(unchecked, option, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**option)


def test_schedules():
    steps = 100
    cosine = training.learning_rates(TrainOptions(learning_rate=0.4), steps)
    for step in (0, 25, 50, 99):
        expected = 0.4 * 0.5 * (1 + np.cos(np.pi * step / steps))
        np.testing.assert_allclose(cosine(step), expected, rtol=1e-6, atol=1e-7)
    cycle = training.learning_rates(TrainOptions(learning_rate=0.4, schedule="one-cycle"), steps)
    rates = np.array([float(cycle(step)) for step in range(steps + 1)])
    assert rates.argmax() == 25
    np.testing.assert_allclose(rates.max(), 0.4, rtol=1e-6)
    assert rates[0] < 0.4 / 10 and rates[-1] < 0.4 / 1000


@pytest.mark.slow
def test_weight_decay_leaves_vectors_alone(tmp_path):
    network = models.create("small", num_classes=2, channels=1, rngs=nnx.Rngs(0))
    options = dataclasses.replace(OPTIONS, weight_decay=0.5, crop_padding=0, flip=False)
    plain = dataclasses.replace(options, weight_decay=0.0)
    pixels, labels = stripes(16).read(np.arange(16))
    changed = {}
    for name, chosen in (("decayed", options), ("plain", plain)):
        step, state, _ = training._prepare(network, chosen, 1, PREPROCESSING)
        state = jax.tree.map(jnp.copy, state)
        changed[name] = step(state, pixels, labels, jax.random.key(0))[0].parameters
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), changed["decayed"], changed["plain"])
    for path, different in jax.tree_util.tree_leaves_with_path(differs):
        assert different == ("kernel" in jax.tree_util.keystr(path)), path


class TestAugment:
    images = jnp.arange(2 * 5 * 5 * 1, dtype=jnp.float32).reshape(2, 5, 5, 1)

    def test_nothing_asked_for(self, key):
        np.testing.assert_array_equal(training.augment(self.images, key, 0, False), self.images)

    def test_crops_are_windows_of_the_reflected_border(self, key):
        image = np.asarray(self.images[:1])
        padded = np.pad(image[0, :, :, 0], 2, mode="reflect")
        windows = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
        many = training.augment(jnp.tile(self.images[:1], (500, 1, 1, 1)), key, 2, False)
        found = {np.asarray(crop[:, :, 0]).tobytes() for crop in many}
        assert found == windows

    def test_flips_mirror_about_half(self, key):
        many = training.augment(jnp.tile(self.images[:1], (500, 1, 1, 1)), key, 0, True)
        mirrored = np.asarray((many == self.images[:1, :, ::-1]).all(axis=(1, 2, 3)))
        kept = np.asarray((many == self.images[:1]).all(axis=(1, 2, 3)))
        assert (mirrored ^ kept).all()
        assert 200 < mirrored.sum() < 300
