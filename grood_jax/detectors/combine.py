"""Several detectors as one: their scores' ranks among those of held-out training samples."""

import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grood_jax.backbone.outputs import Mix, Need, Outputs
from grood_jax.detectors.base import Detector, OODSource, Training
from grood_jax.neighbors.building import sampled_rows
from grood_jax.support import checks

How = Literal["mean", "max", "min", "fisher"]

SCORED_ROWS = 1024
"""Held-out samples scored at once."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CombineState:
    """M fitted members and their scores of N held-out training samples.

    Attributes:
      states: the members' fitted states, in their order.
      calibration: the scores of each member, ascending, (M, N) float32.
    """

    states: tuple[Any, ...]
    calibration: Float[Array, "m n"]


def combine(members: Sequence[Detector], *, how: How = "mean", held_out: float = 0.1) -> Detector:
    """An ensemble of detectors by calibrated rank.

    Some training samples, drawn at random, are held out; members are fitted on the others. A
    member's score of a sample becomes its rank among that member's N scores of the held-out ones,
    ``(#lower + ½ #equal + ½) / (N + 1)``, in (0, 1); then ranks are combined. Samples are held out
    because members such as KNN or GROOD keep training samples and score these 0: ranks among them
    would all be near 1. Of those drawn, some are given back where a class would be left without
    one that is classified correctly, or with fewer than two (one, of a class that has two).

    Only the order of a member's scores matters, so scales need not agree. But the network itself
    has seen the held-out samples: new ID samples may rank higher, and more so with some members.
    Ranks are no p-values therefore, nor is Fisher's sum χ²-distributed; members depend on each
    other besides.

    Whatever a member scores between two neighbouring held-out scores, or above them all, ranks
    the same. That is kept: a tail fitted to the largest scores would let their scale decide after
    all. Of ID samples like the held-out ones, 1 / (N + 1) are expected above them all, which costs
    a member at most ½ / (N + 1) of its AUROC, and "max" of M members ½ M / (N + 1). Where a network
    fits its training samples so well that many new ID samples rank at the top, more is lost.

    Members have keys of their own, by their names, and among members of one name by their order.
    The order does not matter otherwise.

    Args:
      members: at least two detectors that need no mixed copies (held-out samples have none), and
        at most one kind of OOD samples among them. What a member needs of samples at scoring is
        asked of all training samples. Values to try for members' options are not tried.
      how: ``"mean"``, ``"max"`` or ``"min"`` of the ranks, or ``"fisher"``: −2 Σ log(1 − rank).
      held_out: the share of training samples held out; at least one is, and never all.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD, in (0, 1) or for Fisher's
      method positive, and NaN where a member's is. Its ``fit`` raises ValueError where there are
      fewer than two training samples or a member scores a held-out sample NaN, and what a
      member's ``fit`` raises.

    Raises:
      TypeError: a member is no detector, or ``held_out`` no number.
      ValueError: fewer than two members, a member that needs mixed copies or has an option called
        ``name``, two kinds of OOD samples, an unknown ``how``, or ``held_out`` not between 0 and 1.

    References:
      Haroush et al., arXiv 2102.12967, and Magesh et al., arXiv 2206.09522, combine statistics of
      a network by their ranks among those of ID samples; the former also by Fisher's method.
    """
    members = _checked(members)
    checks.choice("how", how, ("mean", "max", "min", "fisher"))
    held_out = checks.fraction("held_out", held_out)
    if held_out in (0, 1):
        raise ValueError(f"held_out is {held_out}; expected a number in (0, 1)")
    # Compiled one by one: with a member that cannot be, the whole is not compiled.
    scorers = [jax.jit(member.score) if member.compiled else member.score for member in members]
    needs = tuple(sorted({need for member in members for need in member.needs}))
    fit_needs = tuple(sorted({need for member in members for need in member.fit_needs}))

    def fit(training: Training, key: Array) -> CombineState:
        count = len(training.outputs.logits)
        _require_two(count)
        split_key, fit_key = jax.random.split(key)
        # The share is lowered where it would leave no sample to fit on.
        out = sampled_rows(split_key, count, min(held_out, (count - 1) / count))
        right = np.asarray(training.outputs.logits).argmax(axis=1) == np.asarray(training.labels)
        out = spared(out, np.asarray(training.labels), right)
        kept = np.setdiff1d(np.arange(count), out)
        return fit_members(members, scorers, training, kept, out, fit_key)

    def score(state: CombineState, outputs: Outputs) -> Float[Array, " b"]:
        scores = [
            jnp.asarray(scorer(own, outputs), jnp.float32)
            for scorer, own in zip(scorers, state.states, strict=True)
        ]
        return _combined(jnp.stack(scores), state.calibration, how)

    return Detector(
        "combine",
        fit,
        score,
        {
            "members": [{"name": member.name, **member.options} for member in members],
            "how": how,
            "held_out": held_out,
        },
        ood=next((member.ood for member in members if member.ood is not None), None),
        needs=needs,
        # Held-out samples are scored too.
        fit_needs=tuple(sorted({*needs, *fit_needs})),
        head=any(member.head for member in members),
        id_validation=any(member.id_validation for member in members),
        compiled=all(member.compiled for member in members),
        logits=any(member.logits for member in members),
    )


def fit_members(
    members: Sequence[Detector],
    scorers: Sequence[Callable[[Any, Outputs], Array]],
    training: Training,
    kept: Int[np.ndarray, " k"],
    out: Int[np.ndarray, " h"],
    key: Array,
) -> CombineState:
    """Members fitted on some training samples, and their scores of others.

    Args:
      members: the detectors.
      scorers: the ``score`` of each, compiled where it may be.
      training: the training data.
      kept: the rows that members are fitted on.
      out: the rows that they score.
      key: of which each member's own is made.

    Raises:
      ValueError: a member scores a sample NaN, or what its ``fit`` raises.
    """
    fitted_on = rows_of(training.outputs, kept, {need for m in members for need in m.fit_needs})
    apart = rows_of(training.outputs, out, {need for m in members for need in m.needs})
    labels = checks.rows(training.labels, kept)
    states, calibration = [], []
    for member, scorer, own_key in zip(members, scorers, _keys(members, key), strict=True):
        own = Training(
            fitted_on,
            labels,
            None if member.ood is None else training.ood,
            head=training.head if member.head else None,
            id_validation=training.id_validation if member.id_validation else None,
        )
        states.append(member.fit(own, own_key))
        calibration.append(_calibration(member.name, _scores(scorer, states[-1], apart)))
    return CombineState(tuple(states), checks.placed(np.stack(calibration)))


def _require_two(count: int) -> None:
    if count < 2:
        raise ValueError(
            f"training.outputs has {count} samples; combine expects at least two, one to fit on "
            "and one to hold out"
        )


def _calibration(name: str, scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Scores of the held-out samples, ascending; refuses NaN."""
    if missing := int(np.isnan(scores).sum()):
        raise ValueError(
            f"{name} scores {missing} of {len(scores)} held-out training samples NaN; expected "
            "numbers"
        )
    return np.sort(scores)


def _checked(members: Sequence[Detector]) -> tuple[Detector, ...]:
    if not isinstance(members, Sequence):
        raise TypeError(f"members is {members!r}; expected a list of detectors")
    for member in members:
        if not isinstance(member, Detector):
            raise TypeError(
                f"members holds {member!r}; expected detectors, as detectors.create makes them"
            )
        if "name" in member.options:
            raise ValueError(
                f"member {member.name} has an option called 'name'; expected another word: by this "
                "one a combination's options say which detector a member is"
            )
        if member.rows is not None or any(isinstance(need, Mix) for need in member.needs):
            raise ValueError(
                f"member {member.name} needs mixed copies of samples, and there are none of "
                "held-out training samples; expected members without"
            )
    if len(members) < 2:
        raise ValueError(f"members has length {len(members)}; expected at least two detectors")
    sources: dict[OODSource | tuple[OODSource, ...], str] = {}
    for member in members:
        if member.ood is not None:
            sources.setdefault(member.ood, member.name)
    if len(sources) > 1:
        (one, first), (other, second) = list(sources.items())[:2]
        raise ValueError(
            f"member {first} needs {one} and member {second} needs {other}; expected at most one "
            "kind of OOD samples"
        )
    return tuple(members)


def spared(
    out: Int[np.ndarray, " h"], labels: Int[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> Int[np.ndarray, " s"]:
    """Of samples drawn those that classes can spare; one at least."""
    total, back = np.bincount(labels), []
    left, left_right = total.copy(), np.bincount(labels[right], minlength=len(total))
    np.subtract.at(left, labels[out], 1)
    np.subtract.at(left_right, labels[out[right[out]]], 1)
    for label in np.unique(labels[out]):
        own = out[labels[out] == label]
        short = (2 if total[label] > 2 else 1) - left[label]
        if left_right[label] == 0 and right[own].any():
            short = max(short, 1)
        # Those classified right go back first.
        back.extend(own[np.argsort(~right[own], kind="stable")][: max(short, 0)])
    spared = np.setdiff1d(out, back)
    largest = out[total[labels[out]].argmax()][None]
    return spared if len(spared) else largest


def _keys(members: Sequence[Detector], key: Array) -> list[Array]:
    """A key for each member, by its name and its place among members of that name."""
    names = [member.name for member in members]
    return [
        jax.random.fold_in(
            jax.random.fold_in(key, zlib.crc32(name.encode())), names[:place].count(name)
        )
        for place, name in enumerate(names)
    ]


def rows_of(outputs: Outputs, rows: Int[np.ndarray, " r"], needs: Collection[Need]) -> Outputs:
    """Some rows of the outputs. Only what is needed: anything more would be copied for nothing."""
    extra = {need: value for need, value in outputs.extra.items() if need in needs}
    own = Outputs(outputs.features, outputs.logits, extra)
    return jax.tree.map(lambda array: checks.rows(array, rows), own)


def _scores(
    scorer: Callable[[Any, Outputs], Array], state: Any, outputs: Outputs
) -> Float[np.ndarray, " n"]:
    count = len(outputs.logits)
    block = min(SCORED_ROWS, count)
    parts = []
    for start in range(0, count, block):
        # The last block reaches back into the one before: one shape, one compilation.
        first = min(start, count - block)
        own = rows_of(outputs, np.arange(first, first + block), outputs.extra)
        parts.append(np.asarray(scorer(state, own), np.float32)[start - first :])
    return np.concatenate(parts)


@partial(jax.jit, static_argnames="how")
def _combined(
    scores: Float[Array, "m b"], calibration: Float[Array, "m n"], how: How
) -> Float[Array, " b"]:
    members, count = calibration.shape
    below, up_to = (
        jax.vmap(partial(jnp.searchsorted, side=side))(calibration, scores)
        for side in ("left", "right")
    )
    # Ranks times 2 (N + 1) are whole numbers: their sum is exact, in whatever order.
    ranks, whole = below + up_to + 1, 2 * (count + 1)
    if how == "mean":
        found = ranks.sum(axis=0) / (members * whole)
    elif how == "max":
        found = ranks.max(axis=0) / whole
    elif how == "min":
        found = ranks.min(axis=0) / whole
    else:
        found = -2.0 * jnp.log((whole - ranks) / whole).sum(axis=0)
    # A search puts NaN above all numbers.
    return jnp.where(jnp.isnan(scores).any(axis=0), jnp.nan, found)
