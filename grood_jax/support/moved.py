"""Modules by the names that they had before the package had rooms.

What earlier versions wrote names them, and so do scripts: imports by the old name still work, with
a DeprecationWarning that says the new one.
"""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROOMS = {
    "support": ("checks", "errors", "files", "progress", "structures"),
    "maths": ("gradients", "grams", "metrics", "mixup", "perturbation", "prototypes"),
    "neighbors": ("bank", "sharding"),
    "conformal": ("calibration", "drift"),
    "backbone": ("outputs",),
    "passes": ("devices", "forward", "processes", "reading"),
    "storage": ("cache", "checkpoints", "saving"),
    "evaluation": ("report", "results"),
    "deploying": ("deployment", "exporting", "ood_classifier", "serving"),
    "cli": ("command",),
}
MOVED = {old: f"{room}.{old}" for room, names in _ROOMS.items() for old in names} | {
    "bank_building": "neighbors.building",
    "bank_files": "storage.banks",
    "data.sources": "data.tfds",
    "harness": "evaluation.fitting",
    "models.safetensors_files": "models.torch.safetensors",
    "models.torch_files": "models.torch.files",
    "models.torch_names": "models.torch.names",
    "search": "evaluation.tuning",
}
"""New names by old ones, both without the leading ``grood_jax.``."""


def current_name(module: str) -> str:
    """The name that a module has today; that given, where it has not moved."""
    top, _, rest = module.partition(".")
    if top != "grood_jax":
        return module
    for old, new in MOVED.items():
        if rest == old or rest.startswith(f"{old}."):
            return f"grood_jax.{new}{rest[len(old) :]}"
    return module


class _Finder(MetaPathFinder, Loader):
    """Gives the module of today where one is imported by its old name."""

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        return None if current_name(fullname) == fullname else ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = current_name(spec.name)
        warnings.warn(f"{spec.name} has moved to {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        # The machinery of imports puts the old name's in its place.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        module.__spec__ = spec.loader_state


def install() -> None:
    """Lets old names be imported; more than once changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # Last: a module that is there is never looked for here.
        sys.meta_path.append(_Finder())
