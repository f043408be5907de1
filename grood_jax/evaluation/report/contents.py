"""What a report is made of."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from grood_jax.backbone.outputs import Outputs
from grood_jax.data import ImageSet

Group = Literal["ID", "near", "far"]
Scores = Mapping[str, Float[np.ndarray, " _"]]
"""Scores of one detector by the names of the sets."""


@dataclass(frozen=True)
class NamedSet:
    """A set that was scored.

    Attributes:
      name: as in the results.
      group: whether it counts as in distribution, or how far out of it.
    """

    name: str
    group: Group

    @property
    def title(self) -> str:
        """Its name and group, fit for a figure."""
        return f"{self.group}: {printable(self.name)}"


@dataclass(frozen=True)
class ShownSet(NamedSet):
    """A set of images that was scored, with what there is to show of it.

    Attributes:
      images: the images.
      rows: which of them were scored, (N,); of another length where this is not known.
      outputs: what the network made of these.
    """

    images: ImageSet
    rows: Int[np.ndarray, " n"]
    outputs: Outputs


def printable(text: str, longest: int = 28) -> str:
    """Text that fits into a figure: one line, of characters that can be printed."""
    shown = "".join(c if c.isprintable() else "�" for c in text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Different names for files, by the names that they are made of."""
    by_name: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9=_+-]+", "-", name).strip("-")[:60] or "detector"
        # As some file systems would have it, which do not tell cases apart.
        taken = {made.lower() for made in by_name.values()}
        numbered = (plain if i == 1 else f"{plain}-{i}" for i in range(1, len(taken) + 2))
        by_name[name] = next(made for made in numbered if made.lower() not in taken)
    return by_name
