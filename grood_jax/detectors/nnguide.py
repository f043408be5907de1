"""NNGuide: energy, guided by the nearest training features (arXiv 2309.14888)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs
from grood_jax.detectors._statistics import (
    in_blocks,
    product,
    rows_of_bank,
    training_features,
    unit_rows,
)
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

BANK_ROWS = 4096
"""Rows of the bank that samples are compared with at once."""

LEAST_RATIO = 0.01
"""The share of the training samples in the bank, if nothing else is asked for."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NNGuideState:
    """A fitted NNGuide.

    Attributes:
      bank: unit training features times their energies, in blocks, the last one padded with
        zeros, (G, R, D) float32.
      size: how many rows there are without the padding, () int32.
    """

    bank: Float[Array, "g r d"]
    size: Array


def nnguide(*, k: int = 100, sampling_ratio: float | None = None) -> Detector:
    """Nearest-neighbour guidance; the score is ``−E(x) · mean_{i ≤ k} E(x_i) cos(h, h_i)``.

    ``E`` is the logsumexp of the logits, and the mean runs over the k training samples of the bank
    with the largest products ``E(x_i) cos(h, h_i)``. Zero features have product 0 with all. The
    paper and OpenOOD v1.5 have the negative of this. OpenOOD's bank is the first batches of its
    training loader, this one's a random share.

    Args:
      k: how many neighbours are averaged; OpenOOD's default. The authors' code has 10 where
        nothing is said.
      sampling_ratio: the share of the training samples in the bank, drawn at random. By default
        0.01, OpenOOD's default and one of the paper's settings, but at least 10·k rows if there are
        so many: of small training sets it would leave fewer than k.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. Its ``fit`` raises ValueError
      where the bank has fewer than k rows.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option of the wrong type.

    References:
      Park, Jung and Teoh, arXiv 2309.14888, section 3.
    """
    checks.at_least("k", k, 1)
    if sampling_ratio is not None:
        checks.fraction("sampling_ratio", sampling_ratio, zero=False)

    def fit(training: Training, key: Array) -> NNGuideState:
        features = training_features(training, None)
        ratio = sampling_ratio
        if ratio is None:
            ratio = min(1.0, max(LEAST_RATIO, 10 * k / len(features)))
        chosen = rows_of_bank(key, len(features), ratio, k)
        logits = jnp.asarray(training.outputs.logits)
        bank = _bank(checks.rows(features, chosen), checks.rows(logits, chosen), BANK_ROWS)
        return NNGuideState(bank, jnp.int32(len(chosen)))

    def score(state: NNGuideState, outputs: Outputs) -> Float[Array, " b"]:
        queries = unit_rows(jnp.asarray(outputs.features))
        length = state.bank.shape[1]

        def merge(
            best: Float[Array, "b k"], block: tuple[Array, Array]
        ) -> tuple[Float[Array, "b k"], None]:
            number, rows = block
            real = number * length + jnp.arange(length) < state.size
            products = jnp.where(real[None, :], product(queries, rows.T), -jnp.inf)
            # Fused with what surrounds it, XLA for CPU sorts all the values.
            values = lax.optimization_barrier(jnp.concatenate([best, products], axis=1))
            return lax.top_k(values, k)[0], None

        start = jnp.full((len(queries), k), -jnp.inf, jnp.float32)
        best, _ = lax.scan(merge, start, (jnp.arange(len(state.bank)), state.bank))
        energy = jax.nn.logsumexp(jnp.asarray(outputs.logits), axis=1)
        return -energy * best.mean(axis=1)

    return Detector("nnguide", fit, score, {"k": k, "sampling_ratio": sampling_ratio})


@partial(jax.jit, static_argnames="most")
def _bank(
    features: Float[Array, "m d"], logits: Float[Array, "m c"], most: int
) -> Float[Array, "g r d"]:
    """Unit features times their energies, in blocks of so many at most, padded with zeros."""
    return in_blocks(unit_rows(features) * jax.nn.logsumexp(logits, axis=1)[:, None], most)
