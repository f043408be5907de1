"""Whatever a user gives as a set comes to the same batches, or is refused in a sentence."""

import io
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from PIL import Image

from grood_jax.backbone.backbone import Backbone
from grood_jax.data import ArraySet, Batch, Preprocessing
from grood_jax.data.given import door
from grood_jax.support.errors import UserError

COUNT, SIZE = 10, 4
PREPARING = ((0.25,), (0.5,), SIZE)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (COUNT, SIZE, SIZE, 1), dtype=np.uint8)
LABELS = np.arange(COUNT, dtype=np.int64) % tiny.CLASSES
NORMAL = np.float32(PIXELS / 255 - 0.25) / np.float32(0.5)

pytestmark = pytest.mark.usefixtures("unchecked")


class Indexed:
    """What gives one entry at a time, as a torch Dataset or a data source does."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, row):
        return self.entries[row]


class Loader:
    """What gives batches, again and again, as a DataLoader does: lists, the last one short."""

    def __init__(self, images, labels, size=4):
        self.parts = [
            [images[i : i + size], labels[i : i + size]] for i in range(0, len(images), size)
        ]

    def __iter__(self):
        return iter(self.parts)


def encoded(image):
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    for row, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = tmp_path / "photos" / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.png").write_bytes(encoded(image))
    return tmp_path / "photos"


def opened(given, preparing=PREPARING, labels=True, again=True, **options):
    network = replace(tiny.backbone(), input_std=())
    return door(network, preparing, batch_size=4).open(
        "train", given, labels=labels, again=again, **options
    )


def everything(found, rows=None):
    """All images, normalised as the network has them, and their labels."""
    network = door(replace(tiny.backbone(), input_std=()), PREPARING).backbone
    parts = [
        (np.asarray(network.normalized(b.images))[b.valid], b.labels[b.valid])
        for b in found.read(rows)
    ]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def batch(rows):
    return Batch(NORMAL[rows], np.int32(LABELS[rows]), np.ones(len(NORMAL[rows]), bool))


FORMS = {
    "floats": (NORMAL, LABELS),
    "float64": [NORMAL.astype(np.float64), LABELS],
    "jax": (jnp.asarray(NORMAL), jnp.asarray(LABELS)),
    "bytes": (PIXELS, LABELS),
    "grey bytes": (PIXELS[..., 0], LABELS),
    "mapping": {"image": PIXELS, "label": LABELS},
    "one batch": [(NORMAL, LABELS)],
    "two batches": [(NORMAL[:6], LABELS[:6]), (NORMAL[6:], LABELS[6:])],
    "two batches in a tuple": ((NORMAL[:6], LABELS[:6]), (NORMAL[6:], LABELS[6:])),
    "batches of bytes": [(PIXELS[:6], LABELS[:6]), (PIXELS[6:], LABELS[6:])],
    "padded batches": [batch(slice(0, 5)), batch(slice(5, None))],
    "function": lambda rows: [batch(np.arange(COUNT) if rows is None else rows)],
    "loader": Loader(NORMAL, LABELS),
    "mappings in batches": [{"images": NORMAL, "labels": LABELS}],
    "two lists": (list(PIXELS), list(LABELS)),
    "items": Indexed(list(zip(NORMAL, LABELS.tolist(), strict=True))),
    "items of bytes": Indexed(list(zip(PIXELS, LABELS, strict=True))),
    "source": Indexed([{"image": i, "label": k} for i, k in zip(PIXELS, LABELS, strict=True)]),
    "encoded": Indexed([(encoded(i), k) for i, k in zip(PIXELS, LABELS, strict=True)]),
    "pictures": [(Image.fromarray(i[..., 0]), int(k)) for i, k in zip(PIXELS, LABELS, strict=True)],
    "set": ArraySet("own", "here", PIXELS, LABELS.astype(np.int32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_come_to_the_same(form):
    found = opened(FORMS[form])
    images, labels = everything(found)
    np.testing.assert_allclose(images, NORMAL, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)
    # Some rows again, which is what mix-up reads.
    images, labels = everything(found, np.array([1, 4, 9]))
    np.testing.assert_allclose(images, NORMAL[[1, 4, 9]], atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS[[1, 4, 9]])
    assert found.described()["n"] == COUNT and len(found.described()["fingerprint"]) == 64


def test_a_fingerprint_is_of_images_and_labels_alone():
    def fingerprint(given):
        found = opened(given)
        for _ in found.read(None):
            pass
        return found.described()["fingerprint"]

    one, other = fingerprint(FORMS["floats"]), fingerprint((NORMAL, (LABELS + 1) % 4))
    assert one == fingerprint(FORMS["two batches"]) == fingerprint(FORMS["loader"]) != other
    assert fingerprint((NORMAL + 0.1, LABELS)) != one


def test_a_folder_of_classes(folder):
    found = opened(folder)
    images, labels = everything(found)
    assert found.classes == ("class0", "class1", "class2", "class3")
    order = np.lexsort([np.arange(COUNT).astype(str), LABELS])
    np.testing.assert_array_equal(labels, LABELS[order])
    np.testing.assert_allclose(images, NORMAL[order], atol=1e-6)
    # Without labels it is any folder; and a test set has the classes of the training set.
    assert everything(opened(str(folder), labels=False))[1].tolist() == [-1] * COUNT
    with pytest.raises(UserError, match="class3 is no class; expected folders class0, class1"):
        opened(folder, classes=("class0", "class1", "class2"))


def test_a_file_of_arrays(tmp_path):
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    images, labels = everything(opened(tmp_path / "set.npz"))
    np.testing.assert_allclose(images, NORMAL, atol=1e-6)
    np.testing.assert_array_equal(labels, LABELS)
    np.savez(tmp_path / "other.npz", images=PIXELS)
    with pytest.raises(UserError, match="which has no array 'labels'"):
        opened(tmp_path / "other.npz")


def test_pictures_of_all_sizes_are_brought_to_one():
    wide = Image.fromarray(np.full((7, 9, 3), 200, np.uint8))
    stream = io.BytesIO()
    wide.save(stream, "PNG")
    for given in ([wide, wide.convert("L")], [stream.getvalue()] * 2):
        images, _ = everything(opened(given, labels=False))
        assert images.shape == (2, SIZE, SIZE, 1)
        np.testing.assert_allclose(images, (200 / 255 - 0.25) / 0.5, atol=1e-6)


def test_what_can_be_read_once_is_read_once():
    found = opened(iter(FORMS["two batches"]), again=False)
    np.testing.assert_allclose(everything(found)[0], NORMAL)
    assert not found.again
    images = opened((part for part in [NORMAL[:6], NORMAL[6:]]), labels=False, again=False)
    np.testing.assert_allclose(everything(images)[0], NORMAL)


def test_a_network_that_normalises_bytes_needs_no_more():
    network = replace(tiny.backbone(), input_mean=(0.25,), input_std=(0.5,))
    found = door(network).open("test", (PIXELS, LABELS), labels=True)
    np.testing.assert_allclose(everything(found)[0], NORMAL, atol=1e-6)
    with pytest.raises(UserError, match=r"mean \(0.1,\); expected \(0.25,\), the backbone's"):
        door(network, ((0.1,), (0.5,), 4))


def test_channels_first_is_what_some_networks_take():
    """Of images that look so, the network decides."""
    weights = jnp.ones((3, 2))

    def last(arrays, images):
        return images.mean(axis=(1, 2)) @ arrays

    def first(arrays, images):
        return images.mean(axis=(2, 3)) @ arrays

    def ends(arrays, hidden):
        return hidden, hidden

    images = np.zeros((COUNT, 3, 8, 8), np.float32)
    given = (images, LABELS % 2)
    assert door(Backbone.from_functions(weights, first, ends)).open("test", given, labels=True)
    with pytest.raises(
        UserError, match=r"\(3, 8, 8\), which seem to have channels first; exp.*8, 8, 3"
    ):
        door(Backbone.from_functions(weights, last, ends)).open("test", given, labels=True)


def damaged(value):
    images = NORMAL.copy()
    images[7, 0] = value
    return images


ONE_HOT = np.eye(tiny.CLASSES, dtype=np.int64)[LABELS]
REFUSED = {
    "bytes without a word": ((PIXELS, LABELS), TypeError, "uint8", None),
    "bytes as floats": ((np.float32(PIXELS), LABELS), UserError, "seem not to be normalised", None),
    "whole numbers": ((PIXELS.astype(int), LABELS), TypeError, "dtype int64", None),
    "channels": (
        (np.zeros((9, 4, 4, 3), np.float32), LABELS[:9]),
        UserError,
        r"\(4, 4, 3\), which the network does not take: .*; it takes \(4, 4, 1\)",
        None,
    ),
    "another size": (
        (np.zeros((9, 5, 5, 1), np.float32), LABELS[:9]),
        UserError,
        r"\(5, 5, 1\), which the network does not take",
        None,
    ),
    "bytes with channels first": (
        (np.zeros((9, 3, 8, 8), np.uint8), LABELS[:9]),
        UserError,
        "seem to have channels first: images.transpose",
        PREPARING,
    ),
    "one-hot": ((NORMAL, ONE_HOT), TypeError, r"\(10, 4\).*one-hot: labels.argmax", None),
    "words": ((NORMAL, LABELS.astype(str)), TypeError, "dtype <U21.*numpy.unique", None),
    "halves": ((NORMAL, LABELS / 2), TypeError, "dtype float64.*astype", None),
    "classes from 1": (
        (NORMAL, LABELS + 1),
        UserError,
        "label 4 of row 3 is no class .*expected classes from 0 to 3; .*counted from 1",
        None,
    ),
    "a class too many in a batch": (
        [(NORMAL[:8], LABELS[:8]), (NORMAL[8:], LABELS[8:] + 9)],
        UserError,
        "label 9 of row 0 is no class .*8 images came before",
        None,
    ),
    "fewer labels": (
        (NORMAL, LABELS[:-1]),
        TypeError,
        r"shape \(9,\); expected integers \(10,\)",
        None,
    ),
    "no labels": (NORMAL, TypeError, "has no labels", None),
    "no labels in batches": ([NORMAL], TypeError, "has no labels", None),
    "no image": ((NORMAL[:0], LABELS[:0]), UserError, "has 0 images; expected at least 2", None),
    "one image": ((NORMAL[:1], LABELS[:1]), UserError, "has 1 images; expected at least 2", None),
    "one image in a batch": ([(NORMAL[:1], LABELS[:1])], UserError, "has 1 images", None),
    "nothing": ([], UserError, "holds no image", None),
    "NaN": ((damaged(np.nan), LABELS), UserError, "image 7 holds NaN or infinite", None),
    "infinite": (
        [(NORMAL[:5], LABELS[:5]), (damaged(np.inf)[5:], LABELS[5:])],
        UserError,
        "image 7 holds NaN",
        None,
    ),
    "a generator": (iter([(NORMAL, LABELS)]), TypeError, "can be read only once", None),
    "single images": (Loader(NORMAL[0], LABELS), TypeError, r"expected batches", None),
    "two sizes": (
        [(NORMAL, LABELS), (NORMAL[:, 1:], LABELS)],
        UserError,
        r"\(3, 4, 1\); expected \(4, 4, 1\)",
        None,
    ),
    "items of two sizes": (
        Indexed([(NORMAL[0], 0), (NORMAL[1, 1:], 1)]),
        UserError,
        "image 1 has shape",
        None,
    ),
    "a number": (3, TypeError, "is a int; expected", None),
    "another mapping": ({"pixels": NORMAL}, TypeError, r"\['pixels'\]; expected 'image'", None),
    "a path to nothing": ("no/such/folder", UserError, "nothing is there", PREPARING),
    "a path without a word": ("no/such/folder", UserError, "nothing says how images", None),
    "a function of nothing": (lambda rows: [], TypeError, "gives NoneType for None", None),
    "a broken picture": (
        Indexed([(b"no picture", 0)] * 2),
        UserError,
        "image 0: it is no",
        PREPARING,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_said_in_a_sentence(kind):
    given, error, said, preparing = REFUSED[kind]
    with pytest.raises(error, match=said) as caught:
        for _ in opened(given, preparing).read(None):
            pass
    assert re.match(r"(labels of )?train\b", str(caught.value))


def test_an_exhausted_generator_is_known():
    given = iter([NORMAL])
    list(given)
    with pytest.raises(UserError, match="gives no batch .was it read before"):
        opened(given, labels=False, again=False)


def test_loose_pictures_are_no_classes(folder):
    (folder / "class0" / "0.png").rename(folder / "0.png")
    with pytest.raises(UserError, match="0.png in no folder; expected a folder for each class"):
        opened(folder)


@pytest.mark.parametrize("given", [(0.5, 0.5), 3, "imagenet"])
def test_a_preprocessing_is_one(given):
    with pytest.raises(TypeError, match="expected .mean, std, size., as"):
        door(tiny.backbone(), given)
    found = door(replace(tiny.backbone(), input_std=()), Preprocessing(4, 1, (0.5,), (0.5,)))
    assert found.backbone.takes_bytes
