"""The command line of evaluation: ``python -m grood_jax.eval``."""

import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from grood_jax import benchmarks, detectors, models
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Need, Outputs
from grood_jax.benchmarks import Benchmark, OpenBenchmark
from grood_jax.cli import command
from grood_jax.cli.train import TrainConfig, default_directory
from grood_jax.cli.train import run as train_model
from grood_jax.data import ImageSet, Preprocessing
from grood_jax.data.finding import Kind
from grood_jax.detectors import Detector, Validation
from grood_jax.detectors.spec import parse_spec
from grood_jax.evaluation import fitting, results, tuning
from grood_jax.evaluation import report as reports
from grood_jax.maths.metrics import ood_metrics
from grood_jax.passes import devices, processes
from grood_jax.passes.forward import Recall, make_anew
from grood_jax.passes.processes import Processes
from grood_jax.passes.reading import BadImages, Reader
from grood_jax.storage import checkpoints
from grood_jax.storage.cache import OutputsCache
from grood_jax.storage.checkpoints import Loaded
from grood_jax.support import checks, provenance
from grood_jax.support.errors import UserError
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell
from grood_jax.training.loop import recipe

PROGRAM = "python -m grood_jax.eval"

T = TypeVar("T")

DESCRIPTION = """Evaluates OOD detectors on a benchmark, in one forward pass for all of them, and
writes results.json: AUROC, FPR@95 and AUPR as fractions, from scores that are higher for more OOD.
Detectors and their options, with defaults: """


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, and how.

    Attributes:
      dataset: the benchmark: digits, fashion_mnist, or OpenOOD's cifar10, cifar100, imagenet200 and
        imagenet1k; or a TOML or Python file that describes another.
      detectors: detectors by name, options behind a colon (grood:k=5,ood_prototype=noise), or
        "all".
      data_dir: where images lie: OpenOOD's folder of benchmark_imglist and images, sets that
        tensorflow-datasets has prepared, NAME_SPLIT.npz files, or any of these (default: that of
        tensorflow-datasets).
      source: look only for this form of data.
      checkpoint: directory of the classifier (default: checkpoints/DATASET-MODEL-seedSEED, which
        is trained on the spot if it is missing and the benchmark is small).
      output_dir: of results.json (default: results/DATASET).
      model: the network; the checkpoint's or the benchmark's by default.
      cut: the stage after which the network is cut, for mix-up.
      seed: of all that is random.
      limit: use at most this many images of each set, evenly spaced; a network that is trained on
        the spot is trained on all.
      train_share: fit on this share of the training images, drawn at random.
      full_spectrum: count the benchmark's covariate-shifted sets as in distribution.
      batch_size: images in each forward pass.
      workers: threads that read and decode images (default: one for each core, up to 32).
      skip_missing: leave out OOD and shifted sets that are missing.
      skip_bad_images: leave out images that cannot be read, and count them, instead of ending.
      download: prepare missing data sets that tensorflow-datasets knows.
      search: choose options that are not given by the AUROC on ID and OOD validation images;
        every tenth ID test image is for validation then, and no longer in the test set.
      cache_dir: keep the network's outputs there; the next evaluation of the same network on the
        same images runs no network.
      report: write report.html, and its figures as files, beside results.json; needs matplotlib.
      save_scores: write scores.npz beside results.json: float32 arrays by DETECTOR/SET.
      distributed: evaluate in several processes that are given the same command, each of which
        reads its share of the images; the first writes the results.
      coordinator: HOST:PORT of the first process; found on TPU pods, Slurm and Open MPI, as are:
      num_processes: how many there are.
      process_id: this one's number, from 0.
    """

    dataset: str = "digits"
    detectors: tuple[str, ...] = ("grood", "msp")
    data_dir: Path | None = None
    source: Kind | None = None
    checkpoint: Path | None = None
    output_dir: Path | None = None
    model: models.Name | None = None
    cut: str = "layer1"
    seed: int = 0
    limit: int | None = None
    train_share: float = 1.0
    full_spectrum: bool = False
    batch_size: int = 256
    workers: int | None = None
    skip_missing: bool = False
    skip_bad_images: bool = False
    download: bool = False
    search: bool = False
    cache_dir: Path | None = None
    report: bool = True
    save_scores: bool = False
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          ValueError: an option outside its range.
        """
        benchmarks.check_name(self.dataset)
        checks.seed("seed", self.seed)
        checks.at_least("batch_size", self.batch_size, 1)
        checks.fraction("train_share", self.train_share, zero=False)
        for name in ("limit", "workers"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"{name} is given; expected distributed too")


