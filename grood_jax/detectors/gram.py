"""Gram: how far sums of Gram matrices leave the range seen in training."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax.backbone.outputs import Grams, Outputs
from grood_jax.detectors._probabilities import log_probabilities
from grood_jax.detectors.base import Detector, Training
from grood_jax.maths.prototypes import require_classes
from grood_jax.support import checks

HELD_OUT = 0.1
"""The share of each class's training samples by whose deviations layers are weighed."""

BLOCK = 1024
"""Samples whose deviations are computed together."""

LEAST = 1e-6
"""What is added to a bound before it is divided by; as published."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GramState:
    """A fitted Gram detector; one array of each layer.

    Attributes:
      low, high: the range of each class's training samples, (C, P, C_l) float32.
      weights: one over the mean deviation of held-out training samples, () float32.
    """

    low: tuple[Float[Array, "c p _"], ...]
    high: tuple[Float[Array, "c p _"], ...]
    weights: tuple[Float[Array, ""], ...]


def gram(*, powers: Sequence[int] = (1, 2, 3, 4, 5)) -> Detector:
    """Gram matrices; the score is ``Σ_l δ_l(x) / E[δ_l] / max softmax(z)``.

    ``δ_l`` sums, over powers and channels of layer l, how far the sample's `gram_sums` lie outside
    the range of the training samples of the predicted class, in units of the bound exceeded. ``E``
    is the mean over a tenth of each class's training samples, drawn at random; the ranges are
    those of the others. Classes of training samples are their labels: all this is as in OpenOOD
    since February 2024. That the tenth is at least one sample is ours. The paper takes predicted
    classes there too, and a separate validation set.

    Layers are those that the backbone gives (`Backbone.middle`): in the networks of this package
    one after each stage. OpenOOD takes every convolution and ReLU; the paper likewise.

    Args:
      powers: of the activations; 1 to 5 in OpenOOD, 1 to 10 in the paper.

    Returns:
      The detector; its scores are (B,) float32, not negative, higher for more OOD. It needs a
      backbone that has middle layers. Its ``fit`` raises ValueError where a class has fewer than
      two samples.

    Raises:
      TypeError: ``powers`` are no integers.
      ValueError: no powers, the same twice, or one below 1.

    References:
      Sastry and Oore, arXiv 1912.12510, section 3 and algorithms 1 to 3.
    """
    if isinstance(powers, str) or not isinstance(powers, Sequence) or not powers:
        raise TypeError(f"powers is {powers!r}; expected a list of integers")
    chosen = tuple(checks.at_least("powers", power, 1) for power in powers)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"powers is {list(chosen)}; expected each once")
    need = Grams(chosen)

    def fit(training: Training, key: Array) -> GramState:
        labels = np.asarray(training.labels)
        counts = np.bincount(labels, minlength=training.outputs.logits.shape[1])
        require_classes("second sample", counts // 2)
        kept, held_out = _split(labels, len(counts), key)
        low, high, weights = [], [], []
        for sums in training.outputs.extra[need]:
            # On the host, class by class: these arrays are the largest that there are.
            own, apart = (
                [np.asarray(sums[rows[labels[rows] == label]]) for label in range(len(counts))]
                for rows in (kept, held_out)
            )
            least, most = (np.stack([of(part, axis=0) for part in own]) for of in (np.min, np.max))
            mean = sum(map(_total_deviation, apart, least, most)) / len(held_out)
            low.append(checks.placed(least))
            high.append(checks.placed(most))
            weights.append(jnp.float32(1.0 / mean if mean > 0 else 1.0))
        return GramState(tuple(low), tuple(high), tuple(weights))

    def score(state: GramState, outputs: Outputs) -> Float[Array, " b"]:
        logits = jnp.asarray(outputs.logits)
        predicted = logits.argmax(axis=1)
        total = jnp.zeros(len(logits))
        layers = zip(outputs.extra[need], state.low, state.high, state.weights, strict=True)
        for sums, low, high, weight in layers:
            total = total + _deviation(jnp.asarray(sums), low, high, predicted) * weight
        return total / jnp.exp(log_probabilities(logits).max(axis=1))

    return Detector("gram", fit, score, {"powers": chosen}, needs=(need,), fit_needs=(need,))


def _split(
    labels: Int[np.ndarray, " n"], classes: int, key: Array
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " h"]]:
    """The samples that give ranges, and those held out, some of each class."""
    order = np.asarray(jax.random.permutation(key, len(labels)))
    held_out = []
    for label in range(classes):
        own = order[labels[order] == label]
        held_out.append(own[: max(1, int(HELD_OUT * len(own)))])
    out = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), out), out


def _total_deviation(
    sums: Float[np.ndarray, "b p n"], low: Float[np.ndarray, "p n"], high: Float[np.ndarray, "p n"]
) -> float:
    """`_deviation` of all samples of a class together, on the host."""
    own, least, most = (array.astype(np.float64) for array in (sums, low, high))
    below = np.maximum(least - own, 0) / np.abs(least + LEAST)
    above = np.maximum(own - most, 0) / np.abs(most + LEAST)
    return float((below + above).sum())


@jax.jit
def _deviation(
    sums: Float[Array, "b p n"],
    low: Float[Array, "c p n"],
    high: Float[Array, "c p n"],
    classes: Int[Array, " b"],
) -> Float[Array, " b"]:
    """How far sums lie outside the range of their class, in units of the bound exceeded."""

    def of_sample(sample: tuple[Float[Array, "p n"], Int[Array, ""]]) -> Float[Array, ""]:
        own, label = sample
        least, most = low[label], high[label]
        below = jax.nn.relu(least - own) / jnp.abs(least + LEAST)
        above = jax.nn.relu(own - most) / jnp.abs(most + LEAST)
        return (below + above).sum()

    # Some at a time: bounds gathered for each sample are as large as the sums.
    return jax.lax.map(of_sample, (sums, classes), batch_size=BLOCK)
