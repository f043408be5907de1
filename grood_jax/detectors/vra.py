"""VRA: variational rectified activations."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import Head, energy, percentile_of, shaped_head
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

GRID = {"low": (1.0, 5.0, 10.0, 15.0), "high": (85.0, 90.0, 95.0, 99.0)}
"""OpenOOD's."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VraState:
    """A fitted VRA.

    Attributes:
      head: the class head.
      floor: ``α``, below which features become zero, () float32.
      ceiling: ``β``, what features are clipped at, () float32.
    """

    head: Head
    floor: Float[Array, ""]
    ceiling: Float[Array, ""]


def vra(*, low: float | int = 60.0, high: float | int = 95.0) -> Detector:
    """Energy of features cut on both sides; the score is ``−logsumexp(Wᵀ f(h) + b)``.

    ``f(h)`` is 0 below ``α``, ``β`` above ``β``, and ``h`` from ``α`` to ``β``: the paper's VRA;
    what it adds to the features in between in VRA+ and VRA++ is left out. ``α`` and ``β`` are one
    number each, percentiles over all features of all training samples, as in OpenOOD v1.5 (over
    its ID validation set); the authors' code takes quantiles of each feature on CIFAR and fixed
    numbers on ImageNet. OpenOOD raises features below ``α`` to ``α``; here they become zero, as in
    the paper.

    Args:
      low: the percentile that is ``α``, in [0, 100].
      high: the percentile that is ``β``, in [0, 100]. The defaults 60 and 95 are the authors'
        for CIFAR-100; they choose from 50 to 70 and 80 to 99. OpenOOD's are 10 and 90, and
        it chooses from 1 to 15 and 85 to 99 on validation data, as ``grid``.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` warns where more
      than a tenth of the training features are negative, as those of ViT and Swin are.

    Raises:
      ValueError: an option outside its range, or ``low`` above ``high``.
      TypeError: an option that is no number.

    References:
      Xu, Lian, Liu and Tao, arXiv 2302.11716, method section.
    """
    low, high = checks.percent("low", low), checks.percent("high", high)
    if low > high:
        raise ValueError(f"low is {low}; expected at most high, {high}")

    def fit(training: Training, key: Array) -> VraState:
        del key
        head = shaped_head("vra", training)
        features = jnp.asarray(training.outputs.features)
        floor, ceiling = (jnp.float32(percentile_of(features, p)) for p in (low, high))
        return VraState(head, floor, ceiling)

    def score(state: VraState, outputs: Outputs) -> Float[Array, " b"]:
        features = jnp.asarray(outputs.features)
        shaped = jnp.where(features < state.floor, 0.0, jnp.minimum(features, state.ceiling))
        return energy(shaped, state.head)

    return Detector("vra", fit, score, {"low": low, "high": high}, head=True, grid=GRID)
