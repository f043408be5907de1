"""The four benchmarks against OpenOOD v1.5's own description, and on its sample of images."""

from dataclasses import replace

import numpy as np
import pytest

from grood_jax import benchmarks
from grood_jax.benchmarks import Benchmark
from grood_jax.data.finding import SetSpec
from grood_jax.data.folders import ImageListSource
from grood_jax.support.errors import UserError

# openood/evaluation_api/datasets.py, DATA_INFO: lists below benchmark_imglist, folders of images.
CLASSIC, LARGE = "images_classic", "images_largescale"
FAR_CIFAR = ["test_mnist", "test_svhn", "test_texture", "test_places365"]
IMAGENET_OOD = {
    "near": ["test_ssb_hard", "test_ninco"],
    "far": ["test_inaturalist", "test_textures", "test_openimage_o"],
}
LISTS = {
    "cifar10": {
        "id": ["train_cifar10", "val_cifar10", "test_cifar10"],
        "validation": ["val_tin"],
        "near": ["test_cifar100", "test_tin"],
        "far": FAR_CIFAR,
        "shifted": ["test_cifar10c"],
    },
    "cifar100": {
        "id": ["train_cifar100", "val_cifar100", "test_cifar100"],
        "validation": ["val_tin"],
        "near": ["test_cifar10", "test_tin"],
        "far": FAR_CIFAR,
        "shifted": [],
    },
    "imagenet200": {
        "id": ["train_imagenet200", "val_imagenet200", "test_imagenet200"],
        "validation": ["val_openimage_o"],
        **IMAGENET_OOD,
        "shifted": ["test_imagenet200_v2", "test_imagenet200_c", "test_imagenet200_r"],
    },
    "imagenet1k": {
        "id": ["train_imagenet", "val_imagenet", "test_imagenet"],
        "validation": ["val_openimage_o"],
        **IMAGENET_OOD,
        "shifted": [f"test_imagenet_{kind}" for kind in ("v2", "c", "r", "es")],
    },
}


def lists(*specs: SetSpec | None) -> list[str]:
    found = []
    for spec in specs:
        assert spec is not None and not callable(spec.sources)
        (source,) = (s for s in spec.sources if isinstance(s, ImageListSource))
        found.append(source.imglist)
        is_large = "imagenet" in source.imglist and "textures" not in source.imglist
        assert source.images == (LARGE if is_large else CLASSIC)
    return found


@pytest.mark.parametrize("name", LISTS)
def test_sets_are_openoods(name):
    benchmark, expected = benchmarks.get(name), LISTS[name]
    folder = {"imagenet1k": "imagenet"}.get(name, name)
    found = {
        "id": lists(benchmark.train, benchmark.id_validation, benchmark.test),
        "validation": lists(benchmark.validation),
        "near": lists(*benchmark.near),
        "far": lists(*benchmark.far),
        "shifted": lists(*benchmark.shifted),
    }
    assert found == {
        key: [f"benchmark_imglist/{folder}/{file}.txt" for file in files]
        for key, files in expected.items()
    }


