"""What the service asks of a model."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from grood_jax.data import Preprocessing


@runtime_checkable
class Predicted(Protocol):
    """What a model says of images."""

    @property
    def label(self) -> Int32[np.ndarray, " b"]:
        """The most probable class."""

    @property
    def score(self) -> Float32[np.ndarray, " b"]:
        """Higher for more OOD."""

    @property
    def is_ood(self) -> Bool[np.ndarray, " b"]:
        """Whether the score is above the threshold."""

    @property
    def p_value(self) -> Float32[np.ndarray, " b"]:
        """Of the score among those of the calibration set."""


@runtime_checkable
class Servable(Protocol):
    """A classifier with a calibrated detector; its methods are called from one thread."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Size and channels of the images taken."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class."""

    def predict(self, pixels: UInt8[np.ndarray, "b h w c"]) -> Predicted:
        """Classes, scores and verdicts."""

    def predict_and_nearest(
        self, pixels: UInt8[np.ndarray, "b h w c"], k: int
    ) -> tuple[Predicted, Int32[np.ndarray, "b n"], Float32[np.ndarray, "b n"]]:
        """What `predict` says, and classes and distances of the nearest training samples.

        There are k of them, nearest first, or fewer where there are fewer training samples.
        """

    def calibration_scores(self) -> Float32[np.ndarray, " n"]:
        """Scores of the calibration set, ascending."""

    def thresholds(self) -> Float32[np.ndarray, "*c"]:
        """One for all, shape (), or one for each predicted class; may be infinite."""
