"""From stored images to what the network takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class Preprocessing:
    """Size, channels and normalisation of a network's input.

    Attributes:
      image_size: height and width in pixels.
      channels: 1 (grey) or 3 (RGB).
      mean: per channel, of values scaled to [0, 1].
      std: per channel, likewise.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, images: UInt8[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b h w c"]:
        """Scales bytes to [0, 1], subtracts the mean, divides by the deviation; float32."""
        scale = np.float32(1 / 255) / np.asarray(self.std, np.float32)
        shift = np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return images * scale - shift


def fit_images(
    images: Sequence[UInt8[np.ndarray, "_ _ _"]], image_size: int, channels: int
) -> UInt8[np.ndarray, "b h w c"]:
    """Resizes images (bilinear, antialiased) and converts them between grey and RGB.

    Args:
      images: each (H, W, 1) or (H, W, 3) uint8.
      image_size: the height and width wanted.
      channels: 1 or 3. Grey becomes RGB by repetition, RGB grey by luminance (ITU-R 601).

    Returns:
      (B, image_size, image_size, channels) uint8.
    """
    from PIL import Image

    shape = (image_size, image_size, channels)
    if all(image.shape == shape for image in images):
        return np.stack(images)
    result = np.empty((len(images), *shape), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (image_size, image_size):
            picture = picture.resize((image_size, image_size), Image.Resampling.BILINEAR)
        result[index] = np.asarray(picture).reshape(shape)
    return result