def create_candidates(
    specs: Sequence[str], search_options: bool
) -> dict[str, tuple[Detector, ...]]:
    """Detectors by the words that describe them; "all" stands for one of each.

    Args:
      specs: names, options behind a colon; with "+" in between, a combination of detectors.
      search_options: give one detector for each combination of options that may be searched.

    Raises:
      ValueError: no detector has that name, or it has no such option, or not with that value; or
        none is given.
      TypeError: an option is of the wrong type.
    """
    words = dict.fromkeys(
        word for spec in specs for word in (detectors.names() if spec == "all" else (spec,))
    )
    if not words:
        raise ValueError(f"detectors is empty; expected some of {', '.join(detectors.names())}")
    made: dict[str, tuple[Detector, ...]] = {}
    for word in words:
        # Not in 1e+5.
        members = [parse_spec(part) for part in re.split(r"\+(?=[a-z_])", word)]
        if len(members) > 1:
            made[word] = (detectors.combine([detectors.create(n, **o) for n, o in members]),)
        elif search_options:
            made[word] = tuning.candidates(*members[0])
        else:
            made[word] = (detectors.create(members[0][0], **members[0][1]),)
    return made


def run(
    config: EvalConfig,
    *,
    report: Callable[[str], None] = print,
    show_progress: bool = False,
    commandline: str | None = None,
) -> dict[str, Any]:
    """Evaluates detectors on a benchmark and writes ``results.json``.

    Args:
      config: what and how.
      report: takes lines of progress.
      show_progress: shows bars on stderr.
      commandline: recorded as the command; by default the one that stands for ``config``.

    Returns:
      What was written: see the README for its form.

    Raises:
      UserError: what a user can mend: missing data, no checkpoint, a class without samples, …
      ValueError: an unknown data set or detector, or an option outside its range.
    """
    if not config.distributed:
        return _run(config, Processes(), report, show_progress, commandline)
    crew = processes.start(config.coordinator, config.num_processes, config.process_id)
    if not crew.leads:
        report, show_progress = _say_nothing, False
    with crew.together():
        return _run(config, crew, report, show_progress, commandline)


def _say_nothing(line: str) -> None:
    del line


