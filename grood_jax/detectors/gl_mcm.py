"""GL-MCM: maximum concept matching of the image and of its places (arXiv 2304.04521)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from grood_jax.backbone.outputs import LocalConcepts, Outputs
from grood_jax.detectors._statistics import unit_rows
from grood_jax.detectors.base import Detector, Training, require_head
from grood_jax.detectors.mcm import MCMState, mcm
from grood_jax.support import checks


def gl_mcm(*, temperature: float = 1.0, weight: float | int = 1.0) -> Detector:
    """GL-MCM; the score is ``1 − max_c p_c + λ (1 − max_i max_c p_ic)``.

    ``p = softmax(s / τ)`` of the cosines ``s`` of the image's features with the concepts, as in
    `mcm`, and ``p_i`` the same of the features of place i of the image. The published score is the
    sum of the maxima, higher for ID. Where an image shows several things, one place may surely be
    of a class though the whole is not.

    Features of places come from the encoder (`Backbone.from_encoder` with ``local``), in the space
    of the text embeddings. The authors take CLIP's without the last attention: in a ViT the values
    of its last block through the output projection, that block's MLP, norm and projection; in a
    ResNet the last activations through the value and output projections of the attention pool.
    OpenOOD v1.5 does not have it. No published figure is given here: the paper's tables could not
    be read.

    Args:
      temperature: τ, for both; 1 in the authors' code.
      weight: λ, at least 0; 1 in the authors' code, and 0.5 in its script for ImageNet. The larger,
        the more images count as ID in which something of the classes is just somewhere.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1 + λ), higher for more OOD. It needs a
      backbone that gives features of places. Its ``fit`` raises ValueError without a class head.

    Raises:
      ValueError: an option outside its range.
      TypeError: an option that is no number.

    References:
      Miyai, Yu, Irie and Aizawa, GL-MCM: global and local maximum concept matching for zero-shot
      out-of-distribution detection, arXiv 2304.04521, and its repository AtsuMiyai/GL-MCM.
    """
    whole = mcm(temperature=temperature)
    weight = checks.number("weight", weight)
    if weight < 0:
        raise ValueError(f"weight is {weight}; expected at least 0")
    need = LocalConcepts(float(whole.options["temperature"]))

    def fit(training: Training, key: Array) -> MCMState:
        del key
        weights, _ = require_head("gl_mcm", training)
        return MCMState(unit_rows(jnp.asarray(weights).T))

    def score(state: MCMState, outputs: Outputs) -> Float[Array, " b"]:
        return whole.score(state, outputs) + weight * jnp.asarray(outputs.extra[need])

    return Detector(
        "gl_mcm",
        fit,
        score,
        {"temperature": temperature, "weight": weight},
        needs=(need,),
        head=True,
        fit_key="gl_mcm",
    )
