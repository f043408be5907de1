"""Auto: a fixed recipe that combines the detectors whose premises the training outputs meet."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._activation import NEGATIVE, negative_share
from grood_jax.detectors._statistics import (
    MOMENT_ROWS,
    class_means,
    fit_class_gaussians,
    product,
    training_features,
)
from grood_jax.detectors.base import Detector, MixedTraining, Noise, Training, require_head
from grood_jax.detectors.combine import CombineState, fit_members, rows_of, spared
from grood_jax.detectors.entropy import entropy
from grood_jax.detectors.fdbd import fdbd
from grood_jax.detectors.gen import gen
from grood_jax.detectors.grood import ADVICE, NOISE_IMAGES, OODPrototype, checked_present, grood
from grood_jax.detectors.mahalanobis import mahalanobis
from grood_jax.detectors.relative_mahalanobis import relative_mahalanobis
from grood_jax.detectors.vra import vra
from grood_jax.maths.prototypes import require_classes
from grood_jax.neighbors.building import sampled_rows
from grood_jax.support import checks

HELD_OUT = 0.1
"""The share of training samples left out of fitting, to calibrate scores by."""

AT_LEAST, AT_MOST = 100, 10_000
"""How many samples scores are calibrated by, where there are enough; never more than half."""

FEWEST = 3
"""Samples of a class, below which its mean is not one."""

AGREEMENT = 0.95
"""The share of samples left out that must lie nearest to the mean of their predicted class."""

EXPLAINED = 0.25
"""The share of the others that a covariance must bring nearest to that mean, to be trusted."""

JUDGED = 2000
"""Samples by which that is judged."""

SHRINKAGE = 0.1
"""Of the covariances, towards their mean eigenvalue."""

OVERLAPPING = ("mahalanobis:shrinkage=0.1", "relative_mahalanobis:shrinkage=0.1")
"""Members where classes overlap, by what makes them."""

TAIL = 0.1
"""The share of the largest calibrating scores that an exponential tail is fitted to."""

FEWEST_IN_TAIL = 5
"""So many at least, where they are no more than half: a mean of one or two says little."""

CONFIDENCE, SHAPED = ("entropy", "gen"), ("vra", "gen")
"""Members that need no class means; where features are what a ReLU leaves, those of the latter."""

HEAD_MEMBER = "fdbd"
"""The member that joins wherever there is a class head."""

LONGEST = 1e12
"""Beyond this many mean excesses a score counts as this many."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AutoState:
    """What auto chose, fitted.

    Attributes:
      fitted: the members' states, and their scores of the samples left out.
      members: the words by which members are made.
      why: what was chosen and why, in lines.
    """

    fitted: CombineState
    members: tuple[str, ...] = field(metadata={"static": True})
    why: tuple[str, ...] = field(metadata={"static": True})


def auto(*, present_classes: Sequence[int] | None = None) -> Detector:
    """Several detectors, chosen by what the training outputs carry; no OOD data are needed.

    The recipe is fixed, and what it chose and why is said by ``detector.explain(state)`` and in
    ``results.json``:

    1. Where a class has fewer than 3 training samples, or the features do not vary within classes:
       `vra` and `gen`, which need no class means; `entropy` in place of `vra` where more than a
       tenth of the training features is negative, or without a class head.
    2. Else, where of training samples left out at least 95 % lie nearest to the mean of the class
       that the network predicts: `grood` by the norm with the OOD prototypes of mix-up, noise and
       the prototypes' mean, and `mahalanobis` of normalised features with a shrinkage of 0.1.
    3. Else, where the covariance that the classes share brings a quarter of the others nearest to
       that mean: `mahalanobis` and `relative_mahalanobis`, which know how classes overlap, with the
       same shrinkage.
    4. Else as 1.

    `fdbd` joins in all cases. What there is not is left out: `fdbd` without a class head, the
    prototype of noise without noise images.

    Members are fitted without the samples left out: a tenth, at least 100 if that is no more than
    half, at most 10,000. In cases 1 and 4 no member keeps samples, and they are calibrated by up to
    10,000 of those that they are fitted on. Each member's score becomes a p-value, its rank among
    the scores of the samples left out as in `combine`; beyond the largest tenth, or the largest 5
    of fewer than 50, of an exponential tail with the mean of their excesses. The score is Fisher's
    sum, ``−2 Σ log p``. As the network has seen these samples, and members depend on each other, it
    is a score and no test.

    Args:
      present_classes: the classes that the training data hold, if not all of the network's. Class
        means are then of these, and samples of others are left out where distances are taken; a
        class that is expected and has no sample leads to case 1.

    Returns:
      The detector; its scores are (B,) float32, positive, higher for more OOD. Its ``fit`` raises
      ValueError where the class head does not give the logits or there are no samples.

    Raises:
      TypeError: ``present_classes`` is no list of whole numbers.
      ValueError: fewer than two classes, or one below 0.

    References:
      The members' papers. Fisher's method over calibrated scores: Haroush et al., arXiv 2102.12967;
      Magesh et al., arXiv 2206.09522. That class means explain training samples late in training:
      Papyan, Han and Donoho, Prevalence of neural collapse, arXiv 2008.08186. The choice of members
      and its bounds are this package's.
    """
    present = checked_present(present_classes)
    return Detector(
        "auto",
        partial(_fit, present),
        _score,
        {"present_classes": None if present_classes is None else list(present)},
        ood=(MixedTraining(0.5, 10_000, present), Noise(NOISE_IMAGES)),
        head=True,
        makes_do=True,
        explain=lambda state: "\n".join(state.why),
    )


