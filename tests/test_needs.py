"""Middle layers and moved images, asked of a backbone in the one pass that all detectors share."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grood_jax as gj
from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Grams, Outputs, Perturbed
from grood_jax.data import ArraySet, Preprocessing, batches
from grood_jax.detectors import create, gram, msp, names, odin, rebuild
from grood_jax.evaluation import fitting
from grood_jax.maths.grams import gram_sums
from grood_jax.maths.perturbation import perturb
from grood_jax.models import vit
from grood_jax.passes import forward
from grood_jax.support.errors import UserError
from grood_jax.support.structures import put_together, take_apart

PREPROCESSING = Preprocessing(8, 1, mean=(0.5,), std=(0.25,))
ROWS, CLASSES = 40, 4
CUT = {"rankfeat": {"where": "cut"}}


def small(**options):
    model = models.create("small", num_classes=CLASSES, channels=1, rngs=nnx.Rngs(0))
    return Backbone.from_nnx(model, cut="layer1", **options)


def image_set(count=ROWS, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    return ArraySet("random", f"seed {seed}", images, (np.arange(count) % CLASSES).astype(np.int32))


def stream(images, rows=None):
    return batches(images, PREPROCESSING, batch_size=16, indices=rows)


def fit(backbone, detectors, key):
    data = image_set()
    return fitting.fit_detectors(backbone, lambda rows: stream(data, rows), detectors, key=key)


def plain(arrays, images):
    return images


def finish(arrays, hidden):
    features = hidden.reshape(len(hidden), -1)[:, :8]
    return features, features[:, :CLASSES] * 3.0


def first_layer(arrays, images):
    return jnp.tanh(images.reshape(-1, 64) @ arrays["one"]).reshape(-1, 2, 2, 3)


def last_layers(arrays, hidden):
    features = jnp.tanh(hidden.reshape(-1, 12) @ arrays["two"])
    return features, features[:, :CLASSES] * 3.0


def two_places(arrays, images):
    return first_layer(arrays, images).reshape(-1, 2, 6)


def tiny():
    rng = np.random.default_rng(0)
    shapes = {"one": (64, 12), "two": (12, 6)}
    arrays = {n: jnp.asarray(rng.normal(size=s) / 4, jnp.float32) for n, s in shapes.items()}
    return Backbone.from_functions(
        arrays,
        first_layer,
        last_layers,
        layers=lambda arrays, images: (first_layer(arrays, images),),
        input_std=PREPROCESSING.std,
    )


@pytest.mark.slow
def test_gram_and_odin_through_the_harness(key):
    backbone = tiny()
    detectors = {"gram": gram(powers=(1, 2)), "odin": odin(noise=0.01), "msp": msp()}
    fitted = fit(backbone, detectors, key)
    assert fitted.needs == (Grams((1, 2)), Perturbed(1000.0, 0.01))
    test = image_set(21, 1)
    outputs = fitting.extract(backbone, stream(test), needs=fitted.needs)
    pixels = jnp.asarray(PREPROCESSING.normalize(test.images))
    (layer,), (sums,) = backbone.middle(pixels), outputs.extra[Grams((1, 2))]
    np.testing.assert_allclose(sums, gram_sums(layer, (1, 2)), rtol=1e-3, atol=1e-3)
    moved = perturb(lambda x: backbone(x).logits, pixels, PREPROCESSING.std, 1000.0, 0.01)
    logits = np.asarray(backbone(moved).logits, np.float64) / 1000.0
    powers = np.exp(logits)
    expected = 1 - powers.max(axis=1) / powers.sum(axis=1)
    scores = fitting.score(detectors["odin"], fitted.detectors["odin"].state, outputs)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert np.isfinite(
        fitting.score(detectors["gram"], fitted.detectors["gram"].state, outputs)
    ).all()


@pytest.mark.slow
def test_all_detectors_share_one_pass_over_each_set(key):
    """Counted: the second stage runs once a batch, and twice more where a detector moves images."""
    runs = []

    def counted(arrays, hidden):
        jax.debug.callback(lambda: runs.append(1))
        return last_layers(arrays, hidden)

    def head(arrays):
        return 3.0 * jnp.eye(6, CLASSES), jnp.zeros(CLASSES)

    plain = tiny()
    backbone = replace(plain, late=counted, head=head, local=two_places)
    data = image_set(160)
    labels = np.asarray(plain(PREPROCESSING.normalize(data.images)).logits).argmax(axis=1)
    data = replace(data, labels=labels.astype(np.int32))

    def read(images, rows=None):
        return batches(images, PREPROCESSING, batch_size=64, indices=rows)

    every = {name: create(name, **CUT.get(name, {})) for name in names()}
    fitted = fitting.fit_detectors(backbone, lambda rows: read(data, rows), every, key=key)
    jax.effects_barrier()
    # 160 images in batches of 64, and one image in a batch of its own, moved too; and all once
    # more mixed.
    moving = [name for name in every if name in ("adascale", "i_odin", "odin")]
    assert len(runs) == (3 + 1) * (1 + 2) + 3
    runs.clear()
    outputs = fitting.extract(
        backbone,
        read(image_set(70, 1)),
        needs=fitted.needs,
        early_prototypes=fitted.early_prototypes,
    )
    jax.effects_barrier()
    # Once more from the cut, without the largest component.
    assert len(runs) == 2 * (1 + 2 * len(moving) + 1)
    for name, found in fitted.detectors.items():
        scores = fitting.score(found.detector, found.state, outputs)
        assert np.isfinite(scores).all()
        # Each can be taken apart into JSON and arrays, and be put together again.
        described, arrays = take_apart(name, (found.state, dict(found.detector.options)))
        state, options = put_together(json.loads(json.dumps(described)), arrays)
        again = rebuild(name, options)
        assert again.options == found.detector.options
        np.testing.assert_array_equal(fitting.score(again, state, outputs), scores)
    jax.effects_barrier()
    assert len(runs) == 2 * (1 + 2 * len(moving) + 1)


@pytest.mark.slow
def test_detectors_that_look_into_the_network_take_tokens(key, monkeypatch):
    for name, value in {"PATCH": 4, "WIDTH": 16, "HEADS": 2, "HIDDEN": 32}.items():
        monkeypatch.setattr(vit, name, value)
    monkeypatch.setattr(vit.ViT, "stages", ("stem", "layer1", "layer2"))
    model = models.create(
        "vit_b_16", num_classes=CLASSES, channels=1, image_size=8, rngs=nnx.Rngs(0)
    )
    data = image_set(160)
    images = jnp.asarray(PREPROCESSING.normalize(data.images))
    # With the bias that centres the logits, fresh weights know all classes.
    model.head.bias[...] = -model(images).mean(axis=0)
    backbone = Backbone.from_nnx(model, cut="layer1", input_std=PREPROCESSING.std)
    assert backbone.hidden(images).shape == (160, 5, 16)
    labels = np.asarray(backbone(images).logits).argmax(axis=1)
    data = replace(data, labels=labels.astype(np.int32))

    def read(images, rows=None):
        return batches(images, PREPROCESSING, batch_size=160, indices=rows)

    # The others see only features and logits.
    every = {name: create(name) for name in ("grood", "gram", "odin")}
    fitted = fitting.fit_detectors(backbone, lambda rows: read(data, rows), every, key=key)
    outputs = fitting.extract(
        backbone,
        read(image_set(160, 1)),
        needs=fitted.needs,
        early_prototypes=fitted.early_prototypes,
    )
    for name, found in fitted.detectors.items():
        scores = fitting.score(found.detector, found.state, outputs)
        assert np.isfinite(scores).all() and np.ptp(scores) > 0, name


def test_middle_layers_cost_no_second_pass():
    """The compiler shares the layers with the pass: the same convolutions, not twice as many."""
    backbone, images = small(), jnp.zeros((4, 8, 8, 1))

    def convolutions(needs):
        lowered = forward.network_outputs.lower(backbone, images, None, needs)
        text = lowered.compile().as_text()
        return text.count(" convolution(") + text.count("__onednn$conv")

    alone = convolutions(())
    assert alone > 0
    assert convolutions((Grams((1, 2)),)) == alone


def test_a_model_gives_its_layers_and_functions_can():
    images = jnp.asarray(PREPROCESSING.normalize(image_set(3).images))
    shapes = [layer.shape for layer in small().middle(images)]
    assert shapes == [(3, 8, 8, 16), (3, 4, 4, 32), (3, 2, 2, 64)]
    first = Backbone.from_nnx(
        models.create("small", num_classes=CLASSES, channels=1, rngs=nnx.Rngs(0)),
        cut="layer1",
        layers=lambda model, images: (model.early(images, "layer1"),),
    )
    (layer,) = first.middle(images)
    np.testing.assert_allclose(layer, small().middle(images)[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (None, "layers is None; expected a function"),
        (lambda arrays, images: images, "layers returned an array .*; expected a tuple of arrays"),
        (lambda arrays, images: (), "layers returned tuple of 0; expected a tuple of arrays"),
        (lambda arrays, images: (images[:1],), r"layers returned an array \(1, .*expected arrays"),
    ],
)
def test_layers_that_are_none(layers, message):
    backbone = Backbone.from_functions({}, plain, finish, layers=layers)
    with pytest.raises(ValueError, match=message):
        backbone.middle(jnp.zeros((3, 8, 8, 1)))


def undifferentiable(arrays, images):
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    return jax.pure_callback(np.asarray, shape, images)


@pytest.mark.parametrize(
    ("backbone", "detector", "message"),
    [
        (
            Backbone.from_functions({}, plain, finish),
            gram(),
            "mine needs the activations of middle layers, and the backbone has none; .*`layers`",
        ),
        (
            Backbone.from_functions({}, plain, finish),
            odin(),
            "mine moves pixels, and the backbone does not say .*`input_std`",
        ),
        (
            Backbone.from_functions({}, undifferentiable, finish, input_std=(0.25,)),
            odin(),
            "mine needs the gradient .*, and the backbone cannot give it: .*callback",
        ),
    ],
    ids=["no layers", "no scale", "no gradient"],
)
def test_a_backbone_that_cannot_is_refused_with_both_names(key, backbone, detector, message):
    with pytest.raises(UserError, match=message):
        fit(backbone, {"mine": detector}, key)


def test_outputs_without_what_a_detector_needs(key):
    detector = odin()
    outputs = Outputs(jnp.zeros((2, 3)), jnp.zeros((2, CLASSES)))
    with pytest.raises(ValueError, match="outputs.extra has no Perturbed.*expected it"):
        fitting.score(detector, (), outputs)


def test_arrays_of_outputs_and_back():
    needs = (Grams((1, 2)), Perturbed(1.0, 0.1), gj.Mix(2, 0.5))
    rng = np.random.default_rng(0)
    extra = {
        needs[0]: tuple(rng.normal(size=(5, 2, width)) for width in range(1, 13)),
        needs[1]: rng.normal(size=(5, 4)),
        needs[2]: rng.normal(size=(5, 2, 3)),
    }
    outputs = jax.tree.map(np.float32, Outputs(np.ones((5, 3)), np.ones((5, 4)), extra))
    again = Outputs.from_arrays(outputs.arrays(), needs)
    assert jax.tree.structure(again) == jax.tree.structure(outputs)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(outputs), strict=True):
        np.testing.assert_array_equal(one, other)
    assert Outputs.from_arrays(outputs.arrays(), needs[1:2]).extra.keys() == {needs[1]}
