"""A toy model, and a process that serves it: python fake_server.py [SECONDS TIMEOUT]."""

import sys
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax.cli import command, serve
from grood_jax.data import Preprocessing
from grood_jax.deploying.serving.limits import Limits

SIZE, CLASSES = 8, 10
NAMES = ("black", "coal", "slate", "iron", "lead", "ash", "silver", "pearl", "snow", "white")


@dataclass(frozen=True)
class FakePrediction:
    label: np.ndarray
    score: np.ndarray
    is_ood: np.ndarray
    p_value: np.ndarray


@jax.jit
def _forward(pixels):
    """Class by brightness; the score is the deviation of the values within the image."""
    values = pixels.reshape(len(pixels), -1).astype(jnp.float32) / 255
    return (values.mean(1) * 9.99).astype(jnp.int32), values.std(1)


class FakeModel:
    """Evenly coloured images are in distribution, noisy ones are not."""

    preprocessing = Preprocessing(SIZE, 3, (0.5,) * 3, (0.25,) * 3)
    class_names = NAMES

    def __init__(self, seconds=0.0, threshold=0.2):
        self.seconds = seconds
        self.threshold = threshold
        self.shapes = []
        self.scores = np.sort(np.random.default_rng(0).gamma(2, 0.03, 500).astype(np.float32))

    def predict(self, pixels):
        self.shapes.append(pixels.shape)
        time.sleep(self.seconds)
        label, score = map(np.asarray, _forward(pixels))
        above = len(self.scores) - np.searchsorted(self.scores, score)
        p_value = np.float32((1 + above) / (1 + len(self.scores)))
        return FakePrediction(label, score, score > np.float32(self.threshold), p_value)

    def predict_and_nearest(self, pixels, k):
        prediction = self.predict(pixels)
        classes = (prediction.label[:, None] + np.arange(k, dtype=np.int32) // 3) % CLASSES
        return prediction, classes, np.tile(np.arange(k, dtype=np.float32) / 4, (len(pixels), 1))

    def calibration_scores(self):
        return self.scores

    def thresholds(self):
        return np.float32(self.threshold).reshape(())


if __name__ == "__main__":
    seconds, timeout = [float(word) for word in sys.argv[1:]] or (0.0, 20.0)
    limits = Limits(max_batch=8, timeout=timeout, body_timeout=1.0)
    model = FakeModel(seconds)
    sys.exit(command.status(lambda: serve.serve(lambda: model, "127.0.0.1", 0, limits)))
