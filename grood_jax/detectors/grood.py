"""GROOD: gradient-aware out-of-distribution detection (arXiv 2312.14427)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Mix, Outputs
from grood_jax.detectors._statistics import (
    class_means,
    feature_mean,
    fit_class_gaussians,
    product,
    single,
    unit_rows,
    warn_of_classes,
)
from grood_jax.detectors.base import (
    Detector,
    MixedTraining,
    Noise,
    OODSource,
    Training,
    Validation,
)
from grood_jax.maths.gradients import distance, distances_to, gradients
from grood_jax.maths.prototypes import require_classes
from grood_jax.neighbors.bank import Bank, ShardedBank
from grood_jax.neighbors.building import DType, build_bank, sampled_rows
from grood_jax.neighbors.searching import distances_of_each, search
from grood_jax.support import checks

OODPrototype = Literal["mixup", "noise", "raw-noise", "validation", "prototype-mean"]
Score = Literal["distance", "norm"]
Space = Literal["raw", "normalized", "whitened"]

SOURCES: tuple[OODPrototype, ...] = get_args(OODPrototype)
ADVICE = " (pass present_classes to leave classes out, --present-classes data on the command line)"
SHRINKAGE = 0.5
"""Of the covariance that whitens, towards its mean eigenvalue."""

NOISE_IMAGES = 1000
NOISE_GROUP = 100
NOISE_KEPT = 10

GRID: dict[str, Sequence[Any]] = {
    "ood_prototype": (
        *("mixup", "noise", "prototype-mean"),
        ("mixup", "noise", "prototype-mean"),
    ),
    "space": ("raw", "normalized", "whitened"),
    "mixup_weight": (0.5, 0.1, 0.3, 0.6, 0.8, 0.9),
    "farthest_fifth": (False, True),
    "sampling_ratio": (1.0, 0.01, 0.1, 0.25, 0.5, 0.7),
    "k": (1, 5, 10, 20, 50, 100),
}
"""OpenOOD's values for λ, k and the share of the bank, each after the default; it does not try
spaces, the farthest fifth and prototypes together."""

STAGES = (
    ("ood_prototype", "k"),
    ("space", "k"),
    ("mixup_weight",),
    ("farthest_fifth",),
    ("sampling_ratio",),
)

OF_BANK = {"k": 1, "sampling_ratio": 1.0, "bank_dtype": "float32"}
"""Options that are about the bank, with their defaults."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroodState:
    """A fitted GROOD.

    Attributes:
      class_prototypes: means of the training features by class, (C, D) float32, of the classes
        that are present.
      ood_prototype: ``p_ood``, (D,) float32; (M, D) of M sources.
      bank: gradients of correctly classified training samples, (R, D) or (R, M D), ready for
        searching; None where the score is the norm.
      whitening: the origin, (D,) float32, and the matrix, (D, r) float32, by which features are
        brought to a whitened space, where prototypes have r numbers; None in the others.
    """

    class_prototypes: Float[Array, "c d"]
    ood_prototype: Float[Array, "*m d"]
    bank: Bank | ShardedBank | None
    whitening: tuple[Float[Array, " d"], Float[Array, "d r"]] | None = None


