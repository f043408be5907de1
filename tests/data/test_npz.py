"""Sets in .npz files: pieces from disk, shapes, and what is wrong with a file."""

import io
import zipfile

import numpy as np
import pytest
from prepared import random_images, sized

from grood_jax.data.npz import NpzSource
from grood_jax.support.errors import UserError

SOURCE = NpzSource("toy_test.npz")
IMAGES = random_images(6, 8, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("labels", [None, np.arange(6), np.arange(6).astype(np.uint8)])
def test_images_and_labels(tmp_path, save, order, labels):
    arrays = {"other": np.arange(3), "images": np.asarray(IMAGES, order=order)}
    save(tmp_path / SOURCE.file, **arrays, **({} if labels is None else {"labels": labels}))
    found = SOURCE.open("toy", tmp_path, sized(8, 3))
    assert found is not None
    assert (len(found), found.source) == (6, "npz:toy_test.npz")
    assert isinstance(found.images, np.memmap) == (save is np.savez)
    pixels, given = found.read(np.array([5, 0]))
    np.testing.assert_array_equal(pixels, IMAGES[[5, 0]], strict=True)
    assert (given.tolist(), given.dtype) == ([-1, -1] if labels is None else [5, 0], np.int32)


def test_grey_images_and_other_sizes(tmp_path):
    np.savez(tmp_path / SOURCE.file, images=IMAGES[..., 0])
    found = SOURCE.open("toy", tmp_path, sized(8, 3))
    assert found is not None
    np.testing.assert_array_equal(
        found.read(np.arange(2))[0], np.repeat(IMAGES[:2, :, :, :1], 3, 3)
    )
    larger = SOURCE.open("toy", tmp_path, sized(16, 1))
    assert larger is not None
    assert larger.read(np.arange(2))[0].shape == (2, 16, 16, 1)


def test_nothing_there(tmp_path):
    assert SOURCE.open("toy", tmp_path, sized(8, 3)) is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"pictures": IMAGES}, "cannot be read: .*expected a file of numpy.savez with an array"),
        ({"images": IMAGES.astype(np.float32)}, r"dtype float32 and shape \(6, 8, 8, 3\); expe"),
        ({"images": IMAGES[..., :2]}, r"shape \(6, 8, 8, 2\); expected uint8"),
        ({"images": IMAGES[0, 0]}, r"shape \(8, 3\); expected uint8"),
        ({"images": IMAGES[:0]}, r"shape \(0, 8, 8, 3\); expected some pixels"),
        ({"images": np.array([None, 1])}, "holds Python objects"),
        ({"images": IMAGES, "labels": np.arange(5)}, r"labels .* shape \(5,\); .* \(6,\)"),
        ({"images": IMAGES, "labels": np.arange(6.0)}, "labels .* dtype float64"),
        ({"images": IMAGES, "labels": np.arange(6) - 2}, "run from -2 to 3"),
        ({"images": IMAGES, "labels": np.arange(6) + 2**40}, "expected classes from 0"),
    ],
)
def test_arrays_that_are_none(tmp_path, arrays, complaint):
    np.savez(tmp_path / SOURCE.file, **arrays)
    with pytest.raises(UserError, match=complaint):
        SOURCE.open("toy", tmp_path, sized(8, 3))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / SOURCE.file).write_bytes(content)
    with pytest.raises(UserError, match="toy_test.npz cannot be read: .*numpy.savez"):
        SOURCE.open("toy", tmp_path, sized(8, 3))


def test_a_file_that_was_cut_short(tmp_path):
    np.savez(tmp_path / SOURCE.file, images=IMAGES)
    whole = (tmp_path / SOURCE.file).read_bytes()
    (tmp_path / SOURCE.file).write_bytes(whole[:-30])
    with pytest.raises(UserError, match="toy_test.npz cannot be read"):
        SOURCE.open("toy", tmp_path, sized(8, 3))


def test_what_is_compressed_is_not_unpacked_without_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("grood_jax.support.npz.MAX_UNPACKED", 1000)
    np.savez_compressed(tmp_path / SOURCE.file, images=np.zeros((6, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="unpacks to 1280 bytes; expected at most 1000 .numpy"):
        SOURCE.open("toy", tmp_path, sized(8, 3))


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(2**60,), (-1, 8, 8), (2, 8, 9), (2, 8, 7)])
def test_a_header_that_lies(tmp_path, kind, shape):
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(tmp_path / SOURCE.file, "w", kind) as archive:
        archive.writestr("images.npy", member.getvalue() + bytes(128))
    with pytest.raises(UserError, match="images has 128 bytes; its shape .* has "):
        SOURCE.open("toy", tmp_path, sized(8, 3))
