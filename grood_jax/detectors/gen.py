"""GEN: a generalised entropy of the largest probabilities."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._probabilities import log_probabilities
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "top": (10, 50, 100, 200, 500, 1000)}
"""OpenOOD's."""


def gen(*, gamma: float = 0.1, top: int = 100) -> Detector:
    """Generalised entropy; the score is ``Σ p_c^γ (1 − p_c)^γ`` over the M largest probabilities.

    Nothing is fitted.

    Args:
      gamma: γ, positive; 0.1 in the paper, whose are below 1, and in OpenOOD v1.5, which chooses
        up to 10 on validation data. A large one makes 0 of confident samples, all alike.
      top: M; all classes where there are fewer. 100 in OpenOOD v1.5 and, for the thousand classes
        of ImageNet, in the paper.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range.

    References:
      Liu, Lochman and Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution
      Detection, CVPR 2023, section 3. Its score and OpenOOD's are the negative,
      higher for ID.
    """
    gamma = checks.positive("gamma", gamma)
    top = checks.at_least("top", top, 1)

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        del state
        log_p = log_probabilities(outputs.logits)
        largest, places = lax.top_k(log_p, min(top, log_p.shape[1]))
        # 1 − p of the most likely class is summed of the others: a small γ lifts even what has
        # underflowed.
        winner = jax.nn.one_hot(places[:, 0], log_p.shape[1], dtype=bool)
        others = jax.nn.logsumexp(jnp.where(winner, -jnp.inf, log_p), axis=1, keepdims=True)
        log_rest = jnp.concatenate([others, jnp.log1p(-jnp.exp(largest[:, 1:]))], axis=1)
        return jnp.exp(gamma * (largest + log_rest)).sum(axis=1)

    return Detector(
        "gen",
        fit,
        score,
        {"gamma": gamma, "top": top},
        grid=GRID,
        fit_key="gen",
    )
