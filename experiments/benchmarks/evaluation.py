"""An evaluation as a whole beside OpenOOD's own evaluator: from image files to metrics.

python experiments/benchmarks/evaluation.py --openood OpenOOD --checkpoint checkpoints/resnet20 \\
    --data-dir data/tfds

OpenOOD is a checkout of github.com/Jingkang50/OpenOOD, for which see `EXTRAS`; --data-dir holds the
sets of the benchmark cifar10 as tensorflow-datasets prepares them, --checkpoint a ResNet of ours
for them. Its images are written as PNG files in OpenOOD's layout, which both read, and PyTorch runs
the network built of our arrays, in evaluation mode, channels last where OpenOOD lets it.

Ours is `grood_jax.eval` as its command line runs it, without the report, with all detectors at
once: first with nothing compiled, then again. OpenOOD's is its `Evaluator`, made anew for each
detector and asked for `eval_ood()`, as its script eval_ood.py does, without its search for options
(ours has none either, without --search). It runs in a process of its own that has imported all
before; calls of CUDA are left out. Each has as many threads as there are cores. Ours and theirs run
in turn, and medians are compared; the machine must be idle, for PyTorch's threads wait for one
another. Where their AUROCs differ the detectors do: see `DIFFERENT`. All of CIFAR-10 takes
--train 50000 --limit 10000 --repeats 1, and an hour or so.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from PIL import Image

from grood_jax.cli import command
from grood_jax.cli.eval import run as evaluate
from grood_jax.evaluation import results
from grood_jax.evaluation.setting import EvalConfig
from grood_jax.storage.checkpoints import load_model
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell, unsaid

DATASET = "cifar10"
OPENOOD = "OpenOOD"

SLOWEST = 5
"""Of OpenOOD's, whose time is not counted in one of the ratios, though ours is."""

PACKAGES = ("torch", "torchvision", "faiss", "sklearn", "pandas", "statsmodels", "libmr", "yaml")
"""What the peer needs, by module; pip calls them faiss-cpu, scikit-learn and pyyaml."""

EXTRAS = ("imgaug", "timm", "foolbox", "gdown", "diffdist", "clip")
"""Of training, attacks and downloads: OpenOOD imports them, but an evaluation calls none. Empty
modules stand for those that are not installed, or that do not work with JAX's NumPy."""

LISTS = {
    "train_cifar10": ("cifar10", "train"),
    "val_cifar10": ("cifar10", "test"),
    "test_cifar10": ("cifar10", "test"),
    "test_cifar100": ("cifar100", "test"),
    "test_tin": ("tiny_imagenet_32", "test"),
    "val_tin": ("tiny_imagenet_32", "validation"),
    "test_mnist": ("mnist", "test"),
    "test_svhn": ("svhn_cropped", "test"),
    "test_texture": ("dtd", "test"),
    "test_places365": ("places365_32", "test"),
}
"""OpenOOD's lists of images, and the set and split that stand for each."""

HELD_OUT = 1000
"""Test images that are ID validation images instead, as in OpenOOD, or a tenth where --limit leaves
fewer."""


