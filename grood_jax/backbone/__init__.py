"""Models cut in two: what knows neural-network frameworks, and what comes out of them."""

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Mix, Outputs

__all__ = ["Backbone", "Mix", "Outputs"]
