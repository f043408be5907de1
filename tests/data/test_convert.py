"""Folders of images become prepared sets, bytes unchanged."""

from pathlib import Path

import numpy as np
import pytest
from prepared import encoded, random_images, sized

from grood_jax.data import TfdsSource, convert


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three images in two subfolders, and two in another folder."""
    first, second = tmp_path / "first", tmp_path / "second"
    images = random_images(5, 16, 3)
    for path, image in zip(
        [first / "b" / "1.png", first / "a" / "2.webp", first / "a" / "1.png"], images, strict=False
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image, path.suffix[1:].upper()))
    second.mkdir()
    for index, image in enumerate(images[3:]):
        (second / f"{index}.png").write_bytes(encoded(image))
    return first, second


def test_images_in_the_order_of_their_paths(folders, tmp_path, capsys):
    first, second = folders
    words = ["--name", "toy", "--test", first, "--validation", second, "--data-dir", tmp_path / "d"]
    assert convert.main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f"3 test, 2 validation images, {tmp_path / 'd' / 'toy' / '1.0.0'}\n")
    images = random_images(5, 16, 3)
    for split, rows in (("test", [2, 1, 0]), ("validation", [3, 4])):
        found = TfdsSource("toy", split).open("toy", tmp_path / "d", sized(16, 3))
        assert found is not None
        pixels, labels = found.read(np.arange(len(found)))
        np.testing.assert_array_equal(pixels, images[rows])
        assert set(labels) == {-1}


def test_the_validation_part_may_be_absent(folders, tmp_path):
    words = ["--name", "toy", "--test", str(folders[0]), "--data-dir", str(tmp_path / "d")]
    assert convert.main(words) == 0
    found = TfdsSource("toy", "test").open("toy", tmp_path / "d", sized(16, 3))
    assert found is not None
    assert len(found) == 3


def test_the_default_folder_is_tensorflow_datasets_own(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    config = convert.ConvertConfig(name="toy", test=folders[0])
    assert convert.run(config, say=lambda line: None) == tmp_path / "default" / "toy" / "1.0.0"


def test_lines_of_progress_go_where_the_earlier_name_says(folders, tmp_path):
    config = convert.ConvertConfig(name="toy", test=folders[1], data_dir=tmp_path / "d")
    lines: list[str] = []
    with pytest.warns(DeprecationWarning, match="report= is called say= now"):
        folder = convert.run(config, report=lines.append)  # type: ignore[call-arg]
    assert lines == [f"2 test images, {folder}"]


def failure(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one line that a run that fails leaves."""
    assert convert.main([str(word) for word in words]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    *chatter, line = said.err.splitlines()
    assert all(word.startswith("Downloading and preparing") for word in chatter)
    return line


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_images(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    folder = tmp_path / name
    line = failure(capsys, "--name", "toy", "--test", folder, "--data-dir", tmp_path)
    assert line == f"error: {folder} holds no files; expected a folder of images"


def test_a_file_that_is_no_image(folders, tmp_path, capsys):
    first, _ = folders
    (first / "notes.txt").write_text("these are pictures")
    line = failure(capsys, "--name", "toy", "--test", first, "--data-dir", tmp_path / "d")
    assert line.startswith(f"error: {first / 'notes.txt'} is no image that can be read")
    assert TfdsSource("toy", "test").open("toy", tmp_path / "d", sized(16, 3)) is None


def test_a_set_is_not_written_twice(folders, tmp_path, capsys):
    words = ["--name", "toy", "--test", folders[0], "--data-dir", tmp_path / "d"]
    assert convert.main([str(word) for word in words]) == 0
    capsys.readouterr()
    line = failure(capsys, *words)
    assert line.startswith(f"error: {tmp_path / 'd' / 'toy' / '1.0.0'} is there already")


def test_bad_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        convert.main(["--name", "toy"])
    assert stop.value.code == 2
    assert "--test" in capsys.readouterr().err
