"""Benchmarks: their sets, as they are found, and their constants, as the data have them."""

import re
import socket
import threading

import numpy as np
import pytest

from grood_jax import benchmarks
from grood_jax.benchmarks import Benchmark, OpenBenchmark
from grood_jax.data import ImageSet, download
from grood_jax.data.finding import SetSpec
from grood_jax.data.tfds import quiet_tfds
from grood_jax.support.errors import UserError

# The prepared data's own description says so; without them these tests are skipped.
COUNTS = {
    "fashion_mnist": {
        "train": 30_000,
        "test": 10_000,
        "near": {},
        "far": {"mnist": 10_000, "emnist_letters": 6_934},
    },
    "cifar10": {
        "train": 50_000,
        "test": 10_000,
        "near": {"cifar100": 10_000, "tiny_imagenet": 8_700},
        "far": {"mnist": 10_000, "svhn": 1_040, "textures": 1_200, "places365": 4_000},
        "validation": 880,
    },
}


def specs(benchmark: Benchmark) -> list[SetSpec]:
    held_out = () if benchmark.validation is None else (benchmark.validation,)
    return [benchmark.train, benchmark.test, *benchmark.near, *benchmark.far, *held_out]


def all_sets(data: OpenBenchmark) -> list[ImageSet]:
    held_out = () if data.validation is None else (data.validation,)
    return [data.train, data.test, *(images for _, images in data.ood.values()), *held_out]


@pytest.mark.parametrize("name", benchmarks.names())
def test_every_benchmark_describes_its_sets(name):
    benchmark = benchmarks.get(name)
    assert benchmark.name == name
    outside = [spec.name for spec in (*benchmark.near, *benchmark.far)]
    assert len(outside) == len(set(outside))
    pre = benchmark.preprocessing
    assert len(pre.mean) == len(pre.std) == pre.channels


def test_an_unknown_benchmark():
    with pytest.raises(ValueError, match="dataset is 'cifar'; .*did you mean 'cifar10'"):
        benchmarks.get("cifar")


@pytest.mark.parametrize("name", benchmarks.names())
def test_a_user_learns_how_to_get_every_set(name):
    """tensorflow-datasets knows what is said to be in its catalogue; the rest has another way."""
    with quiet_tfds() as tfds:
        for spec in specs(benchmarks.get(name)):
            if callable(spec.sources):
                continue
            if spec.in_catalogue is None:
                assert re.search("run python -m |download script", spec.how_to_get)
                continue
            builder = tfds.builder(spec.in_catalogue, try_gcs=False)
            assert builder.url_infos, spec
            assert "image" in builder.info.features


def test_digits():
    data = benchmarks.open_benchmark(benchmarks.get("digits"), validation=True)
    assert (len(data.train), len(data.test)) == (1010, 433)
    assert {n: (g, len(s)) for n, (g, s) in data.ood.items()} == {
        "digits_8_9": ("near", 354),
        "photographs": ("far", 1664),
        "uniform_noise": ("far", 1000),
    }
    assert data.validation is not None
    assert len(data.validation) == 416
    assert data.skipped == ()
    for images in all_sets(data):
        assert images.read(np.arange(2))[0].shape == (2, 8, 8, 1)


def test_digits_need_no_data_folder(tmp_path):
    benchmarks.open_benchmark(benchmarks.get("digits"), data_dir=tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COUNTS)
def test_prepared_sets_are_found(tfds_data, name):
    benchmark, expected = benchmarks.get(name), COUNTS[name]
    data = benchmarks.open_benchmark(
        benchmark, data_dir=tfds_data, validation="validation" in expected
    )
    assert (len(data.train), len(data.test)) == (expected["train"], expected["test"])
    for group in ("near", "far"):
        found = {n: len(images) for n, (g, images) in data.ood.items() if g == group}
        assert found == expected[group]
    assert (data.validation and len(data.validation)) == expected.get("validation")
    assert data.skipped == ()
    assert data.train.name == name
    pre = benchmark.preprocessing
    for images in all_sets(data):
        pixels, labels = images.read(np.linspace(0, len(images) - 1, 5).astype(int))
        assert pixels.shape == (5, pre.image_size, pre.image_size, pre.channels)
        assert (pixels.dtype, labels.dtype) == (np.uint8, np.int32)
        # Pictures, not constants, and five different ones.
        assert (pixels.std(axis=(1, 2, 3)) > 5).all()
        assert len({image.tobytes() for image in pixels}) == 5