def grood(
    *,
    ood_prototype: OODPrototype | Sequence[OODPrototype] = "mixup",
    score: Score = "distance",
    space: Space = "raw",
    k: int = 1,
    mixup_weight: float = 0.5,
    mixup_samples: int = 10_000,
    farthest_fifth: bool = False,
    sampling_ratio: float = 1.0,
    bank_dtype: DType = "float32",
    interpolate: bool = False,
    interpolate_classes: int = 3,
    interpolate_weight: float = 0.8,
    present_classes: Sequence[int] | None = None,
) -> Detector:
    """GROOD: distance to the nearest training sample in the space of OOD-prototype gradients.

    The score is ``‖g(x) − g(x_i)‖₂`` to the k-th nearest gradient of the bank, where
    ``g = ∂/∂p_ood [−log softmax(−d)_ŷ]`` and the bank holds correctly classified training
    samples.

    The paper has one OOD prototype. With M of them, the softmax is over C + M prototypes and ``g``
    the gradient with respect to all M, of M D numbers: what one of them does not stand for another
    may.

    Args:
      ood_prototype: where ``p_ood`` comes from. ``"mixup"``: mean features of training samples
        mixed at the cut with the early prototype of their second most likely class;
        ``"noise"``: of blurred uniform-noise images, stretched and normalised as the data are, of
        each hundred the ten whose logits have the lowest logsumexp; ``"raw-noise"``: the same of
        noise that enters the network in [0, 1] as it is, each hundred blurred alike, by a σ from
        0.2 to 5 pixels, as in OpenOOD's code; ``"validation"``: of held-out OOD images;
        ``"prototype-mean"``: the mean of the class prototypes. Several of these, in a list, give as
        many OOD prototypes.
      score: ``"distance"`` to the bank, as above, or ``"norm"``: ``‖g(x)‖₂``, the share of the OOD
        prototypes in the softmax, for which there is no bank.
      space: where prototypes and samples lie. ``"raw"``: features as they are, the paper's;
        ``"normalized"``: divided by their norms; ``"whitened"``: less their mean, in coordinates
        where the covariance within classes, half of it its mean eigenvalue, is the identity.
      k: the score is the distance to the k-th nearest gradient.
      mixup_weight: λ on the sample for ``"mixup"``.
      mixup_samples: how many training samples are mixed for ``"mixup"``, drawn at random.
      farthest_fifth: for ``"mixup"``, average only the fifth of the mixed features that lies
        farthest from every class prototype.
      sampling_ratio: the share of the correctly classified training samples in the bank, drawn
        at random.
      bank_dtype: ``"bfloat16"`` keeps the bank's float32 rows on the host, and on the device at
        most half as much; the scores are the same. See `grood_jax.build_bank`.
      interpolate: mix every sample, in the bank and at scoring, with the early prototypes of its
        most likely other classes, and add the mean loss of the mixed copies to its own (the
        paper's first version).
      interpolate_classes: with how many classes.
      interpolate_weight: λ on the sample for ``interpolate``.
      present_classes: the classes that the training data hold, if not all of the network's.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      where a class has no sample; where none of a class is classified correctly, it warns.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      GROOD, arXiv 2312.14427, section 3; ``interpolate`` after its first version.
    """
    options = {
        "ood_prototype": ood_prototype,
        "score": score,
        "space": space,
        "k": k,
        "mixup_weight": mixup_weight,
        "mixup_samples": mixup_samples,
        "farthest_fifth": farthest_fifth,
        "sampling_ratio": sampling_ratio,
        "bank_dtype": bank_dtype,
        "interpolate": interpolate,
        "interpolate_classes": interpolate_classes,
        "interpolate_weight": interpolate_weight,
        "present_classes": present_classes,
    }
    chosen = _checked_sources(ood_prototype)
    _check_options(options, chosen)
    present = checked_present(present_classes)
    asked = _asked(chosen, MixedTraining(mixup_weight, mixup_samples, present))
    mix = Mix(interpolate_classes, interpolate_weight, present) if interpolate else None
    own = _Grood(chosen, score, space, k, farthest_fifth, sampling_ratio, bank_dtype, mix, present)
    return Detector(
        "grood",
        own.fit,
        _Score(mix, space, k),
        options
        | {
            "ood_prototype": chosen if len(chosen) > 1 else chosen[0],
            "present_classes": None if present_classes is None else list(present),
        },
        ood=asked if len(asked) > 1 else next(iter(asked), None),
        needs=() if mix is None else (mix,),
        rows=None if mix is None or score == "norm" else own.rows,
        grid=_grid(chosen, score, farthest_fifth),
        stages=STAGES,
        each={"k": partial(_Score, mix, space)},
        fit_key=(replace(own, k=1), asked),
        compiled=bank_dtype == "float32",
        logits=False,
    )


