"""A classifier of four classes on images (4, 4, 1), small enough to compile at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax.backbone.backbone import Backbone
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.detectors import Detector, grood

CLASSES, WIDTH, SHAPE = 4, 6, (4, 4, 1)


def early(arrays: Any, images: jax.Array) -> jax.Array:
    return jnp.tanh(images.reshape(-1, 16) @ arrays["one"])


def late(arrays: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = jnp.tanh(hidden @ arrays["two"])
    return features, features @ arrays["three"]


def head(arrays: Any) -> tuple[jax.Array, jax.Array]:
    return arrays["three"], jnp.zeros(CLASSES)


def layers(arrays: Any, images: jax.Array) -> tuple[jax.Array, ...]:
    return (early(arrays, images).reshape(-1, 2, 6),)


def backbone(seed: int = 0) -> Backbone:
    rng = np.random.default_rng(seed)
    shapes = {"one": (16, 12), "two": (12, WIDTH), "three": (WIDTH, CLASSES)}
    arrays = {n: jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for n, s in shapes.items()}
    return Backbone.from_functions(arrays, early, late, head, layers=layers, input_std=(0.5,))


def images(count: int, seed: int, spread: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (count, *SHAPE)).astype(np.float32)


def pairs(count: int, seed: int, size: int = 64) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches of images, with the classes that the network gives them."""
    every = images(count, seed)
    labels = np.asarray(backbone()(every).logits).argmax(axis=1)
    return [(every[i : i + size], labels[i : i + size]) for i in range(0, count, size)]


def tiny_fit(key: int, detector: Detector | None = None) -> OODClassifier:
    """A classifier for these images, the same wherever it is fitted; in as many processes."""
    every, held_out = pairs(131, seed=1), images(40, seed=2)
    wanted = grood() if detector is None else detector
    key = jax.random.key(key)
    return OODClassifier.fit(backbone(), every, detector=wanted, calibration=held_out, key=key)
