"""Imported networks against what other programs made of the same images."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.listing import layers
from grood_jax.cli.import_torch import PUBLISHED
from grood_jax.data import Preprocessing
from grood_jax.maths.mixup import mix_with_prototypes
from grood_jax.models.torch.files import read_state_dict
from grood_jax.models.torch.importing import import_state_dict

PREPROCESSING = Preprocessing(32, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def torch_numbers(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "g20_network.npz") as numbers:
        return dict(numbers)


@pytest.fixture(scope="module")
def backbone(golden: Path) -> Backbone:
    model = import_state_dict(read_state_dict(golden / "resnet20.th"), "resnet20")
    return Backbone.from_nnx(model, cut="layer1")


@pytest.fixture(scope="module")
def hidden(backbone: Backbone, torch_numbers: dict[str, np.ndarray]) -> jax.Array:
    images = jnp.asarray(PREPROCESSING.normalize(torch_numbers["images"]))
    return jax.jit(lambda b, x: b.hidden(x))(backbone, images)


@pytest.fixture(scope="module")
def finish(backbone: Backbone):
    return jax.jit(lambda b, e: b.finish(e))


def test_layer1_equals_pytorchs(hidden, torch_numbers):
    first = np.asarray(hidden[:16]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(first, torch_numbers["layer1"], atol=TOLERANCE, rtol=0)


def test_features_and_logits_equal_pytorchs(backbone, hidden, finish, torch_numbers):
    outputs = finish(backbone, hidden)
    np.testing.assert_allclose(outputs.features, torch_numbers["features"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(outputs.logits, torch_numbers["logits"], atol=TOLERANCE, rtol=0)


def test_second_most_likely_class_equals_pytorchs(backbone, hidden, finish, torch_numbers):
    order = np.argsort(-np.asarray(finish(backbone, hidden).logits), axis=1)
    np.testing.assert_array_equal(order[:, 1], torch_numbers["second_class"])


def test_mixed_features_and_logits_equal_pytorchs(backbone, hidden, finish, golden, torch_numbers):
    with np.load(golden / "g20_vectors.npz") as vectors:
        prototypes = vectors["early_prototypes"].transpose(0, 2, 3, 1)
    mixed = mix_with_prototypes(hidden, prototypes, torch_numbers["second_class"], 0.5)
    outputs = finish(backbone, mixed)
    # All 58 images are mixed, not only the 16 whose layer1 is kept.
    assert torch_numbers["mixed_features"].shape == (58, 64)
    np.testing.assert_allclose(
        outputs.features, torch_numbers["mixed_features"], atol=TOLERANCE, rtol=0
    )
    np.testing.assert_allclose(
        outputs.logits, torch_numbers["mixed_logits"], atol=TOLERANCE, rtol=0
    )
    # The mixture moves the logits by far more than the tolerance.
    assert np.abs(torch_numbers["mixed_logits"] - torch_numbers["logits"]).max() > 1


@pytest.mark.slow
def test_densenets_features_and_logits_are_those_of_another_program(golden: Path) -> None:
    """Of 16 images, computed in float64 with NumPy; cut at a transition on the way."""
    with np.load(golden / "densenet_bc_100_12_cifar100.npz") as arrays:
        model = import_state_dict(dict(arrays), "densenet_bc_100_12")
    with np.load(golden / "densenet_bc_100_12_cifar100_vectors.npz") as numbers:
        vectors = {name: array[:16] for name, array in numbers.items()}
    images = jnp.asarray(PUBLISHED["densenet_bc_100_12"].normalize(vectors["images"]))
    backbone = Backbone.from_nnx(model, cut="transition1")
    outputs = jax.jit(lambda b, x: b(x))(backbone, images)
    np.testing.assert_allclose(outputs.features, vectors["features"], atol=TOLERANCE, rtol=1e-4)
    np.testing.assert_allclose(outputs.logits, vectors["logits"], atol=TOLERANCE, rtol=1e-4)
    # Among 100 classes.
    assert (np.asarray(outputs.logits).argmax(axis=1) == vectors["labels"]).mean() > 0.5


@pytest.mark.slow
def test_inside_a_layer_of_a_dense_block_nothing_cuts() -> None:
    model = nnx.eval_shape(
        lambda: models.create("densenet_bc_100_12", num_classes=10, rngs=nnx.Rngs(0))
    )
    table = layers(model, np.zeros((2, 32, 32, 3), np.float32)).by_path
    assert "is bypassed" in table["layer2.layers.3.conv2"].why_not
    # What it makes stands beside all that came before.
    assert table["layer2.layers.3"].may_be_cut and table["transition1"].may_be_cut
