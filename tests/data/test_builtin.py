"""The embedded sets: which images, how many, always the same, and none in two roles."""

import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from grood_jax import benchmarks
from grood_jax.data import ArraySet, builtin


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]


def test_digits_are_scikit_learns():
    parts = [builtin.digits(part) for part in ("train", "test", "near")]
    # 16 shades, stretched to a byte: 255 / 16 each.
    shown = np.concatenate([p.images for p in parts])[..., 0] * (16 / 255)
    data = load_digits()

    def ordered(images: np.ndarray) -> list[bytes]:
        return sorted(image.tobytes() for image in np.round(images).astype(np.int64))

    assert ordered(shown) == ordered(data.images)
    assert [len(p) for p in parts] == [1010, 433, 354]
    assert set(parts[0].labels) == set(parts[1].labels) == set(range(8))
    assert set(parts[2].labels) == {-1}
    near = np.isin(data.target, [8, 9])
    assert ordered(parts[2].images[..., 0] * (16 / 255)) == ordered(data.images[near])


def test_digits_are_labelled_as_scikit_learn_has_them():
    data = load_digits()
    labels = dict(zip(map(bytes, data.images.astype(np.uint8)), data.target, strict=True))
    for part in ("train", "test"):
        found = builtin.digits(part)
        shown = np.round(found.images[..., 0] * (16 / 255)).astype(np.uint8)
        assert [labels[bytes(image)] for image in shown] == found.labels.tolist()


def test_the_split_of_digits_is_stratified():
    train, test = (np.bincount(builtin.digits(part).labels) for part in ("train", "test"))
    np.testing.assert_allclose(test / (train + test), builtin.TEST_SHARE, atol=0.005)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: builtin.digits("train"), "2575e6d44b9f90d0"),
        (lambda: builtin.digits("test"), "579445eebfae170c"),
        (lambda: builtin.digits("near"), "f624d1945526028b"),
        (lambda: builtin.uniform_noise(8, 1), "b98940af9e2e7068"),
    ],
)
def test_the_sets_are_fixed(make, expected):
    first: ArraySet = make()
    assert digest(first.images, first.labels) == expected


def test_photographs_tile_the_pictures_and_validation_shares_no_pixel_with_test():
    side, pixels = builtin.SHRINK * builtin.PATCH, builtin.PATCH
    held_out, rest = [], []
    for picture in load_sample_images().images:
        for top in range(0, picture.shape[0] - side + 1, side):
            for left in range(0, picture.shape[1] - side + 1, side):
                # Each pixel is the grey mean of its own 2 × 2 block: patches share no pixel.
                block = picture[top : top + side, left : left + side] @ [0.299, 0.587, 0.114]
                patch = block.reshape(pixels, 2, pixels, 2).mean(axis=(1, 3))
                (held_out if left + side <= picture.shape[1] / 5 else rest).append(patch)
    validation, test = builtin.photographs("validation"), builtin.photographs("test")
    np.testing.assert_allclose(validation.images[..., 0], held_out, atol=1.1)
    np.testing.assert_allclose(test.images[..., 0], rest, atol=1.1)
    assert not {bytes(i) for i in validation.images} & {bytes(i) for i in test.images}


@pytest.mark.parametrize("make", [builtin.digits, builtin.photographs])
def test_an_unknown_part(make):
    with pytest.raises(ValueError, match="part is 'tests'.*did you mean 'test'"):
        make("tests")


def test_uniform_noise_is_uniform():
    noise = builtin.uniform_noise(8, 3)
    assert noise.images.shape == (1000, 8, 8, 3)
    counts = np.bincount(noise.images.ravel(), minlength=256)
    expected = noise.images.size / 256
    # Poisson counts: 256 of them stay within five deviations.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    assert set(noise.labels) == {-1}


@pytest.mark.parametrize("channels", [1, 3])
def test_blurred_noise(channels):
    noise = builtin.blurred_noise(20, 1, 32, channels)
    assert noise.shape == (20, 32, 32, channels)
    assert noise.dtype == np.uint8
    # Each is stretched to the full range.
    assert set(noise.min(axis=(1, 2, 3))) == {0}
    assert set(noise.max(axis=(1, 2, 3))) == {255}
    # Blurred: neighbours correlate, which independent pixels do not (at most 0.03 by chance).
    centred = noise - noise.mean(axis=(1, 2), keepdims=True)
    correlation = (centred[:, 1:] * centred[:, :-1]).mean() / (centred**2).mean()
    assert correlation > 0.5
    assert not np.array_equal(noise, builtin.blurred_noise(20, 2, 32, channels))
    np.testing.assert_array_equal(noise, builtin.blurred_noise(20, 1, 32, channels))


def test_the_normalisation_of_digits_is_that_of_the_training_part():
    pixels = builtin.digits("train").images / 255
    preprocessing = benchmarks.get("digits").preprocessing
    assert preprocessing.mean == (round(pixels.mean(), 3),)
    assert preprocessing.std == (round(pixels.std(), 3),)
