"""Watching a stream of conformal p-values for drift, with a bounded risk of false alarm.

A bettor starts with 1 and bets, sample by sample, that p-values will be small. If nothing drifts,
the game is fair at best, and the fortune ever reaches ``1/a`` with probability at most ``a``,
however long the stream (Ville's inequality). So it may be watched all the time, and where it gets
there is an alarm.

P-values that share one calibration set are not independent: they all err the way that the n
held-out scores happen to err. A fortune staked on them directly may grow without drift, in streams
longer than n. Bets are therefore placed on another p-value, one whose reference grows. A p-value
``j/(n + 1)`` tells between which held-out scores a sample lies, which is enough to compare it with
earlier samples of the stream too:

  ``q_t = (j_t + #{i < t: j_i <= j_t}) / (n + t)``

The count includes all samples that have a score at least that of the t-th, so that q_t is at least
the online conformal p-value smoothed at random, whatever the ties; and these are independent and
uniform if the held-out and the stream's samples are exchangeable. A bet that does not increase in
q thus wins no more on q_t than on a uniform number, and the bound holds exactly: over the draw of
the calibration set and the stream together, at any n.

A bet multiplies its stake by ``e q^(e - 1)`` with e in (0, 1): never increasing, of mean 1 over
uniform q. One is started at each time s for each e of `BETS`, with a stake ``w_s`` over their
number, and goes on for ever; what is not yet staked is set aside:

  ``M_t = (t + 1)^-1/2 + sum_{s <= t} w_s mean_e prod_{s <= r <= t} e q_r^(e - 1)``

with ``w_s = s^-1/2 - (s + 1)^-1/2``. So a change at any time meets fresh stakes: an abrupt one
those of small e, a slight or slow one those with e near 1. What is seen is drift to higher scores,
that is to OOD; lower scores are no drift here. As earlier samples join the reference, a drift too
slight to be noticed in about n + t samples becomes normal.

References:
  Vovk, Nouretdinov and Gammerman, Testing exchangeability on-line, ICML 2003, for conformal test
  martingales and power bets; Ville 1939; Herbster and Warmuth, Tracking the best expert, 1998, for
  stakes spread over the times of change; Shaer et al., arXiv 2602.13848, for what a growing
  reference costs and another way to keep the bound, a confidence band around a fixed one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from grood_jax.support import checks
from grood_jax.support import manifest as manifests
from grood_jax.support.structures import Arrays

BETS = (1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16)
"""The exponents e."""

LARGEST = 2**20
"""Held-out scores at most: float32 p-values must tell their places apart."""

BLOCK = 128
"""Samples of the stream that are compared with each other at once."""

KIND = "drift monitor"
HOW_TO_MAKE = "make one with DriftMonitor.save"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DriftState:
    """What the stream has left behind, in NumPy: sums of logarithms need float64.

    Attributes:
      counts: samples of the stream by j - 1, (n + 1,) int64.
      log_products: for each e, the logarithm of the product of all its factors, (E,) float64.
      log_stakes: for each e, the logarithm of the sum of stakes, that of the next sample included,
        each divided by the product before it, (E,) float64.
    """

    counts: Int[np.ndarray, " cells"]
    log_products: Float[np.ndarray, " e"]
    log_stakes: Float[np.ndarray, " e"]


def init(calibration_size: int) -> DriftState:
    """The state before the first sample.

    Args:
      calibration_size: n, how many held-out scores p-values are ranks among; from 1 to `LARGEST`.

    Raises:
      TypeError: it is no integer.
      ValueError: it is out of range.
    """
    size = checks.at_least("calibration_size", calibration_size, 1, LARGEST)
    stakes = np.full(len(BETS), _log_stake(np.ones(1))[0])
    return DriftState(np.zeros(size + 1, np.int64), np.zeros(len(BETS)), stakes)


def update(
    state: DriftState, p_values: npt.ArrayLike
) -> tuple[DriftState, Float[np.ndarray, " b"]]:
    """Takes in p-values in the order of the stream.

    However they are divided over calls, the results are the same to the bit.

    Args:
      state: what the stream has left behind so far; it is not changed.
      p_values: (B,), of `grood_jax.conformal.calibration.conformal_p_values` with n held-out
        scores.

    Returns:
      The new state, and log M after each sample, (B,) float64.

    Raises:
      TypeError: p-values that are no real numbers.
      ValueError: they have another shape than (B,), or one is no ``j/(n + 1)`` with j from 1 to
        n + 1, as are 0 and NaN.
    """
    places = _places(p_values, len(state.counts))
    counts = state.counts.copy()
    before = int(counts.sum())
    ranks = np.empty(len(places), np.int64)
    for start in range(0, len(places), BLOCK):
        block = places[start : start + BLOCK]
        earlier = np.tril(block[None, :] <= block[:, None], -1).sum(axis=1)
        ranks[start : start + BLOCK] = block + 1 + np.cumsum(counts)[block] + earlier
        np.add.at(counts, block, 1)
    times = np.arange(before + 1, before + len(places) + 1)
    online = ranks / (len(counts) - 1 + times)

    exponents = np.array(BETS)
    factors = np.log(exponents) + (exponents - 1) * np.log(online)[:, None]
    # Accumulation goes from left to right: it does not matter where a call starts.
    products = np.add.accumulate(np.vstack([state.log_products, factors]))
    stakes = _log_stake(times + 1)[:, None] - products[1:]
    stakes = np.logaddexp.accumulate(np.vstack([state.log_stakes, stakes]))
    fortunes = _log_fortune(times, products[1:], stakes[1:])
    return DriftState(counts, products[-1], stakes[-1]), fortunes


@dataclass(frozen=True)
class DriftMonitor:
    """A watch over one stream: the alarm goes off falsely with at most a given probability.

    That is the probability of any false alarm, in a stream of any length, if its samples are
    exchangeable with the held-out ones (samples drawn independently are; the frames of a video are
    not). It is over the draw of both: one calibration set may be luckier than another. All
    p-values must be of the same calibration. With classes, keep a monitor for each, with its own
    n and its share of the rate.

    Monitors do not change: `update` returns another.

    Attributes:
      state: what the stream has left behind.
      false_alarm_rate: the bound a on the probability of a false alarm.
      alarm_at: the index, from 0, of the sample at which M first was at least 1/a, or None. It
        stays.
    """

    state: DriftState
    false_alarm_rate: float
    alarm_at: int | None = None

    @classmethod
    def start(cls, calibration_size: int, false_alarm_rate: float = 0.05) -> "DriftMonitor":
        """A watch that has seen nothing.

        Args:
          calibration_size: n, how many held-out scores p-values are ranks among.
          false_alarm_rate: in (0, 1).

        Raises:
          TypeError: what is no number.
          ValueError: a number out of range.
        """
        rate = checks.fraction("false_alarm_rate", false_alarm_rate)
        if rate in (0, 1):
            raise ValueError(f"false_alarm_rate is {rate}; expected a number in (0, 1)")
        return cls(init(calibration_size), rate)

    def update(self, p_values: npt.ArrayLike) -> "DriftMonitor":
        """The monitor after more samples of the stream; see `grood_jax.conformal.drift.update`."""
        state, fortunes = update(self.state, p_values)
        alarm_at = self.alarm_at
        high = np.flatnonzero(fortunes >= -math.log(self.false_alarm_rate))
        if alarm_at is None and len(high):
            alarm_at = self.seen + int(high[0])
        return DriftMonitor(state, self.false_alarm_rate, alarm_at)

    @property
    def alarm(self) -> bool:
        """Whether there has been an alarm."""
        return self.alarm_at is not None

    @property
    def seen(self) -> int:
        """How many samples the stream has had."""
        return int(self.state.counts.sum())

    @property
    def log_martingale(self) -> float:
        """Log M now."""
        times = np.array([self.seen])
        return float(
            _log_fortune(times, self.state.log_products[None], self.state.log_stakes[None])[0]
        )

    def save(self, path: str | Path) -> None:
        """Writes the monitor as JSON; a file that is there is replaced by a whole one or stays.

        Raises:
          TypeError: ``path`` is none.
          UserError: it cannot be written.
        """
        state = {field.name: getattr(self.state, field.name) for field in fields(DriftState)}
        about = {"false_alarm_rate": self.false_alarm_rate, "alarm_at": self.alarm_at}
        manifests.write_file(checks.path("path", path), KIND, about, state)

    @classmethod
    def load(cls, path: str | Path) -> "DriftMonitor":
        """Reads a monitor; it goes on as the one that was saved would, to the bit.

        Raises:
          TypeError: ``path`` is none.
          UserError: there is no such file, it is damaged or no monitor's, or its format is newer.
        """
        place = str(path)
        contents = manifests.read_file(checks.path("path", path), KIND, HOW_TO_MAKE)
        earlier = contents["format"] < manifests.FORMAT
        about, state = (_earlier if earlier else _today)(contents, place)
        with manifests.described(KIND, place):
            return cls._checked(DriftState(**state), about["false_alarm_rate"], about["alarm_at"])

    @classmethod
    def _checked(cls, state: DriftState, rate: Any, alarm_at: Any) -> "DriftMonitor":
        """A monitor as it could have become; raises ValueError or TypeError of any other."""
        made = cls.start(len(state.counts) - 1, rate)
        counts = state.counts
        if counts.dtype != np.int64 or (counts < 0).any() or counts.sum(dtype=float) > 2**53:
            raise ValueError("counts are no numbers of samples")
        for name in ("log_products", "log_stakes"):
            part = getattr(state, name)
            if part.shape != (len(BETS),) or not np.isfinite(part).all():
                raise ValueError(f"{name} has shape {part.shape} or is not finite")
        monitor = cls(state, made.false_alarm_rate, alarm_at)
        if alarm_at is not None:
            checks.at_least("alarm_at", alarm_at, 0, monitor.seen - 1)
        return monitor


def _today(contents: dict[str, Any], place: str) -> tuple[Mapping[str, Any], Arrays]:
    manifest, arrays = manifests.values_of(contents, KIND, place)
    return manifest.about, arrays


def _earlier(contents: dict[str, Any], place: str) -> tuple[Mapping[str, Any], Arrays]:
    """As 0.1.0 wrote it."""
    with manifests.described(KIND, place):
        if contents.get("checksum") != manifests.checksum_of(contents):
            raise manifests.damaged(KIND, place, "its checksum is another")
        state = {
            "counts": np.array(contents["counts"], np.int64),
            "log_products": np.array(contents["log_products"], np.float64),
            "log_stakes": np.array(contents["log_stakes"], np.float64),
        }
        return contents, state


def _places(p_values: npt.ArrayLike, cells: int) -> Int[np.ndarray, " b"]:
    """The j - 1 of each p-value."""
    values = np.asarray(checks.shaped("p_values", p_values, ("B",)), np.float64)
    # NaN is not in range.
    scaled = np.where((values > 0) & (values <= 1), values, 0.0) * cells
    places = np.rint(scaled)
    # Float32 division may be off by its last digits.
    fits = (places >= 1) & (np.abs(scaled - places) <= 2.0**-22 * cells)
    if not fits.all():
        index = int(np.flatnonzero(~fits)[0])
        raise ValueError(
            f"p_values holds {values[index]} at index {index}; expected conformal p-values, "
            f"multiples of 1/(n + 1) in (0, 1] with the calibration_size n of {cells - 1}"
        )
    return places.astype(np.int64) - 1


def _log_stake(times: npt.NDArray[Any]) -> Float[np.ndarray, " b"]:
    """Of each bet started at times from 1: their sum over all times is 1."""
    one, other = np.sqrt(times), np.sqrt(times + 1)
    # 1/one - 1/other without cancellation.
    return -np.log(one * other * (one + other) * len(BETS))


def _log_fortune(
    times: Int[np.ndarray, " b"], log_products: Float[np.ndarray, "b e"], log_stakes: Any
) -> Float[np.ndarray, " b"]:
    """Log M: what has been set aside and not been staked for the next sample, and the bets."""
    aside = -0.5 * np.log(times + 2)
    return np.logaddexp.reduce(
        np.concatenate([aside[:, None], log_products + log_stakes], axis=1), axis=1
    )
