"""Heads for encoders, fitted on the training features."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.backbone import Backbone, require_backbone
from grood_jax.data import Batch
from grood_jax.detectors import Detector
from grood_jax.maths.gradients import LARGEST
from grood_jax.maths.prototypes import class_prototypes, require_classes
from grood_jax.passes.forward import TrainingBatches, extract_labelled
from grood_jax.support import checks
from grood_jax.support.errors import UserError

STEPS = 1000
"""Steps of the logistic regression at most."""

HOW = "head='linear', head='prototypes' or text=(embeddings, temperature)"


def fit_head(
    backbone: Backbone,
    images: Any,
    labels: Any,
    head: Literal["linear", "prototypes"] | None = None,
    *,
    num_classes: int | None = None,
    batch_size: int = 256,
) -> Backbone:
    """Fits a head to an encoder, from features to logits.

    ``"linear"`` is scikit-learn's logistic regression (C = 1) on features brought to zero mean and
    unit variance. ``"prototypes"`` has the logits ``(h − μ)·(p_c − μ) − ‖p_c − μ‖²/2`` of the class
    means ``p_c`` and their mean ``μ``: the class of an image is that of the nearest ``p_c``.

    Args:
      backbone: of `Backbone.from_encoder`, without a head.
      images: labelled training images as the encoder takes them, (N, ...).
      labels: their classes, (N,) integers.
      head: which; by default the one that ``backbone`` was made with.
      num_classes: C, from 2 to N; by default, as many as the labels tell.
      batch_size: images in each forward pass.

    Returns:
      The encoder with its head, which is linear: detectors that read the head work too.

    Raises:
      TypeError: ``backbone`` is none, or arrays of other types.
      ValueError: it has a head, no head is asked for, a class has no sample, or features that are
        not finite.

    References:
      Mensink et al., Distance-based image classification, IEEE TPAMI 35 (2013), for nearest means.
    """
    lacking = _lacking(backbone)
    wanted = lacking if head is None else head
    if head is None and not wanted:
        raise ValueError(f"head is None, and the backbone asks for none; expected one of {HOW}")
    checks.choice("head", wanted, ("linear", "prototypes"))
    batch_size = checks.at_least("batch_size", batch_size, 1)
    pixels = np.asarray(checks.array_of("images", images))
    marks = np.asarray(checks.array_of("labels", labels))
    if pixels.dtype != np.uint8 and not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise TypeError(
            f"images has dtype {pixels.dtype}; expected floating-point numbers, or bytes"
        )
    integers = np.issubdtype(marks.dtype, np.integer)
    if marks.ndim != 1 or pixels.shape[:1] != marks.shape or not len(marks) or not integers:
        raise ValueError(
            f"images has shape {pixels.shape}, labels has dtype {marks.dtype} and shape "
            f"{marks.shape}; expected images (N, ...) and a class for each, integers (N,)"
        )
    checks.int32("labels", marks)
    if num_classes is not None:
        checks.at_least("num_classes", num_classes, 2, len(marks))
    batch_size = min(batch_size, len(marks))

    def batches() -> Iterator[Batch]:
        for start in range(0, len(pixels), batch_size):
            rows = np.arange(start, start + batch_size)
            valid = rows < len(pixels)
            rows = np.minimum(rows, len(pixels) - 1)
            yield Batch(pixels[rows], marks[rows].astype(np.int32), valid)

    return _fitted(backbone, batches(), wanted, num_classes)


def completed(
    backbone: Backbone, train: TrainingBatches, detectors: Iterable[tuple[str, Detector]]
) -> Backbone:
    """A backbone with a head: one of `Backbone.from_encoder` gets that which it asks for.

    Where it asks for none, that of class means, and detectors that read logits are refused.

    Args:
      backbone: the classifier or encoder.
      train: gives batches of the training set.
      detectors: all that will be fitted, with names for messages.

    Raises:
      UserError: a detector needs logits, and there are none.
      ValueError: as `fit_head`.
    """
    wanted = require_backbone(backbone).wanted_head
    if wanted is None:
        return backbone
    for name, detector in detectors:
        if (reason := unmet(backbone, name, detector)) is not None:
            raise UserError(reason)
    return _fitted(backbone, train(None), wanted or "prototypes", None)


def unmet(backbone: Backbone, name: str, detector: Detector) -> str | None:
    """Why a detector cannot have this network for want of logits; None where it can."""
    return without_logits(name) if backbone.wanted_head == "" and detector.logits else None


def without_logits(name: str) -> str:
    """Why a detector cannot have an encoder without a head."""
    return f"{name} needs logits, and the encoder has no head; give Backbone.from_encoder {HOW}"


def _lacking(backbone: Backbone) -> str:
    wanted = require_backbone(backbone).wanted_head
    if wanted is None:
        raise ValueError(
            f"{backbone} has a head; expected one of Backbone.from_encoder without text or weights"
        )
    return wanted


def _fitted(
    backbone: Backbone, batches: Iterable[Batch], wanted: str, num_classes: int | None
) -> Backbone:
    _lacking(backbone)
    outputs, labels = extract_labelled(backbone, batches)
    made = jnp.asarray(outputs.features)
    features = np.asarray(checks.finite("features of the training set", made, LARGEST))
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    checks.at_least("num_classes of the labels", count, 2)
    marks = checks.labels("labels of the training set", labels, count)
    require_classes("sample", jnp.asarray(np.bincount(marks, minlength=count)), None, "")
    make = _linear if wanted == "linear" else _prototypes
    return backbone.with_head(*make(features, marks, count), name=wanted)


def _linear(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], count: int
) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    from sklearn.linear_model import LogisticRegression

    rows = features.astype(np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    fitted = LogisticRegression(max_iter=STEPS).fit((rows - mean) / deviation, labels)
    weights, bias = fitted.coef_, fitted.intercept_
    if count == 2:
        # Of two classes it has the difference alone.
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / deviation
    bias = bias - weights @ mean
    return jnp.asarray(weights.T, jnp.float32), jnp.asarray(bias, jnp.float32)


def _prototypes(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], count: int
) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    means = np.asarray(class_prototypes(features, labels, count)[0], np.float64)
    center = means.mean(axis=0)
    directions = means - center
    bias = -directions @ center - (directions**2).sum(axis=1) / 2
    return jnp.asarray(directions.T, jnp.float32), jnp.asarray(bias, jnp.float32)
