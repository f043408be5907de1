"""CF-OOD: how far a sample lies in the neighbourhoods of training features, by rank."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import (
    product,
    rows_of_bank,
    single,
    training_features,
    unit_rows,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

DISTANCES = 2**24
"""Distances between references that fitting holds at once."""

GRID = {"share": (0.001, 0.005, 0.01, 0.05)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CfoodState:
    """A fitted CF-OOD.

    Attributes:
      references: unit training features, (n, D) float32.
      radii: squared distances of each from its neighbours at K ranks, ascending, (n, K) float32.
      fractions: the ranks as fractions of n, and 1 for none of them, (K + 1,) float32.
    """

    references: Float[Array, "n d"]
    radii: Float[Array, "n k"]
    fractions: Float[Array, " k1"]


def cfood(*, sampling_ratio: float = 0.1, share: float = 0.01) -> Detector:
    """Concentration-free detection; the score is the least κ at which enough references know h.

    A reference, a unit training feature, knows ``h/‖h‖`` at κ if it lies no farther than the
    reference's ``κ n``-th neighbour among the n references. The score is the smallest of at most
    230 fractions κ at which a share of the references does, and 1 where none is: ranks do not
    depend on how distances concentrate in many dimensions. This is the authors' code in OpenOOD,
    which has the negative. Scores have few values, and so ties.

    Args:
      sampling_ratio: the share of the training samples taken as references, drawn at random
        (OpenOOD's ``alpha``). Fitting compares all pairs of them: with all of 50,000 it takes
        minutes, for which ``grid`` leaves OpenOOD's 0.5 and 1 out.
      share: the share of references that must know a sample (OpenOOD's ``k``).

    Returns:
      The detector; its scores are (B,) float32 in (0, 1], higher for more OOD. Its ``fit`` raises
      ValueError where fewer than two references are drawn.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: an option outside its range.

    References:
      Angiulli, Fassetti and Zupi, CF-OOD: Concentration-Free Density Estimation for Reliable
      Out-of-Distribution Detection, SISAP 2025, as in OpenOOD's ``cfood``. OpenOOD's leaderboard
      has no figures of it.
    """
    checks.fraction("sampling_ratio", sampling_ratio, zero=False)
    checks.fraction("share", share, zero=False)

    def fit(training: Training, key: Array) -> CfoodState:
        features = training_features(training, None)
        rows = rows_of_bank(key, len(features), sampling_ratio, 1)
        if len(rows) < 2:
            raise ValueError(
                f"sampling_ratio is {sampling_ratio}; expected a share that leaves at least 2 of "
                f"{len(features)} training samples"
            )
        return _state(unit_rows(checks.rows(features, rows)))

    def score(state: CfoodState, outputs: Outputs) -> Float[Array, " b"]:
        units = unit_rows(jnp.asarray(outputs.features))
        apart = _squared_distances(units, state.references)
        # Less a rounding: a share of n that is a whole number is that number.
        enough = max(1, math.ceil(share * len(state.references) - 1e-6))
        return state.fractions[_least_rank(state.radii.T, apart, enough)]

    options = {"sampling_ratio": sampling_ratio, "share": share}
    return Detector("cfood", fit, score, options, grid=GRID, fit_key=sampling_ratio, logits=False)


def _state(references: Float[Array, "n d"]) -> CfoodState:
    count = len(references)
    fractions, ranks = _ranks(count)
    rows = max(1, DISTANCES // count)
    radii = [
        _radii(references, slice(start, start + rows), ranks) for start in range(0, count, rows)
    ]
    ends = single(np.append(fractions, 1.0))
    return CfoodState(references, checks.placed(np.concatenate(radii)), ends)


def _ranks(count: int) -> tuple[Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """OpenOOD's fractions of the neighbours, finer where they are few, and their ranks from 0.

    Fractions that fall on the rank of the one before are left out.
    """
    fractions = np.concatenate(
        [np.linspace(0.001, 0.1, 100), np.linspace(0.105, 0.5, 81), np.linspace(0.51, 0.99, 49)]
    )
    ranks = np.trunc(fractions * count - 1).astype(np.int32)
    kept = np.append(True, ranks[1:] > ranks[:-1])
    return fractions[kept], ranks[kept]


@jax.jit
def _squared_distances(a: Float[Array, "b d"], b: Float[Array, "n d"]) -> Float[Array, "b n"]:
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None, :]
    return jnp.maximum(squares - 2 * product(a, b.T), 0.0)


def _radii(
    references: Float[Array, "n d"], rows: slice, ranks: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "r k"]:
    """The squared distances of some references from their neighbours of some ranks."""
    apart = np.array(_squared_distances(np.asarray(references)[rows], references))
    # Itself comes first, and is no neighbour.
    apart[np.arange(len(apart)), np.arange(len(references))[rows]] = -1.0
    # NumPy's sort is ten times as fast as XLA's on a CPU.
    apart.sort(axis=1)
    return apart[:, 1:][:, ranks]


def _least_rank(
    radii: Float[Array, "k n"], apart: Float[Array, "b n"], enough: int
) -> Int[Array, " b"]:
    """The first of the K ranks at which enough references know each sample, K for none.

    As radii ascend, so do the references that know it: half of what is left is ruled out at a time.
    """
    ranks = len(radii)

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        known = jnp.sum(radii[jnp.minimum(middle, ranks - 1)] >= apart, axis=1) >= enough
        known |= low >= high
        return jnp.where(known, low, middle + 1), jnp.where(known, middle, high)

    ends = jnp.zeros(len(apart), jnp.int32), jnp.full(len(apart), ranks, jnp.int32)
    return lax.fori_loop(0, ranks.bit_length(), halved, ends)[1]
