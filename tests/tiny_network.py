"""A classifier of four classes on images (4, 4, 1), small enough to compile at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax.backbone.backbone import Backbone

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
