"""How many images a second are read, decoded and resized, without a network.

python experiments/benchmarks/loader.py --tfds TFDS --openood OPENOOD --imagenet IMAGENET

TFDS holds cifar10 and dtd as tensorflow-datasets prepares them, OPENOOD is a folder in OpenOOD's
layout, IMAGENET one that tests/make_imagenet.py made (JPEGs of about 480 × 360 pixels). Batches of
256 go through `grood_jax.data.batches` as an evaluation asks for them, as bytes. Files are read
once before, so that they come from the system's cache. What is compared runs in turn; medians are
reported, and images for each second of a core, which other work on the machine changes less.

Beside that, the steps alone, one thread, of files in memory: Pillow's decoders, and OpenCV's where
it is installed, which must give the same pixels; and Pillow's resizing. And what reading costs a
pass: images a second of ResNet-20 with cifar10 read as it goes, and of the same batches held in
memory.
"""

import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from flax import nnx
from PIL import Image

from grood_jax import benchmarks, models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Batch, ImageSet, Preprocessing, batches
from grood_jax.data.batching import default_workers
from grood_jax.data.npz import NpzSource
from grood_jax.data.sets import LimitedSet
from grood_jax.evaluation import results
from grood_jax.passes.forward import extract
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell

BATCH = 256


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how often.

    Attributes:
      tfds: the folder of sets that tensorflow-datasets has prepared.
      openood: a folder in OpenOOD's layout.
      imagenet: the folder of tests/make_imagenet.py.
      images: of each set, at most.
      repeats: runs of each.
      output: the results file.
    """

    tfds: Path
    openood: Path
    imagenet: Path
    images: int = 2000
    repeats: int = 5
    output: Path = Path("experiments/results/benchmark_loader.json")

    def __post_init__(self) -> None:
        for name in ("images", "repeats"):
            checks.at_least(name, getattr(self, name), 1)


def main(config: BenchmarkConfig) -> None:
    cifar10, imagenet = benchmarks.get("cifar10"), benchmarks.get("imagenet1k")
    prepared = benchmarks.open_benchmark(cifar10, data_dir=config.tfds, skip_missing=True)
    listed = benchmarks.open_benchmark(cifar10, data_dir=config.openood, skip_missing=True)
    large = benchmarks.open_benchmark(imagenet, data_dir=config.imagenet, ood=False)
    small, whole = cifar10.preprocessing, imagenet.preprocessing
    with tempfile.TemporaryDirectory() as folder:
        some = LimitedSet(prepared.test, config.images)
        pixels, labels = some.read(np.arange(len(some)))
        np.savez(Path(folder) / "some.npz", images=pixels, labels=labels)
        array = NpzSource("some.npz").open("cifar10", Path(folder), small)
        assert array is not None
        sets: dict[str, tuple[ImageSet, Preprocessing]] = {
            "tensorflow-datasets, cifar10, 32 × 32": (prepared.test, small),
            "tensorflow-datasets, dtd, 96 × 96 to 32 × 32": (prepared.ood["textures"][1], small),
            "folder, PNG, 32 × 32": (listed.test, small),
            ".npz, 32 × 32": (array, small),
            "folder, JPEG, about 480 × 360 to 224 × 224": (large.train, whole),
        }
        found = {name: measure(config, *where) for name, where in sets.items()}
        steps = measure_steps(config, pixels, whole)
        passes = measure_pass(config, some, small)
    made = {
        "command": provenance.command_line(
            "python experiments/benchmarks/loader.py", config, never=("output",), folders=False
        ),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "repeats": config.repeats,
        "loader": found,
        "steps": steps,
        "passes": passes,
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }
    results.write(made, config.output)
    tell(f"results in {config.output}")


def in_turn(config: BenchmarkConfig, runs: Mapping[Any, Callable[[], int]]) -> dict[Any, dict]:
    """Images per second of runs that return how many there were: once to warm up, then in turn."""
    for once in runs.values():
        once()
    rates: dict[Any, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(config.repeats):
        for name, once in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            count = once()
            rates[name].append(
                (
                    count / (time.perf_counter() - start),
                    count / (time.process_time() - busy),
                )
            )
    return {
        name: {
            "images_per_second": statistics.median(wall for wall, _ in those),
            "slowest": min(wall for wall, _ in those),
            "fastest": max(wall for wall, _ in those),
            "images_per_core_second": statistics.median(cores for _, cores in those),
        }
        for name, those in rates.items()
    }


def measure_steps(config: BenchmarkConfig, pixels: np.ndarray, whole: Preprocessing) -> dict:
    """Decoders alone, of PNGs of these pixels and of the imagenet folder's JPEGs, and resizing."""
    small = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        small.append(file.getvalue())
    files = sorted(config.imagenet.rglob("*.JPEG"))[: config.images // 4]
    # Those in RGB: of CMYK and grey ones decoders make what they like.
    large = [each for each in (file.read_bytes() for file in files) if _is_rgb_jpeg(each)]
    pictures = [Image.open(io.BytesIO(each)).convert("RGB") for each in large]
    decoders: dict[str, Callable[[bytes], np.ndarray]] = {f"Pillow {PIL.__version__}": _by_pillow}
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        decoders[f"OpenCV {cv2.__version__}"] = lambda encoded: cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB
        )
    runs: dict[str, Callable[[], int]] = {}
    for kind, encoded in (("PNG, 32 × 32", small), ("JPEG, about 480 × 360", large)):
        for name, decode in decoders.items():
            for each in encoded[:100]:
                np.testing.assert_array_equal(decode(each), _by_pillow(each))
            runs[f"decode {kind}: {name}"] = partial(_count, decode, encoded)
    runs["resize about 480 × 360 to 256: Pillow"] = partial(_count, _resized, pictures)
    runs["all steps, JPEG to 224 × 224: ours"] = partial(_count, whole.decode, large)
    return in_turn(config, runs)


