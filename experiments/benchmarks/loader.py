"""How many images a second are read, decoded, resized and normalised, without a network.

python experiments/benchmarks/loader.py --tfds TFDS --openood OPENOOD --imagenet IMAGENET

TFDS holds cifar10 and dtd as tensorflow-datasets prepares them, OPENOOD is a folder in OpenOOD's
layout, IMAGENET one that tests/make_imagenet.py made (JPEGs of about 480 × 360 pixels). Batches of
256 go through `grood_jax.data.batches` as an evaluation asks for them. Files are read once before,
so that they come from the system's cache. What is compared runs in turn; medians are reported.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grood_jax import benchmarks
from grood_jax.data import ImageSet, Preprocessing, batches
from grood_jax.data.batching import default_workers
from grood_jax.data.npz import NpzSource
from grood_jax.data.sets import LimitedSet
from grood_jax.evaluation import results
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
    made = {
        "command": provenance.command_line(
            "python experiments/benchmarks/loader.py", config, never=("output",), folders=False
        ),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "repeats": config.repeats,
        "loader": found,
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }
    results.write(made, config.output)
    tell(f"results in {config.output}")


def measure(config: BenchmarkConfig, images: ImageSet, preprocessing: Preprocessing) -> dict:
    some = LimitedSet(images, config.images)
    threads = sorted({1, default_workers()})

    def run(workers: int) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            count = sum(
                int(batch.valid.sum())
                for batch in batches(some, preprocessing, batch_size=BATCH, workers=workers)
            )
            return count / (time.perf_counter() - start)

        return once

    runs = {workers: run(workers) for workers in threads}
    for once in runs.values():
        once()
    rates: dict[int, list[float]] = {workers: [] for workers in threads}
    for _ in range(config.repeats):
        for workers, once in runs.items():
            rates[workers].append(once())
    found = {
        f"{workers} threads" if workers > 1 else "1 thread": {
            "images_per_second": statistics.median(those),
            "slowest": min(those),
            "fastest": max(those),
        }
        for workers, those in rates.items()
    }
    tell(
        f"{images.name}: "
        + ", ".join(f"{k} {v['images_per_second']:.0f}" for k, v in found.items())
    )
    return {"source": images.source.partition(":")[0], "images": len(some), "by_threads": found}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(BenchmarkConfig, description=__doc__))
