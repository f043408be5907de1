"""grood-jax: out-of-distribution detection in the space of gradients, in JAX.

Scores are higher for more out-of-distribution samples, whatever the detector.
"""

import importlib
from typing import TYPE_CHECKING, Any

from grood_jax.support import missing, moved

if TYPE_CHECKING:
    from grood_jax import detectors
    from grood_jax.backbone.backbone import Backbone
    from grood_jax.backbone.listing import layers
    from grood_jax.backbone.outputs import Mix, Outputs
    from grood_jax.conformal.drift import DriftMonitor
    from grood_jax.data.preprocessing import Preprocessing
    from grood_jax.deploying.ood_classifier import OODClassifier, Prediction
    from grood_jax.evaluation import datasets
    from grood_jax.evaluation.evaluated import Evaluated
    from grood_jax.evaluation.evaluating import evaluate
    from grood_jax.evaluation.from_outputs import evaluate_outputs
    from grood_jax.evaluation.heads import fit_head
    from grood_jax.maths.gradients import ood_gradients
    from grood_jax.maths.metrics import ood_metrics
    from grood_jax.maths.mixup import mix_with_prototypes
    from grood_jax.maths.prototypes import class_prototypes
    from grood_jax.neighbors.bank import Bank, ShardedBank
    from grood_jax.neighbors.building import (
        bank_rows,
        build_bank,
        build_bank_in_pieces,
        grow_bank,
        merge_banks,
        thin_bank,
    )
    from grood_jax.neighbors.searching import nearest_distances
    from grood_jax.neighbors.sharding import shard_bank
    from grood_jax.support.errors import UserError

moved.install()

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Bank",
    "DriftMonitor",
    "Evaluated",
    "Mix",
    "OODClassifier",
    "Outputs",
    "Prediction",
    "Preprocessing",
    "ShardedBank",
    "UserError",
    "bank_rows",
    "build_bank",
    "build_bank_in_pieces",
    "class_prototypes",
    "datasets",
    "detectors",
    "evaluate",
    "evaluate_outputs",
    "fit_head",
    "grow_bank",
    "layers",
    "merge_banks",
    "mix_with_prototypes",
    "nearest_distances",
    "ood_gradients",
    "ood_metrics",
    "shard_bank",
    "thin_bank",
]

_HOMES = {
    "Backbone": "backbone.backbone",
    "Bank": "neighbors.bank",
    "DriftMonitor": "conformal.drift",
    "Evaluated": "evaluation.evaluated",
    "Mix": "backbone.outputs",
    "OODClassifier": "deploying.ood_classifier",
    "Outputs": "backbone.outputs",
    "Prediction": "deploying.ood_classifier",
    "Preprocessing": "data.preprocessing",
    "ShardedBank": "neighbors.bank",
    "UserError": "support.errors",
    "bank_rows": "neighbors.building",
    "build_bank": "neighbors.building",
    "build_bank_in_pieces": "neighbors.building",
    "class_prototypes": "maths.prototypes",
    "evaluate": "evaluation.evaluating",
    "evaluate_outputs": "evaluation.from_outputs",
    "fit_head": "evaluation.heads",
    "grow_bank": "neighbors.building",
    "layers": "backbone.listing",
    "merge_banks": "neighbors.building",
    "mix_with_prototypes": "maths.mixup",
    "nearest_distances": "neighbors.searching",
    "ood_gradients": "maths.gradients",
    "ood_metrics": "maths.metrics",
    "shard_bank": "neighbors.sharding",
    "thin_bank": "neighbors.building",
}
"""Where the names lie that are no rooms."""

_ROOMS = ("backbone", "conformal", "detectors", "maths", "neighbors", "support")
"""What can be asked for without an import of its own."""

_MODULES = {"datasets": "evaluation.datasets"} | {room: room for room in _ROOMS}


def __getattr__(name: str) -> Any:
    """Loads names when they are first asked for: a command's --help need not wait for JAX."""
    if name in _HOMES:
        try:
            return getattr(importlib.import_module(f"grood_jax.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            said = f"grood_jax.{name}: {missing.sentence(error)}"
            raise ModuleNotFoundError(said, name=error.name) from error
    if name in _MODULES:
        return importlib.import_module(f"grood_jax.{_MODULES[name]}")
    raise AttributeError(f"module 'grood_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