def _asked(sources: Sequence[OODPrototype], mixed: MixedTraining) -> tuple[OODSource, ...]:
    """What stands for OOD images, of each source that needs something."""
    kinds: dict[str, OODSource] = {
        "mixup": mixed,
        "noise": Noise(NOISE_IMAGES),
        "raw-noise": Noise(NOISE_IMAGES, raw=True),
        "validation": Validation(),
    }
    return tuple(kinds[source] for source in sources if source in kinds)


def _grid(
    sources: Sequence[OODPrototype], score: Score, farthest_fifth: bool
) -> dict[str, Sequence[Any]]:
    """The options that may be searched beside these."""
    grid = dict(GRID)
    without = set(OF_BANK) if score == "norm" else set()
    if "mixup" not in sources:
        without |= {"mixup_weight", "farthest_fifth"}
    if farthest_fifth:
        grid["ood_prototype"] = [own for own in grid["ood_prototype"] if "mixup" in own]
    return {option: values for option, values in grid.items() if option not in without}


def _checked_sources(given: Any) -> tuple[OODPrototype, ...]:
    """The sources of OOD prototypes, of which one may be given bare."""
    several = (given,) if isinstance(given, str) or not isinstance(given, Sequence) else (*given,)
    chosen: Any = tuple(checks.choice("ood_prototype", each, SOURCES) for each in several)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"ood_prototype is {given!r}; expected some of {', '.join(SOURCES)}, each once"
        )
    return chosen


def _check_options(options: Mapping[str, Any], sources: Sequence[str]) -> None:
    checks.choice("score", options["score"], get_args(Score))
    checks.choice("space", options["space"], get_args(Space))
    for name in ("k", "mixup_samples", "interpolate_classes"):
        checks.at_least(name, options[name], 1)
    for name in ("mixup_weight", "interpolate_weight"):
        checks.fraction(name, options[name])
    checks.fraction("sampling_ratio", options["sampling_ratio"], zero=False)
    checks.choice("bank_dtype", options["bank_dtype"], ("float32", "bfloat16"))
    for name in ("farthest_fifth", "interpolate"):
        checks.flag(name, options[name])
    if options["farthest_fifth"] and "mixup" not in sources:
        raise ValueError(
            f"farthest_fifth is True with ood_prototype {options['ood_prototype']!r}; expected "
            "'mixup'"
        )
    for name, default in OF_BANK.items():
        if options["score"] == "norm" and options[name] != default:
            raise ValueError(
                f"{name} is {options[name]!r} with score 'norm', for which there is no bank; "
                f"expected {default!r}, or score 'distance'"
            )


def checked_present(present_classes: Sequence[int] | None) -> tuple[int, ...]:
    """The classes that the training data hold, in order; none stands for all.

    Raises:
      TypeError: no list of whole numbers.
      ValueError: fewer than two classes, or one below 0.
    """
    if present_classes is None:
        return ()
    if np.ndim(present_classes) != 1:
        raise TypeError(f"present_classes is {present_classes!r}; expected a list of classes")
    present = {checks.at_least("present_classes", label, 0) for label in present_classes}
    if len(present) < 2:
        raise ValueError(
            f"present_classes is {tuple(sorted(present))}; expected at least two classes"
        )
    return tuple(sorted(present))


