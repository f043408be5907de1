"""What a benchmark is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grood_jax.data.finding import SetSpec
from grood_jax.data.npz import NpzSource
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.tfds import TfdsSource
from grood_jax.models import Name

Group = Literal["near", "far"]

RESERVED = ("train", "test", "validation", "id_validation")
"""What the results call a benchmark's own sets: no OOD or shifted set may take their place."""


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

    def __post_init__(self) -> None:
        """Checks the names of the sets that are told apart by them.

        Raises:
          ValueError: as `require_distinct`.
        """
        groups = {"near": self.near, "far": self.far, "shifted": self.shifted}
        require_distinct({group: [s.name for s in specs] for group, specs in groups.items()})


def require_distinct(groups: Mapping[str, Iterable[str]]) -> None:
    """Refuses names under which one set would take another's place in the results.

    Args:
      groups: names of sets, by the group that they stand in.

    Raises:
      ValueError: a name is empty, is that of a benchmark's own set, or stands twice.
    """
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if not name or name in RESERVED:
                raise ValueError(
                    f"{group} holds a set called {name!r}; expected another name, since results "
                    f"call a benchmark's own sets {', '.join(RESERVED)}"
                )
            if name in seen:
                raise ValueError(
                    f"{group} holds a set called {name!r}, as {seen[name]} does; expected a name "
                    "of its own for each set"
                )
            seen[name] = group


def tfds(name: str, split: str) -> SetSpec:
    """A set that tensorflow-datasets has, or that lies in a file ``NAME_SPLIT.npz``."""
    return SetSpec(name, (TfdsSource(name, split), NpzSource(f"{name}_{split}.npz")))
