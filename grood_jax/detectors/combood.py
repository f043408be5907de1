"""CombOOD: nearest neighbours and a Gaussian of the layers' extremes (arXiv 2602.07042)."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import LayerExtremes, Outputs
from grood_jax.detectors._statistics import (
    TINY,
    product,
    rows_of_bank,
    single,
    training_features,
    unit_rows,
)
from grood_jax.detectors.base import Detector, Scores, Training
from grood_jax.maths.gradients import LARGEST
from grood_jax.maths.yeo_johnson import likeliest_powers, yeo_johnson
from grood_jax.neighbors.bank import Bank
from grood_jax.neighbors.building import build_bank
from grood_jax.neighbors.searching import distances_of_each, search
from grood_jax.support import checks

NEED = LayerExtremes()

FARTHEST = 1e12
"""Beyond so many deviations an extreme counts as that far: squares stay in float32."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CombOODState:
    """A fitted CombOOD.

    Attributes:
      bank: unit training features, ready for searching.
      centers: the training means of the P extremes, (P,) float32, like the next four.
      scales: their deviations.
      powers: of the power transformation of what is centred and scaled.
      shifts: the means of what it gives.
      spreads: the deviations of that.
      whitening: (P, P) float32; a squared distance is ``‖x · whitening‖²``.
    """

    bank: Bank
    centers: Float[Array, " p"]
    scales: Float[Array, " p"]
    powers: Float[Array, " p"]
    shifts: Float[Array, " p"]
    spreads: Float[Array, " p"]
    whitening: Float[Array, "p p"]


def combood(
    *, k: int = 50, regularization: float | int = 1.0, sampling_ratio: float = 1.0
) -> Detector:
    """CombOOD; the score is ``m² + √D log d_k²``.

    ``d_k`` is the distance of the sample's unit features, of D numbers, to the k-th nearest
    training sample's, as in `knn`. ``m² = xᵀ (Σ + ρI)⁻¹ x`` is the squared Mahalanobis distance to
    0 of the sample's extremes: the largest and the least number of each middle layer and of the
    logits, each standardised by the training samples' mean and deviation, brought nearer to a
    Gaussian by Yeo and Johnson's power transformation, and standardised again. Σ is the covariance
    of the training samples' own. Neither uses labels.

    This is what the authors' code computes: of its ways to combine the two, the one that it runs,
    in which distances are squared in the logarithm and √D stands for the D of a density estimate.
    The paper's text could not be read but for its abstract, and no published figure is given here.
    The authors take the extremes of what enters each ReLU; here the layers are those that the
    backbone gives (`Backbone.middle`): in the networks of this package one after each stage, whose
    least number is often 0 for all samples, and then says nothing. OpenOOD v1.5 does not have it.

    Args:
      k: which neighbour; 50 in the authors' code.
      regularization: ρ, which is added to each variance, of 1; 1 in the authors' code.
      sampling_ratio: the share of the training samples in the bank, drawn at random.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. It needs a backbone that has
      middle layers. Its ``fit`` raises ValueError where the bank has fewer than k rows, or
      activations are not finite.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      Rajasekaran, Sajol, Berglind, Mukhopadhyay and Das, COMBOOD: a semiparametric approach for
      detecting out-of-distribution data for image classification, SDM 2024, arXiv 2602.07042, and
      its repository rmagesh148/combood.
    """
    checks.at_least("k", k, 1)
    regularization = checks.positive("regularization", regularization)
    checks.fraction("sampling_ratio", sampling_ratio, zero=False)

    def fit(training: Training, key: Array) -> CombOODState:
        features = training_features(training, None)
        rows = rows_of_bank(key, len(features), sampling_ratio, k)
        for place, part in enumerate(training.outputs.extra[NEED]):
            named = f"training.outputs.extra[{NEED}][{place}]"
            checks.finite(named, checks.placed(part), LARGEST)
        bank = build_bank(unit_rows(checks.rows(features, rows)))
        own = replace(training.outputs, extra={NEED: training.outputs.extra[NEED]})
        return _fitted(bank, np.asarray(_compiled_extremes(own), np.float64), regularization)

    def combined(state: CombOODState, outputs: Outputs, nearest: Array) -> Float[Array, "b *v"]:
        weight = 2 * math.sqrt(outputs.features.shape[1])
        far = _squared_distances(state, _extremes(outputs))
        far = far.reshape(-1, *[1] * (nearest.ndim - 1))
        return far + weight * jnp.log(jnp.maximum(nearest, TINY))

    def score(state: CombOODState, outputs: Outputs) -> Float[Array, " b"]:
        points = unit_rows(jnp.asarray(outputs.features))
        return combined(state, outputs, search(points, state.bank, k))

    def of_each(ks: tuple[int, ...]) -> Scores:
        def scores(state: CombOODState, outputs: Outputs) -> Float[Array, "b v"]:
            points = unit_rows(jnp.asarray(outputs.features))
            return combined(state, outputs, distances_of_each(points, state.bank, ks))

        return scores

    return Detector(
        "combood",
        fit,
        score,
        {"k": k, "regularization": regularization, "sampling_ratio": sampling_ratio},
        needs=(NEED,),
        fit_needs=(NEED,),
        each={"k": of_each},
        fit_key=(regularization, sampling_ratio),
    )


def _extremes(outputs: Outputs) -> Float[Array, "b p"]:
    """The largest and the least number of each middle layer and of the logits, side by side."""
    logits = jnp.asarray(outputs.logits)
    own = jnp.stack([logits.max(axis=1), logits.min(axis=1)], axis=1)
    return jnp.concatenate([*map(jnp.asarray, outputs.extra[NEED]), own], axis=1)


_compiled_extremes = jax.jit(_extremes)


def _fitted(bank: Bank, extremes: Float[np.ndarray, "n p"], added: float) -> CombOODState:
    centers, scales = extremes.mean(axis=0), extremes.std(axis=0)
    # What does not vary says nothing, and is not divided by what rounding leaves.
    scales[extremes.min(axis=0) == extremes.max(axis=0)] = 1.0
    scaled = (extremes - centers) / scales
    powers = likeliest_powers(scaled)
    bent = yeo_johnson(scaled, powers)
    shifts, spreads = bent.mean(axis=0), bent.std(axis=0)
    spreads[spreads == 0] = 1.0
    rest = (bent - shifts) / spreads
    moment = rest.T @ rest / max(len(rest) - 1, 1) + added * np.eye(len(centers))
    whitening = np.linalg.inv(np.linalg.cholesky(moment)).T
    arrays = (centers, scales, powers, shifts, spreads, whitening)
    return CombOODState(bank, *map(single, arrays))


def _squared_distances(state: CombOODState, extremes: Float[Array, "b p"]) -> Float[Array, " b"]:
    scaled = (extremes - state.centers[None]) / state.scales[None]
    bent = jnp.asarray(yeo_johnson(scaled, state.powers))
    rest = jnp.clip((bent - state.shifts[None]) / state.spreads[None], -FARTHEST, FARTHEST)
    return (product(rest, state.whitening) ** 2).sum(axis=1)
