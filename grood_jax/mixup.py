"""Mix-up with early class prototypes at an intermediate layer (arXiv 2312.14427, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax import checks


def other_classes(
    logits: Float[Array, "b c"], count: int, present: Int[Array, " p"] | None = None
) -> Int[Array, "b k"]:
    """Each sample's ``count`` most likely classes after its predicted one, likeliest first.

    Args:
      logits: (B, C).
      count: how many classes K; at least 1 and fewer than the classes to choose from.
      present: the classes to choose from; all by default.

    Returns:
      Classes, (B, K) int32.

    Raises:
      ValueError: ``count`` is not below the number of classes.
    """
    available = logits.shape[1] if present is None else len(present)
    if not 1 <= count < available:
        raise ValueError(
            f"count is {count}; expected from 1 to {available - 1}, with {available} classes"
        )
    if present is not None:
        kept = jnp.zeros(logits.shape[1], bool).at[present].set(True)
        logits = jnp.where(kept[None, :], logits, -jnp.inf)
    return jax.lax.top_k(logits, count + 1)[1][:, 1:].astype(jnp.int32)


def mix_with_prototypes(
    hidden: Float[Array | np.ndarray, "b ..."],
    prototypes: Float[Array | np.ndarray, "c ..."],
    targets: Int[Array | np.ndarray, "b"] | Int[Array | np.ndarray, "b k"],
    weight: float | Float[Array, ""],
) -> Float[Array, "..."]:
    """Interpolates hidden activations with class prototypes: ``λ·e + (1 − λ)·p_target``.

    Args:
      hidden: activations ``e`` at the cut, (B, ...).
      prototypes: early class prototypes ``p^early``, (C, ...) with the same trailing shape.
      targets: the class to mix in, (B,), or K classes a sample, (B, K).
      weight: λ in [0, 1], the weight on the sample.

    Returns:
      (B, ...) for targets (B,), (B, K, ...) for targets (B, K); float32.

    Raises:
      TypeError: an argument has the wrong dtype.
      ValueError: shapes that do not fit, a target that is no class, λ outside [0, 1].
    """
    activations = checks.shaped("hidden", hidden, ("B", "..."))
    early = checks.shaped("prototypes", prototypes, ("C", *activations.shape[1:]))
    count = activations.shape[0]
    wide = np.ndim(targets) == 2
    chosen = checks.classes("targets", targets, early.shape[0], (count, "K") if wide else (count,))
    if not isinstance(weight, jax.core.Tracer):
        checks.fraction("weight", float(weight))
    sample = activations[:, None] if wide else activations
    return weight * sample + (1.0 - weight) * early[chosen]
