"""The whole way of ``--dataset imagenet1k``, on a small set laid out as ImageNet is."""

import json
from pathlib import Path

import make_imagenet
import numpy as np
import pytest
from PIL import Image

from grood_jax import benchmarks
from grood_jax.cli import eval

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    config = make_imagenet.Config(
        root / "data",
        train=1,
        test=500,
        ood=20,
        side=48,
        checkpoint=root / "network",
        model="small",
        image_size=32,
        resize=36,
    )
    make_imagenet.make(config)
    assert make_imagenet.fit_head(config) > 0.99
    return root


def test_images_are_as_various_as_imagenets(imagenet):
    found = []
    for path in sorted((imagenet / "data").rglob("*.JPEG")):
        with Image.open(path) as picture:
            found.append((picture.mode, picture.format, picture.width > picture.height))
    modes, formats, lying = map(set, zip(*found, strict=True))
    assert modes == {"RGB", "L", "CMYK"}
    assert formats == {"JPEG", "PNG"}
    assert lying == {True, False}


def test_evaluation(imagenet, tmp_path):
    data, network = str(imagenet / "data"), str(imagenet / "network")
    command = ["--dataset", "imagenet1k", "--data-dir", data, "--checkpoint", network]
    assert eval.main([*command, "--output-dir", str(tmp_path), "--batch-size", "100"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    sizes = {"train": 1000, "test": 500} | dict.fromkeys(make_imagenet.OOD, 20)
    assert {name: facts["n"] for name, facts in found["data"].items()} == sizes
    for name, facts in found["data"].items():
        file = {"train": "train_imagenet", "test": "test_imagenet"}.get(name, f"test_{name}")
        assert facts["source"].startswith(f"openood:benchmark_imglist/imagenet/{file}.txt@")
        assert len(facts["fingerprint"]) == 64
    assert (tmp_path / "report.html").stat().st_size < 2_000_000
    assert found["preprocessing"]["image_size"] == 32
    assert found["preprocessing"]["resize"] == 36
    assert found["id_accuracy"] > 0.8
    groups = {n: f["group"] for n, f in found["detectors"]["grood"]["datasets"].items()}
    assert groups == {
        name: "near" if name in ("ssb_hard", "ninco") else "far" for name in make_imagenet.OOD
    }
    # The pieces are new, and a network of class means tells them from its own.
    assert found["detectors"]["grood"]["far"]["auroc"] > 0.7


def test_the_benchmarks_own_size(imagenet):
    data = benchmarks.open_benchmark(
        benchmarks.get("imagenet1k"), data_dir=imagenet / "data", limit=4
    )
    pixels, labels = data.test.read(np.arange(4))
    assert pixels.shape == (4, 224, 224, 3)
    assert len(set(labels.tolist())) == 4
