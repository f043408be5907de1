"""The networks' forward pass beside PyTorch's, in images per second on the CPU.

python experiments/benchmarks/models.py [--models resnet20 resnet18_32x32] [--no-torch]

Each network has random weights and statistics and is compiled for batches of random pixels, which
come in parts as in an evaluation (`grood_jax.passes.devices.by_parts`). It is measured as it is;
with `jax.lax.conv_general_dilated` instead of `grood_jax.models.convolution`; and with each batch
norm folded into its convolution, both ways. PyTorch runs the same network, built here of our
arrays, in evaluation mode, in channels-last layout, under inference_mode, not compiled, and with as
many threads as there are cores, which XLA uses too; its logits must be ours. PyTorch is not a
dependency: pip install torch, or --no-torch.

All is measured in one process, warm; what is compared runs in turn, and medians are compared, and
the fastest runs too. The machine must be idle: other work slows PyTorch more than it slows XLA.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from grood_jax import models
from grood_jax.cli import command
from grood_jax.evaluation import results
from grood_jax.models import Staged
from grood_jax.passes.devices import by_parts
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

SIZES: dict[str, tuple[int, tuple[int, ...]]] = {
    "resnet20": (32, (32, 128, 256)),
    "resnet18_32x32": (32, (32, 128, 256)),
    "resnet50": (224, (4, 16, 64)),
}
"""Height and width of the images, and images in a batch."""

CLASSES = 10

TOLERANCE = 1e-4
"""How far logits may be apart, relative to the largest."""

PAUSE, SPAN = 0.2, 0.5
"""Seconds before each turn, for the threads of the one before still spin for a while; and seconds
that a turn takes, at least."""

PYTORCH = "PyTorch"
OURS = "grood-jax"


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and how often.

    Attributes:
      models: the networks, of those in SIZES.
      torch: compare with PyTorch.
      repeats: turns of each.
      seed: of all that is random.
      output: the results file.
    """

    models: tuple[str, ...] = tuple(name for name in SIZES if name in models.names())
    torch: bool = True
    repeats: int = 7
    seed: int = 0
    output: Path = Path("experiments/results/benchmark_models.json")

    def __post_init__(self) -> None:
        for name in self.models:
            checks.choice("models", name, [own for own in SIZES if own in models.names()])
        checks.at_least("repeats", self.repeats, 1)
        checks.at_least("seed", self.seed, 0)


