"""Makes a small set laid out as OpenOOD lays out ImageNet-1K, and a network that knows it.

    python tests/make_imagenet.py FOLDER
    python tests/make_imagenet.py FOLDER --checkpoint DIRECTORY --model resnet50

Every class is a piece of one of the photographs that scikit-learn comes with, and its images are
that piece with shaking hands. As ImageNet does, it has upright and lying images of many sizes,
grey ones, CMYK JPEGs and a PNG whose name ends in .JPEG. The network has random weights, or those
of a PyTorch file (``--weights``), and a head that takes the class of the nearest class mean, so
that it knows all classes, as evaluations of 1,000 classes need it.
"""

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from PIL import Image

from grood_jax import benchmarks, models
from grood_jax.backbone.backbone import Backbone
from grood_jax.cli.import_torch import PUBLISHED
from grood_jax.data import ImageSet, Preprocessing, batches
from grood_jax.models.torch.files import read_state_dict
from grood_jax.models.torch.importing import import_state_dict
from grood_jax.storage.checkpoints import ModelSpec, save_model

OOD = ("ssb_hard", "ninco", "inaturalist", "textures", "openimage_o")


@dataclass(frozen=True)
class Config:
    """What is made.

    Attributes:
      folder: where images and lists are to lie.
      train: training images of each class.
      test: test images.
      ood: images of each OOD set.
      side: of the images' longer side, in pixels, on average.
      checkpoint: where a network is to lie, if one is wanted.
      model: the network.
      weights: a PyTorch file of it, instead of random weights.
      image_size: of the network's input.
      resize: the shorter side before the centre crop.
    """

    folder: tyro.conf.Positional[Path]
    train: int = 2
    test: int = 1000
    ood: int = 200
    side: int = 480
    checkpoint: Path | None = None
    model: models.Name = "resnet50"
    weights: Path | None = None
    image_size: int = 224
    resize: int = 256


def make(config: Config) -> None:
    """Writes the images and OpenOOD's lists of them."""
    classes = benchmarks.get("imagenet1k").num_classes
    photographs = _photographs()
    training = ((label, number) for number in range(config.train) for label in range(classes))
    _write(
        config,
        "train_imagenet",
        (
            (
                f"imagenet_1k/train/n{label:08}/n{label:08}_{number}.JPEG",
                label,
                _picture(photographs, label, number, config.side),
            )
            for label, number in training
        ),
    )
    _write(
        config,
        "test_imagenet",
        (
            (
                f"imagenet_1k/val/ILSVRC2012_val_{number + 1:08}.JPEG",
                number * 7 % classes,
                _picture(photographs, number * 7 % classes, config.train + number, config.side),
            )
            for number in range(config.test)
        ),
    )
    for place, name in enumerate(OOD, 1):
        _write(
            config,
            f"test_{name}",
            (
                (
                    f"{name if name != 'textures' else 'texture'}/{number:05}.jpg",
                    -1,
                    # Other pieces, and ever more of another picture in them.
                    _blend(
                        _picture(photographs, place * classes + number, 0, config.side),
                        _picture(photographs, -place * classes - number, 0, config.side),
                        place / 10,
                    ),
                )
                for number in range(config.ood)
            ),
        )


