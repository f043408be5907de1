"""Images moved along the gradient of their predicted class (arXiv 1706.02690, 2503.08023)."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def perturb(
    logits_of: Callable[[Float[Array, "b ..."]], Float[Array, "b c"]],
    images: Float[Array, "b ..."],
    input_std: Sequence[float],
    temperature: float,
    noise: float,
    most: int | None = None,
) -> Float[Array, "b ..."]:
    """``x − ε sign(∇_x[−log softmax(z / T)_ŷ]) / σ`` with the predicted class ŷ.

    Images were divided by σ, so a step of ε / σ is one of ε in images from 0 to 1. A gradient of 0
    counts as positive, as in the authors' code and in OpenOOD v1.5.

    Args:
      logits_of: the network, differentiable; no sample's logits depend on another sample.
      images: normalised images, (B, …, channels) float32.
      input_std: σ of each channel.
      temperature: T.
      noise: ε.
      most: how many of an image's numbers are moved, those whose gradient is largest by absolute
        value, among equals the first, as i-ODIN does; None for all.

    Returns:
      The moved images.

    References:
      Liang, Li and Srikant, arXiv 1706.02690, equation 2; ``most``: Regmi, arXiv 2411.10794.
    """

    def loss(images: Float[Array, "b ..."]) -> Float[Array, ""]:
        scaled = logits_of(images) / temperature
        predicted = scaled.argmax(axis=1)[:, None]
        return -jnp.take_along_axis(jax.nn.log_softmax(scaled, axis=1), predicted, axis=1).sum()

    gradient = jax.grad(loss)(images)
    ascent = jnp.where(gradient >= 0, 1.0, -1.0)
    if most is not None:
        sizes = _rows(jnp.abs(gradient))
        places = jax.lax.top_k(sizes, min(most, sizes.shape[1]))[1]
        rows = jnp.arange(images.shape[0])[:, None]
        ascent *= jnp.zeros_like(sizes).at[rows, places].set(1.0).reshape(images.shape)
    std = jnp.asarray(input_std, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
    return images - noise * ascent / std


def nudge(
    logits_of: Callable[[Float[Array, "b ..."]], Float[Array, "b c"]],
    images: Float[Array, "b ..."],
    share: float,
    step: float,
) -> Float[Array, "b ..."]:
    """``x + ε sign(∇_x z_ŷ)`` where the gradient is smallest, x elsewhere.

    ``ŷ`` is the predicted class. Each number of an image, one channel at one place, counts for
    itself; of n numbers those ``max(1, int(share · n))`` are moved whose gradient is smallest by
    absolute value, among equals the first. Where the gradient is 0, so is the step. All as in the
    authors' code and in OpenOOD v1.5, but that at least one number is moved.

    Args:
      logits_of: the network, differentiable; no sample's logits depend on another sample.
      images: normalised images, (B, …) float32.
      share: of an image's numbers, in [0, 1].
      step: ε.

    Returns:
      The moved images.

    References:
      Regmi, AdaSCALE, arXiv 2503.08023, "image perturbation".
    """

    def predicted(images: Float[Array, "b ..."]) -> Float[Array, ""]:
        return logits_of(images).max(axis=1).sum()

    ascent = _rows(jax.grad(predicted)(images))
    count = max(1, int(share * ascent.shape[1]))
    places = jax.lax.top_k(-jnp.abs(ascent), count)[1]
    rows = jnp.arange(images.shape[0])[:, None]
    steps = jnp.zeros_like(ascent).at[rows, places].set(jnp.sign(ascent[rows, places]))
    return images + step * steps.reshape(images.shape)


def _rows(images: Float[Array, "b ..."]) -> Float[Array, "b n"]:
    # Of a number of images that may not be known: no `len`, no −1.
    return images.reshape(images.shape[0], math.prod(images.shape[1:]))
