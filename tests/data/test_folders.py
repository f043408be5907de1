"""Sets in folders: OpenOOD's lists and folders of classes, down to each thing wrong with them."""

from pathlib import Path

import numpy as np
import pytest
from prepared import encoded, random_images, sized

from grood_jax.data.folders import FolderSource, ImageListSource
from grood_jax.data.sets import UnreadableImage
from grood_jax.support.errors import UserError

LISTED = ImageListSource("benchmark_imglist/toy/test_toy.txt", "images_classic")
IMAGES = random_images(5, 8, 3)
SIZE = sized(8, 3)


@pytest.fixture
def listed(tmp_path) -> Path:
    """OpenOOD's layout with five images, labels 0 to 3 and −1."""
    folder = tmp_path / "images_classic" / "toy" / "test"
    folder.mkdir(parents=True)
    lines = []
    for number, image in enumerate(IMAGES):
        (folder / f"a picture {number}.png").write_bytes(encoded(image))
        lines.append(f"toy/test/a picture {number}.png {number if number < 4 else -1}")
    (tmp_path / LISTED.imglist).parent.mkdir(parents=True)
    # Some lists end without a line's end.
    (tmp_path / LISTED.imglist).write_text("\n".join(lines))
    return tmp_path


def test_a_list_in_its_order(listed):
    found = LISTED.open("toy", listed, SIZE)
    assert found is not None
    assert (found.name, len(found)) == ("toy", 5)
    assert found.source.startswith("openood:benchmark_imglist/toy/test_toy.txt@")
    pixels, labels = found.read(np.array([4, 0, 2]))
    np.testing.assert_array_equal(pixels, IMAGES[[4, 0, 2]], strict=True)
    assert (labels.tolist(), labels.dtype) == ([-1, 0, 2], np.int32)
    empty, none = found.read(np.zeros(0, int))
    assert (empty.shape, none.shape) == ((0, 8, 8, 3), (0,))


def test_another_list_is_another_source(listed):
    first = LISTED.open("toy", listed, SIZE)
    path = listed / LISTED.imglist
    path.write_text(path.read_text().replace(".png 0", ".png 1"))
    second = LISTED.open("toy", listed, SIZE)
    assert first is not None and second is not None
    assert first.source != second.source


def test_openoods_sample(openood_data):
    found = ImageListSource("benchmark_imglist/cifar10/test_cifar10.txt", "images_classic").open(
        "cifar10", openood_data, sized(32, 3)
    )
    assert found is not None and len(found) == 200
    pixels, labels = found.read(np.arange(200))
    assert sorted(set(labels.tolist())) == list(range(10))
    assert len({image.tobytes() for image in pixels}) == 200


def test_nothing_there(listed, tmp_path):
    assert ImageListSource("absent.txt", "images_classic").open("toy", listed, SIZE) is None
    # OpenOOD's lists come in one archive for all sets, and so may lie there without images.
    assert ImageListSource(LISTED.imglist, "images_largescale").open("toy", listed, SIZE) is None
    assert FolderSource("absent").open("toy", tmp_path, SIZE) is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("toy/test/0.png", "line 2 is 'toy/test/0.png'; expected a relative path and a label"),
        ("toy/test/0.png one", "expected a relative path and a label"),
        ("7", "expected a relative path and a label"),
        ("/etc/passwd 1", "expected a relative path and a label"),
        ("toy/test/0.png -2", "expected a relative path and a label"),
        ("toy/test/0.png 4294967296", "expected a relative path and a label"),
        ("toy/test/0.png {'label': 1}", "expected a relative path and a label"),
        ("toy/test/absent.png 0", "lists images that are missing: .*absent.png .1 of 6"),
    ],
)
def test_lists_that_are_none(listed, line, complaint):
    path = listed / LISTED.imglist
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]))
    with pytest.raises(UserError, match=complaint):
        LISTED.open("toy", listed, SIZE)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_list(listed, content):
    (listed / LISTED.imglist).write_text(content)
    with pytest.raises(UserError, match="test_toy.txt lists no images"):
        LISTED.open("toy", listed, SIZE)


@pytest.mark.parametrize("damage", ["cut", "gone", "text", "folder"])
def test_an_image_that_cannot_be_read_is_named(listed, damage):
    path = listed / "images_classic/toy/test/a picture 3.png"
    found = LISTED.open("toy", listed, SIZE)
    assert found is not None
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("no image at all")
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImage, match=r"toy: .*/a picture 3.png cannot be read: \w+"):
        found.read(np.arange(5))
    assert found.read(np.array([0, 1, 2, 4]))[1].tolist() == [0, 1, 2, -1]


@pytest.fixture
def classes(tmp_path) -> Path:
    for number, name in enumerate(["dog/b.png", "cat/x/a.JPG", "dog/a.png", "cat/notes.txt"]):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(IMAGES[number]))
    return tmp_path


def test_a_folder_for_each_class(classes):
    found = FolderSource("set", ("dog", "cat")).open("pets", classes, SIZE)
    assert found is not None
    assert found.source == "folder:set"
    pixels, labels = found.read(np.arange(len(found)))
    # By path: cat/x/a.JPG, dog/a.png, dog/b.png.
    assert labels.tolist() == [1, 0, 0]
    np.testing.assert_array_equal(pixels, IMAGES[[1, 2, 0]])


def test_a_folder_without_classes(classes):
    found = FolderSource("set").open("pets", classes, SIZE)
    assert found is not None
    assert found.read(np.arange(3))[1].tolist() == [-1, -1, -1]


def test_folders_that_are_no_classes(classes):
    with pytest.raises(UserError, match="set/dog is no class; expected folders cat, cow"):
        FolderSource("set", ("cat", "cow")).open("pets", classes, SIZE)
    (classes / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images .*.png"):
        FolderSource("empty").open("pets", classes, SIZE)
