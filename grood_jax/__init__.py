"""grood-jax: out-of-distribution detection in the space of gradients, in JAX.

Scores are higher for more out-of-distribution samples, whatever the detector.
"""

from typing import TYPE_CHECKING, Any

from grood_jax import detectors
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Mix, Outputs
from grood_jax.conformal.drift import DriftMonitor
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
from grood_jax.support import moved
from grood_jax.support.errors import UserError

if TYPE_CHECKING:
    from grood_jax.deploying.ood_classifier import OODClassifier, Prediction

moved.install()

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Bank",
    "DriftMonitor",
    "Mix",
    "OODClassifier",
    "Outputs",
    "Prediction",
    "ShardedBank",
    "UserError",
    "bank_rows",
    "build_bank",
    "build_bank_in_pieces",
    "class_prototypes",
    "detectors",
    "grow_bank",
    "merge_banks",
    "mix_with_prototypes",
    "nearest_distances",
    "ood_gradients",
    "ood_metrics",
    "shard_bank",
    "thin_bank",
]


def __getattr__(name: str) -> Any:
    """Loads what needs Flax and orbax when it is first asked for."""
    if name in ("OODClassifier", "Prediction"):
        from grood_jax.deploying import ood_classifier

        return getattr(ood_classifier, name)
    raise AttributeError(f"module 'grood_jax' has no attribute {name!r}")
