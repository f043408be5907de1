"""GROOD's per-sample gradient with respect to the OOD prototype (arXiv 2312.14427, section 3)."""

import jax
import jax.numpy as jnp
import numpy.typing as npt
from jaxtyping import Array, Float

from grood_jax.support import checks

LARGEST = 1e18
"""Beyond this, features are refused: in float32 no distance between them means anything."""


BLOCK = 128
"""Points whose distances are computed together."""


def distance(x: Float[Array, " d"], y: Float[Array, " d"]) -> Float[Array, ""]:
    """The Euclidean distance of two points, with gradient 0 where they coincide.

    Scaled by the largest difference, so that no square over- or underflows.
    """
    difference = x - y
    scale = jnp.max(jnp.abs(difference))
    apart = scale > 0
    # Both branches of a `where` are differentiated: the untaken one must not hold a 0/0.
    safe_scale = jax.lax.stop_gradient(jnp.where(apart, scale, 1.0))
    scaled = jnp.where(apart, difference, 1.0) / safe_scale
    return jnp.where(apart, safe_scale * jnp.sqrt(jnp.sum(scaled * scaled)), 0.0)


def prototype_loss(
    ood_prototype: Float[Array, " d"] | Float[Array, "m d"],
    feature: Float[Array, " d"],
    class_distances: Float[Array, " c"],
    own: Float[Array, ""],
) -> Float[Array, ""]:
    """The nearest-prototype loss ``−log softmax(−d)_ŷ`` of one sample over C + M prototypes.

    Args:
      ood_prototype: the prototype ``p_ood``, (D,), or M of them, (M, D).
      feature: the sample's features ``h``, (D,).
      class_distances: its distances to the C class prototypes, (C,). They do not depend on
        ``p_ood``; taken as given, they cost nothing in the gradient.
      own: its distance to the prototype of its predicted class.

    Returns:
      The loss, a scalar.
    """
    to_one = distance if ood_prototype.ndim == 1 else jax.vmap(distance, (None, 0))
    ood_distances = to_one(feature, ood_prototype)
    return own + jax.nn.logsumexp(-jnp.append(class_distances, ood_distances))


def _sample_gradient(
    feature: Float[Array, " d"],
    class_distances: Float[Array, " c"],
    ood_prototype: Float[Array, "*m d"],
) -> Float[Array, "*m d"]:
    # ∂L/∂p_ood is the same for every ŷ: d_ŷ enters the loss as a term of its own.
    return jax.grad(prototype_loss)(ood_prototype, feature, class_distances, class_distances[0])


def distances_to(
    points: Float[Array, "b d"], prototypes: Float[Array, "c d"]
) -> Float[Array, "b c"]:
    """Euclidean distances from points (B, D) to prototypes (C, D), by direct differences.

    Some points and one prototype at a time: differences stay in a CPU's cache. All are scaled
    alike, so that no square overflows, nor any underflows that matters to the largest.
    """
    count, width = points.shape
    block = min(BLOCK, max(count, 1))
    largest = jnp.maximum(
        jnp.max(jnp.abs(points), initial=0.0), jnp.max(jnp.abs(prototypes), initial=0.0)
    )
    _, exponent = jnp.frexp(jnp.where(largest > 0, largest, 1.0))
    # A power of two: scaling rounds nothing.
    scale = jnp.ldexp(jnp.float32(1.0), jnp.clip(exponent, -125, 125))
    scaled = prototypes / scale

    def of_block(rows: Float[Array, "r d"]) -> Float[Array, "c r"]:
        return jax.lax.map(lambda p: jnp.sqrt(jnp.sum((rows - p[None, :]) ** 2, axis=1)), scaled)

    padded = jnp.pad(points / scale, ((0, -count % block), (0, 0)))
    found = jax.lax.map(of_block, padded.reshape(-1, block, width))
    return found.transpose(0, 2, 1).reshape(-1, len(prototypes))[:count] * scale


@jax.jit
def gradients(
    features: Float[Array, "b d"],
    class_prototypes: Float[Array, "c d"],
    ood_prototype: Float[Array, "*m d"],
) -> Float[Array, "b *m d"]:
    """`ood_gradients` without its checks, for use inside compiled code."""
    class_distances = distances_to(features, class_prototypes)
    return jax.vmap(_sample_gradient, (0, 0, None))(features, class_distances, ood_prototype)


def ood_gradients(
    features: npt.ArrayLike,
    class_prototypes: npt.ArrayLike,
    ood_prototype: npt.ArrayLike,
) -> Float[Array, "b d"] | Float[Array, "b m d"]:
    """Per-sample gradients of the nearest-prototype loss with respect to the OOD prototype.

    ``g(x) = ∂/∂p_ood [−log softmax(−d)_ŷ]`` with ``d_j = ‖h − p_j‖₂`` over the C class
    prototypes and ``p_ood``, taken by ``jax.vmap(jax.grad(...))``. Its closed form is
    ``softmax(−d)_ood · (h − p_ood) / ‖h − p_ood‖``, whatever class ``ŷ`` is. Where a feature
    equals ``p_ood`` the gradient is 0.

    Several OOD prototypes share one softmax, over C + M prototypes, and the gradient with respect
    to the m-th of them is ``softmax(−d)_m · (h − p_m) / ‖h − p_m‖``.

    Args:
      features: penultimate features ``h``, (B, D).
      class_prototypes: class means ``p_c``, (C, D).
      ood_prototype: ``p_ood``, (D,), or M of them, (M, D).

    Returns:
      The gradients, (B, D) float32; (B, M, D) with respect to M OOD prototypes.

    Raises:
      TypeError: an argument does not hold real numbers.
      ValueError: wrong rank, widths that differ, no class prototype, NaN, infinite values or
        values beyond 1e18.

    References:
      GROOD, arXiv 2312.14427, section 3 (gradients in the space of prototypes).

    Examples:
      A sample at distance 5 both from the only class prototype and from ``p_ood``:

      >>> from grood_jax import ood_gradients
      >>> print(ood_gradients([[3, 4]], class_prototypes=[[3, 9]], ood_prototype=[0, 0]))
      [[0.3 0.4]]
    """
    prototypes = checks.shaped("class_prototypes", class_prototypes, ("C", "D"))
    count, width = prototypes.shape
    if count == 0 or width == 0:
        raise ValueError(
            f"class_prototypes has shape {prototypes.shape}; expected at least one class and one "
            "column"
        )
    points = checks.shaped("features", features, ("B", width))
    ood = checks.shaped("ood_prototype", ood_prototype, ("...",))
    if ood.ndim not in (1, 2) or ood.shape[-1] != width or len(ood) == 0:
        raise ValueError(
            f"ood_prototype has shape {tuple(ood.shape)}; expected ({width},), or (M, {width}) "
            "with at least one row"
        )
    return gradients(
        checks.finite("features", points, LARGEST),
        checks.finite("class_prototypes", prototypes, LARGEST),
        checks.finite("ood_prototype", ood, LARGEST),
    )
