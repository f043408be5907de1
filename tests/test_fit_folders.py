"""``grood fit`` on folders of one's own images, with a model of one's own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grood_jax.cli import fit
from grood_jax.deploying import deployment
from grood_jax.deploying.setting import FitConfig
from grood_jax.support.errors import UserError

SOURCE = """
import numpy as np

import grood_jax as gj

WEIGHTS = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) / 8


def early(arrays, images):
    return images.reshape(-1, 64)


def late(arrays, hidden):
    features = hidden @ arrays
    return features, features


def build():
    return gj.Backbone.from_functions(WEIGHTS, early, late)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A model, and photographs in folders that are what it takes them for."""
    root = tmp_path_factory.mktemp("home")
    (root / "my_model.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (120, 8, 8), dtype=np.uint8)
    weights = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) / 8
    labels = ((pixels.reshape(-1, 64) / 255 - 0.5) / 0.25 @ weights).argmax(axis=1)
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = root / ("train" if row < 80 else "held-out") / f"kind{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:03}.png")
    return root


def config(home: Path, **options) -> FitConfig:
    given = {
        "train": home / "train",
        "calibration": home / "held-out",
        "model": f"{home / 'my_model.py'}:build",
        "detector": "msp",
        "image_size": 8,
        "mean": (0.5,),
        "std": (0.25,),
    }
    return FitConfig(**(given | options))


def test_two_folders_and_a_model_are_enough(home, tmp_path, capsys):
    words = ["--train", str(home / "train"), "--calibration", str(home / "held-out")]
    words += ["--model", f"{home / 'my_model.py'}:build", "--image-size", "8", "--mean", "0.5"]
    words += ["--std", "0.25", "--detector", "msp", "--output-dir", str(tmp_path / "out")]
    assert fit.main(words) == 0
    assert "msp calibrated on 40 images" in capsys.readouterr().err
    loaded = deployment.load(tmp_path / "out", f"{home / 'my_model.py'}:build")
    assert loaded.class_names == ("kind0", "kind1", "kind2")
    paths = sorted((home / "held-out").rglob("*.png"))
    answers = loaded.predict(np.stack([np.asarray(Image.open(path))[..., None] for path in paths]))
    assert [f"kind{label}" for label in answers.label] == [path.parent.name for path in paths]
    expected = loaded.calibration_scores()
    np.testing.assert_allclose(np.sort(answers.score), np.sort(expected), rtol=1e-5)


def test_without_calibration_images_it_warns(home, tmp_path):
    asked = config(home, calibration=None, target_tpr=0.5, output_dir=tmp_path / "out")
    said = []
    with pytest.warns(UserWarning, match="8 of 80 training images"):
        fit.run(asked, say=said.append)
    assert any("calibrated on 8 images" in line for line in said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": "nowhere"}, "calibration is .*nowhere; expected a folder of images"),
        ({"train": "nowhere"}, "train is .*nowhere; expected a folder, and there is none"),
        ({"train": "train/kind0"}, "png in no folder; expected a folder for each class"),
        ({"model": None}, "no classifier is named; expected --model FILE.py:FUNCTION"),
        ({"model": None, "checkpoint": "nowhere"}, "no checkpoint in .*nowhere"),
        ({"image_size": None}, "give --image-size"),
        ({"mean": None, "std": None}, "does not say how bytes are normalised"),
        ({"std": (0.1, 0.2)}, "std is .0.1, 0.2.; expected 1 finite numbers"),
    ],
)
def test_what_is_missing_is_said(home, tmp_path, options, said):
    given = {
        name: home / value if name in ("train", "calibration", "checkpoint") else value
        for name, value in options.items()
    }
    with pytest.raises(UserError, match=said):
        fit.run(config(home, output_dir=tmp_path / "out", **given))


def test_options_of_folders_need_folders():
    with pytest.raises(ValueError, match="image_size is given; expected train too"):
        FitConfig(image_size=3)
