"""OpenMax: the probability of an unknown class, by Weibull tails of distances to class means."""

import warnings
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import correct_means, single
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

Distance = Literal["euclidean", "cosine", "eucos"]

EUCLIDEAN_WEIGHT = 0.5
"""Weight of the Euclidean distance in ``"eucos"``."""

STEEPEST = 1e4
"""The largest Weibull shape: beyond it rounding of a distance would decide its probability."""

SPREAD = 3
"""Samples of a class whose distances to their mean may differ: of two they are equal."""

HALVINGS = 60
"""Steps of the search for the shape, on a logarithmic scale."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OpenMaxState:
    """A fitted OpenMax.

    Attributes:
      means: mean logits of the correctly classified training samples by class, (C, C) float32.
      starts: the smallest distance in each class's tail, (C,) float32.
      shapes: κ of each class, (C,) float32.
      log_scales: log λ of each class, (C,) float32.
    """

    means: Float[Array, "c c"]
    starts: Float[Array, " c"]
    shapes: Float[Array, " c"]
    log_scales: Float[Array, " c"]


def openmax(*, tail: int = 20, alpha: int = 3, distance: Distance = "euclidean") -> Detector:
    """OpenMax; the score is ``exp(v_0) / (exp(v_0) + Σ_c exp(z_c − u_c))`` with ``v_0 = Σ_c u_c``.

    ``u_c = ω_c F_c(d_c) z_c`` is what class c loses to the unknown class. ω is
    ``(α + 1 − i) / α`` for the class with the i-th largest logit, i ≤ α, and 0 for the others.
    ``d_c`` is the distance of the logits to the mean logits of the training samples of class c
    that are classified right, and ``F_c`` the distribution function of a Weibull variable,
    fitted by maximum likelihood to the largest of these samples' own distances, which are shifted
    so that the smallest of the tail lies at 1 (as libMR does, so the scale of the logits matters).

    All this is as in OpenOOD v1.5, whose confidence is the negative of this score. The paper's ω
    is ``(α − i) / α``, and its algorithm 2 has ``1 − F`` in place of F; its authors' code has what
    is taken here. A negative logit among the α largest takes from the unknown class, as in both
    codes. Where all distances of a tail are equal (one or two samples in the class, of which a
    warning tells), F is a step there.

    Args:
      tail: how many of each class's largest distances are fitted; all where there are fewer.
      alpha: how many of the largest logits are revised; all where there are fewer classes. 3 in
        OpenOOD v1.5, 10 in the paper.
      distance: ``"euclidean"`` (OpenOOD v1.5), ``"cosine"`` (1 − cos), or ``"eucos"``, half the
        Euclidean plus the cosine distance (OpenOOD's weights; the paper's code weighs the
        Euclidean distance by 1 / 200).

    Returns:
      The detector; its scores are (B,) float32 in [0, 1], higher for more OOD. Scores within 6e-8
      of 1 are all 1. Its ``fit`` raises ValueError where a class has no sample; where none of a
      class is classified correctly, it warns and takes all its samples.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range.

    References:
      Bendale and Boult, arXiv 1511.06233, algorithms 1 and 2.
    """
    tail = checks.at_least("tail", tail, 1)
    alpha = checks.at_least("alpha", alpha, 1)
    checks.choice("distance", distance, ("euclidean", "cosine", "eucos"))

    def fit(training: Training, key: Array) -> OpenMaxState:
        del key
        logits = np.asarray(training.outputs.logits)
        means, taken = correct_means("openmax", logits, logits, training.labels)
        logits, labels = logits[taken], np.asarray(training.labels)[taken]
        counts = np.bincount(labels, minlength=logits.shape[1])
        if few := int((counts < SPREAD).sum()):
            warnings.warn(
                f"openmax: {few} of {len(counts)} classes have fewer than {SPREAD} samples: their "
                "distances have no spread, whatever lies farther away counts as unknown, and "
                f"scores may be the wrong way round; expected {SPREAD} or more",
                stacklevel=2,
            )
        distances = _compiled_distances(logits, np.asarray(means)[labels], distance)
        tails, valid = _tails(np.asarray(distances), labels, counts, tail)
        return OpenMaxState(means, *map(single, _fit_weibull(tails, valid)))

    def score(state: OpenMaxState, outputs: Outputs) -> Float[Array, " b"]:
        logits = jnp.asarray(outputs.logits)
        largest, ranked = lax.top_k(logits, min(alpha, logits.shape[1]))
        # One rank at a time: only B × C numbers at once.
        distances = lax.map(lambda c: _distances(logits, state.means[c], distance), ranked.T).T
        lost = largest * _omega(alpha, largest.shape[1]) * _probabilities(state, ranked, distances)
        kept = jnp.put_along_axis(logits, ranked, largest - lost, axis=1, inplace=False)
        unknown = lost.sum(axis=1, keepdims=True)
        return jax.nn.softmax(jnp.concatenate([kept, unknown], axis=1), axis=1)[:, -1]

    options = {"tail": tail, "alpha": alpha, "distance": distance}
    return Detector("openmax", fit, score, options)


def _omega(alpha: int, count: int) -> Float[Array, "1 a"]:
    return ((alpha - jnp.arange(count, dtype=jnp.float32)) / alpha)[None, :]


def _distances(
    points: Float[Array, "b c"], means: Float[Array, "b c"], distance: Distance
) -> Float[Array, " b"]:
    """Distances row by row; 1 is the cosine distance of a row of zeros."""
    euclidean = jnp.linalg.norm(points - means, axis=1)
    if distance == "euclidean":
        return euclidean
    norms = jnp.linalg.norm(points, axis=1) * jnp.linalg.norm(means, axis=1)
    cosine = (points * means).sum(axis=1) / jnp.where(norms > 0, norms, 1.0)
    angular = jnp.maximum(1.0 - cosine, 0.0)
    return angular if distance == "cosine" else EUCLIDEAN_WEIGHT * euclidean + angular


_compiled_distances = jax.jit(_distances, static_argnames="distance")


def _probabilities(
    state: OpenMaxState, classes: Int[Array, "b a"], distances: Float[Array, "b a"]
) -> Float[Array, "b a"]:
    """``F_c(d)``, 0 at distances of 1 or more below the tail."""
    beyond = jnp.maximum(distances - state.starts[classes], -1.0)
    exponents = state.shapes[classes] * (jnp.log1p(beyond) - state.log_scales[classes])
    return -jnp.expm1(-jnp.exp(exponents))


def _tails(
    distances: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    counts: Int[np.ndarray, " c"],
    size: int,
) -> tuple[Float[np.ndarray, "c t"], Bool[np.ndarray, "c t"]]:
    """The largest distances of each class, descending, and which entries are filled."""
    order = np.lexsort((distances, labels))
    rank = np.arange(min(size, counts.max()))[None, :]
    valid = rank < counts[:, None]
    rows = np.where(valid, np.cumsum(counts)[:, None] - 1 - rank, 0)
    return distances.astype(np.float64)[order[rows]], valid


def _fit_weibull(
    tails: Float[np.ndarray, "c t"], valid: Bool[np.ndarray, "c t"]
) -> tuple[Float[np.ndarray, " c"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Starts, shapes and logarithms of the scales, by maximum likelihood in float64."""
    count = valid.sum(axis=1)
    starts = np.where(valid, tails, np.inf).min(axis=1)
    logs = np.log1p(np.where(valid, tails - starts[:, None], 0.0))
    longest = logs.max(axis=1)
    below = np.where(valid, logs - longest[:, None], 0.0)
    spread = -below.sum(axis=1) / count

    def weights(shapes: Float[np.ndarray, " c"]) -> Float[np.ndarray, "c t"]:
        return np.where(valid, np.exp(shapes[:, None] * below), 0.0)

    # The likelihood is stationary where the mean of the logarithms weighted by x^κ exceeds the
    # plain mean by 1 / κ. It exceeds it by at most ``spread``, and ever more with κ.
    low = np.log(1.0 / np.maximum(spread, 1.0 / STEEPEST))
    high = np.full_like(low, np.log(STEEPEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shapes = np.exp(middle)
        weight = weights(shapes)
        excess = (weight * below).sum(axis=1) / weight.sum(axis=1) + spread
        short = excess < 1.0 / shapes
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    shapes = np.exp((low + high) / 2)
    return starts, shapes, longest + np.log(weights(shapes).sum(axis=1) / count) / shapes