@dataclass(frozen=True)
class Peer:
    """OpenOOD's counterpart of a detector.

    Attributes:
      name: of its postprocessor.
      given: attributes that are set on it, where its configuration is not for this network.
      options: those that it takes in place of a search's.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[Any, ...] | None = None


PEERS = {
    "msp": Peer("msp"),
    "adascale": Peer("adascale_a", options=([60, 85], 5, 1, 10, 0.05)),
    "ash": Peer("ash"),
    "cfood": Peer("cfood"),
    "dice": Peer("dice"),
    "energy": Peer("ebo"),
    "fdbd": Peer("fdbd"),
    "gen": Peer("gen"),
    "gradnorm": Peer("gradnorm"),
    "gram": Peer("gram"),
    "grood:ood_prototype=validation": Peer("grood", {"dataset_name": DATASET}),
    "i_odin": Peer("iodin"),
    "kl_matching": Peer("klm"),
    "knn": Peer("knn"),
    "mahalanobis": Peer("mds"),
    "mahalanobis_ensemble": Peer("mds_ensemble"),
    "max_logit": Peer("mls"),
    "nci": Peer("nci"),
    "nnguide": Peer("nnguide"),
    "odin": Peer("odin"),
    "openmax": Peer("openmax"),
    "rankfeat:where=both": Peer("rankfeat"),
    "react": Peer("react"),
    "relation": Peer("relation"),
    "relative_mahalanobis": Peer("rmds"),
    "residual:dim=32": Peer("residual", {"dim": 32}),
    "scale": Peer("scale"),
    "she": Peer("she"),
    "temperature_scaling": Peer("temp_scaling"),
    "vim:dim=32": Peer("vim", {"dim": 32}),
    "vra:low=10,high=90": Peer("vra"),
}
"""By our detectors, with options that make the two the same. Left out: gmm, whose configuration is
of a network for digits."""

DIFFERENT = {
    "adascale": "1 % of 64 features is none there, one here; fitted on validation images there",
    "cfood": "references drawn at random",
    "gram": "each convolution and ReLU module there, each stage here; held-out samples at random",
    "grood:ood_prototype=validation": "approximate search there",
    "i_odin": "OpenOOD divides by CIFAR-10's deviations, whatever the network was trained with",
    "kl_matching": "fitted on validation images there",
    "mahalanobis_ensemble": "the stem alone there, with a step of the images",
    "nnguide": "the bank is the first batches there, drawn at random here",
    "odin": "as i_odin",
    "rankfeat:where=both": "the last stage but one there, the cut here",
    "react": "fitted on validation images there",
    "residual:dim=32": "fitted on validation images there",
    "temperature_scaling": "fitted on validation images there",
    "vra:low=10,high=90": "fitted on validation images there, and low features are raised",
}
"""What the peer does otherwise."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is evaluated, and how often.

    Attributes:
      openood: the checkout.
      checkpoint: of the network.
      data_dir: the sets of images.
      train: training images, the first; 50000 are all.
      limit: images of each other set, evenly spaced, or all where there are fewer.
      detectors: of those in PEERS; all by default.
      repeats: runs of each.
      loaders: processes that read images for OpenOOD (default: one for each core).
      output: the results file.
    """

    openood: Path
    checkpoint: Path
    data_dir: Path
    train: int = 2000
    limit: int = 200
    detectors: tuple[str, ...] = ()
    repeats: int = 3
    loaders: int | None = None
    output: Path = Path("experiments/results/benchmark_evaluation.json")

    def __post_init__(self) -> None:
        checks.at_least("train", self.train, 1000)
        checks.at_least("limit", self.limit, 100)
        checks.at_least("repeats", self.repeats, 1)
        for word in self.detectors:
            checks.choice("detectors", word, list(PEERS))

    @property
    def chosen(self) -> dict[str, Peer]:
        """The detectors that are measured."""
        return {word: PEERS[word] for word in self.detectors or PEERS}


def lay_out(config: BenchmarkConfig, folder: Path) -> dict[str, int]:
    """Writes images and lists as OpenOOD has them; returns how many there are of each."""
    import tensorflow_datasets as tfds

    counts = {}
    lists = folder / "benchmark_imglist" / DATASET
    lists.mkdir(parents=True)
    for name, (dataset, split) in LISTS.items():
        source = tfds.data_source(dataset, split=split, data_dir=config.data_dir)
        rows = rows_of(name, len(source), config)
        kind, own = name.split("_")
        place = folder / "images_classic" / own / kind
        place.mkdir(parents=True)
        lines = []
        for row in map(int, rows):
            example = source[row]
            pixels = np.asarray(example["image"])
            path = place / f"{row:05}.png"
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)
            label = int(example["label"]) if own == DATASET else -1
            lines.append(f"{path.relative_to(folder / 'images_classic')} {label}\n")
        (lists / f"{name}.txt").write_text("".join(lines))
        counts[name] = len(lines)
    # Listed by OpenOOD, but not read.
    (lists / "test_cifar10c.txt").write_text("cifar10/absent.png 0\n")
    return counts


def rows_of(name: str, size: int, config: BenchmarkConfig) -> np.ndarray:
    """Which rows of a set a list has."""
    if name.startswith("train"):
        return np.arange(min(config.train, size))
    held = min(HELD_OUT, config.limit // 10) if config.limit < size else HELD_OUT
    start, end = {"val_cifar10": (0, held), "test_cifar10": (held, size)}.get(name, (0, size))
    return np.unique(np.linspace(start, end - 1, min(config.limit, end - start)).astype(int))


def ours(config: BenchmarkConfig, data: Path, output: Path) -> dict[str, Any]:
    """Our evaluation of all detectors."""
    setting = EvalConfig(
        dataset=DATASET,
        data_dir=data,
        checkpoint=config.checkpoint,
        detectors=tuple(config.chosen),
        output_dir=output,
        report=False,
    )
    found = evaluate(setting, say=unsaid)
    if found["failed"]:
        raise RuntimeError(f"some of our detectors failed: {found['failed']}")
    return found


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
      seconds: that it took.
      core_seconds: of cores, with those of the processes that it started; threads that wait by
        turning in circles count.
      found: what it found.
    """

    seconds: float
    core_seconds: float
    found: Any


