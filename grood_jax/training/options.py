"""How a classifier is trained; needs no JAX."""

import math
from dataclasses import dataclass
from typing import Literal

from grood_jax.support import checks

Schedule = Literal["cosine", "one-cycle"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a classifier is trained, by stochastic gradient descent with Nesterov momentum.

    Attributes:
      epochs: passes over the training set.
      batch_size: images in each step; the last, smaller batch of an epoch is left out.
      learning_rate: the highest learning rate.
      schedule: its course: "cosine" from the highest down to 0, or "one-cycle" up to the highest
        in the first quarter and down again.
      momentum: of the descent.
      weight_decay: L2 penalty on all weights but biases and batch-norm scales.
      label_smoothing: share of the target spread over all classes.
      crop_padding: pixels of reflected border that random crops may reach into; 0 for no crops.
      flip: mirror half of the images.
      seed: of the weights, the order of the data and the augmentation.
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    crop_padding: int = 4
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        checks.at_least("epochs", self.epochs, 1)
        checks.at_least("batch_size", self.batch_size, 1)
        checks.at_least("crop_padding", self.crop_padding, 0)
        checks.seed("seed", self.seed)
        checks.fraction("label_smoothing", self.label_smoothing)
        checks.fraction("momentum", self.momentum)
        checks.choice("schedule", self.schedule, ("cosine", "one-cycle"))
        for name in ("learning_rate", "weight_decay"):
            value = checks.real(name, getattr(self, name))
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; expected a number of at least 0")


_RECIPES = {
    "digits": TrainOptions(
        epochs=20, batch_size=64, schedule="one-cycle", crop_padding=1, flip=False
    ),
    "fashion_mnist": TrainOptions(
        epochs=6,
        batch_size=32,
        schedule="one-cycle",
        weight_decay=1e-4,
        crop_padding=0,
        flip=False,
    ),
}


def recipe(dataset: str) -> TrainOptions:
    """The options that a benchmark's networks are trained with unless told otherwise.

    Those of CIFAR are OpenOOD v1.5's (configs/pipelines/train/baseline.yml).
    """
    return _RECIPES.get(dataset, TrainOptions())