def _count(step: Callable[[Any], Any], given: Sequence[Any]) -> int:
    return len([step(each) for each in given])


def _by_pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def _resized(picture: Image.Image) -> Image.Image:
    width, height = (256 * side // min(picture.size) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _is_rgb_jpeg(encoded: bytes) -> bool:
    picture = Image.open(io.BytesIO(encoded))
    return picture.format == "JPEG" and picture.mode == "RGB"


def measure_pass(config: BenchmarkConfig, images: ImageSet, preprocessing: Preprocessing) -> dict:
    """A network's pass with its images read as it goes, and with all of them in memory."""
    size, channels = preprocessing.image_size, preprocessing.channels
    network = models.create(
        "resnet20", num_classes=10, channels=channels, image_size=size, rngs=nnx.Rngs(0)
    )
    backbone = Backbone.from_nnx(network, cut=network.stages[0])

    def read() -> Iterator[Batch]:
        return batches(images, preprocessing, batch_size=BATCH)

    held = list(read())

    def run(given: Callable[[], Iterable[Batch]]) -> Callable[[], int]:
        return lambda: len(extract(backbone, given()).logits)

    return in_turn(config, {"read": run(read), "in memory": run(lambda: held)})


def measure(config: BenchmarkConfig, images: ImageSet, preprocessing: Preprocessing) -> dict:
    some = LimitedSet(images, config.images)
    threads = sorted({1, default_workers()})

    def run(workers: int) -> Callable[[], int]:
        return lambda: sum(
            int(batch.valid.sum())
            for batch in batches(
                some, preprocessing, batch_size=BATCH, workers=workers, normalize=False
            )
        )

    rates = in_turn(config, {workers: run(workers) for workers in threads})
    found = {
        f"{workers} threads" if workers > 1 else "1 thread": rate for workers, rate in rates.items()
    }
    tell(
        f"{images.name}: "
        + ", ".join(f"{k} {v['images_per_second']:.0f}" for k, v in found.items())
    )
    return {"source": images.source.partition(":")[0], "images": len(some), "by_threads": found}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(BenchmarkConfig, description=__doc__))
