"""Batches: padding, order, progress, and a reading thread that never outlives its use."""

import sys
import threading
import weakref
from dataclasses import dataclass, field
from io import StringIO

import numpy as np
import pytest

from grood_jax.data import ArraySet, Batch, Preprocessing, batches
from grood_jax.data.sets import UnreadableImage
from grood_jax.support.errors import UserError

PLAIN = Preprocessing(4, 1, mean=(0.0,), std=(1 / 255,))
"""Leaves pixels as they are."""


def numbered(count: int) -> ArraySet:
    """Images whose every pixel is their row number, labelled by it too."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ArraySet("numbered", "counted", np.tile(pixels, (1, 4, 4, 1)), np.arange(count))


def rows(found: list[Batch]) -> list[int]:
    return np.concatenate([batch.labels[batch.valid] for batch in found]).tolist()


@dataclass
class Watched:
    """A set that records what is read, and fails at a row if it is to."""

    count: int
    fails_at: int | None = None
    name: str = "watched"
    source: str = "counted"
    reads: list[list[int]] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append(indices.tolist())
        self.threads.add(threading.current_thread())
        if self.fails_at in indices:
            raise UserError(f"watched: image {self.fails_at} is damaged")
        return numbered(self.count).read(indices)

    def reading(self) -> bool:
        return any(t.is_alive() for t in self.threads if t is not threading.main_thread())


@pytest.mark.parametrize("count", [1, 11, 31, 32, 33, 64, 65])
@pytest.mark.parametrize("size", [1, 32])
def test_all_rows_once_in_order_in_batches_of_one_shape(count, size):
    found = list(batches(numbered(count), PLAIN, batch_size=size))
    assert len(found) == -(-count // size)
    assert {batch.images.shape for batch in found} == {(size, 4, 4, 1)}
    assert {batch.images.dtype for batch in found} == {np.dtype(np.float32)}
    assert {batch.labels.dtype for batch in found} == {np.dtype(np.int32)}
    assert rows(found) == list(range(count))
    images = np.concatenate([batch.images[batch.valid] for batch in found])
    np.testing.assert_allclose(images, numbered(count).images, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 11, 33])
def test_padded_rows(count):
    *_, last = batches(numbered(count), PLAIN, batch_size=32)
    real = count % 32
    assert last.valid.tolist() == [True] * real + [False] * (32 - real)
    assert not last.images[real:].any()
    assert not last.labels[real:].any()


def test_images_are_normalised_and_padding_is_not():
    preprocessing = Preprocessing(4, 1, mean=(0.5,), std=(0.25,))
    (batch,) = batches(numbered(3), preprocessing, batch_size=4)
    expected = (np.arange(3) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(batch.images[:3, 0, 0, 0], expected, rtol=1e-5)
    assert not batch.images[3].any()


def test_no_rows():
    assert list(batches(numbered(0), PLAIN, batch_size=8)) == []
    assert list(batches(numbered(5), PLAIN, batch_size=8, indices=np.zeros(0, int))) == []


def test_indices_in_their_own_order_and_repeated():
    chosen = np.array([7, 2, 2, 9, 0], np.int32)
    found = list(batches(numbered(10), PLAIN, batch_size=2, indices=chosen))
    assert rows(found) == chosen.tolist()


@pytest.mark.parametrize("chosen", [[0, 10], [-1, 3]])
def test_indices_outside_the_set(chosen):
    with pytest.raises(ValueError, match=r"indices run from .*; expected 0 to 9"):
        batches(numbered(10), PLAIN, batch_size=2, indices=np.array(chosen))


def test_an_empty_batch_size():
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        batches(numbered(10), PLAIN, batch_size=0)


def test_two_batches_are_read_ahead_and_no_more():
    watched = Watched(80)
    stream = batches(watched, PLAIN, batch_size=8, workers=1)
    assert watched.reads == []
    next(stream)
    next(stream)
    stream.close()
    read = [list(range(start, start + 8)) for start in (0, 8, 16, 24)]
    # What had not begun when the caller stopped was not read.
    assert watched.reads in (read[:2], read[:3], read)


def test_the_thread_ends_with_the_batches():
    watched = Watched(40)
    assert len(list(batches(watched, PLAIN, batch_size=8, workers=2))) == 5
    assert 1 <= len(watched.threads) <= 2
    assert not watched.reading()


def test_the_thread_ends_when_the_consumer_stops_early():
    watched = Watched(40)
    for _ in batches(watched, PLAIN, batch_size=8):
        break
    assert not watched.reading()


def test_the_thread_ends_when_the_consumer_raises():
    watched = Watched(40)
    with pytest.raises(ZeroDivisionError):
        for _ in batches(watched, PLAIN, batch_size=8):
            _ = 1 // 0
    assert not watched.reading()


@pytest.mark.parametrize("row", [0, 20, 39])
def test_an_error_in_reading_reaches_the_caller_in_its_own_words(row):
    watched = Watched(40, fails_at=row)
    labels: list[int] = []
    with pytest.raises(UserError, match=f"^watched: image {row} is damaged$"):
        for batch in batches(watched, PLAIN, batch_size=8):
            labels += batch.labels.tolist()
    assert labels == list(range(row // 8 * 8))
    assert not watched.reading()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_stderr_and_cleared(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in batches(numbered(40), PLAIN, batch_size=8, description="digits (test)"):
        pass
    shown = terminal.getvalue()
    assert "digits (test)" in shown
    assert "/40" in shown
    # The last thing written blanks the line.
    assert shown.split("\r")[-2].strip() == ""
    assert shown.endswith("\r")
    assert capsys.readouterr().out == ""


def test_progress_is_cleared_when_reading_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(UserError):
        list(batches(Watched(40, fails_at=30), PLAIN, batch_size=8, description="digits"))
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_no_progress_unless_it_is_asked_for(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(batches(numbered(40), PLAIN, batch_size=8))
    assert terminal.getvalue() == ""


@dataclass
class Holed(Watched):
    """A set some of whose images cannot be read."""

    bad: tuple[int, ...] = ()

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wrong = [int(index) for index in indices if index in self.bad]
        if wrong:
            raise UnreadableImage(f"image {wrong[0]} is no image")
        return numbered(self.count).read(indices)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("bad", [(), (0,), (3, 4, 5), (10,), tuple(range(11))])
def test_unreadable_images_are_left_out_and_named(bad, workers):
    noted: dict[int, str] = {}

    def note(place: int, error: UnreadableImage) -> None:
        noted[place] = str(error)

    stream = batches(Holed(11, bad=bad), PLAIN, batch_size=4, workers=workers, on_unreadable=note)
    found = list(stream)
    assert rows(found) == [row for row in range(11) if row not in bad]
    assert noted == {row: f"image {row} is no image" for row in bad}
    for batch in found:
        assert batch.images.shape == (4, 4, 4, 1)
        assert not batch.images[~batch.valid].any()
        assert not batch.labels[~batch.valid].any()


def test_places_of_unreadable_images_are_those_among_the_indices():
    noted: list[int] = []
    stream = batches(
        Holed(11, bad=(7,)),
        PLAIN,
        batch_size=2,
        indices=np.array([9, 7, 3, 7]),
        on_unreadable=lambda place, _: noted.append(place),
    )
    assert rows(list(stream)) == [9, 3]
    assert sorted(noted) == [1, 3]


def test_an_unreadable_image_ends_the_batches_unless_told_otherwise():
    with pytest.raises(UnreadableImage, match="image 5 is no image"):
        list(batches(Holed(11, bad=(5,)), PLAIN, batch_size=2))


@pytest.mark.parametrize("workers", [1, 2, 5, 64])
def test_the_number_of_threads_changes_nothing(workers):
    one = list(batches(numbered(100), PLAIN, batch_size=17, workers=1))
    several = list(batches(numbered(100), PLAIN, batch_size=17, workers=workers))
    for first, second in zip(one, several, strict=True):
        np.testing.assert_array_equal(first.images, second.images)
        np.testing.assert_array_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.valid, second.valid)


def test_no_threads():
    with pytest.raises(ValueError, match="workers is 0; expected at least 1"):
        batches(numbered(10), PLAIN, batch_size=2, workers=0)


def test_images_of_another_size():
    other = Preprocessing(5, 1, mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match=r"have shape \(4, 4, 1\); expected \(5, 5, 1\)"):
        list(batches(numbered(10), other, batch_size=2))


def test_memory_holds_few_batches_however_large_the_set():
    watched = Watched(400)
    earlier: list[weakref.ref[np.ndarray]] = []
    stream = batches(watched, PLAIN, batch_size=10, workers=1)
    for number, batch in enumerate(stream, 1):
        assert len(watched.reads) <= number + 2
        assert [ref for ref in earlier[:-1] if ref() is not None] == []
        earlier.append(weakref.ref(batch.images))
    assert len(earlier) == 40
