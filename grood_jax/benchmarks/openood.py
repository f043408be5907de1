"""The benchmarks of OpenOOD v1.5 (arXiv 2306.09301).

Which sets they have, and the lists of their images: openood/evaluation_api/datasets.py (DATA_INFO).
Sizes, interpolation, crops and constants of normalisation: openood/evaluation_api/preprocessor.py
(default_preprocessing_dict, TestStandardPreProcessor), which is openood/preprocessors/utils.py
(normalization_dict) and test_preprocessor.py over again. ImageNet-C is neither resized nor cropped
there (ImageNetCPreProcessor).
"""

from dataclasses import replace

from grood_jax.benchmarks.base import Benchmark
from grood_jax.data import Preprocessing
from grood_jax.data.finding import SetSpec, Source
from grood_jax.data.folders import ImageListSource
from grood_jax.data.npz import NpzSource
from grood_jax.data.tfds import TfdsSource

_IMAGENET = Preprocessing(224, 3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256)

_DOWNLOAD = (
    "OpenOOD's own download script (scripts/download/download.py of github.com/Jingkang50/OpenOOD) "
    "lays out images and lists in one folder: name that by --data-dir"
)


def _list(benchmark: str, file: str, images: str = "images_classic") -> ImageListSource:
    return ImageListSource(f"benchmark_imglist/{benchmark}/{file}.txt", images)


def _set(name: str, listed: ImageListSource, npz: str, *tfds: TfdsSource) -> SetSpec:
    sources: tuple[Source, ...] = (listed, *tfds, NpzSource(f"{npz}.npz"))
    return SetSpec(name, sources, _DOWNLOAD)


def _tiny_imagenet(benchmark: str, split: str, *datasets: str) -> SetSpec:
    """Tiny ImageNet without the benchmark's own classes: another set for each benchmark."""
    name = datasets[0]
    made_by_hand = (
        f"{_DOWNLOAD}. Or with Tiny ImageNet's images, but for the classes that "
        f"{benchmark.replace('cifar', 'CIFAR-')} has too, in folders TEST and VALIDATION (as "
        "OpenOOD's tin/test and tin/val are), run python -m grood_jax.data.convert --name "
        f"{name} --test TEST --validation VALIDATION --data-dir {{data_dir}}"
    )
    sources = (TfdsSource(dataset, split, in_catalogue=False) for dataset in datasets)
    listed = _list(benchmark, f"{'val' if split == 'validation' else split}_tin")
    found = _set("tiny_imagenet", listed, f"{name}_{split}", *sources)
    return replace(found, how_to_get=made_by_hand)


def _far_from_cifar(benchmark: str) -> tuple[SetSpec, ...]:
    prepared = {
        "mnist": [TfdsSource("mnist", "test")],
        "svhn": [TfdsSource("svhn_cropped", "test")],
        "textures": [TfdsSource("dtd", "test")],
        "places365": [
            TfdsSource("places365_32", "test", in_catalogue=False),
            TfdsSource("places365_small", "validation"),
        ],
    }
    return tuple(
        _set(name, _list(benchmark, f"test_{name.removesuffix('s')}"), f"{name}_test", *sources)
        for name, sources in prepared.items()
    )


def _cifar(benchmark: str, name: str, split: str) -> SetSpec:
    """CIFAR-10 or CIFAR-100 in one of the two benchmarks."""
    return _set(
        name, _list(benchmark, f"{split}_{name}"), f"{name}_{split}", TfdsSource(name, split)
    )


