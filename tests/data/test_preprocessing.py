"""Decoding, resizing and normalisation, against their definitions."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from prepared import encoded, random_images

from grood_jax.data import Preprocessing
from grood_jax.data.preprocessing import decode, fit


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
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(whole[: len(whole) // 2] if damage is None else damage, 32, 3)


def test_jpeg_as_pillow_reads_it():
    file = io.BytesIO()
    Image.fromarray(random_images(1, 32, 3)[0]).save(file, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
    np.testing.assert_array_equal(decode(file.getvalue(), 32, 3), expected)
