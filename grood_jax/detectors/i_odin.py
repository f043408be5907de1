"""i-ODIN: ODIN that moves only what matters most in an image (arXiv 2411.10794)."""

from grood_jax.backbone.outputs import PerturbedMost
from grood_jax.detectors.base import Detector
from grood_jax.detectors.odin import of_moved_images
from grood_jax.support import checks


def i_odin(*, temperature: float = 1000.0, noise: float = 0.0014, numbers: int = 1) -> Detector:
    """i-ODIN; the score is ``1 − max softmax(z(x̃) / T)``.

    ``x̃`` is the image moved as `odin` does, but only where the gradient is largest by absolute
    value: at one channel of one place, in OpenOOD v1.5's ``iodin``, whose author is the paper's.
    A second forward pass and one backward pass of each image.

    The authors' repository reports, in OpenOOD v1.5, a mean AUROC of 0.8792 near and 0.9099 far for
    ResNet-18 on CIFAR-10, 0.8110 and 0.7969 on CIFAR-100, 0.8299 and 0.9116 on ImageNet-200, and
    0.7653 and 0.8964 for ResNet-50 on ImageNet-1K.

    Args:
      temperature: T, as for `odin`.
      noise: ε, as for `odin`.
      numbers: how many of an image's numbers are moved, one channel at one place each; OpenOOD
        names more as a possibility.

    Returns:
      The detector; its scores are (B,) float32 in [0, 1), higher for more OOD. It needs a
      backbone that has gradients, and ``input_std``.

    Raises:
      TypeError: an option of the wrong type.
      ValueError: a temperature that is not positive and finite, noise outside [0, 1], or numbers
        below 1.

    References:
      Regmi, Image-based outlier synthesis with training data, arXiv 2411.10794, and its repository
      sudarshanregmi/ASCOOD; Liang, Li and Srikant, arXiv 1706.02690.
    """
    temperature = checks.positive("temperature", temperature)
    noise = checks.fraction("noise", noise)
    numbers = checks.at_least("numbers", numbers, 1)
    return of_moved_images("i_odin", PerturbedMost(temperature, noise, numbers))
