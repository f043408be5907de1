"""From images to answers, as one program with one array to fetch."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Need
from grood_jax.conformal import calibration as conformal
from grood_jax.conformal.calibration import Calibration
from grood_jax.deploying.exporting import Score
from grood_jax.passes.forward import network_outputs

PROGRAMS = 64
"""Programs that are remembered: classifiers with another threshold share theirs."""


class Parts(NamedTuple):
    """The arrays that answers are made of.

    Attributes:
      backbone: the classifier.
      early_prototypes: what is mixed in, (C, ...), where the detector mixes at scoring.
      state: the detector's.
      calibration: scores of the calibration images.
      thresholds: scores beyond which images are taken for OOD, () or by predicted class (C,).
    """

    backbone: Backbone
    early_prototypes: Float[Array, "c ..."] | None
    state: Any
    calibration: Calibration
    thresholds: Float[Array, "*c"]


def answers(
    parts: Parts, images: Shaped[Array, "b ..."], score: Score, needs: tuple[Need, ...]
) -> dict[str, Array]:
    """Label, score, is_ood, p_value (B,) and features (B, D); may be compiled.

    An image for which the network's outputs are not finite has a NaN score and p-value, and is
    taken for OOD.

    Args:
      parts: the arrays.
      images: as `Backbone.normalized` takes them.
      score: the detector's.
      needs: what the detector needs beside features and logits.
    """
    outputs = network_outputs(parts.backbone, images, parts.early_prototypes, needs)
    return _decided(parts.calibration, parts.thresholds, outputs, score(parts.state, outputs))


@jax.jit
def _decided(
    calibration: Calibration, thresholds: Float[Array, "*c"], outputs: Any, scores: Array
) -> dict[str, Array]:
    features, logits = jnp.asarray(outputs.features), jnp.asarray(outputs.logits)
    finite = jnp.isfinite(features).all(axis=1) & jnp.isfinite(logits).all(axis=1)
    label = logits.argmax(axis=1).astype(jnp.int32)
    score = jnp.where(finite, scores, jnp.nan).astype(jnp.float32)
    classes = None if calibration.starts is None else label
    return {
        "label": label,
        "score": score,
        # Not `score > …`: NaN must not pass for in-distribution.
        "is_ood": ~(score <= (thresholds if classes is None else thresholds[classes])),
        "p_value": conformal.conformal_p_values(calibration, score, classes),
        "features": features,
    }


def program(
    parts: Parts, score: Score, needs: tuple[Need, ...]
) -> Callable[[np.ndarray], tuple[Int[Array, "4 b"], Float[Array, "b d"]]]:
    """`answers` as one program, from images to what `unpacked` takes and to features.

    Args:
      parts: as for `answers`, like the others.
      score: of a detector that can be compiled.
      needs: of the detector.
    """
    # A flat list: to take a backbone apart at each call takes as long as to run a small one.
    arrays, structure = jax.tree.flatten(parts)
    placed = [jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in arrays]
    return functools.partial(_compiled(structure, score, needs), placed)


@functools.lru_cache(PROGRAMS)
def _compiled(structure: Any, score: Score, needs: tuple[Need, ...]) -> Callable[..., Any]:
    def run(arrays: list[Any], images: Shaped[Array, "b ..."]) -> tuple[Array, Array]:
        return packed(answers(jax.tree.unflatten(structure, arrays), images, score, needs))

    return jax.jit(run)


def packed(answered: dict[str, Array]) -> tuple[Int[Array, "4 b"], Float[Array, "b d"]]:
    """Answers bit for bit as one array, for each that is fetched takes its time; and features."""

    def bits(numbers: Float[Array, " b"]) -> Int[Array, " b"]:
        return jax.lax.bitcast_convert_type(numbers, jnp.int32)

    label, is_ood = answered["label"], answered["is_ood"].astype(jnp.int32)
    score, p_value = bits(answered["score"]), bits(answered["p_value"])
    return jnp.stack([label, score, is_ood, p_value]), answered["features"]


def unpacked(numbers: Int[np.ndarray, "4 b"]) -> dict[str, np.ndarray]:
    """The answers that `packed` made one array of."""
    label, score, is_ood, p_value = numbers
    return {
        "label": label,
        "score": score.view(np.float32),
        "is_ood": is_ood.astype(bool),
        "p_value": p_value.view(np.float32),
    }