def timed(work: Callable[[], Any]) -> Run:
    start, before = time.perf_counter(), sum(os.times()[:4])
    found = work()
    return Run(time.perf_counter() - start, sum(os.times()[:4]) - before, found)


@dataclass(frozen=True)
class Tools:
    """OpenOOD's evaluator and what makes its postprocessors; our network in PyTorch, and its
    preprocessing."""

    evaluator: Any
    get_postprocessor: Any
    network: Any
    preprocess: Any


@dataclass(frozen=True)
class Task:
    """What the peer's process is told.

    Attributes:
      root: the checkout.
      checkpoint: of the network.
      data: images in OpenOOD's layout.
      loaders: processes that read images.
      peers: what to evaluate.
    """

    root: Path
    checkpoint: Path
    data: Path
    loaders: int
    peers: Mapping[str, Peer]


def theirs(task: Task) -> Run:
    """OpenOOD's evaluations of all detectors, one after the other."""
    tools = _prepared(task.root, task.checkpoint)
    return timed(lambda: {word: one_of_theirs(task, word, tools) for word in task.peers})


def one_of_theirs(task: Task, word: str, tools: Tools) -> dict[str, float]:
    """Seconds of an evaluation of one detector, and what it found."""
    peer, configurations = task.peers[word], str(task.data / "configs")
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as quiet:
        quiet.enter_context(contextlib.redirect_stdout(nowhere))
        quiet.enter_context(contextlib.redirect_stderr(nowhere))
        start = time.perf_counter()
        made = tools.get_postprocessor(configurations, peer.name, DATASET)
        made.APS_mode = False
        # What the Evaluator does not say, and GROOD's postprocessor asks for.
        made.config.dataset.image_size, made.config.dataset.num_classes = 32, 10
        for name, value in peer.given.items():
            setattr(made, name, value)
        evaluator = tools.evaluator(
            tools.network,
            id_name=DATASET,
            data_root=str(task.data),
            config_root=configurations,
            preprocessor=tools.preprocess,
            postprocessor_name=peer.name,
            postprocessor=made,
            num_workers=task.loaders,
        )
        if peer.options is not None:
            made.set_hyperparam(list(peer.options))
        metrics = evaluator.eval_ood(progress=False)
        seconds = time.perf_counter() - start
    tell(f"{OPENOOD}'s {peer.name}: {seconds:.1f} s")
    return {
        "seconds": seconds,
        "near": float(metrics["AUROC"]["nearood"] / 100),
        "far": float(metrics["AUROC"]["farood"] / 100),
        "accuracy": float(metrics["ACC"].iloc[0] / 100),
    }


