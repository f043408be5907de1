"""Models of the JAX zoos, tiny and random: named, cut, fitted, saved, loaded.

Each is skipped where its package is not installed; docs/how-to/zoos.md shows what is done here.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import grood_jax as gj
from grood_jax.detectors import Detector, create

SIZE, CLASSES = 32, 3


def made(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    images = 0.3 * rng.normal(size=(count, SIZE, SIZE, 3)) + labels[:, None, None, None] - 1
    return images.astype(np.float32), labels


IMAGES, LABELS = made(48, 0)
HELD_OUT = made(40, 1)


def fit_and_load(backbone: gj.Backbone, detector: Detector, folder: Any) -> gj.OODClassifier:
    """A classifier that was evaluated, fitted, saved, and loaded again."""
    made = gj.evaluate(backbone, (IMAGES, LABELS), HELD_OUT, {"far": {"all": -IMAGES}}, detector)
    assert list(made.scores) == [detector.name] and not made.failed
    classifier = gj.OODClassifier.fit(
        backbone,
        [(IMAGES, LABELS)],
        detector=detector,
        calibration=[HELD_OUT],
        key=jax.random.key(0),
    )
    classifier.save(folder / "saved")
    loaded = gj.OODClassifier.load(folder / "saved", backbone)
    answers = loaded.predict(IMAGES[:8])
    np.testing.assert_allclose(answers.score, classifier.predict(IMAGES[:8]).score, rtol=1e-4)
    assert np.isfinite(answers.score).all()
    return loaded


class TestJimm:
    """jax-image-models: flax.nnx, sharded, all blocks in one scan."""

    @pytest.fixture(autouse=True)
    def mesh(self) -> Iterator[None]:
        pytest.importorskip("jimm", reason="needs pip install jax-image-models")
        kinds = (jax.sharding.AxisType.Explicit,)
        devices = jax.devices()[:1]
        mesh = jax.make_mesh((1,), ("fsdp",), axis_types=kinds, devices=devices)
        with jax.set_mesh(mesh), jax.numpy_rank_promotion("allow"):
            yield

    def options(self, **others: Any) -> dict[str, Any]:
        from jimm.common.sharding import NoSharding

        return {"sharding": NoSharding(), "rngs": nnx.Rngs(0), **others}

    def test_vision_transformer(self, tmp_path) -> None:
        import jimm

        sizes = {"img_size": SIZE, "patch_size": 16, "num_layers": 2, "num_heads": 2}
        sizes |= {"mlp_dim": 16, "hidden_size": 8, "num_classes": CLASSES}
        model = jimm.VisionTransformer(**sizes, **self.options())
        backbone = gj.Backbone.from_nnx(model, example=IMAGES[:2])
        assert (backbone.head_name, backbone.cut) == ("classifier", "encoder.dropout")
        model.eval()
        np.testing.assert_allclose(backbone(IMAGES).logits, model(IMAGES), rtol=1e-4, atol=1e-5)
        with pytest.raises(
            ValueError, match="'encoder.layers.1'; the model calls no submodule of t"
        ):
            gj.Backbone.from_nnx(model, cut="encoder.layers.1", example=IMAGES[:2])
        fit_and_load(backbone, create("mahalanobis"), tmp_path)

    def test_dinov3(self, tmp_path) -> None:
        import jimm

        sizes = {"img_size": SIZE, "patch_size": 16, "num_layers": 1, "num_heads": 2}
        sizes |= {"mlp_dim": 16, "hidden_size": 8, "num_register_tokens": 1}
        encoder = jimm.DINOv3Model(**sizes, **self.options())
        backbone = gj.Backbone.from_encoder(encoder, head="linear")
        fit_and_load(backbone, create("msp"), tmp_path)

    def test_siglip_with_text(self, tmp_path) -> None:
        import jimm

        sizes = {"image_resolution": SIZE, "vision_layers": 1, "vision_hidden_size": 64}
        sizes |= {"vision_patch_size": 16, "context_length": 4, "vocab_size": 10}
        sizes |= {"text_hidden_size": 64, "num_text_heads": 1, "num_text_layers": 1}
        model = jimm.SigLIP(**sizes, **self.options())
        words = np.arange(4 * CLASSES, dtype=np.int32).reshape(CLASSES, 4) % 10
        text = (
            model.encode_text(words),
            float(np.exp(-model.logit_scale[...].item())),
            model.logit_bias[...].item(),
        )
        backbone = gj.Backbone.from_encoder(
            model, call=lambda model, images: model.encode_image(images), text=text
        )
        expected = model(IMAGES, words)
        np.testing.assert_allclose(backbone(IMAGES).logits, expected, rtol=1e-3, atol=1e-3)
        fit_and_load(backbone, create("mcm"), tmp_path)


class TestEquimo:
    """Equinox: channels first, one image at a time."""

    @pytest.fixture
    def model(self) -> Any:
        models = pytest.importorskip("equimo.models", reason="needs pip install equimo")
        return models.VisionTransformer(
            img_size=SIZE,
            in_channels=3,
            dim=8,
            patch_size=16,
            num_heads=2,
            depths=[1],
            num_classes=CLASSES,
            reg_tokens=0,
            key=jax.random.key(0),
        )

    def test_an_encoder_with_the_models_own_head(self, model, tmp_path) -> None:
        import equinox as eqx

        body = eqx.tree_at(lambda own: own.head, model, eqx.nn.Identity())
        arrays, static = eqx.partition(body, eqx.is_array)

        def encode(arrays: Any, images: jax.Array) -> jax.Array:
            network = eqx.combine(arrays, static)
            return jax.vmap(lambda image: network(image, inference=True))(
                images.transpose(0, 3, 1, 2)
            )

        head = (model.head.weight.T, model.head.bias)
        backbone = gj.Backbone.from_encoder(encode, arrays, head=head)
        expected = jax.vmap(lambda image: model(image, inference=True))(
            IMAGES.transpose(0, 3, 1, 2)
        )
        np.testing.assert_allclose(backbone(IMAGES).logits, expected, rtol=1e-4, atol=1e-5)
        fit_and_load(backbone, create("msp"), tmp_path)