def _run(
    config: EvalConfig,
    crew: Processes,
    report: Callable[[str], None],
    show_progress: bool,
    commandline: str | None,
) -> dict[str, Any]:
    candidates = create_candidates(config.detectors, config.search)
    every = [(word, detector) for word, tried in candidates.items() for detector in tried]
    benchmark = benchmarks.get(config.dataset)
    data = crew.in_turn(
        lambda: benchmarks.open_benchmark(
            benchmark,
            preprocessing=preprocessing_of(config, benchmark),
            data_dir=config.data_dir,
            source=config.source,
            skip_missing=config.skip_missing,
            download=config.download,
            validation=any(isinstance(detector.ood, Validation) for _, detector in every),
            search=config.search,
            full_spectrum=config.full_spectrum,
            limit=config.limit,
            train_share=config.train_share,
            seed=config.seed,
        )
    )
    output_dir = config.output_dir or Path("results") / benchmark.name
    if crew.leads:
        require_directory("output_dir", output_dir)
    if crew.leads and config.cache_dir is not None:
        require_directory("cache_dir", config.cache_dir)
    for name in data.skipped:
        report(f"skipped {name}: it is missing")
    loaded, directory = crew.in_turn(
        lambda: find_classifier(config, benchmark, report, show_progress)
    )
    crew.require_same("classifiers or images", _foundation(loaded, data))
    backbone = devices.spread(
        Backbone.from_nnx(loaded.model, cut=config.cut, input_std=loaded.spec.preprocessing.std)
    )
    read = Reader(
        loaded.spec.preprocessing,
        config.batch_size,
        show_progress,
        config.workers,
        BadImages() if config.skip_bad_images else None,
        crew,
    )
    recall = crew.agreed(_recall(config, loaded, data, report, read))

    def outputs_of(
        images: ImageSet, needs: tuple[Need, ...], early_prototypes: Array | None
    ) -> tuple[Outputs, np.ndarray]:
        return fitting.extract_labelled(
            backbone,
            read(images, images.name),
            needs=needs,
            early_prototypes=early_prototypes,
            recall=recall,
            about=read.identity(images),
        )

    chosen: dict[str, tuning.Chosen] = {}

    def fit() -> fitting.FittedAll:
        fitter = fitting.prepare(
            backbone,
            read.training(data.train),
            every,
            key=jax.random.key(config.seed),
            noise=read.noise,
            validation=lambda: read(present(data.validation), "held-out OOD images"),
            recall=recall,
        )
        if config.search:
            needs = fitting.all_needs(detector for _, detector in every)
            early = fitter.seen.early_prototypes
            parts = (present(data.id_validation), present(data.validation))
            validation = [outputs_of(images, needs, early)[0] for images in parts]
            for word, tried in candidates.items():
                if len(tried) > 1:
                    chosen[word] = tuning.choose(fitter, word, tried, *validation)
        wanted = {
            word: chosen[word].detector if word in chosen else tried[0]
            for word, tried in candidates.items()
        }
        return fitting.fit_all(fitter, wanted)

    fitted = explained(config.limit, fit)

    def scored(images: ImageSet) -> tuple[Outputs, np.ndarray]:
        return outputs_of(images, fitted.needs, fitted.early_prototypes)

    inside = {"test": scored(data.test)} | {n: scored(s) for n, s in data.shifted.items()}
    outside = {name: scored(images)[0] for name, (_, images) in data.ood.items()}
    seen = {name: outputs for name, (outputs, _) in inside.items()} | outside
    evaluated = {
        name: _evaluate(detector, list(inside), seen, data)
        for name, detector in fitted.detectors.items()
    }
    accuracy = {
        name: float((outputs.logits.argmax(axis=1) == labels).mean())
        for name, (outputs, labels) in inside.items()
    }
    found = {
        "benchmark": benchmark.name,
        "model": loaded.spec.model,
        "checkpoint": {
            "directory": str(directory),
            "source": loaded.spec.source,
            "epochs": loaded.step,
            "fingerprint": loaded.fingerprint,
        },
        "cut": config.cut,
        "seed": config.seed,
        "limit": config.limit,
        "train_share": config.train_share,
        "full_spectrum": config.full_spectrum,
        "preprocessing": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(loaded.spec.preprocessing).items()
        },
        "command": commandline or provenance.command_line(PROGRAM, config, always=("dataset",)),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "data": {name: read.described(images) for name, images in data.titled.items()},
        "validation": {
            name: read.described(images)
            for name, images in (("id", data.id_validation), ("ood", data.validation))
            if images is not None
        },
        "skipped": list(data.skipped),
        "id_accuracy": accuracy["test"],
        "shifted_accuracy": {name: accuracy[name] for name in data.shifted},
        "detectors": {
            name: figures | ({"search": _searched(chosen[name])} if name in chosen else {})
            for name, (figures, _) in evaluated.items()
        },
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }
    scores = {name: own for name, (_, own) in evaluated.items()}
    shown = _shown(data, seen, read) if config.report else []
    if crew.leads:
        path = output_dir / "results.json"
        results.write(found, path)
        for line in read.complaints():
            report(line)
        report(f"results in {path}")
        if config.save_scores:
            results.write_scores(scores, output_dir / "scores.npz")
        if config.report:
            report(_report(found, shown, fitted.detectors, scores, output_dir))
    return found