def fit_head(config: Config) -> float:
    """Saves a network whose head takes the class of the nearest class mean.

    Returns:
      Its accuracy on the training images.
    """
    assert config.checkpoint is not None
    benchmark = benchmarks.get("imagenet1k")
    of_weights = PUBLISHED.get(config.model, benchmark.preprocessing)
    preprocessing = Preprocessing(
        config.image_size, 3, of_weights.mean, of_weights.std, config.resize
    )
    train = benchmarks.open_benchmark(
        benchmark, preprocessing=preprocessing, data_dir=config.folder, ood=False
    ).train
    if config.weights is None:
        model = models.create(config.model, num_classes=1000, rngs=nnx.Rngs(0))
        _settle(model, train, preprocessing)
    else:
        model = import_state_dict(read_state_dict(config.weights), config.model)
    features, labels = _features(model, train, preprocessing)
    means = np.stack([features[labels == label].mean(axis=0) for label in range(1000)])
    # Squared distances, in units of what features scatter by.
    scale = features.var(axis=0).sum() / 100
    model.head.kernel[...] = jnp.asarray(means.T / scale)
    model.head.bias[...] = jnp.asarray(-0.5 * (means**2).sum(axis=1) / scale)
    weights = "random weights" if config.weights is None else f"weights of {config.weights.name}"
    spec = ModelSpec(
        model=config.model,
        num_classes=1000,
        preprocessing=preprocessing,
        source=f"{weights}, head of class means",
    )
    save_model(config.checkpoint, model, spec)
    logits = features @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...])
    return float((logits.argmax(axis=1) == labels).mean())


def _settle(model: models.Staged, images: ImageSet, preprocessing: Preprocessing) -> None:
    """Gives batch norms statistics that fit the random weights."""
    model.train()
    run = nnx.jit(lambda model, x: model(x))
    some = batches(images, preprocessing, batch_size=32)
    for batch in itertools.islice(itertools.cycle(itertools.islice(some, 4)), 20):
        run(model, batch.images)
    model.eval()


def _features(
    model: models.Staged, images: ImageSet, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    backbone = Backbone.from_nnx(model, cut=model.stages[0])
    forward = jax.jit(lambda x: backbone(x).features)
    found = [
        (np.asarray(forward(batch.images))[batch.valid], batch.labels[batch.valid])
        for batch in batches(images, preprocessing, batch_size=32, description="class means")
    ]
    features, labels = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(array) for array in load_sample_images().images]


def _picture(photographs: list[Image.Image], piece: int, shake: int, side: int) -> Image.Image:
    """One image of a class; ``shake`` moves it a little."""
    rng = np.random.default_rng([abs(piece), piece < 0])
    photograph = photographs[rng.integers(len(photographs))]
    extent = rng.uniform(60, 200, 2)
    corner = rng.uniform(0, 1, 2) * (np.array(photograph.size) - extent)
    turn, bands = rng.integers(4), rng.permutation(3)
    shaken = np.random.default_rng([abs(piece), shake])
    corner = corner + shaken.normal(0, 2, 2)
    box = (*corner, *(corner + extent))
    longer = round(side * float(rng.uniform(0.75, 1.25)))
    size = (longer, longer * 3 // 4) if rng.integers(2) else (longer * 3 // 4, longer)
    found = photograph.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    channels = found.rotate(90 * float(turn), expand=True).split()
    return Image.merge("RGB", [channels[band] for band in bands])


def _blend(first: Image.Image, second: Image.Image, share: float) -> Image.Image:
    return Image.blend(first, second.resize(first.size), share)


def _write(config: Config, name: str, images: Iterator[tuple[str, int, Image.Image]]) -> None:
    folder = "images_classic" if name == "test_textures" else "images_largescale"
    lines = []
    for number, (path, label, picture) in enumerate(images):
        file = config.folder / folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_encoded(picture, number))
        lines.append(f"{path} {label}\n")
    listing = config.folder / "benchmark_imglist" / "imagenet" / f"{name}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(lines))


def _encoded(picture: Image.Image, number: int) -> bytes:
    stream = io.BytesIO()
    kind = {5: "L", 9: "CMYK"}.get(number % 50)
    if number == 7:
        picture.save(stream, "PNG")
    else:
        (picture.convert(kind) if kind else picture).save(stream, "JPEG", quality=90)
    return stream.getvalue()


if __name__ == "__main__":
    given = tyro.cli(Config, description=__doc__)
    if not given.folder.exists():
        make(given)
    if given.checkpoint is not None:
        print(f"accuracy on training images {fit_head(given):.4f}, network in {given.checkpoint}")
