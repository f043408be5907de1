"""What one forward pass of a classifier yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float


class _Request:
    """Keys of a pytree's dictionary must have an order."""

    def __lt__(self, other: object) -> bool:
        return repr(self) < repr(other)


@dataclass(frozen=True)
class Mix(_Request):
    """A request for copies of each sample, mixed at the cut with early class prototypes.

    Yields the features of the copies, (B, K, D) float32.

    Attributes:
      classes: how many of the sample's most likely other classes are mixed in, one copy each.
      weight: the weight λ on the sample; the prototype weighs 1 − λ.
      present: the classes to choose from; empty for all.
    """

    classes: int
    weight: float
    present: tuple[int, ...] = ()


@dataclass(frozen=True)
class Perturbed(_Request):
    """A request for the logits of each image moved towards its predicted class.

    Yields (B, C) float32; see `grood_jax.maths.perturbation`.

    Attributes:
      temperature: what the logits are divided by in the loss that is descended.
      noise: how far each pixel is moved, in units of images from 0 to 1.
    """

    temperature: float
    noise: float


@dataclass(frozen=True)
class PerturbedMost(Perturbed):
    """As `Perturbed`, but only the numbers of an image that matter most are moved.

    Attributes:
      numbers: how many, each one channel at one place.
    """

    numbers: int


@dataclass(frozen=True)
class Grams(_Request):
    """A request for sums of the rows of Gram matrices of each sample's middle activations.

    Yields one array (B, P, C_l) float32 of each layer l; see `grood_jax.maths.grams`.

    Attributes:
      powers: the P powers to which activations are raised.
    """

    powers: tuple[int, ...]


@dataclass(frozen=True)
class LayerMeans(_Request):
    """A request for the means over all places of each sample's middle activations.

    Yields one array (B, C_l) float32 of each layer l.
    """


@dataclass(frozen=True)
class LayerExtremes(_Request):
    """A request for the largest and the least number among each sample's middle activations.

    Yields one array (B, 2) float32 of each layer, over all its places and channels.
    """


@dataclass(frozen=True)
class Nudged(_Request):
    """A request for the features of each image moved where it matters least to its class.

    Yields (B, D) float32; see `grood_jax.maths.perturbation`.

    Attributes:
      share: of an image's numbers that are moved.
      step: how far, in units of the normalised images that the model takes.
    """

    share: float
    step: float


@dataclass(frozen=True)
class Deflated(_Request):
    """A request for what comes of activations without their largest singular component.

    Yields features (B, D) float32, the means over all places of the last middle layer, or logits
    (B, C) float32, of the activations at the cut; see `grood_jax.maths.deflation`.

    Attributes:
      where: which activations are altered.
    """

    where: Literal["last", "cut"]


@dataclass(frozen=True)
class LocalConcepts(_Request):
    """A request for how unlike all concepts the place is that is most like one of them.

    Yields (B,) float32 of the features of an image's places (`Backbone.local_features`) and the
    class head's weights; see `grood_jax.maths.concepts`.

    Attributes:
      temperature: what the cosines are divided by.
    """

    temperature: float


Need = Mix | Perturbed | Grams | LayerMeans | LayerExtremes | Nudged | Deflated | LocalConcepts
"""What a forward pass can be asked for beside features and logits."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """Features and logits of a batch, and what else was asked for.

    Attributes:
      features: penultimate features ``h``, (B, D) float32.
      logits: class logits ``z``, (B, C) float32.
      extra: for each `Need` asked for, what it yields.
    """

    features: Float[Array | np.ndarray, "b d"]
    logits: Float[Array | np.ndarray, "b c"]
    extra: dict[Need, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name; `from_arrays` is the inverse."""
        by_name = {"features": np.asarray(self.features), "logits": np.asarray(self.logits)}
        for need, value in self.extra.items():
            if isinstance(value, tuple):
                by_name |= {f"{need} {i}": np.asarray(part) for i, part in enumerate(value)}
            else:
                by_name[str(need)] = np.asarray(value)
        return by_name

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], needs: tuple[Need, ...] = ()
    ) -> "Outputs":
        """Outputs of arrays by name, with the extra that is named."""
        extra: dict[Need, Any] = {}
        for need in needs:
            if str(need) in arrays:
                extra[need] = arrays[str(need)]
            else:
                count = sum(name.startswith(f"{need} ") for name in arrays)
                extra[need] = tuple(arrays[f"{need} {i}"] for i in range(count))
        return cls(arrays["features"], arrays["logits"], extra)
