"""What GROOD's scoring costs beside the forward pass, and its gradients beside PyTorch's.

python experiments/benchmarks/scoring.py [--bank results/gradient_banks/gradients512.npz]

Overhead: a ResNet-18 for 32 × 32 images, with random weights (they do not change the time), runs
forward on batches of random pixels; then rows are scored, gradients and exact search in a bank of
50,000 × 512 together, by batches and by blocks of 1,024 as evaluations do. Three banks: gradients
of made-up features; Gaussian rows, where bounds of few columns do not help; and, with --bank, real
gradients, for instance those that gradient_banks.py makes.

Gradients: ours against a loop over samples with torch.autograd.grad, which runs on the CPU and
must give the same gradients. PyTorch is not a dependency: pip install torch, or --no-torch.

All is measured in one process, warm; what is compared runs in turn, and medians are compared.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

import grood_jax as gj
from grood_jax import models
from grood_jax.backbone.outputs import Outputs
from grood_jax.cli import command
from grood_jax.detectors import Training
from grood_jax.detectors.grood import GroodState
from grood_jax.evaluation import results
from grood_jax.evaluation.fitting import SCORE_ROWS
from grood_jax.maths.gradients import gradients
from grood_jax.neighbors.searching import search
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

CLASSES, WIDTH = 10, 512
"""Of the ResNet-18."""

AIM = 0.05
"""Scoring is to add at most this to the forward pass."""

SIZES = ((10, 64), (10, 512), (1000, 2048))
"""Classes and columns with which gradients are compared."""

LARGE = 1_000_000
"""With more prototype elements than this, PyTorch's loop runs over --torch-samples only."""

TOLERANCE = 1e-5
"""How far gradients may be apart, relative to the largest."""

