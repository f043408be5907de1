"""What a detector is: a pair of pure functions and a statement of what it needs."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Mix, Need, Outputs
from grood_jax.support import checks

HEAD_ROWS = 256
"""Training samples whose logits are compared with those of the class head."""

HALF = 2.0**-8
"""The relative spacing of bfloat16, in which a network may have computed its logits."""

SPREADS = 4.0
"""How many spreads of their rounding in bfloat16 logits may differ from those of the head."""

Tree = TypeVar("Tree")

Scores = Callable[[Any, Outputs], Float[Array, "b *v"]]
"""What scores outputs by a fitted state."""


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
      raw: blurred noise in [0, 1] is what enters the network; otherwise it is stretched to the full
        range and normalised as the data are.
    """

    images: int
    raw: bool = False


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
        them by `Detector.ood`; where it asks for several kinds, one for each, which may be None
        for a detector that makes do without.
      mixed: features of mixed copies of the R rows that `Detector.rows` names, (R, K, D), if the
        detector has such.
      head: the class head's weights (D, C) and bias (C,), if the detector asks for them by
        `Detector.head`: ``logits = features @ weights + bias``.
      id_validation: outputs of V images of the training classes that the network was not trained
        on, and their classes, (V,) int32, if the detector asks for them by
        `Detector.id_validation` and there are any.
    """

    outputs: Outputs
    labels: Int[Array, " n"]
    ood: Outputs | tuple[Outputs | None, ...] | None = None
    mixed: Float[Array, "r k d"] | None = None
    head: tuple[Float[Array, "d c"], Float[Array, " c"]] | None = None
    id_validation: tuple[Outputs, Int[Array, " v"]] | None = None


def _nothing_chosen(state: Any) -> str:
    del state
    return ""


@dataclass(frozen=True)
class Detector:
    """A detector: a pair of pure functions over arrays, as an optax transformation is.

    The functions that it is made of are given float32 arrays, whatever the precision of the
    outputs, and training data that were looked through: see `fit` and `score`.

    Attributes:
      name: the name it is created by.
      fit: ``(Training, key) -> state``, a pytree. Raises TypeError where the key is no random key,
        whether or not anything is drawn, and ValueError where the outputs hold NaN or
        infinite values (the row is named), a label is no class, ``fit_needs`` is not there, or the
        class head does not give the logits.
      score: ``(state, Outputs) -> (B,)`` float32, higher for more OOD; may be jitted if
        ``compiled``. Raises ValueError where ``needs`` is not there.
      options: the options it was made with.
      ood: what stands for "not in distribution" at fitting, if it needs that; several kinds in a
        tuple.
      needs: what it needs of each sample at scoring beside features and logits.
      fit_needs: what it needs of each training sample; no mixed copies.
      rows: ``(Training, key) -> row indices`` whose mixed copies it needs at fitting, mixed as
        ``needs`` says first.
      head: whether it needs the class head at fitting.
      id_validation: whether it is better fitted with outputs of ID images that the network was not
        trained on; there may be none.
      logits: whether it needs logits of a classifier; if not, an encoder's nearest class means do.
      grid: values to try for some options, where a validation set chooses.
      stages: groups of these options that are searched one after the other, each with what is best
        so far of the others; an option may be in several. Those that ``fit_key`` does not depend on
        come last in a group. Empty: all combinations are tried.
      each: for an option whose values are best scored together, what makes of V values the
        function ``(state, Outputs) -> (B, V)`` that takes the place of ``score``.
      fit_key: what ``fit`` depends on; detectors of one name and equal keys may share a fitted
        state. None: shared with no other.
      compiled: whether ``score`` may be jitted; not where it reads rows that lie on the host.
      makes_do: whether ``fit`` does without the class head, or some of several kinds in ``ood``,
        where there is none to be had; it is given None then.
      explain: what a fitted state has chosen and why, as text; empty where nothing is chosen.
    """

    name: str
    fit: Callable[[Training, Array], Any]
    score: Callable[[Any, Outputs], Float[Array, " b"]]
    options: Mapping[str, Any] = field(default_factory=dict)
    ood: OODSource | tuple[OODSource, ...] | None = None
    needs: tuple[Need, ...] = ()
    fit_needs: tuple[Need, ...] = ()
    rows: Callable[[Training, Array], Int[Array, " r"]] | None = None
    head: bool = False
    id_validation: bool = False
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    stages: Sequence[Sequence[str]] = ()
    each: Mapping[str, Callable[[tuple[Any, ...]], Scores]] = field(default_factory=dict)
    fit_key: Hashable = None
    compiled: bool = True
    logits: bool = True
    makes_do: bool = False
    explain: Callable[[Any], str] = _nothing_chosen

    @property
    def ood_sources(self) -> tuple[OODSource, ...]:
        """All kinds of samples that stand for "not in distribution", in the order of `ood`."""
        if self.ood is None:
            return ()
        return self.ood if isinstance(self.ood, tuple) else (self.ood,)

    def __post_init__(self) -> None:
        """Puts the checks around the functions.

        Raises:
          ValueError: rows without a `Mix` that says how they are mixed.
        """
        if self.rows is not None and not any(isinstance(need, Mix) for need in self.needs):
            raise ValueError(
                f"detector {self.name!r} has rows, and needs {self.needs}; expected a Mix among "
                "these, which says how the rows are mixed"
            )
        # One made from another by `dataclasses.replace` is given functions with checks around.
        fit: Callable[[Training, Array], Any] = getattr(self.fit, "unchecked", self.fit)
        score: Callable[[Any, Outputs], Array] = getattr(self.score, "unchecked", self.score)
        object.__setattr__(self, "fit", _checked_fit(self, fit))
        object.__setattr__(self, "score", _checked_score(self, score))


def _checked_fit(
    detector: Detector, fit: Callable[[Training, Array], Any]
) -> Callable[[Training, Array], Any]:
    name, needs = detector.name, detector.fit_needs

    @wraps(fit)
    def checked(training: Training, key: Array) -> Any:
        _require_needs(name, "training.outputs", training.outputs, needs)
        return fit(_checked_training(training), checks.key("key", key))

    vars(checked)["unchecked"] = fit
    return checked


def _checked_score(
    detector: Detector, score: Callable[[Any, Outputs], Array]
) -> Callable[[Any, Outputs], Array]:
    try:
        hash(score)
    except TypeError:
        score = partial(score)
    return _CheckedScore(detector.name, detector.needs, score)


@dataclass(frozen=True)
class _CheckedScore:
    """A score with its checks; equal ones, of detectors made anew, share a compiled program."""

    name: str
    needs: tuple[Need, ...]
    unchecked: Callable[[Any, Outputs], Array]

    @property
    def __name__(self) -> str:
        return f"score_{self.name}"

    def __call__(self, state: Any, outputs: Outputs) -> Float[Array, "b *v"]:
        _require_needs(self.name, "outputs", outputs, self.needs)
        return jnp.asarray(self.unchecked(state, _single(outputs)), jnp.float32)


def _require_needs(name: str, what: str, outputs: Outputs, needs: tuple[Need, ...]) -> None:
    for need in needs:
        if need not in outputs.extra:
            raise ValueError(
                f"{what}.extra has no {need}; {name} expects it (OODClassifier and the command "
                "line make it; `Backbone` alone gives features and logits)"
            )


def _single(arrays: Tree) -> Tree:
    """The same tree with floating-point arrays of any precision as float32."""

    def single(array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype == jnp.float32:
            return array
        with np.errstate(over="ignore"):
            return array.astype(jnp.float32)

    return jax.tree.map(single, arrays)


def _checked_training(training: Training) -> Training:
    """Training data in float32, finite, and with labels that are classes."""
    training = _single(training)
    named = {"outputs": training.outputs}
    if isinstance(training.ood, tuple):
        several = enumerate(training.ood)
        named |= {f"ood[{place}]": each for place, each in several if each is not None}
    elif training.ood is not None:
        named["ood"] = training.ood
    for part, outputs in named.items():
        _require_finite(f"training.{part}.features", outputs.features)
        _require_finite(f"training.{part}.logits", outputs.logits)
    if training.mixed is not None:
        _require_finite("training.mixed", training.mixed)
    count, classes = training.outputs.logits.shape
    labels = checks.classes("training.labels", training.labels, classes, (count,))
    held_in = training.id_validation
    if held_in is not None:
        held_in = held_in[0], _validation_labels(*held_in, classes)
    return replace(training, labels=labels, id_validation=held_in)


def _validation_labels(
    outputs: Outputs, labels: Int[Array, " v"], classes: int
) -> Int[Array, " v"]:
    """The labels of ID validation outputs, which must be finite, and of the training classes."""
    name = "training.id_validation"
    count, width = outputs.logits.shape
    if not count or width != classes:
        raise ValueError(
            f"{name} has logits {(count, width)}; expected at least one row, of {classes} classes"
        )
    _require_finite(f"{name}.features", outputs.features)
    _require_finite(f"{name}.logits", outputs.logits)
    return checks.classes(f"{name}.labels", labels, classes, (count,))


def _require_finite(name: str, array: Float[Array | np.ndarray, "n ..."]) -> None:
    try:
        checks.finite(name, checks.placed(array))
    except ValueError:
        bad = ~np.isfinite(np.asarray(array))
        rows = np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))
        raise ValueError(
            f"{name} holds {bad.sum()} values that are NaN or infinite, in {len(rows)} of "
            f"{len(array)} rows, the first at index {tuple(map(int, np.argwhere(bad)[0]))}; "
            "expected finite numbers"
        ) from None


def require_head(name: str, training: Training) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    """The class head of the training outputs.

    Raises:
      ValueError: there is none, its shapes do not fit the features and logits, or it does not give
        these logits of these features (some rows are tried).
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
    if len(training.outputs.logits):
        _require_logits(name, training.outputs, weights, bias)
    return weights, bias


