"""Fingerprints see every image and every label of a set, and nothing else."""

import os
import shutil

import numpy as np
import pytest
from prepared import encoded, random_images, sized, write

from grood_jax.data import ArraySet, LimitedSet, TfdsSource, sets
from grood_jax.data.folders import FolderSource, ImageListSource
from grood_jax.data.npz import NpzSource
from grood_jax.data.sets import PartOfSet, UnreadableImage, fingerprint

COUNT = 40
IMAGES = random_images(COUNT, 8, 3)
LABELS = np.arange(COUNT, dtype=np.int32) % 4
SIZE = sized(8, 3)


def array_set(root, images, labels):
    return ArraySet("toy", "here", images, labels)


class Own:
    """A set of a user's own, with nothing but what `ImageSet` asks for."""

    name, source = "toy", "here"

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return self.images[indices], self.labels[indices]


def own_set(root, images, labels):
    return Own(images, labels)


def npz_set(root, images, labels):
    np.savez(root / "toy.npz", images=images, labels=labels)
    return NpzSource("toy.npz").open("toy", root, SIZE)


def packed_set(root, images, labels):
    np.savez_compressed(root / "toy.npz", images=images, labels=labels)
    return NpzSource("toy.npz").open("toy", root, SIZE)


def folder_set(root, images, labels):
    shutil.rmtree(root / "set", ignore_errors=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / "set" / str(label) / f"{number:03}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, "BMP"))
    return FolderSource("set", tuple("0123")).open("toy", root, SIZE)


def list_set(root, images, labels):
    (root / "images").mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (root / "images" / f"{number}.bmp").write_bytes(encoded(image, "BMP"))
    lines = (f"{number}.bmp {label}" for number, label in enumerate(labels))
    (root / "list.txt").write_text("\n".join(lines))
    return ImageListSource("list.txt", "images").open("toy", root, SIZE)


def tfds_set(root, images, labels):
    shutil.rmtree(root / "toy", ignore_errors=True)
    records = [(encoded(i, "BMP"), int(label)) for i, label in zip(images, labels, strict=True)]
    write(root, "toy", {"test": records})
    return TfdsSource("toy", "test").open("toy", root, SIZE)


def limited_set(root, images, labels):
    return LimitedSet(ArraySet("toy", "here", images, labels), COUNT - 1)


def part_of_set(root, images, labels):
    return PartOfSet(ArraySet("toy", "here", images, labels), np.arange(COUNT), "all")


EVERY = [
    *(array_set, own_set, npz_set, packed_set, folder_set, list_set, tfds_set),
    *(limited_set, part_of_set),
]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("cheap", [0, 2**28])
def test_every_image_and_label_counts(tmp_path, monkeypatch, make, cheap):
    monkeypatch.setattr(sets, "CHEAP", cheap)
    monkeypatch.setattr("grood_jax.data.npz.CHEAP", cheap)
    first = fingerprint(make(tmp_path, IMAGES, LABELS))
    if cheap and make is not tfds_set:
        # Written again, large files have other times, and a prepared set another file.
        assert first == fingerprint(make(tmp_path, IMAGES.copy(), LABELS.copy()))
    assert first.of == ("files" if not cheap and make in BY_FILES else "content")
    rows = range(COUNT) if make in (array_set, own_set) else (0, 1, 17, COUNT - 1)
    for row in rows:
        images, labels = IMAGES.copy(), LABELS.copy()
        images[row, 3, 4, 1] ^= 1
        assert fingerprint(make(tmp_path, images, LABELS)) != first
        labels[row] = (labels[row] + 1) % 4
        assert fingerprint(make(tmp_path, IMAGES, labels)) != first


BY_FILES = (npz_set, folder_set, list_set, tfds_set)


@pytest.mark.parametrize("make", [npz_set, folder_set, list_set, tfds_set])
def test_large_files_are_known_by_their_times_and_by_their_content_on_request(
    tmp_path, monkeypatch, make
):
    found = make(tmp_path, IMAGES, LABELS)
    content = fingerprint(found)
    monkeypatch.setattr(sets, "CHEAP", 0)
    monkeypatch.setattr("grood_jax.data.npz.CHEAP", 0)
    assert fingerprint(found, content=True) == content
    quick = fingerprint(found)
    assert (content.of, quick.of) == ("content", "files")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    for path in files:
        facts = path.stat()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert fingerprint(found) != quick
    assert fingerprint(found, content=True) == content


def test_the_place_of_a_set_does_not_count(tmp_path):
    (tmp_path / "a").mkdir()
    made = folder_set(tmp_path / "a", IMAGES, LABELS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = FolderSource("set", tuple("0123")).open("toy", tmp_path / "b", SIZE)
    assert fingerprint(made) == fingerprint(moved)


def test_parts_differ():
    full = ArraySet("toy", "here", IMAGES, LABELS)
    parts = [
        full,
        LimitedSet(full, 10),
        LimitedSet(full, 11),
        PartOfSet(full, np.arange(10), "first"),
        PartOfSet(full, np.arange(1, 11), "others"),
        PartOfSet(LimitedSet(full, 11), np.arange(10), "first"),
    ]
    assert len({fingerprint(part) for part in parts}) == len(parts)


def test_files_that_cannot_be_read_differ_from_those_that_can(tmp_path):
    found = folder_set(tmp_path, IMAGES, LABELS)
    whole = fingerprint(found)
    (found.root / found.paths[7]).unlink()
    assert fingerprint(found) != whole

    class Holed(Own):
        def read(self, indices):
            if 7 in indices:
                raise UnreadableImage("7")
            return super().read(indices)

    assert fingerprint(Holed(IMAGES, LABELS)) != fingerprint(Own(IMAGES, LABELS))
