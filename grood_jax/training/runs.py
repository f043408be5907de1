"""Training on a benchmark's images: what ``python -m grood_jax.train`` does."""

from collections.abc import Callable
from pathlib import Path

from grood_jax import benchmarks
from grood_jax.benchmarks import Benchmark
from grood_jax.data.finding import Kind
from grood_jax.storage.checkpoints import Loaded
from grood_jax.support.files import require_directory
from grood_jax.training.options import TrainOptions


def default_directory(dataset: str, model: str, seed: int) -> Path:
    """Where a training run keeps its checkpoints unless told otherwise."""
    return Path("checkpoints") / f"{dataset}-{model}-seed{seed}"


def train_on(
    benchmark: Benchmark,
    options: TrainOptions,
    *,
    model: str | None = None,
    directory: Path | None = None,
    data_dir: Path | None = None,
    source: Kind | None = None,
    download: bool = False,
    limit: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    show_progress: bool = False,
) -> Loaded:
    """Trains a network on a benchmark's training images, or goes on; says its test accuracy.

    Args:
      benchmark: the benchmark.
      options: how it is trained.
      model: the network's name; the benchmark's by default.
      directory: of the checkpoints; `default_directory` by default.
      data_dir: as for `grood_jax.benchmarks.open_benchmark`, like the next three.
      source: look only for this form of data.
      download: prepare missing sets.
      limit: use at most this many training and test images.
      say: takes lines of progress.
      show_progress: shows a bar on stderr.

    Raises:
      UserError: what a user can mend: missing data, another run's checkpoint, …
    """
    from grood_jax.training.loop import accuracy, train

    model = model or benchmark.model
    data = benchmarks.open_benchmark(
        benchmark, data_dir=data_dir, source=source, download=download, ood=False, limit=limit
    )
    directory = directory or default_directory(benchmark.name, model, options.seed)
    require_directory("output_dir", directory)
    loaded = train(
        data.train,
        benchmark.preprocessing,
        dataset=benchmark.name,
        model=model,
        num_classes=benchmark.num_classes,
        options=options,
        directory=directory,
        say=say,
        show_progress=show_progress,
    )
    share = accuracy(loaded.model, data.test, benchmark.preprocessing)
    say(
        f"{model} on {benchmark.name}: test accuracy {share:.4f} ({len(data.test)} images), "
        f"checkpoint in {directory}"
    )
    return loaded
