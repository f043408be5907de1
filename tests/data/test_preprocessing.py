"""Decoding, resizing and normalisation, against their definitions."""

import io
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from prepared import encoded, random_images

from grood_jax.data import Preprocessing
from grood_jax.data.preprocessing import ImageTooLarge, decode, fit, fit_pixels


@pytest.mark.parametrize("library", [np, jnp])
def test_normalisation(library):
    preprocessing = Preprocessing(2, 3, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    images = random_images(5, 2, 3)
    found = preprocessing.normalize(library.asarray(images))
    expected = (images / 255 - [0.5, 0.25, 0.0]) / [0.5, 0.25, 2.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert isinstance(found, type(library.zeros(1)))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_images_come_back(file_format, channels):
    image = random_images(1, 32, channels)[0]
    np.testing.assert_array_equal(decode(encoded(image, file_format), 32, channels), image)


def test_grey_becomes_rgb_by_repetition():
    image = random_images(1, 8, 1)[0]
    np.testing.assert_array_equal(decode(encoded(image), 8, 3), np.repeat(image, 3, axis=2))


def test_rgb_becomes_grey_by_luminance():
    image = random_images(1, 8, 3)[0]
    luminance = image @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(decode(encoded(image), 8, 1)[..., 0], luminance, atol=1)


@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "LA", "1"])
def test_other_modes(mode):
    picture = Image.new("RGB", (4, 4), (200, 100, 50)).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(fit(picture, 4, 3), expected)


def test_shrinking_averages_and_does_not_pick():
    # Stripes of 0 and 255: antialiased they are grey, picked they would stay black and white.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = decode(encoded(stripes), 8, 3)
    # The triangle filter's taps at the border are cut off: one pixel from it they are not.
    np.testing.assert_allclose(small[:, 1:-1], 127.5, atol=2)