BETWEEN, WITHIN, SPREAD, RANK, DECAY = 4.6, 3.2, 0.5, 64, 16.0
"""Of made-up features: distance of a class from the mean of all and of samples from their class,
deviation of that distance's logarithm, directions of noise, and over how many of them deviations
fall by e. Distances, the noise's spectrum and the share of zeros are near those of a ResNet-20 for
CIFAR-10 and of wider heads on it."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how often.

    Attributes:
      batch: images in a forward pass; rows are scored by as many, and by blocks of 1,024.
      bank: an .npz of real gradients, arrays bank (N, 512) and queries (Q, 512), measured too.
      bank_rows: rows of the made-up banks.
      samples: of which gradients are taken.
      torch: compare with PyTorch.
      torch_samples: over how many samples PyTorch's loop runs at the largest size.
      repeats: runs of each.
      seed: of all that is random.
      output: the results file.
    """

    batch: int = 256
    bank: Path | None = None
    bank_rows: int = 50_000
    samples: int = 1_000
    torch: bool = True
    torch_samples: int = 100
    repeats: int = 5
    seed: int = 0
    output: Path = Path("experiments/results/benchmark_scoring.json")

    def __post_init__(self) -> None:
        for name in ("batch", "bank_rows", "samples", "torch_samples", "repeats"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("seed", self.seed, 0)
        # Fewer could leave a class without a sample.
        checks.at_least("bank_rows", self.bank_rows, CLASSES)


@dataclass(frozen=True)
class Case:
    """A fitted detector and rows to score.

    Attributes:
      state: with the bank.
      outputs: of at least as many samples as are scored at once.
      queries: what is searched for in the place of the samples' gradients, (Q, D).
    """

    state: GroodState
    outputs: Outputs
    queries: Float[np.ndarray, "q d"] | None = None


PAUSE = 0.5
"""Seconds before each run."""


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, warm. Runs take turns, so that a disturbance meets all of them."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            # The threads of the run before still spin for a while.
            time.sleep(PAUSE)
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def each(seconds: Sequence[float], count: int) -> dict[str, float]:
    """Seconds for one of ``count``."""
    own = np.array(seconds) / count
    return {"median": float(np.median(own)), "min": float(own.min()), "max": float(own.max())}


def class_means(rng: np.random.Generator, classes: int, width: int) -> Float[np.ndarray, "c d"]:
    """Means of features that are seldom 0, as averages after a ReLU are."""
    return BETWEEN / np.sqrt(width) * (1.0 + rng.exponential(size=(classes, width)))


def made_up_features(
    rng: np.random.Generator, centers: Float[np.ndarray, "b d"], axes: Float[np.ndarray, "r d"]
) -> Float[np.ndarray, "b d"]:
    """Features around centers, in few directions mostly; some samples lie nearer than others."""
    rank, width = axes.shape
    deviations = np.exp(-np.arange(rank) / DECAY)
    deviations *= WITHIN / np.sqrt(width * (deviations**2).sum())
    reach = np.exp(SPREAD * rng.standard_normal((len(centers), 1)))
    noise = reach * (rng.standard_normal((len(centers), rank)) * deviations) @ axes
    return np.maximum(centers + noise, 0.0).astype(np.float32)


def made_up_case(rng: np.random.Generator, rows: int, queries: int) -> Case:
    """A GROOD fitted on made-up features; every other sample to score is like the training set.

    The others lie around points between a class and the mean of all.
    """
    means, axes = class_means(rng, CLASSES, WIDTH), rng.standard_normal((RANK, WIDTH))
    labels = np.arange(rows, dtype=np.int32) % CLASSES
    known = _outputs(made_up_features(rng, means[labels], axes), labels)
    state = detector().fit(Training(known, jnp.asarray(labels)), jax.random.key(0))
    labels = rng.integers(0, CLASSES, queries)
    nearness = rng.uniform(0, 1, (queries, 1))
    nearness[::2] = 1.0
    middle = means.mean(axis=0)
    centers = middle + nearness * (means[labels] - middle)
    outputs = _outputs(made_up_features(rng, centers, axes), labels)
    return Case(state, jax.tree.map(np.asarray, outputs))


def _outputs(features: Float[np.ndarray, "b d"], labels: Int[np.ndarray, " b"]) -> Outputs:
    """Outputs of a network that is always right."""
    return Outputs(jnp.asarray(features), jnp.eye(CLASSES)[labels])


def detector() -> gj.detectors.Detector:
    return gj.detectors.grood(ood_prototype="prototype-mean")


def with_vectors(case: Case, bank: np.ndarray, queries: np.ndarray) -> Case:
    """The same work on other vectors: gradients are taken, but these are searched for."""
    return Case(replace(case.state, bank=gj.build_bank(bank)), case.outputs, queries)


def read_bank(path: Path, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Bank and queries of a file."""
    with np.load(path) as arrays:
        if not {"bank", "queries"} <= set(arrays):
            raise UserError(f"{path} has arrays {sorted(arrays)}; expected bank and queries")
        bank, given = arrays["bank"], arrays["queries"]
    for name, array, least in (("bank", bank, 1), ("queries", given, queries)):
        if array.ndim != 2 or array.shape[1] != WIDTH or len(array) < least:
            raise UserError(
                f"{name} of {path} has shape {array.shape}; expected at least {least} rows of "
                f"{WIDTH} columns"
            )
    # In a fixed random order: test sets may be sorted by class.
    chosen = np.random.default_rng(0).permutation(len(given))[:queries]
    return np.float32(bank), np.float32(given[chosen])


def cases(config: BenchmarkConfig) -> dict[str, Case]:
    """The banks by name."""
    rng = np.random.default_rng(config.seed)
    queries = max(config.batch, SCORE_ROWS)
    found = {}
    made_up = made_up_case(rng, config.bank_rows, queries)
    if config.bank is not None:
        found[config.bank.name] = with_vectors(made_up, *read_bank(config.bank, queries))
    found["made-up gradients"] = made_up
    found["Gaussian rows"] = with_vectors(
        made_up,
        rng.standard_normal((config.bank_rows, WIDTH), np.float32),
        rng.standard_normal((queries, WIDTH), np.float32),
    )
    return found


@jax.jit
def _score_queries(
    state: GroodState, outputs: Outputs, queries: Float[Array, "q d"]
) -> tuple[Float[Array, " q"], Float[Array, "q d"]]:
    own = gradients(outputs.features, state.class_prototypes, state.ood_prototype)
    return search(queries, state.bank, 1), own


def scoring(case: Case, rows: int) -> Callable[[], Any]:
    """Scores rows as `fitting.score` does a block: NumPy in, NumPy out."""
    outputs = jax.tree.map(lambda array: array[:rows], case.outputs)
    if case.queries is None:
        compiled = jax.jit(detector().score)
        return lambda: np.asarray(compiled(case.state, outputs))
    queries = case.queries[:rows]
    return lambda: jax.tree.map(np.asarray, _score_queries(case.state, outputs, queries))


def forward_pass(config: BenchmarkConfig) -> Callable[[], Any]:
    """The network on one batch of random pixels."""
    network = models.create("resnet18_32x32", num_classes=CLASSES, rngs=nnx.Rngs(config.seed))
    backbone = gj.Backbone.from_nnx(network, cut="layer1")
    rng = np.random.default_rng(config.seed)
    images = rng.standard_normal((config.batch, 32, 32, 3), np.float32)
    compiled = jax.jit(lambda backbone, images: backbone(images))
    return lambda: jax.block_until_ready(compiled(backbone, images))


def measure_overhead(config: BenchmarkConfig) -> dict[str, Any]:
    """Time of scoring over time of the forward pass, for each bank."""
    forward = forward_pass(config)
    found = {}
    for name, case in cases(config).items():
        figures: dict[str, Any] = {
            "rows": case.state.bank.size,
            "columns": case.state.bank.width,
            "axes": case.state.bank.axes,
        }
        for rows in dict.fromkeys((config.batch, SCORE_ROWS)):
            tell(f"scoring {rows} rows at once: {name}")
            runs = {"forward": forward, "scoring": scoring(case, rows)}
            seconds = interleaved(runs, config.repeats)
            forward_each = each(seconds["forward"], config.batch)
            scoring_each = each(seconds["scoring"], rows)
            figures[f"by {rows}"] = {
                "forward_seconds_per_image": forward_each,
                "scoring_seconds_per_image": scoring_each,
                "overhead": scoring_each["median"] / forward_each["median"],
            }
        found[name] = figures
    return {
        "model": "resnet18_32x32, random weights",
        "batch": config.batch,
        "aim": AIM,
        "banks": found,
    }


def torch_gradients(features: Any, class_prototypes: Any, ood_prototype: Any, labels: Any) -> Any:
    """∂/∂p_ood of the nearest-prototype loss in PyTorch, one sample after the other.

    Distances to class prototypes are kept out of the backward pass, as they are in ours.
    """
    import torch

    found = []
    for feature, label in zip(features, labels, strict=True):
        ood = ood_prototype.clone().requires_grad_()
        to_classes = (feature - class_prototypes).norm(dim=1)
        to_ood = (feature - ood).norm()
        distances = torch.cat([to_classes, to_ood[None]])
        loss = -torch.log_softmax(-distances, dim=0)[label]
        found.append(torch.autograd.grad(loss, ood)[0])
    return torch.stack(found)


def compare_gradients(config: BenchmarkConfig, classes: int, width: int) -> dict[str, Any]:
    """Our gradients against PyTorch's, in seconds per sample.

    Raises:
      RuntimeError: they differ by more than float32 explains.
    """
    import torch

    rng = np.random.default_rng(config.seed)
    labels = rng.integers(0, classes, config.samples)
    prototypes = class_means(rng, classes, width).astype(np.float32)
    axes = rng.standard_normal((RANK, width))
    features = made_up_features(rng, prototypes[labels], axes)
    arrays = features, prototypes, prototypes.mean(axis=0)
    large = classes * width > LARGE
    count = min(config.torch_samples, config.samples) if large else config.samples
    on_device = tuple(map(jnp.asarray, arrays))
    tensors = tuple(map(torch.from_numpy, (arrays[0][:count], *arrays[1:], labels[:count])))
    runs = {
        "ours": lambda: jax.block_until_ready(gradients(*on_device)),
        "torch": lambda: torch_gradients(*tensors),
    }
    own, other = np.asarray(runs["ours"]())[:count], runs["torch"]().numpy()
    largest, difference = float(np.abs(other).max()), float(np.abs(own - other).max())
    if not difference <= TOLERANCE * largest:
        raise RuntimeError(
            f"gradients of {classes} classes, {width} columns differ by {difference:.1e}; expected "
            f"at most {TOLERANCE:.0e} of the largest, {largest:.1e}"
        )
    seconds = interleaved(runs, config.repeats)
    ours, theirs = each(seconds["ours"], config.samples), each(seconds["torch"], count)
    return {
        "classes": classes,
        "columns": width,
        "samples": config.samples,
        "torch_samples": count,
        "seconds_per_sample": ours,
        "torch_seconds_per_sample": theirs,
        "times_torch": theirs["median"] / ours["median"],
        "largest_gradient": largest,
        "largest_difference": difference,
    }


def measure_gradients(config: BenchmarkConfig) -> dict[str, Any]:
    """Our gradients against PyTorch's, at each size."""
    import torch

    found = []
    for classes, width in SIZES:
        tell(f"gradients of {classes} classes, {width} columns")
        found.append(compare_gradients(config, classes, width))
    return {"torch_device": "cpu", "torch_threads": torch.get_num_threads(), "sizes": found}


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    if config.torch and importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is missing; pip install torch, or leave it out with --no-torch")
    require_directory("output", config.output.parent)
    found: dict[str, Any] = {
        "command": provenance.command_line(
            "python experiments/benchmarks/scoring.py", config, never=("output",), folders=False
        ),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "repeats": config.repeats,
        "overhead": measure_overhead(config),
    }
    if config.torch:
        import torch

        found["versions"]["torch"] = torch.__version__
        found["gradients"] = measure_gradients(config)
    results.write(found, config.output)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures as text: median, and least to most in brackets."""
    overhead = found["overhead"]
    lines = [
        f"{found['device']}; {overhead['model']}; medians of {found['repeats']} [least, most]",
        "",
        f"{'bank':20} {'axes':>4} {'rows':>5}  {'forward, µs an image':>26}  "
        f"{'scoring, µs an image':>26}  overhead (aim {overhead['aim']})",
    ]
    for name, bank in overhead["banks"].items():
        for rows in dict.fromkeys((overhead["batch"], SCORE_ROWS)):
            row = bank[f"by {rows}"]
            lines.append(
                f"{name:20} {bank['axes']:4} {rows:5}  "
                f"{_microseconds(row['forward_seconds_per_image']):>26}  "
                f"{_microseconds(row['scoring_seconds_per_image']):>26}  {row['overhead']:.4f}"
            )
    if "gradients" not in found:
        return "\n".join(lines)
    lines += [
        "",
        f"{'classes × columns':>17}  {'ours, µs a sample':>26}  {'torch, µs a sample':>26}  "
        f"{'samples':>7}  × torch  difference",
    ]
    for row in found["gradients"]["sizes"]:
        size = f"{row['classes']} × {row['columns']}"
        lines.append(
            f"{size:>17}  {_microseconds(row['seconds_per_sample']):>26}  "
            f"{_microseconds(row['torch_seconds_per_sample']):>26}  {row['torch_samples']:7}  "
            f"{row['times_torch']:7.1f}  {row['largest_difference']:.1e} of "
            f"{row['largest_gradient']:.1e}"
        )
    return "\n".join(lines)


def _microseconds(seconds: Mapping[str, float]) -> str:
    median, least, most = (seconds[key] * 1e6 for key in ("median", "min", "max"))
    return f"{median:.1f} [{least:.1f}, {most:.1f}]"


def main() -> None:
    config = command.parse(BenchmarkConfig(), "experiments.benchmarks.scoring", __doc__ or "", None)
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
