"""ODIN: the softmax at a high temperature, of images moved towards their predicted class."""

from dataclasses import asdict, replace

from jaxtyping import Array, Float

from grood_jax.backbone.outputs import Outputs, Perturbed
from grood_jax.detectors.base import Detector, Training
from grood_jax.detectors.msp import msp
from grood_jax.support import checks


def odin(*, temperature: float = 1000.0, noise: float = 0.0014) -> Detector:
    """ODIN; the score is ``1 − max softmax(z(x̃) / T)``.

    ``x̃`` is the image with each pixel moved by ε against the gradient of
    ``−log softmax(z(x) / T)_ŷ``: see `grood_jax.maths.perturbation`. A second forward pass and one
    backward pass of each image. The published score is the probability itself, higher for ID.

    Args:
      temperature: T; 1000 in the paper and in OpenOOD v1.5, which may choose from 1 to 1000 on
        validation data.
      noise: ε, in units of images from 0 to 1; 0.0014 is OpenOOD's and within the paper's range.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1), higher for more OOD. It needs a
      backbone that has gradients, and ``input_std``.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: a temperature that is not positive and finite, or noise outside [0, 1].

    References:
      Liang, Li and Srikant, arXiv 1706.02690, section 3.
    """
    temperature = checks.positive("temperature", temperature)
    noise = checks.fraction("noise", noise)
    return of_moved_images("odin", Perturbed(temperature, noise))


def of_moved_images(name: str, need: Perturbed) -> Detector:
    """The detector whose score is MSP's, of the logits that ``need`` yields at its temperature."""
    plain = msp()

    def fit(training: Training, key: Array) -> tuple[()]:
        del training, key
        return ()

    def score(state: tuple[()], outputs: Outputs) -> Float[Array, " b"]:
        return plain.score(state, replace(outputs, logits=outputs.extra[need] / need.temperature))

    grid = {"temperature": (1.0, 10.0, 100.0, 1000.0), "noise": (0.0014, 0.0028)}
    return Detector(name, fit, score, asdict(need), needs=(need,), grid=grid)