@dataclass(frozen=True)
class _Grood:
    """What fits a GROOD with these options, and which rows its bank has."""

    sources: tuple[OODPrototype, ...]
    by: Score
    space: Space
    k: int
    farthest_fifth: bool
    sampling_ratio: float
    bank_dtype: Literal["float32", "bfloat16"]
    mix: Mix | None
    present: tuple[int, ...]

    def rows(self, training: Training, key: Array) -> Int[Array, " r"]:
        """The training samples whose gradients enter the bank."""
        logits, labels = training.outputs.logits, training.labels
        correct = np.asarray(logits).argmax(axis=1) == np.asarray(labels)
        counts = np.bincount(np.asarray(labels)[correct], minlength=logits.shape[1])
        without = "the bank has no gradient of these"
        warn_of_classes("grood", counts, without, self.present or None)
        self._require_others(logits.shape[1])
        if self.present:
            correct = correct & np.isin(np.asarray(labels), self.present)
        chosen = np.flatnonzero(correct)
        chosen = chosen[sampled_rows(key, len(chosen), self.sampling_ratio)]
        if self.k > len(chosen):
            raise ValueError(
                f"k is {self.k}; expected at most {len(chosen)}, the gradients in the bank "
                f"({np.count_nonzero(correct)} correctly classified samples, sampling_ratio "
                f"{self.sampling_ratio})"
            )
        return checks.placed(chosen)

    def _require_others(self, num_classes: int) -> None:
        """Raises ValueError where there are too few classes to mix with."""
        available = len(self.present) or num_classes
        if self.mix is not None and self.mix.classes >= available:
            raise ValueError(
                f"interpolate_classes is {self.mix.classes}; expected from 1 to {available - 1}, "
                f"with {available} classes"
            )

    def fit(self, training: Training, key: Array) -> GroodState:
        """Prototypes, and the bank where there is one."""
        logits, whitening = training.outputs.logits, self._whitening(training)
        features = _brought(training.outputs.features, self.space, whitening)
        means, counts = class_means(features, training.labels, logits.shape[1])
        require_classes("sample", counts, self.present or None, ADVICE)
        prototypes = single(means[np.asarray(self.present)] if self.present else means)
        if self.by == "norm":
            self._require_others(logits.shape[1])
            center = self._centers(prototypes, training.ood, whitening)
            return GroodState(prototypes, center, None, whitening)
        chosen = self.rows(training, key)
        center = self._centers(prototypes, training.ood, whitening)
        sample = _flat_gradients(checks.rows(features, chosen), prototypes, center)
        if self.mix is not None:
            if training.mixed is None:
                raise ValueError("training.mixed is None; expected mixed features (R, K, D)")
            mixed = _brought(training.mixed, self.space, whitening)
            sample = sample + _mixed_gradients(mixed, prototypes, center)
        bank = build_bank(sample, dtype=self.bank_dtype)
        return GroodState(prototypes, center, bank, whitening)

    def _whitening(
        self, training: Training
    ) -> tuple[Float[Array, " d"], Float[Array, "d r"]] | None:
        """What brings features to the whitened space; None for the others."""
        if self.space != "whitened":
            return None
        # Classes that have no sample have no mean, and do not count.
        there, places = np.unique(np.asarray(training.labels), return_inverse=True)
        logits = checks.placed(np.zeros((len(places), len(there)), np.float32))
        labels = checks.placed(places.astype(np.int32))
        own = Training(Outputs(training.outputs.features, logits), labels)
        found = fit_class_gaussians("grood", own, shrinkage=SHRINKAGE)
        return found.center, found.whitening

    def _centers(
        self,
        prototypes: Float[Array, "c d"],
        ood: Outputs | tuple[Outputs | None, ...] | None,
        whitening: tuple[Array, Array] | None,
    ) -> Float[Array, "*m d"]:
        """The OOD prototype of one source, (D,), or of each of several, (M, D)."""
        given = iter(ood if isinstance(ood, tuple) else (ood,))
        centers = [
            feature_mean(prototypes)
            if source == "prototype-mean"
            else self._of_ood(prototypes, next(given, None), source, whitening)
            for source in self.sources
        ]
        return checks.placed(np.stack(centers)) if len(centers) > 1 else centers[0]

    def _of_ood(
        self,
        prototypes: Float[Array, "c d"],
        ood: Outputs | None,
        source: OODPrototype,
        whitening: tuple[Array, Array] | None,
    ) -> Float[Array, " d"]:
        if ood is None or len(ood.features) == 0:
            raise ValueError(
                f"training.ood is empty; expected outputs for ood_prototype {source!r}"
            )
        features = checks.finite("training.ood.features", checks.placed(ood.features))
        features = _brought(features, self.space, whitening)
        if source in ("noise", "raw-noise"):
            features = checks.rows(features, least_like_training(ood.logits))
        elif self.farthest_fifth:
            nearest = distances_to(features, prototypes).min(axis=1)
            features = features[jax.lax.top_k(nearest, max(1, len(features) // 5))[1]]
        return feature_mean(features)


@dataclass(frozen=True)
class _Score:
    """Distances to the k-th nearest gradient of the bank, or the gradients' norms.

    Of several k a column each.
    """

    mix: Mix | None
    space: Space
    k: int | tuple[int, ...]

    def __call__(self, state: GroodState, outputs: Outputs) -> Float[Array, "b *v"]:
        compared = _compared(self.mix, self.space, state, outputs)
        if state.bank is None:
            return jax.vmap(distance, (0, None))(compared, jnp.zeros(compared.shape[1]))
        if isinstance(self.k, int):
            return search(compared, state.bank, self.k)
        return distances_of_each(compared, state.bank, self.k)


def compared_gradients(
    detector: Detector, state: GroodState, outputs: Outputs
) -> Float[Array, "b g"]:
    """The gradients whose distances to those of the bank, or whose norms, are a GROOD's scores.

    Args:
      detector: of `grood`.
      state: its fitted state.
      outputs: features (B, D), and mixed copies where the detector needs them.

    Returns:
      Gradients, (B, D) float32, or of M OOD prototypes (B, M D).
    """
    mix = next((need for need in detector.needs if isinstance(need, Mix)), None)
    return _compared(mix, detector.options["space"], state, outputs)


def _brought(
    features: Float[Array | np.ndarray, "*b d"],
    space: Space,
    whitening: tuple[Float[Array, " d"], Float[Array, "d r"]] | None,
) -> Float[Array, "*b r"]:
    """Features in the space where prototypes lie."""
    rows = checks.placed(features)
    if space == "raw":
        return rows
    rows = rows.reshape(-1, rows.shape[-1])
    if whitening is None:
        rows = unit_rows(rows)
    else:
        center, matrix = whitening
        rows = product(rows - center[None, :], matrix)
    return rows.reshape(*features.shape[:-1], rows.shape[1])


def _flat_gradients(
    features: Float[Array | np.ndarray, "b d"],
    prototypes: Float[Array, "c d"],
    ood_prototype: Float[Array, "*m d"],
) -> Float[Array, "b g"]:
    """A row for each sample, of D numbers for each OOD prototype."""
    found = gradients(checks.placed(features), prototypes, ood_prototype)
    return found.reshape(len(found), ood_prototype.size)


def _compared(
    mix: Mix | None, space: Space, state: GroodState, outputs: Outputs
) -> Float[Array, "b g"]:
    prototypes, center = state.class_prototypes, state.ood_prototype
    features = _brought(outputs.features, space, state.whitening)
    sample = _flat_gradients(features, prototypes, center)
    if mix is None:
        return sample
    mixed = _brought(jnp.asarray(outputs.extra[mix]), space, state.whitening)
    return sample + _mixed_gradients(mixed, prototypes, center)


def _mixed_gradients(
    mixed: Float[Array, "b k d"],
    prototypes: Float[Array, "c d"],
    ood_prototype: Float[Array, "*m d"],
) -> Float[Array, "b g"]:
    """The gradient of the mean loss of each sample's mixed copies."""
    flat = _flat_gradients(mixed.reshape(-1, mixed.shape[-1]), prototypes, ood_prototype)
    return flat.reshape(*mixed.shape[:2], ood_prototype.size).mean(axis=1)


def least_like_training(logits: Float[Array | np.ndarray, "m c"]) -> Int[np.ndarray, " r"]:
    """Of each hundred rows the ten with the lowest logsumexp of their logits.

    Args:
      logits: (M, C); a last part of fewer than a hundred keeps a tenth, at least one.

    Returns:
      Row indices, (R,).
    """
    energy = np.logaddexp.reduce(np.asarray(logits, np.float64), axis=1)
    kept = []
    for start in range(0, len(logits), NOISE_GROUP):
        part = energy[start : start + NOISE_GROUP]
        count = max(1, len(part) * NOISE_KEPT // NOISE_GROUP)
        kept.append(start + np.argsort(part, kind="stable")[:count])
    return np.concatenate(kept)