def _recall(
    config: EvalConfig,
    loaded: Loaded,
    data: OpenBenchmark,
    report: Callable[[str], None],
    read: Reader,
) -> Recall:
    if config.cache_dir is None:
        return make_anew
    about = {
        "model": loaded.fingerprint,
        "preprocessing": asdict(loaded.spec.preprocessing),
        "cut": config.cut,
        "train": read.identity(data.train),
        "validation": None if data.validation is None else read.identity(data.validation),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }
    return OutputsCache(config.cache_dir, about, report)


def _foundation(loaded: Loaded, data: OpenBenchmark) -> dict[str, Any]:
    """What several processes must have in common."""
    every = [*data.titled.values(), data.id_validation, data.validation]
    return {
        "classifier": loaded.fingerprint,
        "sets": [None if images is None else [images.name, len(images)] for images in every],
    }


def _searched(chosen: tuning.Chosen) -> dict[str, Any]:
    return {
        "chosen": dict(chosen.values),
        "validation_auroc": chosen.auroc,
        "tried": chosen.tried,
        "failed": list(chosen.failed),
    }


def explained(limit: int | None, work: Callable[[], T]) -> T:
    """Does the work; what data made impossible is the user's to mend.

    Raises:
      UserError: for any ValueError.
    """
    try:
        return work()
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        few = limit is not None and "sample of class" in str(error)
        hint = f" (--limit {limit} leaves few images of each class)" if few else ""
        raise UserError(f"{error}{hint}") from error


def present(images: ImageSet | None) -> ImageSet:
    """The set, if there is one; raises UserError otherwise."""
    if images is None:
        raise UserError("this benchmark has no held-out OOD images")
    return images


def preprocessing_of(config: EvalConfig, benchmark: Benchmark) -> Preprocessing:
    """What images are brought to: what the checkpoint says, if there is one yet."""
    spec = checkpoints.read_spec(classifier_directory(config, benchmark))
    return benchmark.preprocessing if spec is None else spec.preprocessing


def classifier_directory(config: EvalConfig, benchmark: Benchmark) -> Path:
    """Where the classifier lies that a configuration asks for."""
    model = config.model or benchmark.model
    return config.checkpoint or default_directory(benchmark.name, model, config.seed)


def find_classifier(
    config: EvalConfig, benchmark: Benchmark, report: Callable[[str], None], show_progress: bool
) -> tuple[Loaded, Path]:
    """The classifier that a configuration asks for, trained on the spot if need be.

    Raises:
      UserError: there is none, or it does not fit the benchmark or the cut.
    """
    model = config.model or benchmark.model
    if config.checkpoint is None:
        # Before a network is trained that has no such stage.
        _require_stage(config.cut, model)
    directory = classifier_directory(config, benchmark)
    options = recipe(benchmark.name)
    step = checkpoints.latest_step(directory)
    if config.checkpoint is None and benchmark.trains_on_the_spot and (step or 0) < options.epochs:
        report(
            f"training {model} on all training images of {benchmark.name}; the checkpoint will "
            f"lie in {directory}"
        )
        start = time.perf_counter()
        loaded = train_model(
            TrainConfig(
                dataset=config.dataset,
                model=model,
                data_dir=config.data_dir,
                source=config.source,
                output_dir=directory,
                options=replace(options, seed=config.seed),
            ),
            report=report,
            show_progress=show_progress,
        )
        report(f"trained in {time.perf_counter() - start:.0f} s")
    elif step is None:
        words = ["--dataset", config.dataset, "--model", model, "--seed", str(config.seed)]
        if config.data_dir is not None:
            words += ["--data-dir", str(config.data_dir)]
        words += ["--output-dir", str(directory)]
        raise UserError(
            f"there is no checkpoint in {directory}; train one with python -m grood_jax.train "
            + shlex.join(words)
            + ("" if config.checkpoint else ", or name another with --checkpoint")
        )
    else:
        loaded = checkpoints.load_model(
            directory, expected_model=config.model if config.checkpoint else model
        )
        report(f"classifier: {loaded.spec.model} from {directory} ({loaded.spec.source})")
    _check_fit(loaded, directory, benchmark)
    _require_stage(config.cut, loaded.spec.model)
    return loaded, directory


