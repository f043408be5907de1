"""Images travel as bytes, and are normalised in the compiled pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grood_jax as gj
from grood_jax import benchmarks, models
from grood_jax.data import batches
from grood_jax.passes.forward import extract
from grood_jax.passes.reading import Reader

STATISTICS = {"input_mean": (0.5, 0.4, 0.3), "input_std": (0.2, 0.25, 0.3)}


@pytest.fixture(scope="module")
def model():
    return models.create("small", num_classes=3, channels=3, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.mark.slow
def test_bytes_are_normalised_as_by_hand(model, pixels):
    backbone = gj.Backbone.from_nnx(model, cut="layer1", **STATISTICS)
    mean, std = (np.array(STATISTICS[name], np.float64) for name in ("input_mean", "input_std"))
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(backbone.normalized(pixels), expected, rtol=1e-5, atol=1e-6)
    by_hand, in_the_pass = (
        backbone(expected.astype(np.float32)),
        jax.jit(lambda images: backbone(images))(pixels),
    )
    np.testing.assert_allclose(in_the_pass.logits, by_hand.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_the_pass.features, by_hand.features, rtol=1e-4, atol=1e-5)


def test_floating_images_stay_as_they_are(model):
    backbone = gj.Backbone.from_nnx(model, cut="layer1", **STATISTICS)
    images = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    np.testing.assert_array_equal(backbone.normalized(images), images)


@pytest.mark.parametrize("known", [{}, {"input_std": (1.0,)}, {"input_mean": (0.5,)}])
def test_bytes_are_refused_where_the_statistics_are_not_known(model, pixels, known):
    backbone = gj.Backbone.from_nnx(model, cut="layer1", **known)
    with pytest.raises(TypeError, match="images has dtype uint8 .*expected floating-point"):
        backbone(pixels)


@pytest.mark.parametrize(
    ("mean", "error"), [(("a",), TypeError), ((np.nan,), ValueError), ((np.inf,), ValueError)]
)
def test_a_mean_that_is_none(unchecked, model, mean, error):
    with pytest.raises(error, match="input_mean is"):
        gj.Backbone.from_nnx(model, cut="layer1", input_mean=mean)


def test_a_reader_of_bytes_gives_a_fourth_of_the_size_and_the_same_outputs():
    data = benchmarks.open_benchmark(benchmarks.get("digits"), limit=40)
    preprocessing = benchmarks.get("digits").preprocessing
    model = models.create("small", num_classes=8, channels=1, rngs=nnx.Rngs(0))
    backbone = gj.Backbone.from_nnx(
        model, cut="layer1", input_mean=preprocessing.mean, input_std=preprocessing.std
    )
    read = Reader(preprocessing, 16, progress=False, as_bytes=True)
    as_bytes = list(read(data.test, "test"))
    floats = list(batches(data.test, preprocessing, batch_size=16))
    assert all(batch.images.dtype == np.uint8 for batch in as_bytes)
    assert 4 * as_bytes[0].images.nbytes == floats[0].images.nbytes
    ours, theirs = extract(backbone, as_bytes), extract(backbone, floats)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