CIFAR10 = Benchmark(
    name="cifar10",
    num_classes=10,
    preprocessing=Preprocessing(32, 3, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    train=_cifar("cifar10", "cifar10", "train"),
    test=_cifar("cifar10", "cifar10", "test"),
    near=(
        _cifar("cifar10", "cifar100", "test"),
        _tiny_imagenet("cifar10", "test", "tiny_imagenet_32", "tiny_imagenet"),
    ),
    far=_far_from_cifar("cifar10"),
    validation=_tiny_imagenet("cifar10", "validation", "tiny_imagenet_32", "tiny_imagenet"),
    model="resnet18_32x32",
    class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    shifted=(_set("cifar10_c", _list("cifar10", "test_cifar10c"), "cifar10_c_test"),),
    id_validation=_set("cifar10", _list("cifar10", "val_cifar10"), "cifar10_validation"),
)

CIFAR100 = Benchmark(
    name="cifar100",
    num_classes=100,
    preprocessing=Preprocessing(32, 3, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    train=_cifar("cifar100", "cifar100", "train"),
    test=_cifar("cifar100", "cifar100", "test"),
    near=(
        _cifar("cifar100", "cifar10", "test"),
        _tiny_imagenet("cifar100", "test", "tiny_imagenet_cifar100"),
    ),
    far=_far_from_cifar("cifar100"),
    validation=_tiny_imagenet("cifar100", "validation", "tiny_imagenet_cifar100"),
    model="resnet18_32x32",
    id_validation=_set("cifar100", _list("cifar100", "val_cifar100"), "cifar100_validation"),
)


def _large(benchmark: str, name: str, split: str, file: str, *tfds: TfdsSource) -> SetSpec:
    """A set of the ImageNet benchmarks; OpenOOD keeps Textures beside the small images."""
    images = "images_classic" if name == "textures" else "images_largescale"
    found = _set(name, _list(benchmark, file, images), f"{name}_{split}", *tfds)
    return replace(found, cropped=name == "imagenet_c")


def _imagenet2012(split: str) -> TfdsSource:
    """ImageNet as tensorflow-datasets prepares it, from archives that a user must ask for."""
    return TfdsSource("imagenet2012", split, in_catalogue=False)


def _outside_imagenet(benchmark: str, *names: str) -> tuple[SetSpec, ...]:
    return tuple(_large(benchmark, name, "test", f"test_{name}") for name in names)


_NEAR_IMAGENET = ("ssb_hard", "ninco")
_FAR_FROM_IMAGENET = ("inaturalist", "textures", "openimage_o")

IMAGENET200 = Benchmark(
    name="imagenet200",
    num_classes=200,
    preprocessing=_IMAGENET,
    train=_large("imagenet200", "imagenet200", "train", "train_imagenet200"),
    test=_large("imagenet200", "imagenet200", "test", "test_imagenet200"),
    near=_outside_imagenet("imagenet200", *_NEAR_IMAGENET),
    far=_outside_imagenet("imagenet200", *_FAR_FROM_IMAGENET),
    validation=_large("imagenet200", "openimage_o", "validation", "val_openimage_o"),
    model="resnet18_224x224",
    shifted=tuple(
        _large("imagenet200", f"imagenet_{kind}", "imagenet200_test", f"test_imagenet200_{kind}")
        for kind in ("v2", "c", "r")
    ),
    id_validation=_large("imagenet200", "imagenet200", "validation", "val_imagenet200"),
)

IMAGENET1K = Benchmark(
    name="imagenet1k",
    num_classes=1000,
    preprocessing=_IMAGENET,
    train=_large(
        "imagenet",
        "imagenet1k",
        "train",
        "train_imagenet",
        TfdsSource("imagenet2012", "train", in_catalogue=False),
    ),
    test=_large(
        "imagenet",
        "imagenet1k",
        "test",
        "test_imagenet",
        TfdsSource("imagenet2012", "validation", in_catalogue=False),
    ),
    near=_outside_imagenet("imagenet", *_NEAR_IMAGENET),
    far=_outside_imagenet("imagenet", *_FAR_FROM_IMAGENET),
    validation=_large("imagenet", "openimage_o", "validation", "val_openimage_o"),
    model="resnet50",
    shifted=(
        _large(
            "imagenet", "imagenet_v2", "test", "test_imagenet_v2", TfdsSource("imagenet_v2", "test")
        ),
        _large("imagenet", "imagenet_c", "test", "test_imagenet_c"),
        _large(
            "imagenet", "imagenet_r", "test", "test_imagenet_r", TfdsSource("imagenet_r", "test")
        ),
        _large("imagenet", "imagenet_es", "test", "test_imagenet_es"),
    ),
    id_validation=_large("imagenet", "imagenet1k", "validation", "val_imagenet"),
)
