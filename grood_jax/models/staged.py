"""A network as a row of named stages, at each of which it can be cut."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class Staged(nnx.Module):
    """Runs stages in order, pools over the image, and ends in a linear head.

    Subclasses set the modules that `stages` names, and `head`. Between stages there are images of
    activations, (B, H, W, C), or tokens, (B, T, C): channels are last.

    Attributes:
      stages: names of the stages, in order; each is an attribute, and a place to cut.
      head: the class head.
    """

    stages: tuple[str, ...]
    head: nnx.Linear

    def early(
        self, images: Float[Array | np.ndarray, "b h w c"], cut: str
    ) -> Float[Array, "b *places _"]:
        """Activations after the stage ``cut``, (B, H, W, C) or (B, T, C).

        Raises:
          ValueError: there is no such stage.
        """
        hidden = jnp.asarray(images)
        for name in self.stages[: self._position(cut)]:
            hidden = getattr(self, name)(hidden)
        return hidden

    def activations(
        self, images: Float[Array | np.ndarray, "b h w c"]
    ) -> tuple[Float[Array, "b ... _"], ...]:
        """Activations after each stage, (B, H, W, C) or (B, T, C)."""
        after_stages, hidden = [], jnp.asarray(images)
        for name in self.stages:
            hidden = getattr(self, name)(hidden)
            after_stages.append(hidden)
        return tuple(after_stages)

    def late(
        self, hidden: Float[Array | np.ndarray, "b *places c"], cut: str
    ) -> tuple[Float[Array, "b d"], Float[Array, "b k"]]:
        """Penultimate features and logits from the activations after the stage ``cut``.

        Raises:
          ValueError: there is no such stage.
        """
        reached = jnp.asarray(hidden)
        for name in self.stages[self._position(cut) :]:
            reached = getattr(self, name)(reached)
        features = self.pool(reached)
        return features, self.head(features)

    def pool(self, hidden: Float[Array, "b *places c"]) -> Float[Array, "b c"]:
        """Penultimate features from the activations after the last stage: their mean."""
        return hidden.mean(axis=tuple(range(1, hidden.ndim - 1)))

    def __call__(self, images: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b k"]:
        """Logits of images."""
        return self.late(images, "input")[1]

    def _position(self, cut: str) -> int:
        if cut == "input":
            return 0
        if cut not in self.stages:
            raise ValueError(f"cut is {cut!r}; expected one of {', '.join(self.stages)}")
        return self.stages.index(cut) + 1
