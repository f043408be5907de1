"""RankFeat: energy without the largest singular component (arXiv 2209.08590)."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Deflated, Outputs
from grood_jax.detectors._activation import Head, head_of
from grood_jax.detectors._statistics import product
from grood_jax.detectors.base import Detector, Training
from grood_jax.support import checks

LAST, CUT = Deflated("last"), Deflated("cut")


def rankfeat(*, where: Literal["last", "cut", "both"] = "last") -> Detector:
    """RankFeat; the score is ``−logsumexp(z')``, of the logits of altered activations.

    A sample's activations, a matrix of places and channels, lose their largest singular value with
    its vectors, ``F − s₁ u₁ v₁ᵀ``, and then go through the rest of the network. The singular value
    is found exactly, as in OpenOOD v1.5's configuration, not by the paper's power iteration.

    OpenOOD and the paper's best take the mean of the logits of two blocks of a ResNet, the last and
    the one before. Here ``"last"`` is the last block alone: the last middle layer that the backbone
    gives, whose mean over places must be the features. That is so in the ResNets, DenseNets,
    RegNets, EfficientNets and the small network of this package; ViT takes the class's token and
    Swin has a norm in between, and they are refused, as are layers of one place. ``"cut"`` is where
    the backbone is cut, whatever follows: with ``cut="layer3"`` of a ResNet of four blocks,
    ``"both"`` is OpenOOD's.

    The paper reports for its best a mean AUROC of 0.9215 and FPR@95 of 0.3680 over iNaturalist,
    SUN, Places and Textures, for a BiT ResNetv2-101 on ImageNet-1K.

    Args:
      where: the activations that are altered; ``"both"`` takes the mean of the logits.

    Returns:
      The detector; its scores are (B,) float32, higher for more OOD. But with ``"cut"`` it needs
      a backbone that has middle layers, the last of which is averaged to features, and the class
      head.

    Raises:
      ValueError: another ``where``.

    References:
      Song, Sebe and Wang, arXiv 2209.08590.
    """
    checks.choice("where", where, ("last", "cut", "both"))
    needs = {"last": (LAST,), "cut": (CUT,), "both": (CUT, LAST)}[where]

    def fit(training: Training, key: Array) -> Head | None:
        del key
        return head_of("rankfeat", training) if LAST in needs else None

    def score(state: Head | None, outputs: Outputs) -> Float[Array, " b"]:
        found = [jnp.asarray(outputs.extra[CUT])] if CUT in needs else []
        if state is not None:
            features = jnp.asarray(outputs.extra[LAST])
            found.append(product(features, state.weights) + state.bias[None, :])
        return -jax.nn.logsumexp(sum(found[1:], found[0]) / len(found), axis=1)

    return Detector("rankfeat", fit, score, {"where": where}, needs=needs, head=LAST in needs)
