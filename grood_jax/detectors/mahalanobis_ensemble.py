"""The Mahalanobis ensemble: distances to class Gaussians in several layers (arXiv 1807.03888)."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import LayerMeans, Outputs
from grood_jax.detectors._statistics import (
    Gaussians,
    fit_class_gaussians,
    nearest_squared_distance,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.maths.gradients import LARGEST
from grood_jax.support import checks

NEED = LayerMeans()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EnsembleState:
    """A fitted ensemble.

    Attributes:
      layers: the class Gaussians of each layer.
    """

    layers: tuple[Gaussians, ...]


def mahalanobis_ensemble(*, standardize: bool = True, shrinkage: float = 0.0) -> Detector:
    """Mahalanobis distances of several layers; the score is ``Σ_l (d_l − r_l) / √(2 r_l)``.

    ``d_l = min_c (h_l − μ_lc)ᵀ Σ_l⁺ (h_l − μ_lc)``, as in `mahalanobis`, of the means ``h_l`` over
    all places of the activations of layer l, and ``r_l`` is the rank of ``Σ_l``. Layers are those
    that the backbone gives (`Backbone.middle`): in the networks of this package one after each
    stage.

    The paper weighs layers by a logistic regression between ID and OOD images, or images attacked;
    here there are none, so that the sum is unweighted. Of plain distances a wide layer's are the
    largest, and vary most: they would decide alone. If layers were Gaussian, a sample's distance to
    its own class would have the χ² distribution with ``r_l`` degrees of freedom, whose mean is
    ``r_l`` and variance ``2 r_l``: brought to mean 0 and variance 1 by these, layers count alike.
    Moments of the training samples' own distances would not do: with few samples, these hardly vary
    among the samples that the covariance was made of. The paper's step of each image against the
    gradient is left out, too. OpenOOD v1.5's ``mds_ensemble`` has it and the regression, but its
    configuration takes the first layer alone, with weight 1.

    Args:
      standardize: bring each layer's distances to mean 0 and variance 1; otherwise the score is
        ``Σ_l d_l``.
      shrinkage: of each ``Σ_l`` towards its mean eigenvalue, as for `mahalanobis`.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. It needs a backbone that has
      middle layers. Its ``fit`` raises ValueError where a class has no sample, activations are not
      finite, or in some layer no class has samples that differ; it warns of layers where there are
      too few samples for a covariance of full rank and no shrinkage.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: ``shrinkage`` outside [0, 1].

    References:
      Lee, Lee, Lee and Shin, arXiv 1807.03888, section 2.2, "Feature ensemble", and algorithm 1.
    """
    checks.flag("standardize", standardize)
    shrinkage = checks.fraction("shrinkage", shrinkage)

    def fit(training: Training, key: Array) -> EnsembleState:
        del key
        layers = []
        for place, means in enumerate(training.outputs.extra[NEED]):
            named = f"training.outputs.extra[{NEED}][{place}]"
            own = checks.finite(named, checks.placed(means), LARGEST)
            outputs = replace(training.outputs, features=own, extra={})
            layers.append(
                fit_class_gaussians(
                    f"mahalanobis_ensemble in layer {place}",
                    replace(training, outputs=outputs),
                    shrinkage=shrinkage,
                )
            )
        return EnsembleState(tuple(layers))

    def score(state: EnsembleState, outputs: Outputs) -> Float[Array, " b"]:
        total = jnp.zeros(len(outputs.features))
        for gaussians, means in zip(state.layers, outputs.extra[NEED], strict=True):
            distance = nearest_squared_distance(gaussians, jnp.asarray(means))
            rank = gaussians.whitening.shape[1]
            total += (distance - rank) / math.sqrt(2 * rank) if standardize else distance
        return total

    return Detector(
        "mahalanobis_ensemble",
        fit,
        score,
        {"standardize": standardize, "shrinkage": shrinkage},
        needs=(NEED,),
        fit_needs=(NEED,),
        logits=False,
        fit_key=("mahalanobis_ensemble", shrinkage),
    )
