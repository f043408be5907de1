"""Files that run in a process with nothing but jax."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_network as tiny

from grood_jax.deploying import exporting
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.detectors import auto, combine, energy, gram, grood, msp, odin, relative_mahalanobis
from grood_jax.support.errors import UserError

pytest.importorskip("flatbuffers", reason="needs pip install -e '.[export]'")

PROGRAM = """
import json, pathlib, sys
import jax, numpy as np
exported = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
images = np.load(sys.argv[2])
found = [exported.call(images[:count]) for count in (1, 3, 50)]
answers = [{name: np.asarray(a, float).tolist() for name, a in one.items()} for one in found]
ours = sorted(name for name in sys.modules if "grood" in name or "flax" in name)
print(json.dumps([answers, exported.platforms, ours]))
"""


def fit(detector, **options):
    return OODClassifier.fit(
        tiny.backbone(),
        tiny.pairs(200, 0),
        detector=detector,
        calibration=[tiny.images(99, 1)],
        key=jax.random.key(0),
        **options,
    )


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers(tmp_path):
    # Of those that compile fast: a fresh process compiles for each number of images.
    made = fit(relative_mahalanobis(), per_class=True, target_tpr=0.8)
    made.export(tmp_path / "model.jax")
    images = tiny.images(50, 2, spread=2.0)
    np.save(tmp_path / "images.npy", images)
    # -I: isolated, so that this checkout is not on its path.
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, "model.jax", "images.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers, platforms, ours = json.loads(done.stdout)
    assert platforms == ["cpu", "cuda", "tpu"] and ours == []
    for answer, count in zip(answers, (1, 3, 50), strict=True):
        expected = made.predict(images[:count])
        assert set(answer) == {"label", "score", "is_ood", "p_value"}
        np.testing.assert_allclose(answer["score"], expected.score, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(answer["label"], expected.label)
        np.testing.assert_array_equal(answer["is_ood"], expected.is_ood)
        np.testing.assert_allclose(answer["p_value"], expected.p_value, rtol=1e-5)
    assert any(answers[2]["is_ood"]) and not all(answers[2]["is_ood"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "detector",
    [
        grood(interpolate=True, interpolate_classes=2),
        gram(powers=(1, 2)),
        odin(noise=0.01),
        combine([energy(), msp()]),
        auto(),
    ],
    ids=lambda detector: detector.name,
)
def test_what_detectors_need_is_exported_too(detector, tmp_path):
    made = fit(detector)
    made.export(tmp_path / "model.jax", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    images = tiny.images(9, 3)
    expected = made.predict(images)
    found = exported.call(images)
    np.testing.assert_allclose(found["score"], expected.score, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found["label"], expected.label)


@pytest.mark.slow
def test_an_image_of_nan_is_ood(tmp_path):
    fit(grood()).save(tmp_path / "saved")
    # What has just been loaded has computed nothing yet.
    made = OODClassifier.load(tmp_path / "saved", tiny.backbone())
    made.export(tmp_path / "model.jax", platforms=("cpu",))
    exported = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    images = tiny.images(3, 4)
    images[1, 0, 0, 0] = np.nan
    found = exported.call(images)
    assert np.isnan(found["score"]).tolist() == [False, True, False]
    assert found["is_ood"][1] and np.isnan(found["p_value"][1])


@pytest.mark.slow
def test_rows_on_the_host_cannot_be_exported(tmp_path):
    made = fit(grood(bank_dtype="bfloat16"))
    with pytest.raises(UserError, match="grood reads rows that lie on the host"):
        made.export(tmp_path / "model.jax")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused(tmp_path, monkeypatch):
    made = fit(energy())
    with pytest.raises(ValueError, match="platforms is 'gpu'; expected one of cpu, cuda"):
        made.export(tmp_path / "model.jax", platforms=("gpu",))
    with pytest.raises(ValueError, match=r"platforms is \(\)"):
        made.export(tmp_path / "model.jax", platforms=())
    with pytest.raises(ValueError, match=r"image_shape is \(4, 4\); expected one like \(4, 4, 1\)"):
        made.export(tmp_path / "model.jax", (4, 4))
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install flatbuffers"):
        made.export(tmp_path / "model.jax")
    assert list(tmp_path.iterdir()) == []


def test_only_files_are_replaced(tmp_path):
    made = fit(energy())
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "a\0b"):
        with pytest.raises(UserError, match="path is .*; expected a new file, or one to be rep"):
            made.export(tmp_path / name, platforms=["cpu"])
    with pytest.raises(UserError, match="cannot be written: No such file"):
        made.export(tmp_path / "absent" / "x", platforms=["cpu"])
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
