"""GMM: the density of a mixture of Gaussians of one covariance."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import (
    Gaussians,
    class_means,
    product,
    second_moment,
    single,
    training_features,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

LLOYD, ITERATIONS, GAIN = 10, 100, 1e-3
"""Rounds of k-means before the mixture's; rounds of those, and the gain of the mean
log-likelihood below which they end: scikit-learn's, as OpenOOD has them."""

RIDGE = 1e-6
"""What is added to the covariance's diagonal, in mean eigenvalues of all the features."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GMMState:
    """A fitted mixture.

    Attributes:
      gaussians: its components.
      log_weights: the logarithms of their weights, (K,) float32.
    """

    gaussians: Gaussians
    log_weights: Float[Array, " k"]


def gmm(*, components: int | None = None, dim: int = 50, samples: int = 50_000) -> Detector:
    """Gaussian mixture; the score is ``−log Σ_k w_k exp(−d_k(h) / 2)``, without its constant.

    ``d_k`` is the squared Mahalanobis distance to the k-th mean with the covariance that all
    components share. Weights, means and covariance are fitted by expectation maximisation, without
    labels, to the penultimate features' leading principal components. It is the high-level part of
    OpenOOD's ``gmm``, which can add other layers, their style statistics among them; its
    configuration for digits has weight on this one alone. OpenOOD adds 1e-45 to the density, so
    that all samples far enough away score alike; here logarithms are taken throughout. It lets
    scikit-learn's k-means converge before; here k-means has ten rounds after the same kind of
    seeds, greedy k-means++.

    Args:
      components: how many Gaussians. None: as many as classes; OpenOOD has 50 for digits and 10
        for CIFAR.
      dim: of the principal subspace, all where there are fewer features; OpenOOD has 50 for digits
        and 10 for CIFAR.
      samples: to how many training samples the mixture is fitted, drawn at random where there are
        more: that takes memory and time for each sample and component. OpenOOD takes all.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      where there are fewer samples than components, or the features do not vary.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range.

    References:
      OpenOOD's ``gmm``; Yang, Zhou and Liu, Full-Spectrum Out-of-Distribution Detection, arXiv
      2204.05306, whose SEM is a high-level density with the low-level one taken away. OpenOOD's
      leaderboard has no figures of it.
    """
    if components is not None:
        checks.at_least("components", components, 1)
    checks.at_least("dim", dim, 1)
    checks.at_least("samples", samples, 1)

    def fit(training: Training, key: Array) -> GMMState:
        features = training_features(training)
        seeds = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        if len(features) > samples:
            features = features[np.sort(seeds.choice(len(features), samples, replace=False))]
        count = components or training.outputs.logits.shape[1]
        if count > len(features):
            raise ValueError(
                f"components is {count}; expected at most {len(features)}, the samples fitted to"
            )
        center, axes, ridge = _principal_axes(features, dim)
        points = (np.asarray(features, np.float64) - center) @ axes
        weights, means, covariance = _mixture(points, count, ridge, seeds)
        whitening = (axes @ np.linalg.inv(np.linalg.cholesky(covariance)).T).astype(np.float32)
        return GMMState(
            Gaussians(
                single(center),
                single(whitening),
                single((means @ axes.T) @ whitening.astype(np.float64)),
            ),
            single(np.log(weights)),
        )

    def score(state: GMMState, outputs: Outputs) -> Float[Array, " b"]:
        own = state.gaussians
        points = product(jnp.asarray(outputs.features) - own.center[None, :], own.whitening)
        squared = lax.map(lambda mean: jnp.sum((points - mean[None, :]) ** 2, axis=1), own.means)
        return -jax.nn.logsumexp(state.log_weights[:, None] - 0.5 * squared, axis=0)

    options = {"components": components, "dim": dim, "samples": samples}
    return Detector("gmm", fit, score, options)


def _principal_axes(
    features: Float[Array, "n d"], dim: int
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d r"], float]:
    """The mean, rounded to float32, the leading axes, and the ridge."""
    labels = np.zeros(len(features), np.int32)
    center = class_means(features, labels, 1)[0].astype(np.float32).astype(np.float64)
    values, axes = np.linalg.eigh(second_moment(features, center, labels))
    if values[-1] <= np.finfo(np.float32).eps ** 2 * np.square(center).sum() or values[-1] <= 0:
        raise ValueError("training.outputs.features do not vary; expected samples that differ")
    ridge = RIDGE * max(values.mean(), float(np.finfo(np.float32).tiny))
    return center[0], axes[:, ::-1][:, :dim], ridge


def _mixture(
    points: Float[np.ndarray, "n r"], count: int, ridge: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k r"], Float[np.ndarray, "r r"]]:
    """Weights, means and shared covariance of the mixture; a component may lose its weight."""
    nearest = _k_means(points, count, rng)
    shares = np.eye(count)[nearest]
    # All components move with the same second moment: about the means, it is their covariance.
    moment = points.T @ points / len(points)
    before = -np.inf
    for _ in range(ITERATIONS):
        sizes = shares.sum(axis=0) + np.finfo(np.float64).tiny
        weights = sizes / sizes.sum()
        means = (shares.T @ points) / sizes[:, None]
        covariance = moment - (weights[:, None] * means).T @ means + ridge * np.eye(len(moment))
        logs = np.log(weights) + _log_densities(points, means, covariance)
        top = logs.max(axis=1, keepdims=True)
        totals = top + np.log(np.exp(logs - top).sum(axis=1, keepdims=True))
        shares = np.exp(logs - totals)
        if totals.mean() - before < GAIN:
            break
        before = totals.mean()
    return weights, means, covariance


def _log_densities(
    points: Float[np.ndarray, "n r"],
    means: Float[np.ndarray, "k r"],
    covariance: Float[np.ndarray, "r r"],
) -> Float[np.ndarray, "n k"]:
    """Logarithms of Gaussian densities, but for the constant in 2π."""
    root = np.linalg.cholesky(covariance)
    white, centers = (np.linalg.solve(root, rows.T).T for rows in (points, means))
    return -0.5 * _apart(white, centers) - np.log(np.diag(root)).sum()


def _apart(
    points: Float[np.ndarray, "n r"], centers: Float[np.ndarray, "k r"]
) -> Float[np.ndarray, "n k"]:
    """Squared distances, in float64 about the points' own origin."""
    squares = np.square(points).sum(axis=1)[:, None] + np.square(centers).sum(axis=1)[None, :]
    return np.maximum(squares - 2 * points @ centers.T, 0.0)


def _k_means(
    points: Float[np.ndarray, "n r"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """The nearest of the centers that greedy k-means++ seeds and Lloyd's rounds find."""
    centers = points[[rng.integers(len(points))]]
    nearest = _apart(points, centers)[:, 0]
    # A single draw each leaves clusters without a seed more often than not, and others with two.
    tries = 2 + int(np.log(count))
    for _ in range(count - 1):
        total = nearest.sum()
        likely = nearest / total if total > 0 else None
        drawn = points[rng.choice(len(points), tries, p=likely)]
        left = np.minimum(nearest[:, None], _apart(points, drawn))
        best = left.sum(axis=0).argmin()
        centers, nearest = np.concatenate([centers, drawn[[best]]]), left[:, best]
    for _ in range(LLOYD):
        own = _apart(points, centers).argmin(axis=1)
        means, sizes = class_means(points, own, count)
        centers = np.where(sizes[:, None] > 0, means, centers)
    return _apart(points, centers).argmin(axis=1)
