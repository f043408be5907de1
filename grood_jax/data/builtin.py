"""Images that scikit-learn carries, and noise: enough for a benchmark with no download."""

import numpy as np
from jaxtyping import Float32, UInt8

from grood_jax.data.sets import ArraySet
from grood_jax.support import checks

ID_CLASSES = 8
TEST_SHARE = 0.3
PATCH = 8
SHRINK = 2
"""The photographs are halved, so that a patch of 8 pixels holds structure."""
NOISE_IMAGES = 1000


def digits(part: str) -> ArraySet:
    """The 8×8 digits of scikit-learn: UCI's optical recognition of handwritten digits.

    Args:
      part: ``"train"`` or ``"test"`` for the digits 0 to 7 (a fixed stratified split), or
        ``"near"`` for the digits 8 and 9, all of them, unlabelled.

    Raises:
      ValueError: there is no such part.
    """
    checks.choice("part", part, ("train", "test", "near"))
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int32)
    source = "scikit-learn:digits"
    inside = labels < ID_CLASSES
    if part == "near":
        count = int((~inside).sum())
        return ArraySet("digits_8_9", source, images[~inside], np.full(count, -1, np.int32))
    train, test = train_test_split(
        np.flatnonzero(inside), test_size=TEST_SHARE, stratify=labels[inside], random_state=0
    )
    chosen = np.sort(train if part == "train" else test)
    return ArraySet("digits", source, images[chosen], labels[chosen])


def photographs(part: str) -> ArraySet:
    """Grey 8×8 patches of scikit-learn's two sample photographs.

    Args:
      part: ``"validation"`` for the left fifth of each photograph, ``"test"`` for the rest.

    Raises:
      ValueError: there is no such part.
    """
    checks.choice("part", part, ("validation", "test"))
    patches = []
    for image in _photographs():
        height, width = image.shape
        border = width // 5 // PATCH * PATCH
        columns = range(0, border, PATCH) if part == "validation" else range(border, width, PATCH)
        patches += [
            image[top : top + PATCH, left : left + PATCH]
            for top in range(0, height - PATCH + 1, PATCH)
            for left in columns
            if left + PATCH <= width
        ]
    images = np.stack(patches)[..., None]
    return ArraySet(
        "photographs", "scikit-learn:sample images", images, np.full(len(images), -1, np.int32)
    )


def uniform_noise(image_size: int, channels: int) -> ArraySet:
    """Images of independent uniform bytes, always the same ones."""
    generator = np.random.default_rng(0)
    images = generator.integers(
        0, 256, (NOISE_IMAGES, image_size, image_size, channels), dtype=np.uint8
    )
    labels = np.full(NOISE_IMAGES, -1, np.int32)
    return ArraySet("uniform_noise", "built in: uniform noise, seed 0", images, labels)


def blurred_noise(
    count: int, seed: int, image_size: int, channels: int
) -> UInt8[np.ndarray, "n h w c"]:
    """Uniform noise, blurred by a Gaussian of random width and stretched to the full range.

    Args:
      count: how many images.
      seed: of the noise.
      image_size: height and width in pixels.
      channels: 1 or 3.
    """
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    noise = generator.random((count, image_size, image_size, channels), dtype=np.float32)
    widths = generator.uniform(0.5, max(1.0, image_size / 16), count)
    blurred = np.stack([gaussian_filter(n, (w, w, 0)) for n, w in zip(noise, widths, strict=True)])
    low = blurred.min(axis=(1, 2, 3), keepdims=True)
    high = blurred.max(axis=(1, 2, 3), keepdims=True)
    return np.round((blurred - low) / np.maximum(high - low, 1e-6) * 255).astype(np.uint8)


def raw_noise(
    count: int, seed: int, image_size: tuple[int, int], channels: int
) -> Float32[np.ndarray, "n h w c"]:
    """Uniform noise in [0, 1], each hundred images blurred alike, by a σ from 0.2 to 5 pixels.

    Args:
      count: how many images.
      seed: of the noise.
      image_size: height and width in pixels.
      channels: how many.
    """
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random((count, *image_size, channels), dtype=np.float32)
    widths = np.repeat(np.linspace(0.2, 5.0, -(-count // 100)), 100)[:count]
    return np.stack([gaussian_filter(n, (w, w, 0)) for n, w in zip(noise, widths, strict=True)])


def _photographs() -> list[UInt8[np.ndarray, "h w"]]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    # Means over whole pixels: a smoother filter would carry some of one patch into the next.
    pictures = [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    return [np.asarray(picture.reduce(SHRINK)) for picture in pictures]
