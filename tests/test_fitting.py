"""One forward pass for all detectors: counted, compared with NumPy, whatever the batches."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grood_jax as gj
from grood_jax import benchmarks
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Mix, Outputs
from grood_jax.data import ArraySet, Batch, Preprocessing, batches
from grood_jax.data.builtin import raw_noise
from grood_jax.detectors import (
    Detector,
    MixedTraining,
    Noise,
    Training,
    Validation,
    create,
    grood,
    msp,
)
from grood_jax.evaluation import fitting
from grood_jax.passes.training_pass import run_training_set
from grood_jax.support.errors import UserError

ROWS, BATCH, CLASSES, WIDTH = 70, 32, 4, 6
PASSES = 3  # ceil(70 / 32)
ALONE = 1
"""Passes over copies of one image, which must not depend on the others of its batch."""
PREPROCESSING = Preprocessing(8, 1, mean=(0.5,), std=(0.25,))


@dataclass
class Counts:
    """How often the stages were traced, and how often they ran."""

    early_traces: int = 0
    late_traces: int = 0
    early: int = 0
    late: int = 0

    def add(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)

    def now(self) -> "Counts":
        """A copy, once all that is under way is done."""
        jax.effects_barrier()
        return replace(self)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"one": (64, 12), "two": (12, WIDTH), "three": (WIDTH, CLASSES)}
    return {name: rng.normal(size=shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}


def network() -> tuple[Backbone, Counts]:
    """Activations (B, 2, 2, 3) at the cut, six features, four classes."""
    counts = Counts()

    def early(arrays: Any, images: jax.Array) -> jax.Array:
        counts.add("early_traces")
        jax.debug.callback(lambda: counts.add("early"))
        return jnp.tanh(images.reshape(-1, 64) @ arrays["one"]).reshape(-1, 2, 2, 3)

    def late(arrays: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        counts.add("late_traces")
        jax.debug.callback(lambda: counts.add("late"))
        features = jnp.tanh(hidden.reshape(-1, 12) @ arrays["two"])
        return features, 9.0 * features @ arrays["three"]

    arrays = {name: jnp.asarray(w, jnp.float32) for name, w in weights().items()}
    return Backbone.from_functions(arrays, early, late), counts


@cache
def shared() -> Backbone:
    """One for all tests that count nothing: it is compiled once."""
    return network()[0]


def hidden_64(images: np.ndarray) -> np.ndarray:
    """The first stage in float64 NumPy; the next two functions are the second."""
    pixels = ((images / 255 - 0.5) / 0.25).reshape(-1, 64)
    return np.tanh(pixels @ weights()["one"]).reshape(-1, 2, 2, 3)


def features_64(hidden: np.ndarray) -> np.ndarray:
    return np.tanh(hidden.reshape(-1, 12) @ weights()["two"])


def logits_64(hidden: np.ndarray) -> np.ndarray:
    return 9.0 * features_64(hidden) @ weights()["three"]


def image_set(count: int, seed: int, labels: np.ndarray | None = None) -> ArraySet:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    if labels is None:
        labels = np.full(count, -1)
    return ArraySet("random", f"seed {seed}", images, labels.astype(np.int32))


def training_set(count: int = ROWS) -> ArraySet:
    """Labelled as the network has them, but for every fifth image."""
    found = image_set(count, 1)
    labels = logits_64(hidden_64(found.images)).argmax(axis=1)
    labels[::5] = (labels[::5] + 1) % CLASSES
    assert set(labels[1::5]) == set(range(CLASSES))
    return replace(found, labels=labels.astype(np.int32))


def stream(images: ArraySet, size: int = BATCH) -> Iterator[Batch]:
    return batches(images, PREPROCESSING, batch_size=size)


def train_of(
    images: ArraySet, size: int = BATCH, asked: list[np.ndarray] | None = None
) -> Callable[[np.ndarray | None], Iterator[Batch]]:
    def train(rows: np.ndarray | None) -> Iterator[Batch]:
        if asked is not None and rows is not None:
            asked.append(rows)
        return batches(images, PREPROCESSING, batch_size=size, indices=rows)

    return train


def early_means(images: ArraySet) -> np.ndarray:
    hidden = hidden_64(images.images)
    return np.stack([hidden[images.labels == c].mean(axis=0) for c in range(CLASSES)])


def recorder(**needs: Any) -> Detector:
    """A detector whose state is all that it was given."""
    return Detector("recorder", lambda training, key: training, lambda state, outputs: 0, **needs)


def fit(detectors: dict[str, Detector], key: jax.Array, **options: Any) -> fitting.FittedAll:
    backbone = shared()
    return fitting.fit_detectors(backbone, train_of(training_set()), detectors, key=key, **options)


# How often the network runs.


@pytest.mark.parametrize(
    ("detectors", "mixed_passes"),
    [
        ({"msp": msp()}, 0),
        ({"mean": grood(ood_prototype="prototype-mean")}, 0),
        ({"grood": grood(mixup_samples=40)}, 2),
        ({"grood": grood(mixup_samples=10)}, 1),
        # Both ask for the same mixed samples.
        (
            {
                "grood": grood(mixup_samples=10),
                "k": grood(mixup_samples=10, k=5),
                "mean": grood(ood_prototype="prototype-mean"),
                "msp": msp(),
            },
            1,
        ),
        ({"heavy": grood(mixup_samples=10), "light": grood(mixup_samples=10, mixup_weight=0.1)}, 2),
    ],
)
def test_the_network_runs_once_over_the_training_set(key, detectors, mixed_passes):
    backbone, counts = network()
    fitting.fit_detectors(backbone, train_of(training_set()), detectors, key=key)
    assert counts.now().early == PASSES + ALONE + mixed_passes
    assert counts.now().late == PASSES + ALONE + mixed_passes


def test_interpolation_runs_the_second_stage_once_for_each_copy(key):
    backbone, counts = network()
    options = {"interpolate": True, "interpolate_classes": 2, "ood_prototype": "prototype-mean"}
    correct = np.arange(ROWS) % 5 != 0
    fitted = fitting.fit_detectors(
        backbone, train_of(training_set()), {"grood": grood(**options)}, key=key
    )
    bank_passes = -(-correct.sum() // BATCH)
    assert counts.now().early == PASSES + ALONE + bank_passes
    assert counts.now().late == PASSES + ALONE + 2 * bank_passes
    before = counts.now()
    fitting.extract(
        backbone,
        stream(image_set(BATCH, 2)),
        needs=fitted.needs,
        early_prototypes=fitted.early_prototypes,
    )
    assert counts.now().early == before.early + 1
    assert counts.now().late == before.late + 3


def test_held_out_images_run_once(key):
    backbone, counts = network()
    fitting.fit_detectors(
        backbone,
        train_of(training_set()),
        {
            "v": grood(ood_prototype="validation"),
            "n": grood(ood_prototype="noise"),
            "v5": grood(ood_prototype="validation", k=5),
        },
        key=key,
        validation=lambda: stream(image_set(40, 3)),
        noise=lambda count, key: stream(image_set(20, 4)),
    )
    assert counts.now().early == PASSES + ALONE + 2 + 1


# How often it is compiled.


@pytest.mark.slow
def test_ragged_batches_never_retrace(key):
    backbone, counts = network()
    detectors = {"g": grood(mixup_samples=40, interpolate=True, interpolate_classes=1), "m": msp()}
    fitted = fitting.fit_detectors(backbone, train_of(training_set()), detectors, key=key)
    with_mixes = {"needs": fitted.needs, "early_prototypes": fitted.early_prototypes}
    fitting.extract(backbone, stream(image_set(BATCH, 2)), **with_mixes)
    before = counts.now()
    for count in (1, 11, 31, 33, 70):
        found = fitting.extract(backbone, stream(image_set(count, count)), **with_mixes)
        assert found.features.shape == (count, WIDTH)
    assert counts.now().early_traces == before.early_traces
    # Another training set, of another length: nothing is traced anew either.
    other = fitting.fit_detectors(backbone, train_of(training_set(95)), detectors, key=key)
    assert counts.now().early_traces == before.early_traces
    assert set(other.detectors) == set(fitted.detectors)


@pytest.mark.parametrize("counts", [(1, 1023, 1024), (1025, 2048, 3000, 1)])
def test_scoring_compiles_once(counts):
    traces = []

    def score(state: jax.Array, outputs: Outputs) -> jax.Array:
        traces.append(outputs.logits.shape)
        return outputs.features.sum(axis=1) + state

    detector = Detector("sum", lambda training, key: (), score)
    for count in counts:
        features = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
        found = fitting.score(
            detector, jnp.float32(2.0), Outputs(features, np.zeros((count, 4), np.float32))
        )
        np.testing.assert_allclose(found, features.sum(axis=1) + 2, rtol=1e-5, atol=1e-6)
        assert found.shape == (count,)
    assert traces == [(fitting.SCORE_ROWS, 4)]


def test_nothing_to_score():
    nothing = Outputs(np.zeros((0, WIDTH), np.float32), np.zeros((0, CLASSES), np.float32))
    assert fitting.score(msp(), (), nothing).shape == (0,)


# What comes out.


def test_outputs_are_those_of_the_valid_rows_in_order():
    backbone = shared()
    for count in (1, 11, 32, 33):
        images = image_set(count, count)
        found = fitting.extract(backbone, stream(images))
        hidden = hidden_64(images.images)
        np.testing.assert_allclose(found.features, features_64(hidden), atol=1e-5)
        np.testing.assert_allclose(found.logits, logits_64(hidden), atol=1e-4)


def test_early_prototypes_are_class_means():
    backbone = shared()
    images = training_set()
    found = run_training_set(backbone, train_of(images), early=True)
    np.testing.assert_allclose(found.early_prototypes, early_means(images), atol=1e-6)
    np.testing.assert_array_equal(found.labels, images.labels)
    assert run_training_set(backbone, train_of(images), early=False).early_prototypes is None


@pytest.mark.parametrize("size", [7, 128])
def test_early_prototypes_of_real_images(size):
    """Against float64 means of the very activations that the network yields."""
    benchmark = benchmarks.get("digits")
    images = benchmarks.open_benchmark(benchmark, ood=False, limit=300).train
    check_early_prototypes(images, benchmark.preprocessing, 8, 1, size)


def test_early_prototypes_of_cifar10(tfds_data):
    benchmark = benchmarks.get("cifar10")
    images = benchmarks.open_benchmark(benchmark, data_dir=tfds_data, ood=False, limit=1000).train
    check_early_prototypes(images, benchmark.preprocessing, 10, 3, 96)


def check_early_prototypes(
    images: Any, preprocessing: Preprocessing, classes: int, channels: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "filters": jnp.asarray(rng.normal(size=(16, channels, 3, 3)), jnp.float32),
        "head": jnp.asarray(rng.normal(size=(16, classes)), jnp.float32),
    }

    def early(arrays: Any, x: jax.Array) -> jax.Array:
        convolved = jax.lax.conv(x.transpose(0, 3, 1, 2), arrays["filters"], (1, 1), "SAME")
        return jax.nn.relu(convolved)

    def late(arrays: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = hidden.mean(axis=(2, 3))
        return features, features @ arrays["head"]

    backbone = Backbone.from_functions(arrays, early, late)
    seen = run_training_set(
        backbone,
        lambda rows: batches(images, preprocessing, batch_size=size, indices=rows),
        early=True,
    )
    pixels, labels = images.read(np.arange(len(images)))
    hidden = np.asarray(jax.jit(backbone.hidden)(preprocessing.normalize(pixels)), np.float64)
    expected = np.stack([hidden[labels == c].mean(axis=0) for c in range(classes)])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(seen.early_prototypes, expected, rtol=1e-5, atol=1e-6)


def test_the_mixup_prototype_against_numpy(key):
    images, asked = training_set(), []
    backbone = shared()
    fitted = fitting.fit_detectors(
        backbone,
        train_of(images, asked=asked),
        {"grood": grood(mixup_samples=20, mixup_weight=0.3)},
        key=key,
    )
    (rows,) = asked
    assert len(rows) == len(set(rows.tolist())) == 20
    hidden = hidden_64(images.images[rows])
    second = np.argsort(logits_64(hidden), axis=1)[:, -2]
    mixed = 0.3 * hidden + 0.7 * early_means(images)[second]
    expected = features_64(mixed).mean(axis=0)
    found = fitted.detectors["grood"].state.ood_prototype
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_mixed_samples_against_numpy_with_classes_left_out(key):
    images, asked = training_set(), []
    backbone = shared()
    source = MixedTraining(weight=0.6, samples=33, present=(0, 2, 3))
    fitted = fitting.fit_detectors(
        backbone, train_of(images, asked=asked), {"r": recorder(ood=source)}, key=key
    )
    hidden = hidden_64(images.images[asked[0]])
    logits = logits_64(hidden)
    logits[np.arange(33), logits.argmax(axis=1)] = -np.inf
    logits[:, 1] = -np.inf
    mixed = 0.6 * hidden + 0.4 * early_means(images)[logits.argmax(axis=1)]
    found = fitted.detectors["r"].state.ood
    np.testing.assert_allclose(found.features, features_64(mixed), atol=1e-5)
    np.testing.assert_allclose(found.logits, logits_64(mixed), atol=1e-4)


@pytest.mark.parametrize("size", [1, 11, 32, 33])
def test_mixed_copies_against_numpy_at_fitting_and_at_scoring(key, size):
    images = training_set()
    backbone = shared()
    mix, rows = Mix(2, 0.8), np.array([3, 4, 11, 40, 69])
    fitted = fitting.fit_detectors(
        backbone,
        train_of(images, size),
        {"r": recorder(needs=(mix,), rows=lambda training, key: jnp.asarray(rows))},
        key=key,
    )
    assert fitted.needs == (mix,)
    np.testing.assert_allclose(fitted.early_prototypes, early_means(images), atol=1e-6)
    hidden = hidden_64(images.images)
    others = np.argsort(-logits_64(hidden), axis=1)[:, 1:3]
    mixed = 0.8 * hidden[:, None] + 0.2 * early_means(images)[others]
    expected = np.stack([features_64(mixed[:, k]) for k in range(2)], axis=1)
    np.testing.assert_allclose(fitted.detectors["r"].state.mixed, expected[rows], atol=1e-5)
    scored = fitting.extract(
        backbone,
        stream(images, size),
        needs=fitted.needs,
        early_prototypes=fitted.early_prototypes,
    )
    np.testing.assert_allclose(scored.extra[mix], expected, atol=1e-5)


def test_two_detectors_with_different_mixes(key):
    backbone = shared()
    mixes = (Mix(1, 0.5), Mix(2, 0.5))
    detectors = {
        str(mix.classes): recorder(needs=(mix,), rows=lambda training, key: jnp.arange(5))
        for mix in reversed(mixes)
    }
    fitted = fitting.fit_detectors(backbone, train_of(training_set()), detectors, key=key)
    assert fitted.needs == mixes
    found = fitting.extract(
        backbone,
        stream(training_set()),
        needs=fitted.needs,
        early_prototypes=fitted.early_prototypes,
    )
    one, two = (fitted.detectors[name].state.mixed for name in "12")
    assert (one.shape, two.shape) == ((5, 1, WIDTH), (5, 2, WIDTH))
    np.testing.assert_allclose(one, found.extra[mixes[0]][:5], atol=1e-6)
    np.testing.assert_allclose(two, found.extra[mixes[1]][:5], atol=1e-6)


def test_interpolation_end_to_end(key):
    """A training image that is in the bank is its own nearest neighbour, mixed copies and all."""
    backbone = shared()
    images = training_set()
    detector = grood(interpolate=True, interpolate_classes=2, ood_prototype="prototype-mean")
    fitted = fitting.fit_detectors(backbone, train_of(images), {"grood": detector}, key=key)
    with_mixes = {"needs": fitted.needs, "early_prototypes": fitted.early_prototypes}
    state = fitted.detectors["grood"].state
    inside = fitting.extract(backbone, stream(images), **with_mixes)
    outside = fitting.extract(backbone, stream(image_set(40, 7)), **with_mixes)
    in_bank = np.arange(ROWS) % 5 != 0
    own = fitting.score(detector, state, inside)
    strange = fitting.score(detector, state, outside)
    assert own[in_bank].max() < 1e-5 * np.median(strange)
    assert strange.min() > 0


@pytest.fixture(scope="module")
def scores_in_batches() -> Callable[[int], dict[str, np.ndarray]]:
    """Fits and scores with batches of a size, the network and the detectors staying the same."""
    backbone = shared()
    detectors = {
        "grood": grood(mixup_samples=20, sampling_ratio=0.5),
        "interpolate": grood(interpolate=True, interpolate_classes=2, mixup_samples=20),
        "msp": msp(),
    }

    @cache
    def run(size: int) -> dict[str, np.ndarray]:
        fitted = fitting.fit_detectors(
            backbone, train_of(training_set(), size), detectors, key=jax.random.key(0)
        )
        outputs = fitting.extract(
            backbone,
            stream(image_set(50, 5), size),
            needs=fitted.needs,
            early_prototypes=fitted.early_prototypes,
        )
        return {
            name: fitting.score(one.detector, one.state, outputs)
            for name, one in fitted.detectors.items()
        }

    return run


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 33, 100])
def test_results_do_not_depend_on_the_batch_size(scores_in_batches, size):
    for name, expected in scores_in_batches(BATCH).items():
        found = scores_in_batches(size)[name]
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


def test_a_detector_does_not_depend_on_its_company(key):
    def ood_prototypes_and_banks(**others: Detector) -> list[np.ndarray]:
        drawn = grood(mixup_samples=10, sampling_ratio=0.5)
        state = fit(others | {"drawn": drawn}, key).detectors["drawn"].state
        return jax.tree.leaves(state)

    alone = ood_prototypes_and_banks()
    for found, expected in zip(ood_prototypes_and_banks(a=msp(), b=msp()), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_key_decides_what_is_drawn(key):
    detectors = {"grood": grood(mixup_samples=5, sampling_ratio=0.3)}
    first, again, other = (
        fit(detectors, k).detectors["grood"].state for k in (key, key, jax.random.key(1))
    )
    np.testing.assert_array_equal(first.ood_prototype, again.ood_prototype)
    assert not np.allclose(first.ood_prototype, other.ood_prototype)


# What stands for "not in distribution".


def test_noise_reaches_the_detector(key):
    images, asked = image_set(50, 3), []

    def noise(count: int, key: jax.Array) -> Iterator[Batch]:
        asked.append((count, key))
        return stream(images)

    fitted = fit({"r": recorder(ood=Noise(50))}, key, noise=noise)
    ((count, noise_key),) = asked
    assert count == 50
    assert not np.array_equal(jax.random.key_data(noise_key), jax.random.key_data(key))
    found = fitted.detectors["r"].state.ood
    np.testing.assert_allclose(found.features, features_64(hidden_64(images.images)), atol=1e-5)


def test_raw_noise_enters_the_network_as_it_is(key):
    found = fit({"r": recorder(ood=Noise(250, raw=True))}, key).detectors["r"].state.ood
    seed = int(jax.random.bits(jax.random.split(key, 3)[1]))
    images = raw_noise(250, seed, (8, 8), 1)
    assert images.min() >= 0 and images.max() <= 1
    # The wider the blur the less is left of the noise's spread, and each hundred is blurred alike.
    spreads = [images[part].std() for part in (slice(100), slice(100, 200), slice(200, 250))]
    assert spreads[0] > 2 * spreads[1] > 0 and spreads[1] > spreads[2] > 0
    as_bytes = (images.astype(np.float64) * 0.25 + 0.5) * 255
    np.testing.assert_allclose(found.features, features_64(hidden_64(as_bytes)), atol=1e-5)


def test_held_out_images_reach_the_detector(key):
    images = image_set(50, 3)
    fitted = fit(
        {"r": recorder(ood=Validation()), "msp": msp()}, key, validation=lambda: stream(images)
    )
    found = fitted.detectors["r"].state.ood
    np.testing.assert_allclose(found.features, features_64(hidden_64(images.images)), atol=1e-5)


def test_what_is_not_asked_for_is_not_made(key):
    def never(*_: Any) -> Iterator[Batch]:
        raise AssertionError("nobody asked")

    fitted = fit({"r": recorder(), "msp": msp()}, key, noise=never, validation=never)
    state: Training = fitted.detectors["r"].state
    assert (state.ood, state.mixed, fitted.early_prototypes) == (None, None, None)
    assert fitted.needs == ()


@pytest.mark.parametrize("source", ["noise", "validation"])
def test_a_missing_source_is_said_before_the_network_runs(key, source):
    backbone, counts = network()
    with pytest.raises(UserError, match=f"ood_prototype '{source}' needs"):
        fitting.fit_detectors(
            backbone,
            train_of(training_set()),
            {"grood": create("grood", ood_prototype=source)},
            key=key,
        )
    assert counts.now() == Counts()


def test_several_sources_are_given_in_their_order(key):
    several = recorder(ood=(Noise(20), MixedTraining(0.5, 30)))
    noise = lambda count, key: stream(image_set(count, 4))  # noqa: E731
    state: Training = fit({"r": several}, key, noise=noise).detectors["r"].state
    assert isinstance(state.ood, tuple)
    assert [len(part.logits) for part in state.ood if part] == [20, 30]
    with pytest.raises(UserError, match="ood_prototype 'noise' needs"):
        fit({"r": several}, key)


def test_a_detector_that_makes_do_is_given_what_there_is(key):
    wanted = (Noise(20), MixedTraining(0.5, 30))
    detector = recorder(ood=wanted, head=True, makes_do=True)
    state: Training = fit({"r": detector}, key).detectors["r"].state
    assert isinstance(state.ood, tuple) and state.ood[0] is None and state.ood[1] is not None
    assert state.head is None
    assert fitting.unmet(shared(), "r", detector, image_set(2, 3).images) is None


# What is wrong with the training set.


@pytest.mark.parametrize("label", [-1, CLASSES])
@pytest.mark.parametrize("row", [0, ROWS - 1])
@pytest.mark.parametrize("detector", [msp(), grood(mixup_samples=10)])
def test_a_label_that_is_no_class(key, label, row, detector):
    images = training_set()
    images.labels[row] = label
    backbone = shared()
    message = f"labels of the training set holds {label}; expected classes from 0 to 3"
    with pytest.raises(ValueError, match=message):
        fitting.fit_detectors(backbone, train_of(images), {"d": detector}, key=key)


@pytest.mark.parametrize("stage", ["one", "two", "three"])
def test_a_network_that_yields_nan(key, stage):
    arrays = shared().arrays | {stage: shared().arrays[stage].at[0, 0].set(jnp.nan)}
    backbone = replace(shared(), arrays=arrays)
    what = "logits" if stage == "three" else "features"
    with pytest.raises(ValueError, match=f"{what} of the training set holds .* NaN"):
        fitting.fit_detectors(backbone, train_of(training_set()), {"msp": msp()}, key=key)


def test_activations_that_are_not_finite(key):
    """The second stage may hide what the first one did."""

    def early(arrays: Any, images: jax.Array) -> jax.Array:
        return images.reshape(-1, 64)[:, :4] / 0.0

    def late(arrays: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.clip(hidden, -1, 1), jnp.clip(hidden, -1, 1)

    backbone = Backbone.from_functions({}, early, late)
    with pytest.raises(ValueError, match="class means of the activations at the cut holds"):
        fitting.fit_detectors(backbone, train_of(training_set()), {"g": grood()}, key=key)


def test_an_empty_training_set(key):
    backbone = shared()
    empty = image_set(0, 1)
    with pytest.raises(ValueError, match="batches is empty; expected at least one batch"):
        fitting.fit_detectors(backbone, train_of(empty), {"msp": msp()}, key=key)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, rows: stream(images),
        lambda images, rows: batches(images, PREPROCESSING, batch_size=8, indices=rows[:-1]),
        lambda images, rows: batches(images, PREPROCESSING, batch_size=8, indices=rows[::-1]),
    ],
    ids=["all rows", "too few", "another order"],
)
def test_batches_of_other_rows_than_asked_for(key, wrong):
    backbone = shared()
    images = training_set()

    def train(rows: np.ndarray | None) -> Iterator[Batch]:
        return stream(images) if rows is None else wrong(images, rows)

    with pytest.raises(ValueError, match="train gave other samples than the 20 rows asked for"):
        fitting.fit_detectors(backbone, train, {"grood": grood(mixup_samples=20)}, key=key)


def test_mixes_forgotten_at_scoring(key):
    backbone = shared()
    detector = grood(interpolate=True, ood_prototype="prototype-mean")
    fitted = fitting.fit_detectors(backbone, train_of(training_set()), {"grood": detector}, key=key)
    plain = fitting.extract(backbone, stream(image_set(5, 2)))
    with pytest.raises(ValueError, match="outputs.extra has no Mix.*expected it"):
        fitting.score(detector, fitted.detectors["grood"].state, plain)
    with pytest.raises(ValueError, match="early_prototypes is None"):
        fitting.extract(backbone, stream(image_set(5, 2)), needs=fitted.needs)


def test_errors_of_a_detector_come_through(key):
    with pytest.raises(ValueError, match=r"k is 999; expected at most"):
        fit({"grood": grood(k=999, ood_prototype="prototype-mean")}, key)


def test_time_is_taken(key):
    fitted = fit({"grood": grood(mixup_samples=5)}, key)
    assert fitted.detectors["grood"].seconds > 0
    assert isinstance(fitted.detectors["grood"].state, gj.detectors.GroodState)


class BatchStatistics(nnx.Module):
    """Normalises by the batch, whatever mode it is told to be in."""

    def __init__(self, rngs):
        self.first, self.head = nnx.Linear(12, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def features(self, images):
        hidden = self.first(images.reshape(len(images), -1))
        return (hidden - hidden.mean(axis=0)[None]) / (hidden.std(axis=0)[None] + 1e-3)


def test_a_model_whose_images_depend_on_each_other_is_refused(key):
    def late(model, hidden):
        return hidden, model.head(hidden)

    model = BatchStatistics(nnx.Rngs(0))
    backbone = Backbone.from_nnx(model, cut=(BatchStatistics.features, late))
    images = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32)
    labels = np.arange(8, dtype=np.int32) % 3
    for valid, refused in ((np.ones(8, bool), True), (np.arange(8) < 1, False)):
        batch = Batch(images, labels, valid)
        context = pytest.raises(ValueError, match="expected a model in evaluation mode")
        with context if refused else contextlib.nullcontext():
            run_training_set(backbone, lambda rows, batch=batch: [batch], early=False)
