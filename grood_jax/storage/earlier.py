"""What grood-jax 0.1.0 wrote into directories, read as the manifests of today.

It had a description of its own for each kind, with a checksum of its own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grood_jax.support import manifest as manifests
from grood_jax.support.manifest import Layout, Manifest

CHECKPOINT, BANK = "checkpoint", "bank"


@dataclass(frozen=True)
class Earlier(Manifest):
    """A manifest made of an earlier description.

    Attributes:
      bytes_only: whether checksums are of the bytes alone.
    """

    bytes_only: bool = False

    def check(self, group: str, arrays: Mapping[str, np.ndarray]) -> None:
        """As in `Manifest`, with the checksums of that time."""
        if not self.bytes_only:
            return super().check(group, arrays)
        for name, layout in self.arrays[group].items():
            whole = np.ascontiguousarray(arrays[name]).tobytes()
            if hashlib.sha256(whole).hexdigest() != layout.checksum:
                raise self.damaged(f"the array {name} is not what was saved")
        return None


def kind_of(items: set[str]) -> str | None:
    """The kind of a step with such items; None if it has none of ours."""
    for kind, arrays in ((CHECKPOINT, "model"), (BANK, "bank")):
        if {"about", arrays} <= items:
            return kind
    others = items - {"arrays"}
    return others.pop() if "arrays" in items and len(others) == 1 else None


def item_of(kind: str) -> str:
    """The item of a step that describes such a thing."""
    return "about" if kind in (CHECKPOINT, BANK) else kind


def manifest_of(contents: Any, kind: str, place: str) -> Manifest:
    """The manifest that a description stands for.

    Raises:
      UserError: it is none, or was altered.
    """
    if item_of(kind) == kind:
        manifests.require_format(contents, kind, place, 1)
    with manifests.described(kind, place):
        return {CHECKPOINT: _of_checkpoint, BANK: _of_bank}.get(kind, _of_saved)(
            kind, contents, place
        )


def _of_checkpoint(kind: str, contents: Any, place: str) -> Manifest:
    _require(contents, kind, place, "spec", "record", "fingerprint", "arrays")
    layouts = {}
    for name, layout in contents["arrays"].items():
        dtype, _, sides = layout.removesuffix("]").partition("[")
        shape = tuple(int(side) for side in sides.split(",") if side.strip())
        layouts[name] = Layout(np.dtype(dtype), shape, "")
    return Earlier(kind, place, contents, {"model": layouts})


def _of_bank(kind: str, contents: Any, place: str) -> Manifest:
    _require(contents, kind, place, "shape", "dtype", "memory", "fingerprint")
    rows = Layout(np.dtype(np.float32), tuple(contents["shape"]), contents["fingerprint"])
    return Earlier(kind, place, contents, {"bank": {"rows": rows}})


def _of_saved(kind: str, contents: Any, place: str) -> Manifest:
    if contents.get("checksum") != manifests.checksum_of(contents):
        raise manifests.damaged(kind, place, "its manifest was altered")
    sums = contents["checksums"]
    layouts = {
        name: Layout(np.dtype(layout["dtype"]), tuple(layout["shape"]), sums[name])
        for name, layout in contents["arrays"].items()
    }
    return Earlier(kind, place, contents["about"], {"arrays": layouts}, bytes_only=True)


def _require(contents: Any, kind: str, place: str, *names: str) -> None:
    missing = sorted(set(names) - set(contents))
    if missing:
        raise manifests.damaged(
            kind, place, f"it has no {', '.join(missing)}, or is none of grood-jax"
        )