@pytest.mark.parametrize("name", COUNTS)
def test_normalisation_and_labels_are_those_of_the_training_images(tfds_data, name):
    benchmark = benchmarks.get(name)
    data = benchmarks.open_benchmark(benchmark, data_dir=tfds_data, ood=False, limit=5_000)
    assert data.ood == {}
    pixels, labels = data.train.read(np.arange(5_000))
    assert sorted(set(labels)) == list(range(benchmark.num_classes))
    counts = np.bincount(labels)
    # Every tenth image: class counts scatter by about 20 around 500.
    assert (np.abs(counts - 500) < 100).all()
    shares = pixels / np.float32(255)
    mean = shares.mean(axis=(0, 1, 2), dtype=np.float64)
    # Means of 5,000 images scatter by a hundredth of an image's own deviation.
    np.testing.assert_allclose(mean, benchmark.preprocessing.mean, atol=0.01)
    std = shares.std(axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(std, benchmark.preprocessing.std, atol=0.01)


def test_grey_digits_become_rgb_for_cifar10(tfds_data):
    data = benchmarks.open_benchmark(benchmarks.get("cifar10"), data_dir=tfds_data)
    pixels, _ = data.ood["mnist"][1].read(np.arange(8))
    assert (pixels == pixels[..., :1]).all()
    assert (np.ptp(pixels, axis=(1, 2, 3)) > 200).all()


def test_a_limit(tfds_data):
    data = benchmarks.open_benchmark(benchmarks.get("fashion_mnist"), data_dir=tfds_data, limit=100)
    assert {len(images) for images in all_sets(data)} == {100}
    assert data.test.source == "tfds:fashion_mnist:3.0.1:test (100 of 10000)"
    with pytest.raises(ValueError, match="limit is 0; expected at least 1"):
        benchmarks.open_benchmark(benchmarks.get("digits"), limit=0)


@pytest.mark.parametrize("name", COUNTS)
def test_an_empty_folder_names_every_set(tmp_path, name):
    benchmark = benchmarks.get(name)
    with pytest.raises(UserError) as error:
        benchmarks.open_benchmark(
            benchmark, data_dir=tmp_path, validation=benchmark.validation is not None
        )
    message = str(error.value)
    assert "\n" not in message
    total = len(specs(benchmark))
    assert message.startswith(f"{total} of {total} sets cannot be used: ")
    missing = re.findall(r"([\w ()]+) is missing \(looked for ([^)]+)\)", message)
    assert [title.strip() for title, _ in missing] == [
        f"{name} (train)",
        f"{name} (test)",
        *(spec.name for spec in (*benchmark.near, *benchmark.far)),
        *(["tiny_imagenet (validation)"] if name == "cifar10" else []),
    ]
    for spec, (_, looked) in zip(specs(benchmark), missing, strict=True):
        assert not callable(spec.sources)
        places, _, last = looked.removesuffix(f" in {tmp_path}").rpartition(" or ")
        assert [*filter(None, places.split(", ")), last] == [s.place for s in spec.sources]
        assert re.search(spec.in_catalogue or f"To get [a-z_0-9, ]*{spec.name}", message)
    assert message.endswith("--skip-missing goes on without missing OOD sets")


def test_an_empty_folder_when_only_training(tmp_path):
    with pytest.raises(UserError, match="^2 of 2 sets cannot be used: cifar10 .train. is") as error:
        benchmarks.open_benchmark(benchmarks.get("cifar10"), data_dir=tmp_path, ood=False)
    assert "skip-missing" not in str(error.value)


def test_train_and_test_are_never_skipped(tmp_path):
    with pytest.raises(UserError, match="^2 of 8 sets cannot be used: cifar10 .train. is missing"):
        benchmarks.open_benchmark(benchmarks.get("cifar10"), data_dir=tmp_path, skip_missing=True)


def test_missing_ood_sets_are_skipped_and_listed(tfds_data, tmp_path):
    for name in ("cifar10", "dtd"):
        (tmp_path / name).symlink_to(tfds_data / name)
    data = benchmarks.open_benchmark(
        benchmarks.get("cifar10"), data_dir=tmp_path, skip_missing=True
    )
    assert list(data.ood) == ["textures"]
    assert data.ood["textures"][0] == "far"
    assert data.skipped == ("cifar100", "tiny_imagenet", "mnist", "svhn", "places365")


def test_held_out_images_are_never_skipped(tfds_data, tmp_path):
    (tmp_path / "cifar10").symlink_to(tfds_data / "cifar10")
    with pytest.raises(UserError, match="1 of 9 sets cannot be used: tiny_imagenet .validation."):
        benchmarks.open_benchmark(
            benchmarks.get("cifar10"), data_dir=tmp_path, skip_missing=True, validation=True
        )


def test_a_benchmark_without_held_out_images(tmp_path):
    with pytest.raises(UserError, match="fashion_mnist has no held-out OOD images .*'mixup'"):
        benchmarks.open_benchmark(
            benchmarks.get("fashion_mnist"), data_dir=tmp_path, validation=True
        )


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default"))
    with pytest.raises(UserError, match=f"looked for .* in {tmp_path / 'default'}"):
        benchmarks.open_benchmark(benchmarks.get("fashion_mnist"))


def test_a_dead_network_is_one_line_for_all_sets(tmp_path, monkeypatch):
    """All hosts are asked at the same time, whatever their number."""

    def fail(*_: object, **__: object) -> None:
        together.wait()
        raise socket.gaierror(-2, "Name or service not known")

    # Toronto, Google, Stanford, Oxford and MIT: none gives up before all are asked.
    together = threading.Barrier(5, timeout=5)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(download, "_tensorflow_installed", lambda: True)
    with pytest.raises(UserError) as error:
        benchmarks.open_benchmark(benchmarks.get("cifar10"), data_dir=tmp_path, download=True)
    message = str(error.value)
    assert (
        "--download cannot get cifar10, cifar100: www.cs.toronto.edu cannot be reached" in message
    )
    for host in ("storage.googleapis.com", "ufldl.stanford.edu", "www.robots.ox.ac.uk"):
        assert f"{host} cannot be reached (its name cannot be resolved;" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
