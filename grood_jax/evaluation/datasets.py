"""Images and a network to try things on: they come with the packages, and nothing is downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from grood_jax import benchmarks
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet
from grood_jax.storage import included

CALIBRATION = 2
"""Every so many of the digits that the network has not seen are for calibration."""


class Labelled(NamedTuple):
    """Images with their classes.

    Attributes:
      images: (N, H, W, C) bytes.
      labels: (N,).
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]


@dataclass(frozen=True, repr=False)
class Dataset:
    """A classification task, a network that has learnt it, and images of other things.

    Attributes:
      model: the network, a flax.nnx module.
      train: what it was trained on.
      calibration: images of the same classes that it has not seen, to set thresholds with.
      test: others that it has not seen.
      ood: images of no class, by name, in two groups: ``near`` and ``far``.
      preprocessing: how bytes are brought to the network.
    """

    model: Any
    train: Labelled
    calibration: Labelled
    test: Labelled
    ood: Mapping[str, Mapping[str, UInt8[np.ndarray, "n h w c"]]]
    preprocessing: Preprocessing

    def __repr__(self) -> str:
        """One line: how many images of what."""
        sizes = [f"{len(getattr(self, n).labels)} {n}" for n in ("train", "calibration", "test")]
        sizes += [f"{len(images)} {n}" for own in self.ood.values() for n, images in own.items()]
        return f"Dataset({type(self.model).__name__}; images: {', '.join(sizes)})"


def digits() -> Dataset:
    """The digits 0 to 7 of scikit-learn, a small network, and other pictures of 8×8 pixels.

    Those on which ``python -m grood_jax.eval`` evaluates; of its test images every other one is
    kept for calibration here.

    Raises:
      UserError: the network's files are damaged.
    """
    loaded = included.digits()
    opened = benchmarks.open_benchmark(benchmarks.get("digits"))
    unseen = _all(opened.test)
    apart = np.arange(len(unseen.labels)) % CALIBRATION == 0
    groups: dict[str, dict[str, np.ndarray]] = {"near": {}, "far": {}}
    for name, (group, images) in opened.ood.items():
        groups[group][name] = _all(images).images
    return Dataset(
        loaded.model,
        _all(opened.train),
        Labelled(unseen.images[apart], unseen.labels[apart]),
        Labelled(unseen.images[~apart], unseen.labels[~apart]),
        groups,
        loaded.spec.preprocessing,
    )


def _all(images: ImageSet) -> Labelled:
    return Labelled(*images.read(np.arange(len(images))))
