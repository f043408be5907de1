"""ResNet-20's training step and forward pass beside PyTorch's, on one core or on all.

taskset -c 0 python experiments/benchmarks/training.py
python experiments/benchmarks/training.py --output experiments/results/benchmark_training_cores.json
GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python experiments/benchmarks/training.py \\
    --output experiments/results/benchmark_training_large_pages.json

The step is that of `grood_jax.training.loop`, without augmentation: forward, cross-entropy,
backward, SGD with momentum and weight decay. PyTorch does the same with the same weights, not
compiled, in channels-last layout; the losses of the first steps must agree. The same step with
`jax.lax.conv_general_dilated` instead of `grood_jax.models.convolution` is "lax", and the network's
convolutions are measured alone, both ways, too. What is compared runs in turn, warm, and medians
are compared: on one core (taskset) of the time that it worked, which other work on the machine
hardly changes; on several of the time that passed, for waiting threads of PyTorch's count as work,
and the machine must be idle. The last command gives both large pages of memory. PyTorch is not a
dependency: pip install torch.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import models as forward_passes
import numpy as np
import tyro
from jax import lax

from grood_jax.data import Preprocessing
from grood_jax.data.batching import default_workers
from grood_jax.evaluation import results
from grood_jax.models import Staged
from grood_jax.models.convolution import convolve
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell
from grood_jax.training import loop
from grood_jax.training.options import TrainOptions

NETWORK = "resnet20"
SHAPES = ((32, 16), (16, 32), (8, 64))
"""Height and width, and channels, of its activations."""

STEPS = 3
"""Whose losses must agree."""

TOLERANCE = 1e-3
"""How far losses may be apart, relative to PyTorch's."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
      batches: images at once.
      repeats: runs of each.
      output: the results file.
    """

    batches: tuple[int, ...] = (32, 128)
    repeats: int = 7
    output: Path = Path("experiments/results/benchmark_training.json")

    def __post_init__(self) -> None:
        for batch in self.batches:
            checks.at_least("batches", batch, 2)
        checks.at_least("repeats", self.repeats, 1)


def our_step(
    network: Staged, pixels: np.ndarray, labels: np.ndarray, options: TrainOptions
) -> Callable[[], float]:
    """One step further with each call; returns the loss."""
    prepare = Preprocessing(32, 3, (0.5,) * 3, (0.25,) * 3)
    step, state, _ = loop._prepare(network, options, 10**6, prepare)
    states = [state]

    def run() -> float:
        states[0], loss, _ = step(states[0], pixels, labels, jax.random.key(0))
        return float(loss)

    return run


def torch_step(
    pixels: np.ndarray, labels: np.ndarray, options: TrainOptions
) -> Callable[[], float]:
    """The same in PyTorch."""
    import torch

    twin = forward_passes.torch_network(forward_passes.network(NETWORK, 0)).train()
    twin = twin.to(memory_format=torch.channels_last)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_("running" not in name)
    learnt = [p for p in twin.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in learnt if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(
        groups, lr=options.learning_rate, momentum=options.momentum, nesterov=True
    )
    images = ((pixels / 255 - 0.5) / 0.25).astype(np.float32).transpose(0, 3, 1, 2)
    given = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    targets = torch.from_numpy(labels.astype(np.int64))

    def run() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(given), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds that each run takes: of the core if it is one, and else as time passes."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    if default_workers() > 1:
        taken |= forward_passes.interleaved(runs, repeats)
    else:
        for run in runs.values():
            run()
        for _ in range(repeats):
            for name, run in runs.items():
                start = time.process_time()
                run()
                taken[name].append(time.process_time() - start)
    return {
        name: {what: 1e3 * of(own) for what, of in (("median", statistics.median), ("min", min))}
        for name, own in taken.items()
    }


def measure(config: BenchmarkConfig, batch: int) -> dict[str, Any]:
    """A batch's step, and its forward pass in evaluation mode in several forms.

    Raises:
      RuntimeError: the losses of the two differ.
    """
    tell(f"{batch} images at once")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, 32, 32, 3), np.uint8)
    labels = rng.integers(0, forward_passes.CLASSES, batch).astype(np.int32)
    options = TrainOptions(
        epochs=1, batch_size=batch, learning_rate=0.01, crop_padding=0, flip=False
    )
    network = forward_passes.network(NETWORK, 0)
    plain = forward_passes.with_plain_convolutions(network)
    # Copies of arrays too, for a step takes its network's away.
    own, lax_own = jax.tree.map(jnp.copy, (network, plain))
    steps = {
        "grood-jax": our_step(own, pixels, labels, options),
        "lax": our_step(lax_own, pixels, labels, options),
        "PyTorch": torch_step(pixels, labels, options),
    }
    losses = {name: [run() for _ in range(STEPS)] for name, run in steps.items()}
    apart = max(
        np.abs(np.subtract(own, losses["PyTorch"]) / losses["PyTorch"]).max()
        for own in losses.values()
    )
    if not apart <= TOLERANCE:
        raise RuntimeError(f"losses differ by {apart:.1e}: {losses}")
    images = rng.standard_normal((batch, 32, 32, 3), np.float32)
    forward = {
        "grood-jax": forward_passes.forward(network, images),
        "lax": forward_passes.forward(plain, images),
        "PyTorch": forward_passes.torch_forward(network, images),
    }
    return {
        "batch": batch,
        "losses": losses,
        "step_milliseconds": in_turn(steps, config.repeats),
        "forward_milliseconds": in_turn(forward, config.repeats),
    }


def measure_convolutions(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """GFLOP/s in the 3 × 3 convolutions that ResNet-20 is made of, and their slopes."""
    import torch

    found = []
    for side, channels in SHAPES:
        tell(f"convolution of {side} × {side}, {channels} channels")
        rng = np.random.default_rng(0)
        x, slope = rng.standard_normal((2, 128, side, side, channels), np.float32)
        kernel = rng.standard_normal((3, 3, channels, channels), np.float32)

        given = tuple(map(jnp.asarray, (x, kernel, slope)))
        ours = {
            who: {
                name: partial(_waited, jax.jit(form), given)
                for name, form in _forms(convolution).items()
            }
            for who, convolution in (
                ("grood-jax", convolve),
                ("lax", lax.conv_general_dilated),
            )
        }
        tx, ts, tk = (
            torch.from_numpy(array.transpose(order).copy(order="K")).contiguous(
                memory_format=torch.channels_last
            )
            for array, order in ((x, (0, 3, 1, 2)), (slope, (0, 3, 1, 2)), (kernel, (3, 2, 0, 1)))
        )
        back = partial(
            torch.ops.aten.convolution_backward,
            *(ts, tx, tk, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        )
        theirs: dict[str, Callable[[], Any]] = {
            "forward": partial(torch.nn.functional.conv2d, tx, tk, padding=1),
            "slope of images": partial(back, [True, False, False]),
            "slope of the kernel": partial(back, [False, True, False]),
        }
        work = 2 * 9 * channels**2 * slope[..., 0].size / 1e6
        for name in theirs:
            runs = {who: own[name] for who, own in ours.items()}
            taken = in_turn(runs | {"PyTorch": theirs[name]}, config.repeats)
            rates = {who: work / own["median"] for who, own in taken.items()}
            found.append({"side": side, "channels": channels, "what": name, "gflops": rates})
    return found


def _forms(convolution: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """A convolution and its slopes, as functions of images, kernel and slope."""

    def own(x: Any, kernel: Any) -> Any:
        return convolution(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return {
        "forward": lambda x, kernel, slope: own(x, kernel),
        "slope of images": lambda x, kernel, slope: jax.vjp(lambda x: own(x, kernel), x)[1](slope),
        "slope of the kernel": lambda x, kernel, slope: jax.vjp(
            lambda kernel: own(x, kernel), kernel
        )[1](slope),
    }


def _waited(run: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(run(*given))


def main(config: BenchmarkConfig) -> None:
    import torch

    torch.set_num_threads(default_workers())
    made = {
        "command": provenance.command_line(
            "python experiments/benchmarks/training.py", config, never=("output",)
        ),
        "versions": provenance.versions() | {"torch": torch.__version__},
        "device": provenance.device(),
        "cores_used": default_workers(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES"),
        "repeats": config.repeats,
        "convolutions": measure_convolutions(config),
        "training_steps": [measure(config, batch) for batch in config.batches],
    }
    results.write(made, config.output)
    tell(f"results in {config.output}")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