@cache
def _member(word: str, sources: tuple[OODPrototype, ...] = ("prototype-mean",)) -> Detector:
    if word == "grood":
        return grood(ood_prototype=sources, score="norm")
    if word == "mahalanobis++":
        return mahalanobis(normalize=True, shrinkage=SHRINKAGE)
    makers: dict[str, Callable[[], Detector]] = {
        "entropy": entropy,
        "gen": gen,
        OVERLAPPING[0]: partial(mahalanobis, shrinkage=SHRINKAGE),
        OVERLAPPING[1]: partial(relative_mahalanobis, shrinkage=SHRINKAGE),
        "fdbd": fdbd,
        "vra": vra,
    }
    return makers[word]()


@cache
def _scorer(word: str) -> Any:
    # What a GROOD's score depends on, but for its options about the norm, is in its state.
    return jax.jit(_member(word).score)


def _fit(present: tuple[int, ...], training: Training, key: Array) -> AutoState:
    if present:
        training = _of_classes(training, present)
    if training.head is not None:
        require_head("auto", training)
    features = training_features(training)
    narrow = _narrowed(training, present)
    split_key, fit_key = jax.random.split(key)
    out = _left_out(narrow, split_key)
    near, why = _chosen(narrow, features, out, present)
    far = [] if near else list(_confidence(training, why))
    if training.head is None:
        why.append(f"{HEAD_MEMBER} is left out: there is no class head")
    else:
        far.append(HEAD_MEMBER)
    given = training.ood if isinstance(training.ood, tuple) else (None, None)
    names: tuple[OODPrototype, ...] = ("mixup", "noise")
    pairs = [(name, ood) for name, ood in zip(names, given, strict=True) if ood is not None]
    sources = (*(name for name, _ in pairs), "prototype-mean")
    if "grood" in near:
        why.append(f"grood has OOD prototypes of {', '.join(sources)}")
    kept = np.setdiff1d(np.arange(len(features)), out)
    if not near:
        kept = np.arange(len(features))
        out = sampled_rows(split_key, len(kept), min(1.0, AT_MOST / len(kept)))

    def fitted(words: list[str], on: Training) -> CombineState:
        members = [_member(word, sources if word == "grood" else ()) for word in words]
        scorers = [_scorer(word) for word in words]
        ood = tuple(own for _, own in pairs)
        return fit_members(members, scorers, replace(on, ood=ood), kept, np.asarray(out), fit_key)

    parts = [fitted(words, on) for words, on in ((near, narrow), (far, training)) if words]
    both = CombineState(
        tuple(state for part in parts for state in part.states),
        jnp.concatenate([part.calibration for part in parts]),
    )
    words = [*near, *far]
    first = f"{' + '.join(words)}, calibrated by {len(out)} of {len(features)} training samples"
    return AutoState(both, tuple(words), (first, *why))


def _of_classes(training: Training, present: tuple[int, ...]) -> Training:
    """The samples of these classes."""
    classes = training.outputs.logits.shape[1]
    counts = np.bincount(np.asarray(training.labels), minlength=classes)
    require_classes("sample", counts, present, ADVICE)
    rows = np.flatnonzero(np.isin(np.asarray(training.labels), present))
    outputs, labels = jax.tree.map(lambda array: array[rows], (training.outputs, training.labels))
    return replace(training, outputs=outputs, labels=labels)


def _narrowed(training: Training, present: tuple[int, ...]) -> Training:
    """The same with classes counted among those present, for members that have class means."""
    if not present:
        return training
    columns = np.asarray(present)
    outputs = replace(training.outputs, logits=training.outputs.logits[:, columns])
    labels = jnp.asarray(np.searchsorted(columns, np.asarray(training.labels)), jnp.int32)
    return replace(training, outputs=outputs, labels=labels, head=None)


def _left_out(training: Training, key: Array) -> Int[np.ndarray, " h"]:
    """The samples that members are not fitted on; classes keep enough."""
    labels = np.asarray(training.labels)
    count = len(labels)
    wanted = min(max(HELD_OUT * count, AT_LEAST), AT_MOST, count / 2)
    right = np.asarray(training.outputs.logits).argmax(axis=1) == labels
    return spared(np.asarray(sampled_rows(key, count, wanted / count)), labels, right)


