"""From the command line to a directory that answers: fit, then predict, run as a user runs them."""

import csv
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from grood_jax.cli import fit, predict
from grood_jax.conformal import calibration
from grood_jax.data import Preprocessing, builtin
from grood_jax.deploying import deployment
from grood_jax.deploying.ood_classifier import OODClassifier, Prediction
from grood_jax.support.errors import UserError

COLUMNS = ["path", "class", "name", "score", "p_value", "is_ood"]


def pixels(rows):
    return np.round(load_digits().images[rows] * (255 / 16)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A directory with a fitted detector, and what the command said."""
    folder = tmp_path_factory.mktemp("deployed")
    said = []
    config = fit.FitConfig(
        detector="relative_mahalanobis", output_dir=folder / "model", target_tpr=0.9
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits[0])
        fit.run(config, say=said.append)
    return folder / "model", said


def lines(*words, **options):
    stream = io.StringIO()
    config = predict.PredictConfig(*words, **options)
    reported = []
    failed = predict.run(config, stream=stream, say=reported.append)
    return stream.getvalue(), failed, reported


@pytest.mark.slow
def test_the_command_says_what_it_promises_and_what_came_of_it(made):
    said = made[1]
    assert any(line.startswith("relative_mahalanobis calibrated on 216 images") for line in said)
    (line,) = [line for line in said if "taken for ID" in line]
    kept = float(line.split("images ")[1].split(" are")[0])
    # A Beta distribution around 0.9, and 217 images: five standard deviations.
    assert 0.75 < kept <= 1.0
    assert "(promised: 0.9)" in line


@pytest.mark.slow
def test_images_are_answered_as_by_the_network_alone(made):
    loaded = deployment.load(made[0])
    images = pixels(slice(0, 40))[..., None]
    found = loaded.predict(images)
    labels = load_digits().target[:40]
    known = labels < 8
    assert (found.label[known] == labels[known]).mean() > 0.9
    assert found.is_ood[~known].mean() > found.is_ood[known].mean()
    normalized = loaded.preprocessing.normalize(images)
    outputs = loaded.classifier.backbone(normalized)
    np.testing.assert_array_equal(found.label, np.asarray(outputs.logits).argmax(axis=1))
    assert loaded.class_names == tuple("01234567")
    assert (np.diff(loaded.calibration_scores()) >= 0).all()
    assert loaded.thresholds().shape == ()
    assert loaded.nearest(images[:2], 10**6)[0].shape == (2, 1010)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_what_are_no_bytes_is_refused(made):
    with pytest.raises(TypeError, match="pixels has dtype float64"):
        deployment.load(made[0]).predict(np.zeros((1, 8, 8, 1)))


@pytest.mark.slow
def test_it_also_loads_without_its_network(made):
    loaded = deployment.load(made[0])
    again = OODClassifier.load(made[0], loaded.classifier.backbone)
    images = loaded.preprocessing.normalize(pixels(slice(0, 5))[..., None])
    np.testing.assert_array_equal(
        again.predict(images).score, loaded.classifier.predict(images).score
    )
    again.save(made[0].parent / "alone")
    with pytest.raises(UserError, match="alone holds no network: OODClassifier.save leaves it out"):
        deployment.load(made[0].parent / "alone")


@pytest.fixture
def folder(tmp_path):
    """Images of several formats, some of them broken."""
    for number, image in enumerate(pixels(slice(0, 3))):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    (tmp_path / "deep").mkdir()
    Image.fromarray(pixels(4)).convert("RGB").resize((40, 30)).save(tmp_path / "deep" / "4.JPG")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.slow
def test_the_page_shows_what_the_commands_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    known, unknown = builtin.digits("test"), builtin.digits("near")
    three = known.images[np.flatnonzero(known.labels == 3)[0]]
    for name, image in (("3", three), ("8", unknown.images[0])):
        Image.fromarray(image[..., 0]).save(f"photos/{name}.png")
    fit.run(fit.FitConfig(output_dir=Path("deployed")), say=lambda line: None)
    text, _, _ = lines(Path("deployed"), (Path("photos"),))
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "deploy.md").read_text()
    shown = page[page.index(",".join(COLUMNS)) :].partition("```")[0]
    both = [list(csv.DictReader(io.StringIO(part))) for part in (text, shown)]
    for row, expected in zip(*both, strict=True):
        for name in ("path", "class", "name", "is_ood"):
            assert row[name] == expected[name]
        np.testing.assert_allclose(float(row["score"]), float(expected["score"]), rtol=1e-3)
        # Two of 216 calibration images may lie on the other side.
        np.testing.assert_allclose(float(row["p_value"]), float(expected["p_value"]), atol=0.01)


@pytest.mark.slow
def test_lines_of_csv(made, folder):
    text, failed, reported = lines(made[0], (folder,), batch_size=2)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [
        str(folder / name) for name in ("0.png", "1.png", "2.png", "deep/4.JPG")
    ]
    loaded = deployment.load(made[0])
    expected = loaded.predict(pixels(slice(0, 3))[..., None])
    np.testing.assert_allclose([float(r["score"]) for r in rows[:3]], expected.score, rtol=1e-4)
    assert [int(row["class"]) for row in rows[:3]] == expected.label.tolist()
    assert [row["is_ood"] == "true" for row in rows[:3]] == expected.is_ood.tolist()
    assert failed == 1
    assert reported == [
        f"left out of {folder}: 1 that are no images by their names (notes.txt)",
        f"{folder / 'broken.png'}: {reported[1].split(': ', 1)[1]}",
        "1 of 5 paths could not be read",
    ]


@pytest.mark.slow
def test_lines_of_json_and_arrays(made, tmp_path):
    np.savez(tmp_path / "set.npz", other=np.zeros(3), images=pixels(slice(0, 7)))
    text, failed, _ = lines(made[0], (tmp_path / "set.npz",), format="jsonl", batch_size=3)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["path"] for row in rows] == [f"{tmp_path / 'set.npz'}[{i}]" for i in range(7)]
    expected = deployment.load(made[0]).predict(pixels(slice(0, 7))[..., None])
    np.testing.assert_allclose([row["score"] for row in rows], expected.score, rtol=1e-4)
    np.testing.assert_allclose([row["p_value"] for row in rows], expected.p_value, rtol=1e-6)
    assert all(list(row) == COLUMNS for row in rows) and failed == 0


@pytest.mark.slow
def test_a_decision_on_all_images_together(made, tmp_path):
    np.savez(tmp_path / "set.npz", images=pixels(slice(0, 60)))
    text, _, _ = lines(made[0], (tmp_path / "set.npz",), format="jsonl", fdr=0.2, batch_size=7)
    rows = [json.loads(line) for line in text.splitlines()]
    expected = calibration.false_discovery(np.array([row["p_value"] for row in rows]), 0.2)
    assert [row["is_ood"] for row in rows] == expected.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "it holds no array"),
        ({"images": np.zeros((2, 8, 8), np.float32)}, "dtype float32 and shape (2, 8, 8)"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "with 1 or 3 channels"),
        ({"images": np.zeros((8, 8), np.uint8)}, "shape (8, 8); expected bytes"),
        ({"images": np.zeros((1, 0, 8), np.uint8)}, "expected at least one pixel"),
        ({"images": np.array([None])}, "images holds Python objects"),
    ],
)
def test_arrays_that_are_no_images(made, tmp_path, arrays, said):
    np.savez(tmp_path / "set.npz", **arrays)
    text, failed, reported = lines(made[0], (tmp_path / "set.npz",))
    assert failed == 1 and said in reported[0]
    assert text == ",".join(COLUMNS) + "\n"


@pytest.mark.slow
def test_the_commands_exit_statuses(made, folder, capsys):
    assert predict.main([str(made[0]), str(folder / "0.png"), str(folder / "absent.png")]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert f"{folder / 'absent.png'}: No such file or directory" in err
    assert predict.main([str(made[0]), str(folder / "0.png")]) == 0
    capsys.readouterr()
    for words, said in (
        ([str(folder), str(folder)], "there is no OOD_classifier"),
        ([str(made[0]), str(folder / "deep"), "--format", "xml"], None),
    ):
        if said is None:
            with pytest.raises(SystemExit) as stop:
                predict.main(words)
            assert stop.value.code == 2
        else:
            assert predict.main(words) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (said or "xml") in line
    (folder / "empty").mkdir()
    assert predict.main([str(made[0]), str(folder / "empty")]) == 1
    assert "no image in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target-tpr", "1"], "target_tpr is 1.0"),
        (["--calibration-share", "0"], "calibration_share is 0.0"),
        (["--dataset", "cifar11"], "cifar11"),
        (["--seed", "-1"], "seed is -1"),
        (["--detector", "grod"], "did you mean 'grood'"),
        (["--detector", "all"], "detector is 'all'; expected one"),
        (["--detector", "grood:k=0"], "k is 0"),
    ],
)
def test_bad_usage_of_fit(capsys, words, said):
    try:
        status = fit.main(words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_too_few_images(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(digits[0])
    words = ["--detector", "msp", "--limit", "20", "--output-dir", str(tmp_path)]
    assert fit.main(words) == 1
    assert "calibration has 10 images; a target_tpr of 0.95 needs at least 19" in (
        capsys.readouterr().err
    )


def test_a_directory_of_another_kind_is_left_alone(digits_checkpoint, capsys):
    assert fit.main(["--detector", "msp", "--output-dir", str(digits_checkpoint)]) == 1
    assert "holds a checkpoint; expected an OOD_classifier" in capsys.readouterr().err


class Answers:
    """A deployed network that needs no compiler."""

    preprocessing = Preprocessing(8, 1, (0.5,), (0.5,))
    class_names = ("dark", "light")

    def predict(self, pixels):
        score = pixels.mean(axis=(1, 2, 3)).astype(np.float32)
        return Prediction((score > 99).astype(np.int32), score, score > 99, score / 255)


@pytest.fixture
def answers(monkeypatch, unchecked):
    monkeypatch.setattr("grood_jax.deploying.deployment.load", lambda *_: Answers())


def test_only_regular_files_are_read(answers, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**40)
    names = ("pipe.png", "pipe.npz", "loop.png", "endless.png", "large.png", "n" * 300, "a\0b")
    text, failed, reported = lines(tmp_path, tuple(tmp_path / name for name in names))
    assert text == ",".join(COLUMNS) + "\n" and failed == 7
    said = [line.rpartition(": ")[2] for line in reported[:-1]]
    assert said == [
        *["it is no regular file"] * 2,
        "Too many levels of symbolic links",
        "it is no regular file",
        "it has 1099511627776 bytes; expected at most 268435456",
        "File name too long",
        "embedded null byte",
    ]


def test_names_that_are_no_text_are_written_in_ascii(answers, tmp_path):
    for name in ("\udcff.png", "line\nbreak.png", "ü.png"):
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / name)
    (tmp_path / "bad\n.png").touch()
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    reported = []
    config = predict.PredictConfig(tmp_path, (tmp_path,))
    assert predict.run(config, stream=stream, say=reported.append) == 1
    written = stream.buffer.getvalue().decode().splitlines()
    names = [line.split(",")[0].rpartition("/")[2] for line in written[1:]]
    assert sorted(names) == ["\\udcff.png", "line\\nbreak.png", "ü.png"]
    assert "/bad\\n.png: it is no PNG" in reported[0]


def test_every_file_of_a_folder_is_answered_or_named(answers, tmp_path):
    for suffix in ("png", "jfif", "jpe", "tif", "avif"):
        form = "JPEG" if suffix.startswith("j") else None
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / f"a.{suffix}", form)
    text, failed, reported = lines(tmp_path, (tmp_path,))
    assert (len(text.splitlines()), failed, reported) == (6, 0, [])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "own").symlink_to(".")
    text, failed, reported = lines(tmp_path, (tmp_path,))
    assert (len(text.splitlines()), failed) == (6, 0)
    assert [line.rpartition(": ")[2] for line in reported] == [
        "1 that are no images by their names (notes.txt)",
        "1 folders that links name again (own)",
    ]
    (tmp_path / "lost.png").symlink_to("nothing")
    text, failed, reported = lines(tmp_path, (tmp_path,))
    assert (len(text.splitlines()), failed) == (6, 1)
    assert reported[-1] == "1 of 6 paths could not be read"


def test_photographs_are_turned_upright(monkeypatch, unchecked, tmp_path):
    seen = []

    class Keeping(Answers):
        def predict(self, pixels):
            seen.append(pixels)
            return super().predict(pixels)

    monkeypatch.setattr("grood_jax.deploying.deployment.load", lambda *_: Keeping())
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(tmp_path / "x.png", exif=exif)
    lines(tmp_path, (tmp_path / "x.png",))
    # Stored lying on its left: the first column, from below, is what is seen as the first row.
    np.testing.assert_array_equal(seen[0][0, ..., 0], np.rot90(image, -1))


def test_a_compressed_array_is_not_unpacked_without_bound(answers, tmp_path, monkeypatch):
    pixels = np.zeros((3, 8, 8), np.uint8)
    np.savez_compressed(tmp_path / "x.npz", images=pixels)
    assert lines(tmp_path, (tmp_path / "x.npz",))[1] == 0
    monkeypatch.setattr("grood_jax.support.npz.MAX_UNPACKED", 200)
    _, failed, reported = lines(tmp_path, (tmp_path / "x.npz",))
    assert failed == 1 and "is compressed and unpacks to 320 bytes" in reported[0]
    np.savez(tmp_path / "x.npz", images=pixels)
    assert lines(tmp_path, (tmp_path / "x.npz",))[1] == 0


@pytest.mark.parametrize("shape", [(2**60,), (2**32, 2**32), (-1, 8, 8), (2, 8, 9)])
def test_a_header_of_an_array_that_lies(answers, tmp_path, shape):
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", member.getvalue() + bytes(128))
    _, failed, _ = lines(tmp_path, (tmp_path / "x.npz",))
    assert failed == 1


def test_an_array_alone_is_no_archive(answers, tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.zeros((2, 8, 8), np.uint8))
    _, failed, reported = lines(tmp_path, (tmp_path / "x.npz",))
    assert failed == 1 and reported[0].endswith("it is no .npz file, as numpy.savez writes it")
