"""Reading prepared sets: order, decoding, and what is said of damaged and unfit ones."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from prepared import encoded, random_images, sized, write

from grood_jax.data import ImageSet, TfdsSource
from grood_jax.data.npz import NpzSource
from grood_jax.data.sets import labels_of
from grood_jax.data.tfds import TfdsSet, default_data_dir
from grood_jax.support.errors import UserError

COUNT = 50
SHARDS = 3


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return random_images(COUNT, 32, 3)


@pytest.fixture(scope="session")
def prepared(images, tmp_path_factory) -> Path:
    """A set of fifty images in three files, labelled by their row numbers."""
    data_dir = tmp_path_factory.mktemp("prepared")
    rows = [(encoded(image, "WEBP"), row) for row, image in enumerate(images)]
    write(data_dir, "toy", {"train": rows, "test": rows[:4]}, shards=SHARDS)
    return data_dir


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """One's own copy of it, to damage."""
    shutil.copytree(prepared / "toy", tmp_path / "toy")
    return tmp_path


def opened(data_dir: Path, split: str = "train", size: int = 32, channels: int = 3) -> TfdsSet:
    found = TfdsSource("toy", split).open("a set", data_dir, sized(size, channels))
    assert found is not None
    return found


def shard(data_dir: Path, index: int) -> Path:
    (found,) = data_dir.glob(f"toy/1.0.0/toy-train.array_record-0000{index}-of-0000{SHARDS}")
    return found


def test_random_access(prepared, images):
    found = opened(prepared)
    assert isinstance(found, ImageSet)
    assert len(found) == COUNT
    assert found.name == "a set"
    assert found.source == "tfds:toy:1.0.0:train"
    rows = np.random.default_rng(0).permutation(COUNT)
    pixels, labels = found.read(rows)
    np.testing.assert_array_equal(pixels, images[rows])
    np.testing.assert_array_equal(labels, rows)
    np.testing.assert_array_equal(labels_of(found, rows), labels)
    assert (pixels.dtype, labels.dtype) == (np.uint8, np.int32)


def test_no_rows(prepared):
    pixels, labels = opened(prepared).read(np.zeros(0, np.int64))
    assert pixels.shape == (0, 32, 32, 3)
    assert labels.shape == (0,)


def test_splits(prepared):
    assert len(opened(prepared, "test")) == 4


def test_size_and_channels(prepared):
    pixels, _ = opened(prepared, size=8, channels=1).read(np.arange(3))
    assert pixels.shape == (3, 8, 8, 1)


@pytest.mark.parametrize(("channels", "form"), [(3, (8, 8, 3)), (1, (8, 8, 1)), (1, (8, 8))])
def test_arrays_of_the_size_wanted_are_read_as_they_would_be_one_by_one(tmp_path, channels, form):
    pixels = random_images(9, 8, channels).reshape(9, *form)
    np.savez(tmp_path / "toy.npz", images=pixels, labels=np.arange(9))
    found = NpzSource("toy.npz").open("a set", tmp_path, sized(8, channels))
    rows = np.array([7, 0, 0, 3])
    read, labels = found.read(rows)
    one_by_one = [sized(8, channels).fit_pixels(pixels[row]) for row in rows]
    np.testing.assert_array_equal(read, np.stack(one_by_one))
    np.testing.assert_array_equal(labels, rows)
    assert type(read) is np.ndarray and found.read(rows[:0])[0].shape == (0, 8, 8, channels)


def test_nothing_there(tmp_path):
    assert TfdsSource("toy", "train").open("a set", tmp_path, sized(32, 3)) is None
    assert TfdsSource("toy", "train").open("a set", tmp_path / "absent", sized(32, 3)) is None


def test_the_newest_version_counts_as_a_number(tmp_path, images):
    rows = [(encoded(images[0]), 1)]
    for version in ("2.0.0", "10.0.0", "9.1.0"):
        write(tmp_path, "toy", {"train": rows}, version=version)
    assert opened(tmp_path).source == "tfds:toy:10.0.0:train"


def test_an_interrupted_download_does_not_count(copy):
    whole = copy / "toy" / "1.0.0"
    shutil.copytree(whole, copy / "toy" / "incomplete.8P4G2F_2.0.0")
    assert opened(copy).source == "tfds:toy:1.0.0:train"
    shutil.rmtree(whole)
    assert TfdsSource("toy", "train").open("a set", copy, sized(32, 3)) is None


