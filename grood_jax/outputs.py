"""What one forward pass of a classifier yields."""

from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True, order=True)
class Mix:
    """A request for copies of each sample, mixed at the cut with early class prototypes.

    Attributes:
      classes: how many of the sample's most likely other classes are mixed in, one copy each.
      weight: the weight λ on the sample; the prototype weighs 1 − λ.
      present: the classes to choose from; empty for all.
    """

    classes: int
    weight: float
    present: tuple[int, ...] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
    """Features and logits of a batch, and features of its mixed copies where asked for.

    Attributes:
      features: penultimate features ``h``, (B, D) float32.
      logits: class logits ``z``, (B, C) float32.
      mixed: for each ``Mix`` asked for, the features of the mixed copies, (B, K, D) float32.
    """

    features: Float[Array | np.ndarray, "b d"]
    logits: Float[Array | np.ndarray, "b c"]
    mixed: dict[Mix, Float[Array | np.ndarray, "b k d"]] = field(default_factory=dict)