def network(name: str, seed: int) -> Staged:
    """A network in evaluation mode whose batch norms are not the identity."""
    model = models.create(name, num_classes=CLASSES, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for _, part in nnx.iter_graph(model):
        if isinstance(part, nnx.BatchNorm):
            shape = part.scale[...].shape
            for variable, low, high in (
                (part.scale, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
                (part.mean, -0.5, 0.5),
                (part.var, 0.5, 1.5),
            ):
                variable[...] = jnp.asarray(rng.uniform(low, high, shape), jnp.float32)
    model.eval()
    return model


def with_plain_convolutions(model: Staged) -> Staged:
    """A copy that convolves by `jax.lax.conv_general_dilated` as it stands."""
    copied = nnx.clone(model)
    for _, part in nnx.iter_graph(copied):
        if isinstance(part, nnx.Conv):
            part.conv_general_dilated = lax.conv_general_dilated
    return copied


class Shift(nnx.Module):
    """What is left of a batch norm that was folded into the convolution before it."""

    def __init__(self, by: Float[Array, " c"]) -> None:
        self.by = nnx.Param(by)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.by[...].reshape(1, 1, 1, -1)


def folded(model: Staged) -> Staged:
    """A copy whose batch norms are folded into the convolutions before them."""
    copied = nnx.clone(model)
    for _, part in list(nnx.iter_graph(copied)):
        for conv, name in convolutions(part):
            norm = getattr(part, name)
            scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.epsilon)
            conv.kernel[...] = conv.kernel[...] * scale
            setattr(part, name, Shift(norm.bias[...] - norm.mean[...] * scale))
    return copied


def convolutions(part: Any) -> list[tuple[nnx.Conv, str]]:
    """A module's own convolutions, in order, each with the name of its batch norm."""
    found = []
    for suffix in ("", "1", "2", "3"):
        conv = getattr(part, f"conv{suffix}", None)
        if isinstance(conv, nnx.Conv):
            found.append((conv, f"norm{suffix}"))
    return found


def forward(model: Staged, images: Float[np.ndarray, "b h w c"]) -> Callable[[], Array]:
    """The compiled network on one batch."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, images: by_parts(nnx.merge(graph, state), images))
    on_device = jnp.asarray(images)
    return lambda: jax.block_until_ready(compiled(state, on_device))


def torch_forward(model: Staged, images: Float[np.ndarray, "b h w c"]) -> Callable[[], Any]:
    """The same network in PyTorch on the same batch."""
    import torch

    twin = torch_network(model).eval().to(memory_format=torch.channels_last)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2))
    tensor = tensor.contiguous(memory_format=torch.channels_last)

    def run() -> Any:
        with torch.inference_mode():
            return twin(tensor)

    return run


def torch_network(model: Any) -> Any:
    """A residual network of ours in PyTorch, as its own library writes them."""
    import torch
    from torch import nn

    def tensor(variable: Any) -> Any:
        return nn.Parameter(torch.from_numpy(np.array(variable[...])), requires_grad=False)

    def pair(conv: nnx.Conv, norm: nnx.BatchNorm) -> list[Any]:
        kernel = np.asarray(conv.kernel[...])
        own = nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], conv.strides, conv.padding, bias=False)
        own.weight.data = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        after = nn.BatchNorm2d(kernel.shape[3], eps=norm.epsilon)
        after.weight, after.bias = tensor(norm.scale), tensor(norm.bias)
        after.running_mean, after.running_var = tensor(norm.mean), tensor(norm.var)
        return [own, after]

    def chain(part: Any) -> list[Any]:
        """Convolutions and batch norms with a ReLU between them."""
        found: list[Any] = []
        for conv, norm in convolutions(part):
            found += [nn.ReLU(inplace=True)] if found else []
            found += pair(conv, getattr(part, norm))
        return found

    class Pad(nn.Module):
        def __init__(self, shortcut: Any) -> None:
            super().__init__()
            self.stride, self.padding = shortcut.stride, shortcut.padding

        def forward(self, x: Any) -> Any:
            picked = x[:, :, :: self.stride, :: self.stride]
            return nn.functional.pad(picked, (0, 0, 0, 0, self.padding, self.padding))

    class Block(nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.body = nn.Sequential(*chain(block))
            self.shortcut = nn.Identity()
            if block.shortcut is not None:
                projection = chain(block.shortcut)
                self.shortcut = nn.Sequential(*projection) if projection else Pad(block.shortcut)

        def forward(self, x: Any) -> Any:
            y = self.body(x)
            y += self.shortcut(x)
            return nn.functional.relu_(y)

    layers = [*chain(model.stem), nn.ReLU(inplace=True)]
    if type(model.stem).__name__ == "PooledStem":
        layers.append(nn.MaxPool2d(3, 2, 1))
    for stage in model.stages[1:]:
        layers += [Block(block) for block in getattr(model, stage).layers]
    head = nn.Linear(model.head.in_features, model.head.out_features)
    head.weight.data = torch.from_numpy(np.asarray(model.head.kernel[...]).T.copy())
    head.bias = tensor(model.head.bias)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def interleaved(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, warm. Runs take turns, so that a disturbance meets all of them.

    A turn is one run that is not counted, for after a pause threads wake slowly, and then as many
    as fill SPAN, one after the other, as batches of a data set follow one another.
    """
    counts = {}
    for name, run in runs.items():
        run()
        counts[name] = max(1, round(SPAN / seconds_of(run, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()
            seconds[name].append(seconds_of(run, counts[name]))
    return seconds


def seconds_of(run: Callable[[], Any], count: int) -> float:
    """Of one run, where ``count`` follow one another."""
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count


def measure(config: BenchmarkConfig, name: str, model: Staged, batch: int) -> dict[str, Any]:
    """Images per second of one network by batches of one size.

    Raises:
      RuntimeError: logits differ by more than float32 explains.
    """
    size, _ = SIZES[name]
    rng = np.random.default_rng(config.seed)
    images = rng.standard_normal((batch, size, size, 3), np.float32)
    plain = with_plain_convolutions(model)
    runs: dict[str, Callable[[], Any]] = {
        OURS: forward(model, images),
        "folded": forward(folded(model), images),
        "lax": forward(plain, images),
        "lax, folded": forward(folded(plain), images),
    }
    if config.torch:
        runs[PYTORCH] = torch_forward(model, images)
    own = np.asarray(runs[OURS]())
    largest = float(np.abs(own).max())
    differences = {
        key: float(np.abs(np.asarray(run()) - own).max()) / largest for key, run in runs.items()
    }
    worst = max(differences.values())
    if not worst <= TOLERANCE:
        raise RuntimeError(
            f"logits of {name} differ: {differences}; expected at most {TOLERANCE} of the largest"
        )
    seconds = interleaved(runs, config.repeats)
    found = {
        "model": name,
        "images": f"{size}×{size}",
        "batch": batch,
        "images_per_second": {key: per_second(own, batch) for key, own in seconds.items()},
        "largest_relative_difference": worst,
    }
    if config.torch:
        for key, of in (("times_torch", np.median), ("times_torch_fastest", np.min)):
            found[key] = float(of(seconds[PYTORCH]) / of(seconds[OURS]))
    return found


def per_second(seconds: Sequence[float], batch: int) -> dict[str, float]:
    rates = batch / np.array(seconds)
    return {
        "median": float(np.median(rates)),
        "min": float(rates.min()),
        "max": float(rates.max()),
    }


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    if config.torch and importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is missing; pip install torch, or leave it out with --no-torch")
    require_directory("output", config.output.parent)
    found: dict[str, Any] = {
        "command": provenance.command_line(
            "python experiments/benchmarks/models.py", config, never=("output",), folders=False
        ),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "repeats": config.repeats,
    }
    if config.torch:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)
        found["versions"]["torch"] = torch.__version__
        found["torch_threads"] = torch.get_num_threads()
    rows = []
    for name in config.models:
        model = network(name, config.seed)
        for batch in SIZES[name][1]:
            tell(f"{name}, {batch} images at once")
            rows.append(measure(config, name, model, batch))
    found["forward_passes"] = rows
    results.write(found, config.output)
    return found


def table(found: Mapping[str, Any]) -> str:
    """Images per second as text: median, and least to most in brackets."""
    lines = [f"{found['device']}; images/s, medians of {found['repeats']} [least, most]", ""]
    for row in found["forward_passes"]:
        lines.append(f"{row['model']}, {row['images']}, {row['batch']} at once")
        for key, rate in row["images_per_second"].items():
            spread = f"[{rate['min']:.1f}, {rate['max']:.1f}]"
            lines.append(f"  {key:12} {rate['median']:8.1f}  {spread}")
        if "times_torch" in row:
            lines.append(
                f"  {row['times_torch']:.2f} × PyTorch by medians, "
                f"{row['times_torch_fastest']:.2f} × by the fastest runs"
            )
        lines.append(f"  logits differ by {row['largest_relative_difference']:.0e} of the largest")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(BenchmarkConfig(), "models", __doc__.split("\n\n")[0], argv)
    return command.status(lambda: print(table(run(config))))


if __name__ == "__main__":
    raise SystemExit(main())
