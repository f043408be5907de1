"""Training of classifiers, with a checkpoint after each epoch."""

from typing import TYPE_CHECKING, Any

from grood_jax.training.options import TrainOptions, recipe

if TYPE_CHECKING:
    from grood_jax.training.loop import train

__all__ = ["TrainOptions", "recipe", "train"]


def __getattr__(name: str) -> Any:
    """Loads what needs Flax and optax when it is first asked for."""
    if name == "train":
        from grood_jax.training.loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
