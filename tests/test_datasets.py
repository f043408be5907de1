"""What comes with the packages to try things on."""

import numpy as np

import grood_jax as gj
from grood_jax import benchmarks


def test_the_digits_are_those_of_the_benchmark():
    digits = gj.datasets.digits()
    opened = benchmarks.open_benchmark(benchmarks.get("digits"))
    np.testing.assert_array_equal(digits.train.labels, opened.train.read(np.arange(1010))[1])
    unseen, labels = opened.test.read(np.arange(433))
    np.testing.assert_array_equal(digits.calibration.images, unseen[::2])
    np.testing.assert_array_equal(digits.test.images, unseen[1::2])
    np.testing.assert_array_equal(digits.test.labels, labels[1::2])
    sizes = {g: {n: len(images) for n, images in own.items()} for g, own in digits.ood.items()}
    assert sizes == {
        "near": {"digits_8_9": 354},
        "far": {"photographs": 1664, "uniform_noise": 1000},
    }
    assert repr(digits).startswith("Dataset(Small; images: 1010 train, 217 calibration, 216 test, ")


def test_its_network_knows_them():
    digits = gj.datasets.digits()
    backbone = gj.Backbone.from_nnx(digits.model, cut="layer1")
    outputs = backbone(digits.preprocessing.normalize(digits.test.images))
    assert (np.asarray(outputs.logits).argmax(axis=1) == digits.test.labels).mean() > 0.98


def test_only_public_names_are_listed():
    assert dir(gj) == sorted(gj.__all__)
