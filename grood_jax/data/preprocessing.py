"""From stored images to what the network takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from grood_jax.data import pictures
from grood_jax.data.pictures import FORMATS, MAX_PIXELS, ImageTooLarge
from grood_jax.support import checks

if TYPE_CHECKING:
    from jaxtyping import Array

    Pixels = Array | np.ndarray
else:
    # Descriptions of benchmarks hold no arrays, and importing JAX takes a while.
    Pixels = Any
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """Size, channels and normalisation of a network's input.

    Attributes:
      image_size: height and width in pixels.
      channels: 1 (grey) or 3 (RGB).
      mean: per channel, of values scaled to [0, 1].
      std: per channel, likewise.
      resize: what the shorter side is brought to before the centre is cropped; ``image_size``
        by default.
      interpolation: how pixels are resized, antialiased.
      upright: turn image files as their EXIF orientation says. Off by default, as in OpenOOD:
        the sets of benchmarks have been used without. Photographs given to
        ``python -m grood_jax.predict`` and to the service are always turned.
    """

    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    upright: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: what is no number.
          ValueError: an image size below 1, a resize below it, other channels than 1 or 3, an
            unknown interpolation, a mean or deviation that is not finite or not of each channel,
            or a deviation that is not positive.
        """
        checks.at_least("image_size", self.image_size, 1)
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels!r}; expected 1 or 3")
        for name in ("mean", "std"):
            values = checks.several(name, getattr(self, name), "a number for each channel")
            values = [checks.real(name, value) for value in values]
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values}; expected {self.channels} finite numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; expected positive numbers")
        if self.resize is not None:
            checks.at_least("resize", self.resize, self.image_size)
        checks.choice("interpolation", self.interpolation, get_args(Interpolation))
        checks.flag("upright", self.upright)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: height, width, channels."""
        return self.image_size, self.image_size, self.channels

    def decode(
        self,
        encoded: bytes,
        *,
        max_pixels: int = MAX_PIXELS,
        formats: Sequence[str] = FORMATS,
        upright: bool | None = None,
        seconds: float | None = None,
    ) -> UInt8[np.ndarray, "h w c"]:
        """`decode` to this size; ``upright`` is the attribute by default."""
        return decode(
            encoded,
            self.image_size,
            self.channels,
            max_pixels=max_pixels,
            resize=self.resize,
            interpolation=self.interpolation,
            formats=formats,
            upright=self.upright if upright is None else upright,
            seconds=seconds,
        )

    def fit_pixels(
        self, pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w c"]
    ) -> UInt8[np.ndarray, "side side k"]:
        """`fit_pixels` to this size."""
        return fit_pixels(
            pixels,
            self.image_size,
            self.channels,
            resize=self.resize,
            interpolation=self.interpolation,
        )

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


def decode(
    encoded: bytes,
    image_size: int,
    channels: int,
    *,
    max_pixels: int = MAX_PIXELS,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    formats: Sequence[str] = FORMATS,
    upright: bool = False,
    seconds: float | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image, always with Pillow, so that results depend on no optional decoder.

    Args:
      encoded: an image file's bytes.
      image_size: the height and width wanted.
      channels: 1 or 3, see `fit`.
      max_pixels: of the image, as it is stored and when its shorter side has been resized; all
        passes over it together may meet `grood_jax.data.pictures.MAX_PASSES` times as many.
      resize: as for `Preprocessing`.
      interpolation: likewise.
      formats: Pillow's names of those that are tried.
      upright: turn it as its EXIF orientation says. (Of TIFF, Pillow always does.)
      seconds: how long its bytes may be read, or None for as long as it takes.

    Returns:
      (image_size, image_size, channels) uint8.

    Raises:
      TypeError: ``encoded`` is no bytes, or a number of the wrong type.
      ImageTooLarge: it has too many pixels, is a JPEG of too many scans, by whatever name, or
        takes too long.
      ValueError: the bytes are no whole image of one of the formats, of which there is none, or a
        size, number of channels or interpolation that is none.
    """
    if not isinstance(encoded, bytes | bytearray | memoryview):
        raise TypeError(f"encoded is a {type(encoded).__name__}; expected bytes")
    if formats is not FORMATS:
        formats = _known(formats)
    checks.at_least("max_pixels", max_pixels, 1)
    if seconds is not None:
        checks.positive("seconds", seconds)
    _require_form(image_size, channels, resize, interpolation)
    try:
        with Image.open(pictures.timed(encoded, seconds), formats=formats) as picture:
            # The header is trusted no further than to refuse: nothing is decoded yet.
            _require_size(picture, resize or image_size, max_pixels)
            pictures.require_few_scans(picture, encoded, max_pixels)
            return fit(
                pictures.turned_upright(picture) if upright else picture,
                image_size,
                channels,
                max_pixels=max_pixels,
                resize=resize,
                interpolation=interpolation,
            )
    except ImageTooLarge:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(str(error)) from error
    except UnidentifiedImageError as error:
        # Pillow names an object in memory here.
        kinds = " or ".join(filter(None, (", ".join(formats[:-1]), formats[-1])))
        raise ValueError(f"it is no {kinds} image{pictures.missing_decoder(encoded)}") from error
    except Exception as error:
        # A hostile file can make Pillow raise anything.
        raise ValueError(f"it is no whole image: {error or type(error).__name__}") from error


