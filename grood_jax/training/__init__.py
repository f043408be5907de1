"""Training of classifiers, with a checkpoint after each epoch."""

from grood_jax.training.loop import TrainOptions, recipe, train

__all__ = ["TrainOptions", "recipe", "train"]
