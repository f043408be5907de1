"""Images: where they come from, how they are prepared, and batches of them."""

from grood_jax.data.batching import Batch, Share, batches
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ArraySet, ImageSet, LimitedSet
from grood_jax.data.tfds import TfdsSource

__all__ = [
    "ArraySet",
    "Batch",
    "ImageSet",
    "LimitedSet",
    "Preprocessing",
    "Share",
    "TfdsSource",
    "batches",
]
