"""Mix-up with early class prototypes at an intermediate layer (arXiv 2312.14427, section 3)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from grood_jax.support import checks


def other_classes(
    logits: Float[Array, "b c"], count: int, present: Int[Array, " p"] | None = None
) -> Int[Array, "b k"]:
    """Each sample's ``count`` most likely classes after its predicted one, likeliest first.

    Args:
      logits: (B, C).
      count: how many classes K; at least 1 and fewer than the classes to choose from.
      present: the classes to choose from, without repeats; all by default.

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
    return _others(logits, count, present)


@partial(jax.jit, static_argnums=1)
def _others(
    logits: Float[Array, "b c"], count: int, present: Int[Array, " p"] | None
) -> Int[Array, "b k"]:
    kept = jnp.ones(logits.shape[1], bool)
    if present is not None:
        kept = jnp.zeros_like(kept).at[present].set(True)
    # The predicted class may be none of those to choose from.
    others = kept[None, :] & ~jax.nn.one_hot(logits.argmax(axis=1), len(kept), dtype=bool)
    # A logit of −inf stays above those left out.
    floored = jnp.maximum(logits, jnp.finfo(logits.dtype).min)
    return jax.lax.top_k(jnp.where(others, floored, -jnp.inf), count)[1].astype(jnp.int32)


def mix_with_prototypes(
    hidden: npt.ArrayLike,
    prototypes: npt.ArrayLike,
    targets: npt.ArrayLike,
    weight: ArrayLike,
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
      ValueError: shapes that do not fit, NaN or infinite values, a target that is no class, λ
        outside [0, 1].

    Examples:
      >>> from grood_jax import mix_with_prototypes
      >>> early = [[0, 4], [4, 4]]
      >>> print(mix_with_prototypes([[2.0, 0.0]], early, targets=[1], weight=0.5))
      [[3. 2.]]
      >>> mix_with_prototypes([[2.0, 0.0]], early, targets=[[0, 1]], weight=0.5).shape
      (1, 2, 2)
    """
    activations = checks.finite("hidden", checks.shaped("hidden", hidden, ("B", "...")))
    early = checks.shaped("prototypes", prototypes, ("C", *activations.shape[1:]))
    checks.finite("prototypes", early)
    count = activations.shape[0]
    wide = checks.array_of("targets", targets).ndim == 2
    chosen = checks.classes("targets", targets, early.shape[0], (count, "K") if wide else (count,))
    share = checks.shaped("weight", weight, ())
    if not isinstance(share, jax.core.Tracer):
        checks.fraction("weight", np.asarray(weight).item())
    sample = activations[:, None] if wide else activations
    return share * sample + (1.0 - share) * early[chosen]
