"""From stored images to what the network takes."""

import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

Pixels = Array | np.ndarray

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What tensorflow-datasets stores; Pillow would try rarer formats before some of these."""


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

    def normalize(
        self, images: UInt8[Pixels, "b h w c"] | Float[Pixels, "b h w c"]
    ) -> Float[Pixels, "b h w c"]:
        """Scales values of 0 to 255 to [0, 1], subtracts the mean, divides by the deviation.

        Args:
          images: (B, H, W, C), bytes or float32, of NumPy or of JAX.

        Returns:
          (B, H, W, C) float32, of the same library.
        """
        std = np.asarray(self.std, np.float32).reshape(1, 1, 1, -1)
        mean = np.asarray(self.mean, np.float32).reshape(1, 1, 1, -1)
        return images * (np.float32(1 / 255) / std) - mean / std


def decode(encoded: bytes, image_size: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image, always with Pillow, so that results depend on no optional decoder.

    Args:
      encoded: an image file's bytes.
      image_size: the height and width wanted.
      channels: 1 or 3, see `fit`.

    Returns:
      (image_size, image_size, channels) uint8.

    Raises:
      OSError, ValueError, SyntaxError: what Pillow raises for bytes that are no whole image.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
        return fit(picture, image_size, channels)


def fit(picture: Image.Image, image_size: int, channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Converts a picture between grey and RGB, resizes its shorter side, crops its centre.

    Args:
      picture: the picture, of any mode and size.
      image_size: the height and width wanted.
      channels: 1 or 3. Grey becomes RGB by repetition, RGB grey by luminance (ITU-R 601).

    Returns:
      (image_size, image_size, channels) uint8.

    References:
      OpenOOD v1.5, openood/preprocessors/test_preprocessor.py: resize (bilinear, antialiased)
      and centre crop, as torchvision has them.
    """
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    if picture.size != (image_size, image_size):
        shorter = min(picture.size)
        width, height = (image_size * side // shorter for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (round((side - image_size) / 2) for side in (width, height))
        picture = picture.crop((left, top, left + image_size, top + image_size))
    return np.asarray(picture).reshape(image_size, image_size, channels)