@functools.cache
def _prepared(root: Path, checkpoint: Path) -> Tools:
    """Imports and makes all that is needed, once a process."""
    import torch
    from torchvision import transforms

    torch.set_num_threads(os.cpu_count() or 1)
    # As in a process that nobody spawned.
    multiprocessing.set_start_method("fork", force=True)
    warnings.filterwarnings("ignore")
    without_cuda()
    stand_in_for_extras()
    sys.path.insert(0, str(root))
    from openood.evaluation_api import Evaluator
    from openood.evaluation_api.postprocessor import get_postprocessor

    loaded = load_model(checkpoint)
    preprocessing = loaded.spec.preprocessing
    size = preprocessing.image_size
    preprocess = transforms.Compose(
        [
            transforms.Resize(preprocessing.resize or size),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    return Tools(Evaluator, get_postprocessor, torch_network(loaded.model), preprocess)


def without_cuda() -> None:
    """OpenOOD asks for CUDA by name."""
    import torch

    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *args, **kwargs: self
    torch.cuda.FloatTensor, torch.cuda.LongTensor = torch.FloatTensor, torch.LongTensor
    plain = torch.ones
    torch.ones = lambda *args, device=None, **kwargs: plain(*args, **kwargs)


class _Absent(ModuleType):
    """A module, and whatever may be asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


class _Extras:
    """Finds and makes the modules of `EXTRAS` and what is in them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in EXTRAS:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def stand_in_for_extras() -> None:
    """Lets OpenOOD import what it does not use."""
    sys.meta_path.insert(0, _Extras())  # type: ignore[arg-type]


def torch_network(model: Any) -> Any:
    """A residual network of ours in PyTorch, with the methods that OpenOOD's networks have."""
    import models as forward_passes
    import torch

    parts = list(forward_passes.torch_network(model).children())
    ends = np.cumsum([3, *(len(getattr(model, stage).layers) for stage in model.stages[1:])])
    stages = [
        torch.nn.Sequential(*parts[start:end]) for start, end in zip([0, *ends], ends, strict=False)
    ]

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = torch.nn.Sequential(*stages)
            self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
            self.fc = parts[-1]
            self.feature_size = self.fc.in_features
            # AdaSCALE's wrapper is asked for it.
            self.layer4 = stages[-1]

        def forward(
            self, x: Any, return_feature: bool = False, return_feature_list: bool = False
        ) -> Any:
            maps = []
            for stage in self.stages:
                x = stage(x)
                maps.append(x)
            pooled = self.avgpool(x)
            feature = pooled.flatten(1)
            logits = self.fc(feature)
            if return_feature_list:
                return logits, [*maps, pooled]
            return (logits, feature) if return_feature else logits

        def intermediate_forward(self, x: Any, layer_index: int) -> Any:
            """OpenOOD's layers 3 and 4 are the last two stages."""
            for stage in list(self.stages)[: len(stages) - 4 + layer_index]:
                x = stage(x)
            return x

        def get_layer_list(self) -> list[Any]:
            return [*self.stages, self.avgpool, self.fc]

        def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
            return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()

        def get_fc_layer(self) -> Any:
            return self.fc

    return Network().eval()


def copy_configurations(root: Path, folder: Path) -> None:
    """OpenOOD's, with GROOD's under the ending that it looks for."""
    place = folder / "configs" / "postprocessors"
    place.mkdir(parents=True)
    for path in (root / "configs" / "postprocessors").glob("*.y*ml"):
        (place / f"{path.stem}.yml").write_text(path.read_text())


def measure(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """All runs, in turn."""
    loaders = config.loaders or os.cpu_count() or 1
    task = Task(config.openood, config.checkpoint, folder, loaders, config.chosen)
    spawn = multiprocessing.get_context("spawn")
    runs: dict[str, list[Run]] = {name: [] for name in ("first", OPENOOD, "warm")}
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        # It imports and opens all before anything is measured.
        pool.submit(theirs, replace(task, peers={})).result()
        for turn in range(config.repeats):
            jax.clear_caches()
            runs["first"].append(timed(lambda: ours(config, folder, folder / "ours")))
            runs[OPENOOD].append(pool.submit(theirs, task).result())
            runs["warm"].append(timed(lambda: ours(config, folder, folder / "ours")))
            took = ", ".join(f"{name} {own[-1].seconds:.1f} s" for name, own in runs.items())
            tell(f"turn {turn + 1}: {took}")
    return record(runs)


def record(runs: Mapping[str, list[Run]]) -> dict[str, Any]:
    """Medians, ratios, and what each found."""
    seconds, core = (
        {name: statistics.median(getattr(run, what) for run in own) for name, own in runs.items()}
        for what in ("seconds", "core_seconds")
    )
    own, other = runs["warm"][-1].found, [run.found for run in runs[OPENOOD]]
    rows = {}
    for word, figures in own["detectors"].items():
        rows[word] = {
            "openood": PEERS[word].name,
            "openood_seconds": statistics.median(found[word]["seconds"] for found in other),
            **{group: figures[group]["auroc"] for group in ("near", "far")},
            **{f"openood_{group}": other[-1][word][group] for group in ("near", "far")},
            "note": DIFFERENT.get(word, ""),
        }
    slowest = sum(sorted(row["openood_seconds"] for row in rows.values())[-SLOWEST:])
    ours_ = ("first", "warm")
    return {
        "seconds": seconds,
        "core_seconds": core,
        "every_seconds": {name: [run.seconds for run in each] for name, each in runs.items()},
        "times_openood": {name: seconds[OPENOOD] / seconds[name] for name in ours_},
        "times_openood_of_cores": {name: core[OPENOOD] / core[name] for name in ours_},
        "times_openood_without_its_slowest": {
            name: (seconds[OPENOOD] - slowest) / seconds[name] for name in ours_
        },
        "accuracy": own["id_accuracy"],
        "openood_accuracy": next(iter(other[-1].values()))["accuracy"],
        "evaluated": rows,
    }


def available(config: BenchmarkConfig) -> dict[str, str]:
    """Versions of what the peer needs.

    Raises:
      UserError: something of it is missing.
    """
    if not (config.openood / "openood" / "evaluation_api").is_dir():
        raise UserError(
            f"{config.openood} is no checkout of OpenOOD; --openood names one "
            "(github.com/Jingkang50/OpenOOD)"
        )
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"OpenOOD's evaluator needs {', '.join(absent)}: pip install torch torchvision "
            "faiss-cpu scikit-learn pandas statsmodels libmr pyyaml opencv-python-headless"
        )
    return {name: metadata.version(name) for name in ("torch", "torchvision", "faiss-cpu")}


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    require_directory("output", config.output.parent)
    versions = provenance.versions() | available(config)
    jax.config.update("jax_platforms", "cpu")  # as the peer
    jax.config.update("jax_enable_compilation_cache", False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tell("writing images")
        counts = lay_out(config, folder)
        copy_configurations(config.openood, folder)
        measured = measure(config, folder)
    found = {
        "command": provenance.command_line(
            "python experiments/benchmarks/evaluation.py",
            config,
            never=("output",),
            folders=False,
        ),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
        "device": provenance.device(),
        "load_average": os.getloadavg()[0],
        "model": load_model(config.checkpoint).spec.model,
        "repeats": config.repeats,
        "images": counts,
        **measured,
    }
    results.write(found, config.output)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    seconds, times = found["seconds"], found["times_openood"]
    core = found["times_openood_of_cores"]
    lines = [
        f"{found['device']}; {found['model']}, {sum(found['images'].values())} images, "
        f"{len(found['evaluated'])} detectors; medians of {found['repeats']}",
        f"ours, first run {seconds['first']:.1f} s, warm {seconds['warm']:.1f} s; "
        f"OpenOOD {seconds[OPENOOD]:.1f} s: {times['first']:.1f} and {times['warm']:.1f} times, "
        f"{core['first']:.1f} and {core['warm']:.1f} in the time of cores",
        "",
    ]
    for word, row in found["evaluated"].items():
        lines.append(
            f"{word:32} OpenOOD {row['openood_seconds']:7.2f} s; AUROC near {row['near']:.4f} "
            f"{row['openood_near']:.4f}, far {row['far']:.4f} {row['openood_far']:.4f} "
            f"{row['note']}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    config = command.parse(
        BenchmarkConfig(Path("OpenOOD"), Path("checkpoint"), Path("tfds")),
        "experiments.benchmarks.evaluation",
        __doc__ or "",
        None,
    )
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
