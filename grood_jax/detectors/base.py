"""What a detector is: a pair of pure functions and a statement of what it needs."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Need, Outputs


@dataclass(frozen=True)
class MixedTraining:
    """Ask for features of training samples mixed with their second most likely class.

    Attributes:
      weight: λ on the sample.
      samples: how many training samples, drawn at random.
      present: the classes to choose from; empty for all.
    """

    weight: float
    samples: int
    present: tuple[int, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Ask for features of blurred uniform-noise images.

    Attributes:
      images: how many images to make.
    """

    images: int


@dataclass(frozen=True)
class Validation:
    """Ask for features of held-out OOD images."""


OODSource = MixedTraining | Noise | Validation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Training:
    """All that a detector may be fitted on.

    Attributes:
      outputs: outputs of the N training samples; ``outputs.extra`` holds what
        `Detector.fit_needs` asks for.
      labels: their classes, (N,) int32.
      ood: outputs of samples that stand for "not in distribution", if the detector asks for
        them by `Detector.ood`.
      mixed: features of mixed copies of the R rows that `Detector.rows` names, (R, K, D), if the
        detector has such.
      head: the class head's weights (D, C) and bias (C,), if the detector asks for them by
        `Detector.head`: ``logits = features @ weights + bias``.
    """

    outputs: Outputs
    labels: Int[Array, " n"]
    ood: Outputs | None = None
    mixed: Float[Array, "r k d"] | None = None
    head: tuple[Float[Array, "d c"], Float[Array, " c"]] | None = None


@dataclass(frozen=True)
class Detector:
    """A detector: a pair of pure functions over arrays, as an optax transformation is.

    Attributes:
      name: the name it is created by.
      fit: ``(Training, key) -> state``, a pytree.
      score: ``(state, Outputs) -> (B,)`` float32, higher for more OOD; may be jitted if
        ``compiled``.
      options: the options it was made with.
      ood: what stands for "not in distribution" at fitting, if it needs that.
      needs: what it needs of each sample at scoring beside features and logits.
      fit_needs: what it needs of each training sample; no mixed copies.
      rows: ``(Training, key) -> row indices`` whose mixed copies it needs at fitting, mixed as
        ``needs`` says first.
      head: whether it needs the class head at fitting.
      grid: values to try for some options, where a validation set chooses.
      fit_key: what ``fit`` depends on; detectors of one name and equal keys may share a fitted
        state. None: shared with no other.
      compiled: whether ``score`` may be jitted; not where it reads rows that lie on the host.
    """

    name: str
    fit: Callable[[Training, Array], Any]
    score: Callable[[Any, Outputs], Float[Array, " b"]]
    options: Mapping[str, Any] = field(default_factory=dict)
    ood: OODSource | None = None
    needs: tuple[Need, ...] = ()
    fit_needs: tuple[Need, ...] = ()
    rows: Callable[[Training, Array], Int[Array, " r"]] | None = None
    head: bool = False
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fit_key: Hashable = None
    compiled: bool = True


def require_head(name: str, training: Training) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    """The class head of the training outputs.

    Raises:
      ValueError: there is none, or its shapes do not fit the features and logits.
    """
    width, classes = training.outputs.features.shape[1], training.outputs.logits.shape[1]
    if training.head is None:
        raise ValueError(
            f"training.head is None; {name} expects weights ({width}, {classes}) and bias "
            f"({classes},)"
        )
    weights, bias = training.head
    if weights.shape != (width, classes) or bias.shape != (classes,):
        raise ValueError(
            f"training.head has shapes {weights.shape} and {bias.shape}; {name} expects "
            f"({width}, {classes}) and ({classes},)"
        )
    return weights, bias
