"""Global Mahalanobis: distance to one Gaussian of all features, without labels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import (
    Gaussians,
    exponent_of,
    fit_background,
    nearest_squared_distance,
    scaled_rows,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks


def global_mahalanobis(
    *,
    normalize: bool = False,
    exponent: float | int | None = None,
    shrinkage: float = 0.0,
) -> Detector:
    """Label-free Mahalanobis distance; the score is ``(h − μ)ᵀ Σ⁺ (h − μ)``.

    ``μ`` and ``Σ`` are the mean and covariance of all training features: neither labels nor logits
    are read, so that encoders without classes will do. It is what `relative_mahalanobis` takes
    away, and ``Σ⁺`` is as in `mahalanobis`. How the paper regularises its covariance is not taken
    over: without ``shrinkage`` it is as it is estimated. OpenOOD v1.5 does not have it.

    Args:
      normalize: divide features by their norms first, as in `mahalanobis`.
      exponent: β, divide features by their norms to this power, as in `mahalanobis`.
      shrinkage: of the covariance, as in `mahalanobis`.

    Returns:
      The detector; its scores are (B,) float32, squared distances, higher for more OOD. Its ``fit``
      raises ValueError where the features do not vary, and warns where there are too few samples
      for a covariance of full rank and no shrinkage.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: ``shrinkage`` outside [0, 1], ``exponent`` not finite, or not 1 with
        ``normalize``.

    References:
      Barkley, Culbertson and Fridovich-Keil, arXiv 2605.05638, the global estimator beside their
      own ReSCOPED.
    """
    power = exponent_of(normalize, exponent)
    shrinkage = checks.fraction("shrinkage", shrinkage)

    def fit(training: Training, key: Array) -> Gaussians:
        del key
        return fit_background(
            training, name="global_mahalanobis", exponent=power, shrinkage=shrinkage
        )

    def score(state: Gaussians, outputs: Outputs) -> Float[Array, " b"]:
        return nearest_squared_distance(state, scaled_rows(jnp.asarray(outputs.features), power))

    options = {"normalize": normalize, "exponent": exponent, "shrinkage": shrinkage}
    return Detector("global_mahalanobis", fit, score, options, logits=False)