def test_preprocessing_is_openoods():
    # openood/evaluation_api/preprocessor.py, default_preprocessing_dict.
    expected = {
        "cifar10": (32, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": (32, 32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        "imagenet200": (256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "imagenet1k": (256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    }
    for name, (resize, size, mean, std) in expected.items():
        found = benchmarks.get(name).preprocessing
        assert (found.resize or found.image_size, found.image_size) == (resize, size)
        assert (found.mean, found.std, found.interpolation) == (mean, std, "bilinear")
    for name in ("imagenet200", "imagenet1k"):
        cropped = [spec.name for spec in every_set(benchmarks.get(name)) if spec.cropped]
        assert cropped == ["imagenet_c"]


def every_set(benchmark: Benchmark) -> list[SetSpec]:
    found = [benchmark.train, benchmark.test, benchmark.validation, benchmark.id_validation]
    found += [*benchmark.near, *benchmark.far, *benchmark.shifted]
    return [spec for spec in found if spec is not None]


@pytest.mark.parametrize("name", LISTS)
def test_no_two_sets_of_a_benchmark_share_a_place(name):
    places = [
        source.place
        for spec in every_set(benchmarks.get(name))
        if not callable(spec.sources)
        for source in spec.sources
        if source.kind != "tfds"
    ]
    assert len(set(places)) == len(places)


def test_the_sample(openood_data):
    data = benchmarks.open_benchmark(
        benchmarks.get("cifar10"), data_dir=openood_data, skip_missing=True
    )
    assert data.skipped == ("svhn",)
    assert {name: len(images) for name, images in data.titled.items()} == dict.fromkeys(
        ["train", "test", "cifar100", "tiny_imagenet", "mnist", "textures", "places365"], 200
    )
    for images in data.titled.values():
        assert images.source.startswith("openood:benchmark_imglist/cifar10/")


def test_the_sample_is_part_of_what_tensorflow_datasets_has(openood_data, tfds_data):
    """Two sources of the same images give the same pixels and labels."""
    cifar10 = benchmarks.get("cifar10")
    listed = benchmarks.open_benchmark(cifar10, data_dir=openood_data, ood=False).test
    prepared = benchmarks.open_benchmark(cifar10, data_dir=tfds_data, ood=False).test
    pixels, labels = prepared.read(np.arange(len(prepared)))
    known = {image.tobytes(): label for image, label in zip(pixels, labels, strict=True)}
    few, given = listed.read(np.arange(len(listed)))
    # All but the few images that went through JPEG in one of the two.
    found = [known.get(image.tobytes()) for image in few]
    assert len(found) - found.count(None) >= 190
    for label, expected in zip(found, given, strict=True):
        assert label in (None, expected)


def test_options_are_chosen_on_openoods_own_validation_images(openood_data):
    # The sample has no held-out OOD images: its Places365 stand in for them.
    benchmark = benchmarks.get("cifar10")
    benchmark = replace(benchmark, validation=benchmark.far[-1], far=benchmark.far[:1])
    data = benchmarks.open_benchmark(benchmark, data_dir=openood_data, search=True, limit=50)
    assert data.id_validation is not None and data.validation is not None
    assert "val_cifar10" in data.id_validation.source
    assert [len(images) for images in (data.id_validation, data.validation, data.test)] == [50] * 3


def test_id_validation_images_are_opened_where_they_are_asked_for(openood_data):
    given = {"data_dir": openood_data, "ood": False, "limit": 50}
    cifar10 = benchmarks.get("cifar10")
    data = benchmarks.open_benchmark(cifar10, id_validation=True, **given)
    assert data.id_validation is not None and "val_cifar10" in data.id_validation.source
    assert len(data.test) == len(data.id_validation) == 50
    assert benchmarks.open_benchmark(cifar10, **given).id_validation is None
    # A benchmark without such a set keeps its whole test set.
    without = replace(cifar10, id_validation=None)
    whole = benchmarks.open_benchmark(without, id_validation=True, **given)
    assert whole.id_validation is None and len(whole.test) == 50


def test_the_full_spectrum(openood_data):
    benchmark = benchmarks.get("cifar10")
    with pytest.raises(UserError, match="cifar10_c is missing .looked for .*test_cifar10c.txt"):
        benchmarks.open_benchmark(benchmark, data_dir=openood_data, full_spectrum=True)
    shifted = (replace(benchmark.test, name="as_it_was"), *benchmark.shifted)
    data = benchmarks.open_benchmark(
        replace(benchmark, shifted=shifted),
        data_dir=openood_data,
        full_spectrum=True,
        skip_missing=True,
    )
    assert list(data.shifted) == ["as_it_was"]
    assert data.skipped == ("svhn", "cifar10_c")
    plain = benchmarks.open_benchmark(benchmark, data_dir=openood_data, skip_missing=True)
    assert plain.shifted == {}
    with pytest.raises(UserError, match="digits has no sets of covariate-shifted images"):
        benchmarks.open_benchmark(benchmarks.get("digits"), full_spectrum=True)


def test_a_share_of_the_training_images():
    digits = benchmarks.get("digits")
    found = [
        benchmarks.open_benchmark(digits, ood=False, train_share=share, seed=seed)
        for share, seed in ((0.1, 0), (0.1, 0), (0.1, 1))
    ]
    first, again, other = (data.train.read(np.arange(101))[0] for data in found)
    assert [len(data.train) for data in found] == [101] * 3
    assert len(found[0].test) == 433
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert found[0].train.source.endswith("(101 of 1010, drawn with seed 0)")
    with pytest.raises(ValueError, match="train_share is 0"):
        benchmarks.open_benchmark(digits, train_share=0.0)
