"""Sets in folders: OpenOOD's lists and folders of classes, down to each thing wrong with them."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepared import encoded, random_images, sized

from grood_jax import benchmarks
from grood_jax.data import folders, pictures
from grood_jax.data.finding import SetSpec, Wanted, find_sets
from grood_jax.data.folders import FolderSource, ImageListSource
from grood_jax.data.npz import NpzSource
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


@pytest.mark.parametrize("kind", ["jfif", "jpe", "avif", "tif", "tiff", "gif", "bmp", "ppm", "jp2"])
def test_files_of_every_kind_are_read(tmp_path, kind):
    (tmp_path / "set").mkdir()
    with Image.open(io.BytesIO(encoded(IMAGES[0]))) as picture:
        form = {"jfif": "JPEG", "jpe": "JPEG"}.get(kind)
        picture.save(tmp_path / "set" / f"a.{kind.upper()}", form)
    found = FolderSource("set").open("pets", tmp_path, SIZE)
    assert found is not None and found.left_out == ()
    assert found.read(np.arange(1))[0].shape == (1, 8, 8, 3)


def test_heic_without_its_package_is_no_silent_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    found = FolderSource(".").open("pets", tmp_path, SIZE)
    assert found is not None
    with pytest.raises(UnreadableImage, match="pip install pillow-heif"):
        found.read(np.arange(1))


def test_linked_folders_and_files_are_read_once(classes, tmp_path_factory):
    root, elsewhere = classes / "set", tmp_path_factory.mktemp("elsewhere")
    for name in ("c.png", "deep/d.png"):
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_bytes(encoded(IMAGES[3]))
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (elsewhere / "deep" / "home").symlink_to(root)
    (root / "dog" / "linked").symlink_to(elsewhere)
    (root / "dog" / "again").symlink_to(elsewhere / "deep")
    (root / "dog" / "own").symlink_to(".")
    (root / "cat" / "up").symlink_to("../..")
    (root / "cat" / "e.png").symlink_to(elsewhere / "c.png")
    (root / "cat" / "lost.png").symlink_to("nothing")
    (root / "cat" / "lost").symlink_to("nothing")
    (root / "cat" / "circle.png").symlink_to("circle.png")
    os.mkfifo(root / "cat" / "pipe.png")
    (root / ".hidden").touch()
    found = FolderSource("set", ("dog", "cat")).open("pets", classes, SIZE)
    assert found is not None
    # The folder `again` names comes first by its name, and what it holds is not read twice.
    assert found.paths == (
        *("cat/e.png", "cat/x/a.JPG", "dog/a.png", "dog/again/d.png", "dog/b.png"),
        "dog/linked/c.png",
    )
    assert {line.removeprefix(f"left out of {root}: ") for line in found.left_out} == {
        "1 that are no images by their names (cat/notes.txt)",
        "3 links to nothing (cat/circle.png, cat/lost, cat/lost.png)",
        "1 that are no regular files (cat/pipe.png)",
        "5 folders that links name again (cat/up, dog/again/back, dog/again/home, …)",
    }


def test_a_folder_that_cannot_be_looked_into_is_named(classes, monkeypatch):
    listed = os.listdir

    def refusing(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(folders.os, "listdir", refusing)
    found = FolderSource("set").open("pets", classes, SIZE)
    assert found is not None and len(found) == 2
    (line,) = found.left_out
    assert line.endswith("1 folders that cannot be read: Permission denied (cat)")


def test_what_is_left_out_is_told(classes, capsys):
    text = """
    classes = ["dog", "cat"]
    image_size = 8
    mean = [0, 0, 0]
    std = [1, 1, 1]
    train.folder = "set"
    test.folder = "set"
    far.all.folder = "set"
    """
    (classes / "mine.toml").write_text(text)
    benchmark = benchmarks.get(str(classes / "mine.toml"))
    benchmarks.open_benchmark(benchmark, limit=1)
    told = capsys.readouterr().err.splitlines()
    line = f"left out of {classes / 'set'}: 1 that are no images by their names (cat/notes.txt)"
    assert told == [line] * 3


def test_a_list_with_a_byte_order_mark(listed):
    path = listed / LISTED.imglist
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = LISTED.open("toy", listed, SIZE)
    assert found is not None
    np.testing.assert_array_equal(found.read(np.arange(5))[0], IMAGES)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: "absent/0.png 0\n" + text, "missing: .*absent/0.png .* stands in line 1"),
        (lambda text: "path label\n" + text, "line 1 is 'path label'; expected a relative path"),
        (
            lambda text: "\n".join(
                f'"{line[: line.rindex(" ")]}" {line.split()[-1]}' for line in text.splitlines()
            ),
            "line 1 is '\"toy.*without quotation marks",
        ),
        (lambda text: text.replace("toy/", '"toy/').replace("\n", '"\n'), "without quotation"),
        (lambda text: text.replace(".png ", ".png,"), "line 1 is .*expected a relative path and a"),
    ],
)
def test_a_list_that_lies_there_is_not_missing(listed, change, complaint):
    path = listed / LISTED.imglist
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=complaint):
        LISTED.open("toy", listed, SIZE)


def test_a_list_in_utf_16(listed):
    path = listed / LISTED.imglist
    path.write_text(path.read_text(), encoding="utf-16")
    with pytest.raises(UserError, match="is text in UTF-16; expected UTF-8"):
        LISTED.open("toy", listed, SIZE)


@pytest.mark.parametrize("source", [FolderSource("x"), NpzSource("x"), ImageListSource("x", ".")])
def test_what_lies_there_is_not_missing(tmp_path, source):
    wanted = [Wanted("pets", SetSpec("pets", (source,)), optional=True)]
    assert find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=True) == [None]
    (tmp_path / "x").symlink_to("nothing")
    with pytest.raises(UserError, match="x is a link to nothing"):
        find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=True)
    (tmp_path / "x").unlink()
    if isinstance(source, FolderSource):
        (tmp_path / "x").touch()
    else:
        (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="x is no f"):
        find_sets(wanted, tmp_path, SIZE, download=False, skip_missing=True)
