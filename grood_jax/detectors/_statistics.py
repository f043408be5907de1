"""What several detectors learn from training features: Gaussians, subspaces, random shares.

Means and covariances are taken in float64 on the host, a block of rows at a time, and so are
matrices factorised: a covariance's small eigenvalues, by whose inverses Mahalanobis distances
weigh, are the first that float32 loses, and products rounded to float32 would lose most of them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, Int

from grood_jax.detectors.base import Training, require_head
from grood_jax.maths.gradients import LARGEST
from grood_jax.maths.prototypes import empty_classes, require_classes, written
from grood_jax.neighbors.building import sampled_rows
from grood_jax.support import checks

MOMENT_ROWS = 4096
"""Rows whose share of a moment is computed at once."""

EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)

EPSILON_OF_MOMENTS = float(np.finfo(np.float64).eps)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gaussians:
    """Gaussians of one covariance, in coordinates where it is the identity.

    Attributes:
      center: the origin of these coordinates, (D,) float32.
      whitening: the columns ``v_i / √λ_i`` over the r eigenvalues of the covariance above
        ``D ε λ_max`` with float64's ε, (D, r) float32; ``whitening @ whitening.T`` is the
        pseudo-inverse.
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


def training_features(training: Training, limit: float | None = LARGEST) -> Float[Array, "n d"]:
    """The training features.

    Raises:
      ValueError: there are none, NaN or infinite ones, or some beyond the limit.
    """
    features = jnp.asarray(training.outputs.features)
    if 0 in features.shape:
        raise ValueError(
            f"training.outputs.features has shape {features.shape}; expected at least one sample "
            "and one column"
        )
    return checks.finite("training.outputs.features", features, limit)