def fit_pixels(
    pixels: UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w c"],
    image_size: int,
    channels: int,
    *,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "side side k"]:
    """`fit` for an image held in memory, grey or RGB; one of the size wanted is left as it is.

    Raises:
      TypeError: it does not hold bytes, or a number is no integer.
      ValueError: it has another shape, no pixels, or too many, as for `fit`; or a size, number of
        channels or interpolation that is none.
    """
    _require_form(image_size, channels, resize, interpolation)
    pixels = np.asarray(checks.array_of("pixels", pixels))
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels has dtype {pixels.dtype}; expected uint8")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise ValueError(
            f"pixels has shape {pixels.shape}; expected (H, W), (H, W, 1) or (H, W, 3)"
        )
    if pixels.size == 0:
        raise ValueError(f"pixels has shape {pixels.shape}; expected at least one pixel")
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS:
        raise ImageTooLarge(
            f"pixels has shape {pixels.shape}; expected at most {MAX_PIXELS} pixels"
        )
    if pixels.shape == (image_size, image_size, channels):
        return pixels
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return fit(
        Image.fromarray(np.ascontiguousarray(grey)),
        image_size,
        channels,
        resize=resize,
        interpolation=interpolation,
    )


def fit(
    picture: Image.Image,
    image_size: int,
    channels: int,
    *,
    max_pixels: int = MAX_PIXELS,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> UInt8[np.ndarray, "h w c"]:
    """Converts a picture between grey and RGB, resizes its shorter side, crops its centre.

    Args:
      picture: the picture, of any mode and size, see `grood_jax.data.pictures.plain`.
      image_size: the height and width wanted.
      channels: 1 or 3. Grey becomes RGB by repetition, RGB grey by luminance (ITU-R 601).
      max_pixels: as for `decode`.
      resize: as for `Preprocessing`.
      interpolation: likewise.

    Returns:
      (image_size, image_size, channels) uint8.

    Raises:
      ImageTooLarge: it has more pixels than ``max_pixels``.
      ValueError: it has none.

    References:
      OpenOOD v1.5, openood/preprocessors/test_preprocessor.py: conversion to RGB, resize
      (antialiased, since it works on Pillow's images) and centre crop, as torchvision has them.
      Its ``convert("RGB")`` drops transparency and clips 16-bit grey to white, which is not done
      here.
    """
    resize = resize or image_size
    _require_size(picture, resize, max_pixels)
    picture = pictures.plain(picture)
    mode = "L" if channels == 1 else "RGB"
    if picture.mode != mode:
        picture = picture.convert(mode)
    shorter = min(picture.size)
    if shorter != resize:
        width, height = (resize * side // shorter for side in picture.size)
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        picture = picture.resize((width, height), filters[interpolation])
    if picture.size != (image_size, image_size):
        left, top = (round((side - image_size) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + image_size, top + image_size))
    return np.asarray(picture).reshape(image_size, image_size, channels)


def _known(formats: Sequence[str]) -> tuple[str, ...]:
    """Raises unless these are names of formats that Pillow knows, one at least."""
    names = tuple(checks.several("formats", formats, "names of Pillow's formats"))
    for name in names:
        # Our own are no mistake, even where Pillow was built without one of them.
        if checks.text("formats", name).upper() not in {*FORMATS, *Image.OPEN}:
            # Not all formats are known from the start.
            Image.init()
            checks.choice("formats", name.upper(), tuple(Image.OPEN))
    if not names:
        raise ValueError("formats is empty; expected names of Pillow's formats")
    return names


def _require_form(
    image_size: int, channels: int, resize: int | None, interpolation: Interpolation
) -> None:
    """Raises unless an image can be brought to this form, as the constructor of `Preprocessing`."""
    checks.at_least("image_size", image_size, 1, math.isqrt(MAX_PIXELS))
    checks.at_least("channels", channels, 1)
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; expected 1 or 3")
    if resize is not None:
        checks.at_least("resize", resize, 1, 2**31 - 1)
    checks.choice("interpolation", interpolation, get_args(Interpolation))


def _require_size(picture: Image.Image, resize: int, max_pixels: int) -> None:
    shorter, longer = sorted(picture.size)
    if shorter < 1:
        raise ValueError(f"the image has {picture.width} × {picture.height} pixels; expected some")
    # A narrow strip may be small and yet become huge when its shorter side is enlarged.
    resized = resize * (resize * longer // shorter)
    if max(shorter * longer, resized) > max_pixels:
        raise ImageTooLarge(
            f"the image has {picture.width} × {picture.height} pixels, {resized} after resizing; "
            f"expected at most {max_pixels}"
        )