def _require_stage(cut: str, model: str) -> None:
    stages = models.stages(model)
    if cut not in stages:
        raise UserError(f"cut is {cut!r}; expected a stage of {model}: {', '.join(stages)}")


def _check_fit(loaded: Loaded, directory: Path, benchmark: Benchmark) -> None:
    spec, wanted = loaded.spec, benchmark.preprocessing
    facts = [
        ("classes", spec.num_classes, benchmark.num_classes),
        ("channels", spec.preprocessing.channels, wanted.channels),
    ]
    if callable(benchmark.test.sources):
        # Built in at one size.
        facts.append(("pixels a side", spec.preprocessing.image_size, wanted.image_size))
    for name, found, expected in facts:
        if found != expected:
            raise UserError(
                f"the checkpoint in {directory} has {found} {name}; benchmark {benchmark.name} "
                f"needs {expected}"
            )


def _evaluate(
    fitted: fitting.Fitted,
    inside: Sequence[str],
    sets: dict[str, Outputs],
    data: OpenBenchmark,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A detector's figures, and its scores by set."""
    detector, state = fitted.detector, fitted.state
    # The first block compiles: it is scored once before the clock starts.
    fitting.score(detector, state, jax.tree.map(lambda array: array[:1], sets[inside[0]]))
    start = time.perf_counter()
    scores = {name: fitting.score(detector, state, outputs) for name, outputs in sets.items()}
    seconds = time.perf_counter() - start
    inside_scores = np.concatenate([scores[name] for name in inside])
    datasets = {
        name: {"group": group, "n": len(scores[name]), **ood_metrics(inside_scores, scores[name])}
        for name, (group, _) in data.ood.items()
    }
    figures = {
        "options": dict(detector.options),
        "fit_seconds": fitted.seconds,
        "score_seconds_per_image": seconds / sum(map(len, scores.values())),
        "datasets": datasets,
        "near": results.group_means(datasets, "near"),
        "far": results.group_means(datasets, "far"),
    }
    return figures, scores


def _shown(data: OpenBenchmark, seen: dict[str, Outputs], read: Reader) -> list[reports.ShownSet]:
    """All sets that were scored, for the report."""
    groups: dict[str, reports.Group] = {name: group for name, (group, _) in data.ood.items()}
    return [
        reports.ShownSet(name, groups.get(name, "ID"), images, read.readable(images), seen[name])
        for name, images in data.titled.items()
        if name in seen
    ]


def _report(
    found: dict[str, Any],
    shown: list[reports.ShownSet],
    detectors: dict[str, fitting.Fitted],
    scores: dict[str, dict[str, np.ndarray]],
    directory: Path,
) -> str:
    """Writes the report if it can be drawn; says what became of it."""
    if not reports.can_draw():
        return (
            "report.html was not written: matplotlib is missing; install it with pip install "
            "'grood-jax[report]', or leave the report out with --no-report"
        )
    return f"report in {reports.write(found, shown, detectors, scores, directory)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    listed = "; ".join(
        ":".join([name, ",".join(f"{k}={v}" for k, v in detectors.options(name).items())])
        for name in detectors.names()
    )
    config = command.parse(EvalConfig(), "grood_jax.eval", DESCRIPTION + listed, argv)
    try:
        create_candidates(config.detectors, config.search)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    words = f"{PROGRAM} {shlex.join(sys.argv[1:] if argv is None else argv)}".strip()

    def work() -> None:
        found = run(config, report=tell, show_progress=True, commandline=words)
        if config.distributed and jax.process_index() > 0:
            return
        print(results.table(found))
        print(f"ID accuracy {found['id_accuracy']:.4f} ({found['data']['test']['n']} images)")
        for name, share in found["shifted_accuracy"].items():
            print(f"accuracy on {name} {share:.4f} ({found['data'][name]['n']} images)")

    return command.status(work)