def test_enlarging_interpolates():
    ramp = np.array([[0, 100], [100, 200]], np.uint8)[..., None]
    found = decode(encoded(ramp), 4, 1)[..., 0]
    # Pixel centres lie at a quarter and three quarters between the old ones.
    line = np.array([0, 25, 75, 100])
    np.testing.assert_allclose(found, line[:, None] + line[None, :], atol=1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "resized", "corner"),
    # torchvision's Resize(8) and CenterCrop(6) give these sizes (height, width) and corners;
    # halves are rounded to even.
    [
        (16, 16, (8, 8), (1, 1)),
        (16, 21, (8, 10), (1, 2)),
        (23, 16, (11, 8), (2, 1)),
        (8, 9, (8, 9), (1, 2)),
        (8, 11, (8, 11), (1, 2)),
        (4, 5, (8, 10), (1, 2)),
    ],
)
def test_resize_and_crop(height, width, resized, corner, interpolation):
    picture = Image.fromarray(random_images(1, 32, 3)[0][:height, :width])
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    larger = np.asarray(picture.resize(resized[::-1], filters[interpolation]))
    expected = larger[corner[0] : corner[0] + 6, corner[1] : corner[1] + 6]
    preprocessing = Preprocessing(6, 3, (0.5,) * 3, (0.5,) * 3, 8, interpolation)
    np.testing.assert_array_equal(
        preprocessing.decode(encoded(np.asarray(picture))), expected, strict=True
    )
    np.testing.assert_array_equal(preprocessing.fit_pixels(np.asarray(picture)), expected)
    ready = random_images(1, 6, 3)[0]
    np.testing.assert_array_equal(preprocessing.fit_pixels(ready), ready)


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8), (8, 9), (32, 50)])
def test_oblong_images_keep_their_shape_and_lose_their_ends(height, width):
    # A ramp along the longer side: the centre crop keeps its middle.
    along = np.linspace(0, 255, max(height, width)).astype(np.uint8)
    image = np.broadcast_to(along if width > height else along[:, None], (height, width))
    found = fit(Image.fromarray(np.ascontiguousarray(image)), 8, 1)[..., 0]
    scale = min(height, width) / 8
    start = (max(height, width) / scale - 8) / 2
    centres = (start + np.arange(8) + 0.5) * scale - 0.5
    step = 255 / (max(height, width) - 1)
    profile = found[0] if width > height else found[:, 0]
    np.testing.assert_allclose(profile, centres * step, atol=1.0 * step * scale)


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_what_is_no_image(damage):
    whole = encoded(random_images(1, 32, 3)[0])
    with pytest.raises(ValueError, match="it is no "):
        decode(whole[: len(whole) // 2] if damage is None else damage, 32, 3)


def test_jpeg_as_pillow_reads_it():
    file = io.BytesIO()
    Image.fromarray(random_images(1, 32, 3)[0]).save(file, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(decode(file.getvalue(), 32, 3), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 5])
def test_pixels_in_memory_are_fitted_as_files_are(channels, size):
    image = random_images(1, 8, channels)[0]
    expected = decode(encoded(image), size, channels)
    np.testing.assert_array_equal(fit_pixels(image, size, channels), expected)
    np.testing.assert_array_equal(fit_pixels(image[::-1][::-1], size, channels), expected)
    grey = image[..., 0]
    np.testing.assert_array_equal(
        fit_pixels(grey, size, 1), decode(encoded(grey[..., None]), size, 1)
    )


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"pixels has shape \(0, 4\)"):
        fit_pixels(np.zeros((0, 4), np.uint8), 4, 1)


def promising(width, height):
    """A PNG whose header promises that many pixels."""
    whole = bytearray(encoded(random_images(1, 8, 3)[0]))
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize("size", [(60_000, 60_000), (9_000, 9_000), (1, 10**6), (2**31 - 1, 1)])
def test_a_header_that_promises_too_much_is_refused_at_once(size):
    with pytest.raises(ImageTooLarge):
        decode(promising(*size), 32, 3)


def test_the_number_of_pixels_may_be_limited_further():
    image = encoded(random_images(1, 8, 3)[0])
    assert decode(image, 4, 3, max_pixels=64).shape == (4, 4, 3)
    with pytest.raises(ImageTooLarge, match="the image has 8 × 8 pixels, 16 after resizing; exp"):
        decode(image, 4, 3, max_pixels=63)


def test_an_animation_is_its_first_frame():
    first, second = random_images(2, 8, 3)
    file = io.BytesIO()
    more = [Image.fromarray(second)]
    Image.fromarray(first).save(file, "WEBP", save_all=True, append_images=more, lossless=True)
    np.testing.assert_array_equal(decode(file.getvalue(), 8, 3), first)


@pytest.mark.parametrize(
    ("pixels", "error", "said"),
    [
        (np.zeros((8, 8), np.float32), TypeError, "dtype float32; expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), ValueError, r"shape \(8, 8, 4\); expected \(H, W\)"),
        (np.zeros(8, np.uint8), ValueError, r"shape \(8,\); expected \(H, W\)"),
        (np.broadcast_to(np.uint8(0), (1, 2**40)), ImageTooLarge, "expected at most"),
        (np.broadcast_to(np.uint8(0), (1, 10**6)), ImageTooLarge, "after resizing"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_pixels_that_are_none(pixels, error, said):
    with pytest.raises(error, match=said):
        fit_pixels(pixels, 32, 3)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"image_size": 0}, ValueError),
        ({"image_size": "8"}, TypeError),
        ({"channels": 2}, ValueError),
        ({"mean": (0.5, 0.5)}, ValueError),
        ({"mean": (np.nan,)}, ValueError),
        ({"std": (0.0,)}, ValueError),
        ({"std": ("x",)}, TypeError),
        ({"resize": 7}, ValueError),
        ({"resize": 8.5}, TypeError),
        ({"interpolation": "cubic"}, ValueError),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_preprocessing_that_is_none(change, error):
    with pytest.raises(error):
        Preprocessing(**{"image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)} | change)