def test_configurations_lie_one_folder_deeper(prepared, tmp_path, images):
    (tmp_path / "toy").mkdir()
    shutil.copytree(prepared / "toy", tmp_path / "toy" / "letters")
    source = TfdsSource("toy/letters", "train")
    found = source.open("a set", tmp_path, sized(32, 3))
    assert found is not None
    assert found.source == "tfds:toy/letters:1.0.0:train"
    np.testing.assert_array_equal(found.read(np.array([7]))[0], images[[7]])


def test_an_absent_split(prepared):
    with pytest.raises(UserError, match="has splits test, train; expected 'validation'"):
        opened(prepared, "validation")


def test_another_file_format(copy):
    info = copy / "toy" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="toy in .* is stored as tfrecord; expected array_record"):
        opened(copy)


def test_a_set_without_images(tmp_path, images):
    write(tmp_path, "toy", {"train": [(encoded(images[0]), 0)]}, image_feature="picture")
    with pytest.raises(UserError, match="has features label, picture; expected 'image'"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "{}", '{"no": "such thing"}'])
def test_broken_descriptions(copy, name, content):
    (copy / "toy" / "1.0.0" / name).write_text(content)
    with pytest.raises(UserError, match="toy/1.0.0 cannot be read: ") as error:
        opened(copy)
    assert "\n" not in str(error.value)


def test_a_description_without_splits(copy):
    path = copy / "toy" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": []}))
    with pytest.raises(UserError, match="toy in .* has splits none; expected 'train'"):
        opened(copy)


def test_no_description_of_the_features(copy):
    (copy / "toy" / "1.0.0" / "features.json").unlink()
    with pytest.raises(UserError, match="toy/1.0.0 cannot be read: Cannot restore"):
        opened(copy)


def test_missing_files(copy):
    shard(copy, 1).unlink()
    with pytest.raises(UserError, match=r"is incomplete: .*-00001-of-00003 is missing \(1 of 3"):
        opened(copy)


@pytest.mark.parametrize("index", range(SHARDS))
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_truncated_files_are_found_on_opening(copy, index, kept):
    file = shard(copy, index)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    message = f"a set: image .* cannot be read from {re.escape(str(file))} .*damaged"
    with pytest.raises(UserError, match=message) as error:
        opened(copy)
    assert "\n" not in str(error.value)


def test_a_file_that_ends_too_early_on_a_block_boundary(tmp_path):
    """ArrayRecord pads its files to blocks of 64 KiB, and reads what such a stump still holds."""
    rows = [(encoded(image), 0) for image in random_images(60, 64, 3)]
    write(tmp_path, "toy", {"train": rows})
    (file,) = tmp_path.glob("toy/1.0.0/toy-train*")
    content = file.read_bytes()
    assert len(content) > 5 * 2**16
    file.write_bytes(content[: 2 * 2**16])
    with pytest.raises(UserError, match="a set: image 59 cannot be read from .*damaged"):
        opened(tmp_path)


def test_a_flipped_byte_is_named_when_it_is_read(copy, images):
    file = shard(copy, 1)
    content = bytearray(file.read_bytes())
    # In the middle of a record's pixels: the checksum of its chunk no longer fits.
    position = content.find(encoded(images[20], "WEBP")) + 100
    content[position] ^= 0xFF
    file.write_bytes(content)
    found = opened(copy)
    found.read(np.array([19, 21]))
    message = f"a set: image 20 cannot be read from {re.escape(str(file))} .*damaged"
    with pytest.raises(UserError, match=message):
        found.read(np.arange(COUNT))


def test_an_image_that_cannot_be_decoded(tmp_path, images):
    whole = encoded(images[0])
    rows = [(whole, 0), (whole[:200], 1), (b"no image at all", 2)]
    write(tmp_path, "toy", {"train": rows})
    found = opened(tmp_path)
    for row in (1, 2):
        with pytest.raises(UserError, match=f"a set: image {row} cannot be read from .*-of-00001"):
            found.read(np.array([0, row]))


def test_reading_says_nothing(prepared, capfd):
    opened(prepared).read(np.arange(COUNT))
    assert capfd.readouterr() == ("", "")


def test_where_data_lie_by_default(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/elsewhere")
    assert default_data_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_data_dir() == Path.home() / "tensorflow_datasets"


def test_tensorflow_is_not_imported(prepared):
    opened(prepared).read(np.arange(2))
    assert "tensorflow" not in sys.modules
