"""Forward passes divided over eight devices: the figures of one, and nothing that travels."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from test_sharding import collectives

from grood_jax import benchmarks
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Grams, Mix, Perturbed
from grood_jax.data import batches
from grood_jax.detectors import create
from grood_jax.evaluation import fitting
from grood_jax.passes import devices, forward, training_pass
from grood_jax.passes.training_pass import run_training_set
from grood_jax.storage import included

pytestmark = pytest.mark.devices
DIGITS = benchmarks.get("digits")
NEEDS = (Grams((1, 2)), Mix(2, 0.7), Perturbed(1000.0, 0.002))
DETECTORS = {
    "grood": create("grood", interpolate=True, interpolate_classes=2),
    "gram": create("gram"),
    "react": create("react"),
}


@pytest.fixture(scope="module")
def one():
    return Backbone.from_nnx(
        included.digits().model, cut="layer1", input_std=DIGITS.preprocessing.std
    )


@pytest.fixture(scope="module")
def eight(one):
    return devices.spread(one)


@pytest.fixture(scope="module")
def data():
    return benchmarks.open_benchmark(DIGITS, limit=100)


def stream(images, size, rows=None, without=()):
    """Batches in which some rows of each are not valid."""
    for batch in batches(images, DIGITS.preprocessing, batch_size=size, indices=rows):
        batch.valid[list(without)] = False
        yield batch


def close(found, expected, atol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Sums are rounded by their largest terms, and in another order where batches are smaller.
        largest = float(np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=max(atol, 1e-6 * largest))


def test_a_backbone_says_whether_it_is_spread(one, eight, monkeypatch):
    assert devices.mesh_of(one) is None
    assert devices.mesh_of(eight).size == 8
    for leaf in jax.tree.leaves(eight.arrays):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8
    head = devices.on_one(eight.head(eight.arrays))
    assert all(len(array.sharding.device_set) == 1 for array in head)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert devices.spread(one) is one


@pytest.mark.parametrize("rows, held", [(16, 2), (17, 3), (3, 1)])
def test_each_device_has_its_share(eight, rows, held):
    array = np.arange(2 * rows).reshape(rows, 2)
    placed = devices.divided(array, devices.mesh_of(eight))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(held, 2)] * 8
    np.testing.assert_array_equal(np.asarray(placed)[:rows], array)
    assert not np.asarray(placed)[rows:].any()


# The devices do not divide 30 rows.
@pytest.mark.slow
@pytest.mark.parametrize("size, without", [(32, ()), (30, (0, 7, 12))])
def test_one_pass_is_that_of_one_device(one, eight, data, size, without):
    def train(rows):
        return stream(data.train, size, rows, without if rows is None else ())

    alone, divided = (
        run_training_set(backbone, train, early=True, needs=NEEDS[:1]) for backbone in (one, eight)
    )
    close(divided.outputs.arrays(), alone.outputs.arrays())
    np.testing.assert_array_equal(divided.labels, alone.labels)
    close(divided.early_prototypes, alone.early_prototypes, 1e-6)
    found, expected = (
        forward.extract(
            backbone,
            stream(data.test, size, None, without),
            needs=NEEDS,
            early_prototypes=alone.early_prototypes,
        )
        for backbone in (one, eight)
    )
    # Perturbed logits jump where the sign of a gradient near 0 does.
    close(replace(found, extra={}), replace(expected, extra={}))
    for need in NEEDS[:2]:
        close(found.extra[need], expected.extra[need])
    close(found.extra[NEEDS[2]], expected.extra[NEEDS[2]], 1e-3)


def test_only_large_batches_come_in_parts(monkeypatch):
    monkeypatch.setattr(devices, "AT_ONCE", 4)

    def loops(rows, least):
        monkeypatch.setattr(devices, "LARGE", least)
        images = np.ones((rows, 2), np.float32)
        text = str(jax.make_jaxpr(lambda x: devices.by_parts(lambda part: part + 1, x))(images))
        return "scan" in text

    assert loops(12, 24)
    assert not loops(12, 25) and not loops(13, 1) and not loops(4, 1) and not loops(3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["one", "eight"])
def test_a_batch_in_parts_gives_what_it_gives_as_a_whole(data, whole, request, monkeypatch):
    backbone = request.getfixturevalue(whole)

    def passes(size):
        trained = run_training_set(
            backbone, lambda rows: stream(data.train, size, rows), early=True
        )
        tested = forward.extract(backbone, stream(data.test, size))
        return trained.early_prototypes, trained.outputs.arrays(), tested.arrays()

    expected = passes(24)
    monkeypatch.setattr(devices, "LARGE", 1)
    monkeypatch.setattr(devices, "AT_ONCE", 4)
    # Sizes of which no program is kept: three parts of one device's rows, two of each of eight's.
    close(passes({"one": 12, "eight": 64}[whole]), expected)


@pytest.mark.slow
def test_all_scores_are_those_of_one_device(one, eight, data, key):
    def train(rows):
        return stream(data.train, 30, rows)

    images = data.ood["photographs"][1]
    scores = []
    for backbone in (one, eight):
        fitted = fitting.fit_detectors(backbone, train, DETECTORS, key=key)
        outputs = fitting.extract(
            backbone,
            stream(images, 30),
            needs=fitted.needs,
            early_prototypes=fitted.early_prototypes,
        )
        scores.append(
            {n: fitting.score(f.detector, f.state, outputs) for n, f in fitted.detectors.items()}
        )
    for name, expected in scores[0].items():
        spread = expected.max() - expected.min()
        np.testing.assert_allclose(
            scores[1][name], expected, rtol=1e-4, atol=1e-4 * spread, err_msg=name
        )


@pytest.mark.slow
def test_nothing_travels_within_a_pass(eight, unchecked):
    mesh = devices.mesh_of(eight)
    images = devices.divided(np.zeros((16, 8, 8, 1), np.float32), mesh)
    marks = [devices.divided(np.zeros(16, kind), mesh) for kind in (np.int32, bool)]
    hidden = jax.eval_shape(eight.hidden, images)
    early = np.zeros((8, *hidden.shape[1:]), np.float32)
    means = devices.no_means(8, hidden.shape[1:], mesh)
    weight = np.float32(0.5)
    for lowered in (
        forward.network_outputs.lower(eight, images, early, NEEDS, mesh),
        training_pass._forward_and_sum.lower(eight, images, *marks, NEEDS[:1], means, mesh),
        training_pass._forward_mixed.lower(eight, images, early, marks[0], weight, mesh),
    ):
        assert list(collectives(lowered.compile().as_text())) == []
