"""What several detectors learn from training features: Gaussians, subspaces, random shares.

Sums over the training samples are streamed in blocks of rows and added up in float64 on the host,
and so are matrices factorised: a covariance's small eigenvalues, by whose inverses Mahalanobis
distances weigh, are the first that float32 loses.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from grood_jax.detectors.base import Training, require_head
from grood_jax.maths.prototypes import class_prototypes, require_classes
from grood_jax.neighbors.building import sampled_rows
from grood_jax.support import checks

ROWS = 4096
"""Rows that are streamed at once."""

EPSILON = float(np.finfo(np.float32).eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussians:
    """Gaussians of one covariance, in coordinates where it is the identity.

    Attributes:
      center: the origin of these coordinates, (D,) float32.
      whitening: the columns ``v_i / √λ_i`` over the r eigenvalues of the covariance that are not
        zero but for rounding, (D, r) float32; ``whitening @ whitening.T`` is the pseudo-inverse.
      means: the Gaussians' means in these coordinates, (C, r) float32.
    """

    center: Float[Array, " d"]
    whitening: Float[Array, "d r"]
    means: Float[Array, "c r"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidualSpace:
    """What the principal subspace of the training features leaves.

    Attributes:
      origin: the features where the logits are as near to 0 as they come, (D,) float32.
      basis: orthonormal columns, (D, D − dim) float32.
    """

    origin: Float[Array, " d"]
    basis: Float[Array, "d r"]


def training_features(training: Training) -> Float[Array, "n d"]:
    """The training features.

    Raises:
      ValueError: there are none, or NaN or infinite ones.
    """
    features = jnp.asarray(training.outputs.features)
    if 0 in features.shape:
        raise ValueError(
            f"training.outputs.features has shape {features.shape}; expected at least one sample "
            "and one column"
        )
    return checks.finite("training.outputs.features", features)


def feature_mean(features: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The mean of all features, (D,) float32."""
    return class_prototypes(features, np.zeros(len(features), np.int32), 1)[0][0]


def rows_of_bank(key: Array, count: int, sampling_ratio: float, k: int) -> Int[np.ndarray, " m"]:
    """The rows that `sampled_rows` draws.

    Raises:
      ValueError: there are fewer than ``k`` of them.
    """
    chosen = sampled_rows(key, count, sampling_ratio)
    if k > len(chosen):
        raise ValueError(
            f"k is {k}; expected at most {len(chosen)}, the features in the bank ({count} training "
            f"samples, sampling_ratio {sampling_ratio})"
        )
    return chosen


