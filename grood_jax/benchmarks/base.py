"""What a benchmark is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grood_jax.data.finding import SetSpec
from grood_jax.data.npz import NpzSource
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.tfds import TfdsSource
from grood_jax.models import Name

Group = Literal["near", "far"]


@dataclass(frozen=True)
class Benchmark:
    """What a detector is evaluated on.

    Attributes:
      name: its name on the command line.
      num_classes: classes in distribution.
      preprocessing: input size and normalisation of networks trained on it, unless a checkpoint
        has its own.
      train: training images.
      test: test images in distribution.
      near: OOD sets that look like the training data.
      far: OOD sets that do not.
      validation: held-out OOD images, disjoint from the test sets; None where there are none.
      model: the network that is evaluated unless another is asked for.
      trains_on_the_spot: whether that network trains in about a minute on a CPU, so that an
        evaluation without a checkpoint trains it.
      class_names: of the classes, in order; empty where they have none.
      shifted: sets of the same classes whose images have changed in kind (corrupted, drawn, …):
        in distribution where the full spectrum is asked for.
      id_validation: images of the training classes for choosing options; None for a tenth of the
        test images.
      data_dir: where its sets lie unless a user says otherwise; None for the place where
        tensorflow-datasets has them.
    """

    name: str
    num_classes: int
    preprocessing: Preprocessing
    train: SetSpec
    test: SetSpec
    near: tuple[SetSpec, ...]
    far: tuple[SetSpec, ...]
    validation: SetSpec | None
    model: Name
    trains_on_the_spot: bool = False
    class_names: tuple[str, ...] = ()
    shifted: tuple[SetSpec, ...] = ()
    id_validation: SetSpec | None = None
    data_dir: Path | None = None


def tfds(name: str, split: str) -> SetSpec:
    """A set that tensorflow-datasets has, or that lies in a file ``NAME_SPLIT.npz``."""
    return SetSpec(name, (TfdsSource(name, split), NpzSource(f"{name}_{split}.npz")))
