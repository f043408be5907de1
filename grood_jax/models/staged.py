"""A network as a row of named stages, at each of which it can be cut."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Stage = Callable[[Float[Array, "b h w c"]], Float[Array, "b h w c"]]


class Staged(nnx.Module):
    """Runs stages in order, averages over the image, and ends in a linear head.

    Subclasses set the modules that `stages` names, and `head`.

    Attributes:
      stages: names of the stages, in order; each is an attribute, and a place to cut.
      head: the class head.
    """

    stages: tuple[str, ...]
    head: nnx.Linear

    def early(
        self, images: Float[Array | np.ndarray, "b h w c"], cut: str
    ) -> Float[Array, "b _ _ _"]:
        """Activations after the stage ``cut``, (B, H, W, C).

        Raises:
          ValueError: there is no such stage.
        """
        hidden = jnp.asarray(images)
        for name in self.stages[: self._position(cut)]:
            hidden = getattr(self, name)(hidden)
        return hidden

    def activations(
        self, images: Float[Array | np.ndarray, "b h w c"]
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Activations after each stage, (B, H, W, C)."""
        found, hidden = [], jnp.asarray(images)
        for name in self.stages:
            hidden = getattr(self, name)(hidden)
            found.append(hidden)
        return tuple(found)

    def late(
        self, hidden: Float[Array | np.ndarray, "b h w c"], cut: str
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Penultimate features and logits from the activations after the stage ``cut``.

        Raises:
          ValueError: there is no such stage.
        """
        hidden = jnp.asarray(hidden)
        for name in self.stages[self._position(cut) :]:
            hidden = getattr(self, name)(hidden)
        features = hidden.mean(axis=(1, 2))
        return features, self.head(features)

    def __call__(self, images: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b k"]:
        """Logits of images."""
        return self.late(images, "input")[1]

    def _position(self, cut: str) -> int:
        if cut == "input":
            return 0
        if cut not in self.stages:
            raise ValueError(f"cut is {cut!r}; expected one of {', '.join(self.stages)}")
        return self.stages.index(cut) + 1