def unit_rows(rows: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows divided by their norms; zeros stay zeros."""
    # By the largest entry first: squares of large or tiny features leave float32.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scaled = rows / jnp.where(largest > 0, largest, 1.0)
    norms = jnp.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / jnp.where(norms > 0, norms, 1.0)


def product(a: Float[Array, "b d"], b: Float[Array, "d r"]) -> Float[Array, "b r"]:
    """The matrix product in full float32, on accelerators too."""
    return jnp.matmul(a, b, precision=Precision.HIGHEST)


def second_moment(
    features: Float[Array, "n d"], centers: Float[Array, "c d"], labels: Int[Array, " n"]
) -> Float[np.ndarray, "d d"]:
    """The mean of ``(h − c)(h − c)ᵀ``, ``c`` being the center of the sample's label; float64."""
    count, width = features.shape
    block = min(ROWS, count)
    total = np.zeros((width, width))
    for start in range(0, count, block):
        # The last block reaches back into the one before: one shape, one compilation.
        first = min(start, count - block)
        own = slice(first, first + block)
        new = jnp.arange(first, first + block) >= start
        total += np.asarray(_block_moment(features[own], centers, labels[own], new), np.float64)
    return total / count


@jax.jit
def _block_moment(
    rows: Float[Array, "n d"],
    centers: Float[Array, "c d"],
    labels: Int[Array, " n"],
    counted: Array,
) -> Float[Array, "d d"]:
    rest = jnp.where(counted[:, None], rows - centers[labels], 0.0)
    return product(rest.T, rest)


def fit_class_gaussians(training: Training) -> Gaussians:
    """A Gaussian of each class by label, with the covariance that they share.

    Raises:
      ValueError: a class has no sample.
    """
    features = training_features(training)
    classes = training.outputs.logits.shape[1]
    means, counts = class_prototypes(features, training.labels, classes)
    require_classes("sample", counts)
    return _gaussians(features, means, training.labels)


def fit_background(training: Training) -> Gaussians:
    """One Gaussian of all training features."""
    features = training_features(training)
    mean = feature_mean(features)[None, :]
    return _gaussians(features, mean, jnp.zeros(len(features), jnp.int32))


def _gaussians(
    features: Float[Array, "n d"], means: Float[Array, "c d"], labels: Int[Array, " n"]
) -> Gaussians:
    values, vectors = np.linalg.eigh(second_moment(features, means, labels))
    wide = np.asarray(means, np.float64)
    # Below this a variance is what rounding left: of the products, or of the features.
    rounded = EPSILON**2 * np.square(wide).sum(axis=1).max()
    kept = values > max(len(values) * EPSILON * values[-1], rounded)
    whitening = vectors[:, kept] / np.sqrt(values[kept])
    # Rounded before it is subtracted from the means: it is subtracted from the samples so.
    center = wide.mean(axis=0).astype(np.float32)
    return Gaussians(
        jnp.asarray(center),
        jnp.asarray(whitening, jnp.float32),
        jnp.asarray((wide - center) @ whitening, jnp.float32),
    )


def nearest_squared_distance(
    gaussians: Gaussians, features: Float[Array, "b d"]
) -> Float[Array, " b"]:
    """The squared Mahalanobis distance to the nearest of the means, (B,)."""
    points = product(features - gaussians.center[None, :], gaussians.whitening)

    # Direct differences, one mean at a time: where classes lie many deviations apart,
    # ‖x‖² − 2x·m + ‖m‖² cancels.
    def nearer(best: Float[Array, " b"], mean: Float[Array, " r"]) -> tuple[Array, None]:
        return jnp.minimum(best, jnp.sum((points - mean[None, :]) ** 2, axis=1)), None

    start = jnp.full(len(points), jnp.inf, jnp.float32)
    return jax.lax.scan(nearer, start, gaussians.means)[0]


def principal_dimension(width: int) -> int:
    """ViM's dimension of the principal subspace of features of some width; half below 768."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


def residual_space(name: str, training: Training, dim: int | None) -> ResidualSpace:
    """The complement of the ``dim`` leading principal axes about ``u = −pinv(Wᵀ) b``.

    Args:
      name: the detector, for messages.
      training: with the class head.
      dim: how many axes; None for ViM's rule.

    Raises:
      ValueError: no head, no features, or ``dim`` leaves no axis.
    """
    weights, bias = require_head(name, training)
    features = training_features(training)
    width = features.shape[1]
    dim = principal_dimension(width) if dim is None else dim
    if dim >= width:
        raise ValueError(
            f"dim is {dim}; expected at most {width - 1}, with features of width {width}"
        )
    # Singular values that float32 weights cannot tell from 0 must not be inverted.
    inverse = np.linalg.pinv(np.asarray(weights, np.float64).T, rcond=10 * EPSILON)
    origin = jnp.asarray(-inverse @ np.asarray(bias, np.float64), jnp.float32)
    moment = second_moment(features, origin[None, :], jnp.zeros(len(features), jnp.int32))
    basis = np.linalg.eigh(moment)[1][:, : width - dim]
    return ResidualSpace(origin, jnp.asarray(basis, jnp.float32))


def residual_norm(space: ResidualSpace, features: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The norm of the features' part outside the principal subspace, (B,)."""
    return jnp.linalg.norm(product(features - space.origin[None, :], space.basis), axis=1)