def feature_mean(features: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The mean of all features, (D,) float32."""
    return single(class_means(features, np.zeros(len(features), np.int32), 1)[0][0])


def single(array: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
    """What was computed on the host, as float32 on the device; no program is compiled."""
    return checks.placed(array.astype(np.float32))


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


@jax.jit
def unit_rows(rows: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows divided by their norms; zeros stay zeros."""
    # By the largest entry first: squares of large or tiny features leave float32.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scaled = rows / jnp.where(largest > 0, largest, 1.0)
    norms = jnp.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / jnp.where(norms > 0, norms, 1.0)


@partial(jax.jit, static_argnames="exponent")
def scaled_rows(rows: Float[Array, "b d"], exponent: float) -> Float[Array, "b d"]:
    """Rows divided by their norms to a power: 1 leaves directions, 0 the rows as they are.

    Zeros stay zeros, and no norm becomes larger than `LARGEST`.
    """
    if exponent == 0:
        return rows
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    inner = rows / jnp.where(largest > 0, largest, 1.0)
    norms = largest * jnp.linalg.norm(inner, axis=1, keepdims=True)
    powers = jnp.where(norms > 0, norms, 1.0) ** (1.0 - exponent)
    return unit_rows(rows) * jnp.minimum(powers, LARGEST)


def in_blocks(rows: Float[Array, "m d"], most: int) -> Float[Array, "g r d"]:
    """Rows in blocks of equal length, ``most`` at the most, the last one padded with zeros."""
    count = len(rows)
    blocks = -(-count // most)
    length = -(-count // blocks)
    return jnp.pad(rows, ((0, blocks * length - count), (0, 0))).reshape(blocks, length, -1)


def exponent_of(normalize: bool, exponent: float | int | None) -> float:
    """The power of the norm by which features are divided; ``normalize`` is 1.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an exponent that is not finite, or one beside ``normalize`` that is not 1.
    """
    checks.flag("normalize", normalize)
    if exponent is None:
        return 1.0 if normalize else 0.0
    if normalize and checks.number("exponent", exponent) != 1:
        raise ValueError(f"exponent is {exponent}; expected None or 1 with normalize, which is 1")
    return checks.number("exponent", exponent)


def product(a: Float[Array, "b d"], b: Float[Array, "d r"]) -> Float[Array, "b r"]:
    """The matrix product in full float32, on accelerators too."""
    return jnp.matmul(a, b, precision=Precision.HIGHEST)


def second_moment(
    features: Float[Array | np.ndarray, "n d"],
    centers: Float[Array | np.ndarray, "c d"],
    labels: Int[Array | np.ndarray, " n"],
) -> Float[np.ndarray, "d d"]:
    """The mean of ``(h − c)(h − c)ᵀ``, ``c`` being the center of the sample's label; float64."""
    count, width = features.shape
    rows, wide, classes = np.asarray(features), np.asarray(centers, np.float64), np.asarray(labels)
    total = np.zeros((width, width))
    for start in range(0, count, MOMENT_ROWS):
        own = slice(start, start + MOMENT_ROWS)
        rest = rows[own].astype(np.float64) - wide[classes[own]]
        total += rest.T @ rest
    return total / count


def class_means(
    features: Float[Array | np.ndarray, "n d"],
    labels: Int[Array | np.ndarray, " n"],
    num_classes: int,
) -> tuple[Float[np.ndarray, "c d"], Int[np.ndarray, " c"]]:
    """The means by label, zeros for an absent class, and the counts; float64.

    To float32's digits they are the prototypes. But squares of what those digits leave out may
    be as large as a covariance's small eigenvalues.
    """
    rows, classes = np.asarray(features), np.asarray(labels)
    counts = np.bincount(classes, minlength=num_classes)
    sums = np.zeros((num_classes, rows.shape[1]))
    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    for total, own in zip(sums, by_class, strict=True):
        for start in range(0, len(own), MOMENT_ROWS):
            total += rows[own[start : start + MOMENT_ROWS]].sum(axis=0, dtype=np.float64)
    return sums / np.maximum(counts, 1)[:, None], counts


def correct_means(
    name: str,
    values: Float[Array | np.ndarray, "n d"],
    logits: Float[Array | np.ndarray, "n c"],
    labels: Int[Array | np.ndarray, " n"],
) -> tuple[Float[Array, "c d"], Bool[np.ndarray, " n"]]:
    """The mean of each class's correctly classified samples, and which samples were taken.

    All samples of a class are, with a warning, where none of it is classified correctly.

    Raises:
      ValueError: a class has no sample at all.
    """
    true, classes = np.asarray(labels), logits.shape[1]
    require_classes("sample", np.bincount(true, minlength=classes))
    taken = np.asarray(logits).argmax(axis=1) == true
    missing = warn_of_classes(
        name, np.bincount(true[taken], minlength=classes), "all samples of these classes are taken"
    )
    taken |= np.isin(true, missing)
    # The others as a class more: their rows need not be cut out.
    return single(class_means(values, np.where(taken, true, classes), classes + 1)[0][:-1]), taken


def warn_of_classes(
    name: str,
    correct: Int[np.ndarray, " c"],
    instead: str,
    present: Sequence[int] | None = None,
) -> Int[np.ndarray, " e"]:
    """The classes without a correctly classified sample, with a warning where there are such.

    Args:
      name: the detector.
      correct: correctly classified samples of each class.
      instead: what is done about these classes.
      present: the classes that count; all by default.
    """
    missing, expected = empty_classes(correct, present)
    if len(missing):
        warnings.warn(
            f"{name}: no correctly classified sample of class {written(missing)} ({len(missing)} "
            f"of {expected} classes); {instead}",
            stacklevel=2,
        )
    return missing


def fit_class_gaussians(
    name: str, training: Training, *, exponent: float = 0.0, shrinkage: float = 0.0
) -> Gaussians:
    """A Gaussian of each class by label, with the covariance that they share.

    Warns where there are fewer samples, less one of each class, than features.

    Args:
      name: the detector, for messages.
      training: the training data.
      exponent: the power of their norms by which features are divided first, as `scaled_rows`.
      shrinkage: the share towards the mean eigenvalue, as `_gaussians`; with one, nothing is lost
        where there are few samples, and there is no warning.

    Raises:
      ValueError: a class has no sample, or no class has samples that differ.
    """
    features = _gaussian_features(training, exponent)
    count, width = features.shape
    classes = training.outputs.logits.shape[1]
    means, counts = class_means(features, training.labels, classes)
    require_classes("sample", counts)
    found = _gaussians(features, means, training.labels, shrinkage)
    if found is None:
        raise ValueError(
            f"training.outputs.features do not vary within a class ({count} samples of {classes} "
            f"classes); {name} expects at least two samples of a class that differ, and for a "
            f"covariance of full rank {width} more samples than classes"
        )
    if shrinkage == 0:
        _warn_of_rank(name, features, classes, f" of {classes} classes")
    return found


def _warn_of_rank(name: str, features: Float[Array, "n d"], means: int, of: str) -> None:
    """Warns where samples less the means taken of them are fewer than features."""
    count, width = features.shape
    if count - means < width:
        warnings.warn(
            f"{name} has {count} training samples{of}: the covariance of {width} features has at "
            f"most rank {count - means}, and directions beyond these do not count; expected at "
            f"least {width + means} samples",
            stacklevel=2,
        )


def fit_background(
    training: Training,
    *,
    name: str | None = None,
    exponent: float = 0.0,
    shrinkage: float = 0.0,
) -> Gaussians:
    """One Gaussian of all training features; options as for `fit_class_gaussians`.

    With the name of a detector it warns where there are no more samples than features.

    Raises:
      ValueError: the features do not vary.
    """
    features = _gaussian_features(training, exponent)
    labels = np.zeros(len(features), np.int32)
    found = _gaussians(features, class_means(features, labels, 1)[0], labels, shrinkage)
    if found is None:
        raise ValueError("training.outputs.features do not vary; expected samples that differ")
    if name is not None and shrinkage == 0:
        _warn_of_rank(name, features, 1, "")
    return found


def _gaussian_features(training: Training, exponent: float) -> Float[Array, "n d"]:
    features = training_features(training)
    return scaled_rows(features, exponent) if exponent else features


def _gaussians(
    features: Float[Array, "n d"],
    means: Float[np.ndarray, "c d"],
    labels: Int[Array | np.ndarray, " n"],
    shrinkage: float,
) -> Gaussians | None:
    """None where the covariance is what rounding the features to float32 leaves.

    With a shrinkage s it becomes ``(1 − s) Σ + s (tr Σ / D) I``.
    """
    values, vectors = np.linalg.eigh(second_moment(features, means, labels))
    rounded = EPSILON**2 * np.square(means).sum(axis=1).max()
    if values[-1] <= max(rounded, TINY**2):
        return None
    values = (1 - shrinkage) * values + shrinkage * values.mean()
    # As scikit-learn's precision of a covariance, which OpenOOD takes.
    least = len(values) * EPSILON_OF_MOMENTS * values[-1]
    kept = values > max(least, TINY**2)
    # Center and whitening are rounded before the means are whitened: samples meet them so.
    whitening = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    center = means.mean(axis=0).astype(np.float32)
    return Gaussians(
        single(center), single(whitening), single((means - center) @ whitening.astype(np.float64))
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
    origin = (-inverse @ np.asarray(bias, np.float64)).astype(np.float32)
    moment = second_moment(features, origin[None, :], np.zeros(len(features), np.int32))
    basis = np.linalg.eigh(moment)[1][:, : width - dim]
    return ResidualSpace(single(origin), single(basis))


def residual_norm(space: ResidualSpace, features: Float[Array, "b d"]) -> Float[Array, " b"]:
    """The norm of the features' part outside the principal subspace, (B,)."""
    return jnp.linalg.norm(product(features - space.origin[None, :], space.basis), axis=1)