def _require_logits(
    name: str, outputs: Outputs, weights: Float[Array, "d c"], bias: Float[Array, " c"]
) -> None:
    """Raises ValueError unless the head gives the logits, but for what bfloat16 rounds."""
    count = len(outputs.logits)
    rows = np.unique(np.linspace(0, count - 1, HEAD_ROWS).astype(int))
    h, z, w, b = (
        np.asarray(array, np.float64)
        for array in (
            *(checks.rows(own, rows) for own in (outputs.features, outputs.logits)),
            weights,
            bias,
        )
    )
    given = h @ w + b
    # Rounding errors of the products add up like random numbers; that of the sum comes once.
    spread = np.sqrt(h**2 @ w**2 + b**2 + z**2)
    excess = np.abs(given - z) - SPREADS * HALF * spread
    row, label = np.unravel_index(excess.argmax(), excess.shape)
    if excess[row, label] > 0:
        apart = np.abs(given - z).max()
        raise ValueError(
            f"training.head is not what gives the logits: features {outputs.features.shape} @ "
            f"weights {weights.shape} + bias {bias.shape} differ from training.outputs.logits by "
            f"up to {apart:.3g} (row {rows[row]}, class {label}: {given[row, label]:.4g} for "
            f"{z[row, label]:.4g}); {name} expects the layer that makes these logits of these "
            "features. Usually it is an auxiliary head, the weights are transposed, the logits are "
            "scaled or shifted after it, or the features are not what enters it"
        )