def _vary(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    kept: Int[np.ndarray, " k"],
    means: Float[np.ndarray, "c d"],
) -> bool:
    """Whether some feature kept differs from its class's mean by more than rounding."""
    least = 1e-5 * max(features.max(), -features.min())
    blocks = (kept[start : start + MOMENT_ROWS] for start in range(0, len(kept), MOMENT_ROWS))
    # The first block says so, as a rule.
    return any((np.abs(features[own] - means[labels[own]]) > least).any() for own in blocks)


def _nearest(points: Float[Array, "b d"], means: Float[np.ndarray, "c d"]) -> Int[np.ndarray, " b"]:
    """The nearest mean of each point, in float64 about the center of the means."""
    center = means.mean(axis=0)
    rows, own = np.asarray(points, np.float64) - center, means - center
    return (np.square(own).sum(axis=1)[None, :] - 2 * rows @ own.T).argmin(axis=1)


def _chosen(
    training: Training,
    features: Float[Array, "n d"],
    out: Int[np.ndarray, " h"],
    present: tuple[int, ...],
) -> tuple[list[str], list[str]]:
    """The members that have class means, if these are trusted, and why."""
    labels, logits = np.asarray(training.labels), np.asarray(training.outputs.logits)
    classes = logits.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < FEWEST:
        rarest = counts.argmin()
        why = (
            f"class {present[rarest] if present else rarest} has {counts.min()} training samples, "
            f"fewer than {FEWEST}: class means are not trusted"
        )
        return [], [why]
    kept = np.setdiff1d(np.arange(len(labels)), out)
    # Those left out as a class more: the rows of the others need not be cut out.
    known = labels.copy()
    known[out] = classes
    means = class_means(features, known, classes + 1)[0][:-1]
    if not _vary(np.asarray(features), labels, kept, means):
        return [], ["features do not vary within classes"]
    judged = out[np.unique(np.linspace(0, len(out) - 1, JUDGED).astype(int))]
    predicted = logits[judged].argmax(axis=1)
    points = checks.rows(features, judged)
    nearest = _nearest(points, means)
    share = float((nearest == predicted).mean())
    said = (
        f"of {len(judged)} training samples left out {share:.1%} lie nearest to the mean of the "
        f"class that the network predicts, {{}} than {AGREEMENT:.0%}"
    )
    if share >= AGREEMENT:
        explained = said.format("no less") + ": class means explain them"
        return ["grood", "mahalanobis++"], [explained]
    own = Training(rows_of(training.outputs, kept, ()), checks.rows(training.labels, kept))
    gaussians = fit_class_gaussians("auto", own, shrinkage=SHRINKAGE)
    points = product(points - gaussians.center[None, :], gaussians.whitening)
    nearest = _nearest(points, np.asarray(gaussians.means, np.float64))
    with_covariance = float((nearest == predicted).mean())
    helps = 1 - with_covariance <= (1 - EXPLAINED) * (1 - share)
    lines = [
        f"{said.format('less')}; by the classes' covariance {with_covariance:.1%}: it "
        f"{'explains' if helps else 'does not explain'} a quarter of the others"
    ]
    return list(OVERLAPPING) if helps else [], lines


def _confidence(training: Training, why: list[str]) -> tuple[str, ...]:
    """The members in their place; says why."""
    if training.head is None:
        return CONFIDENCE
    share = negative_share(training)
    shaped = share <= NEGATIVE
    said = "as a ReLU leaves them: vra is" if shaped else "unlike what a ReLU leaves: entropy is"
    why.append(f"{share:.0%} of the features are negative, {said} taken")
    return SHAPED if shaped else CONFIDENCE


def _score(state: AutoState, outputs: Outputs) -> Float[Array, " b"]:
    members: Sequence[tuple[str, Any]] = list(zip(state.members, state.fitted.states, strict=True))
    scores = [jnp.asarray(_scorer(word)(own, outputs), jnp.float32) for word, own in members]
    return _fisher(jnp.stack(scores), state.fitted.calibration)


@jax.jit
def _fisher(scores: Float[Array, "m b"], calibration: Float[Array, "m n"]) -> Float[Array, " b"]:
    """``−2 Σ log p`` of ranks among the calibrating scores, with an exponential tail."""
    count = calibration.shape[1]
    below, up_to = (
        jax.vmap(lambda own, new, side=side: jnp.searchsorted(own, new, side=side))(
            calibration, scores
        )
        for side in ("left", "right")
    )
    whole = 2 * (count + 1)
    log_p = jnp.log((whole - (below + up_to + 1)) / whole)
    tail = max(1, int(TAIL * count), min(FEWEST_IN_TAIL, count // 2))
    start = calibration[:, max(count - tail - 1, 0)][:, None]
    excess = (calibration[:, count - tail :] - start).mean(axis=1, keepdims=True)
    steps = jnp.minimum((scores - start) / jnp.where(excess > 0, excess, 1.0), LONGEST)
    beyond = jnp.log((tail + 0.5) / (count + 1)) - steps
    log_p = jnp.where((scores > start) & (excess > 0), beyond, log_p)
    return jnp.where(jnp.isnan(scores).any(axis=0), jnp.nan, -2.0 * log_p.sum(axis=0))
