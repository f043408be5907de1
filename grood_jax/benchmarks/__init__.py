"""Benchmarks described once: sets in and out of distribution, image size, normalisation."""

from pathlib import Path

from grood_jax.benchmarks import openood, small
from grood_jax.benchmarks.base import Benchmark, Group
from grood_jax.benchmarks.files import SUFFIXES, read_benchmark
from grood_jax.benchmarks.opening import OpenBenchmark, identity, open_benchmark
from grood_jax.support import checks

__all__ = [
    "Benchmark",
    "Group",
    "OpenBenchmark",
    "check_name",
    "get",
    "identity",
    "names",
    "open_benchmark",
    "read_benchmark",
]

_BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        small.DIGITS,
        small.FASHION_MNIST,
        openood.CIFAR10,
        openood.CIFAR100,
        openood.IMAGENET200,
        openood.IMAGENET1K,
    )
}


def names() -> tuple[str, ...]:
    """The names of the benchmarks that are built in."""
    return tuple(_BENCHMARKS)


def check_name(dataset: str) -> str:
    """A name that `get` knows, or the path of a file, as it is.

    Raises:
      TypeError: it is no string.
      ValueError: it is neither.
    """
    return dataset if _is_path(dataset) else checks.choice("dataset", dataset, names())


def get(dataset: str) -> Benchmark:
    """The benchmark of that name, or the one that a TOML or Python file describes.

    Raises:
      TypeError: ``dataset`` is no string.
      ValueError: there is none of that name.
      UserError: the file is not there, or describes no benchmark.
    """
    return read_benchmark(Path(dataset)) if _is_path(dataset) else _BENCHMARKS[check_name(dataset)]


def _is_path(dataset: str) -> bool:
    return checks.text("dataset", dataset).endswith(SUFFIXES)
