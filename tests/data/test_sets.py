"""Sets in memory, and parts of sets."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from grood_jax.data import ArraySet, ImageSet, LimitedSet
from grood_jax.data.sets import PartOfSet, labels_of


@dataclass
class Rows:
    """A set of any length, whose labels are its row numbers."""

    length: int
    name: str = "rows"
    source: str = "counted"
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.length

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked += [int(index) for index in indices]
        return np.zeros((len(indices), 1, 1, 1), np.uint8), np.asarray(indices)


def test_an_array_set():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    found = ArraySet("a", "b", images, np.array([4, 5, 6]))
    assert isinstance(found, ImageSet)
    assert len(found) == 3
    pixels, labels = found.read(np.array([2, 0]))
    np.testing.assert_array_equal(pixels, images[[2, 0]])
    np.testing.assert_array_equal(labels, [6, 4])


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 3, [0, 3, 6]),
        (10, 4, [0, 2, 5, 7]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (5, 1, [0]),
    ],
)
def test_a_limited_set_is_spaced_through_the_whole(length, limit, expected):
    limited = LimitedSet(Rows(length), limit)
    assert isinstance(limited, ImageSet)
    assert len(limited) == len(expected)
    assert limited.read(np.arange(len(limited)))[1].tolist() == expected
    assert limited.name == "rows"
    assert limited.source == f"counted ({len(expected)} of {length})"


def test_row_numbers_of_32_bits_do_not_overflow():
    """ImageNet's 1.28 million images times a row number is beyond int32."""
    full = Rows(1_281_167)
    LimitedSet(full, 50_000).read(np.array([0, 49_999], np.int32))
    assert full.asked == [0, 49_999 * 1_281_167 // 50_000]


def test_labels_without_images():
    """Known ones are taken, of parts those of the whole; else images are read for them."""
    labels = np.array([4, 5, 6, 7, 8, 9], np.int32)
    full = ArraySet("a", "b", np.zeros((6, 1, 1, 1), np.uint8), labels)
    part = PartOfSet(LimitedSet(full, 3), np.array([2, 0]), "two")
    for images in (full, LimitedSet(full, 4), part):
        expected = images.read(np.arange(len(images)))[1]
        np.testing.assert_array_equal(labels_of(images), expected)
    assert labels_of(full, np.array([1, 4])).tolist() == [5, 8]
    rows = Rows(600)
    np.testing.assert_array_equal(labels_of(LimitedSet(rows, 300)), np.arange(0, 600, 2))
    assert len(rows.asked) == 300
    assert len(labels_of(Rows(0))) == 0
