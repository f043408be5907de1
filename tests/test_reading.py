"""What could not be read is counted, whether images were read in this run or an earlier one."""

from dataclasses import dataclass

import numpy as np
import pytest

from grood_jax.data import ArraySet, Preprocessing
from grood_jax.data.sets import UnreadableImage
from grood_jax.passes.reading import BadImages, Reader
from grood_jax.storage.cache import OutputsCache

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)


@dataclass(frozen=True)
class Holed(ArraySet):
    """A set of whose images some cannot be read; it counts how often it is asked."""

    holes: tuple[int, ...] = (3, 17)
    asked: tuple[list[int], ...] = ()

    def read(self, indices):
        for asked in self.asked:
            asked += np.asarray(indices).tolist()
        for row in np.asarray(indices).tolist():
            if row in self.holes:
                raise UnreadableImage(f"image {row} is no image")
        return super().read(indices)


def holed(holes=(3, 17)):
    return Holed("holed", "here", PIXELS, np.zeros(20, np.int32), holes, ([],))


@pytest.fixture
def reader(tmp_path):
    def make(remembering=True):
        memo = OutputsCache(tmp_path, {}, pytest.fail)
        more = {"memo": memo} if remembering else {}
        preprocessing = Preprocessing(4, 1, (0.5,), (0.5,))
        return Reader(preprocessing, 8, False, bad=BadImages(), **more)

    return make


def seen(read, images):
    return [read.described(images)["unreadable"], len(read.readable(images)), read.complaints()]


COMPLAINTS = ["left out 2 unreadable images of holed of here: image 3 is no image, …"]


@pytest.mark.parametrize("remembering", [True, False])
def test_they_are_counted_where_they_are_read(reader, remembering):
    read, images = reader(remembering), holed()
    for _ in read(images, "all"):
        pass
    count = len(images.asked[0])
    assert seen(read, images) == [2, 18, COMPLAINTS]
    assert len(images.asked[0]) == count


def test_they_are_counted_where_nothing_is_read(reader):
    first = reader()
    for _ in first(images := holed(), "all"):
        pass
    first.described(images)
    again = holed()
    assert seen(reader(), again) == [2, 18, COMPLAINTS]
    assert again.asked[0] == []


@pytest.mark.parametrize("remembering", [True, False])
def test_they_are_looked_for_where_nothing_is_known(reader, remembering):
    assert seen(reader(remembering), holed()) == [2, 18, COMPLAINTS]


def test_sets_of_one_name_are_two(reader):
    read, one, other = reader(False), holed(), holed((5,))
    assert seen(read, one)[:2] == [2, 18]
    assert seen(read, other)[:2] == [1, 19]
    assert read.identity(one)["n"] == 20
    assert len(read.complaints()) == 2


def test_sets_of_one_name_have_their_own_identities(reader):
    read = reader()
    one, other = (ArraySet("a", "b", PIXELS ^ bit, np.zeros(20, np.int32)) for bit in (0, 1))
    assert read.identity(one)["checksum"] != read.identity(other)["checksum"]


def test_images_mixed_anew_are_those_that_could_be_read(reader):
    read = reader()
    again = reader().training(holed())
    for _ in read.training(holed())(None):
        pass
    rows = np.array([0, 2, 3, 15, 17])
    labels = [batch.images[batch.valid] for batch in again(rows)]
    np.testing.assert_array_equal(
        np.concatenate(labels),
        read.preprocessing.normalize(np.delete(PIXELS, [3, 17], axis=0)[rows]),
    )
