"""An evaluation, step by step: open the inputs, pass, fit, score, record.

Each step takes values and gives values; what is printed and written stands in `grood_jax.cli.eval`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from grood_jax import benchmarks
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Need, Outputs
from grood_jax.benchmarks import Benchmark, OpenBenchmark
from grood_jax.data import ImageSet
from grood_jax.data.sets import labels_of, sample_checksum
from grood_jax.detectors import Detector, Validation
from grood_jax.evaluation import fitting, heads, results, tuning
from grood_jax.evaluation.accuracy import accuracy
from grood_jax.evaluation.classifier import Place, find_classifier, look
from grood_jax.evaluation.fitting import Fitted, FittedAll, Fitter
from grood_jax.evaluation.own_model import OwnModel
from grood_jax.evaluation.report import Group, ShownSet
from grood_jax.evaluation.report.spaces import first_drawn
from grood_jax.evaluation.setting import EvalConfig, Setting
from grood_jax.maths.metrics import ood_metrics
from grood_jax.maths.prototypes import written
from grood_jax.passes import devices, forward
from grood_jax.passes.forward import extract_labelled
from grood_jax.passes.memo import Memo, make_anew
from grood_jax.passes.processes import ALONE, Processes
from grood_jax.passes.reading import BadImages, Reader
from grood_jax.passes.training_pass import TrainingPass
from grood_jax.storage.cache import OutputsCache
from grood_jax.storage.checkpoints import Loaded
from grood_jax.storage.outputs import OutputsFolder
from grood_jax.support import progress, provenance
from grood_jax.support.errors import UserError, first_line

T = TypeVar("T")
Tried = TypeVar("Tried", bound=tuple[Detector, ...])

COMPOSED = ("auto", "combine")
"""Detectors that consist of others."""

Candidates = Mapping[str, tuple[Detector, ...]]
"""Detectors by the words that describe them: several where options are to be chosen."""


@dataclass(frozen=True)
class Inputs:
    """What an evaluation works on, opened.

    Attributes:
      config: what is evaluated.
      benchmark: its description.
      data: its sets.
      loaded: the classifier.
      directory: where that lies.
      backbone: the classifier, cut, on all devices.
      read: gives batches of sets.
      memo: remembers the network's outputs, or has them made.
    """

    config: EvalConfig
    benchmark: Benchmark
    data: OpenBenchmark
    loaded: Loaded | OwnModel
    directory: Path
    backbone: Backbone
    read: Reader
    memo: Memo

    def outputs_of(
        self, images: ImageSet, needs: tuple[Need, ...], early: Float[Array, "c ..."] | None
    ) -> tuple[Outputs, Int[np.ndarray, " n"]]:
        """The network's outputs for a set, and the labels."""
        return extract_labelled(
            self.backbone,
            self.read(images, images.name),
            needs=needs,
            early_prototypes=early,
            memo=self.memo,
            about=self.read.identity(images),
        )


@dataclass(frozen=True)
class Passed:
    """The network's outputs for all sets that are scored.

    Attributes:
      inside: of the sets in distribution by name, the test set first, with their labels.
      outside: of the OOD sets by name.
    """

    inside: Mapping[str, tuple[Outputs, Int[np.ndarray, " n"]]]
    outside: Mapping[str, Outputs]

    @property
    def outputs(self) -> dict[str, Outputs]:
        """Of all sets, by name; no two have the same."""
        names = [*self.inside, *self.outside]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"several sets are called {', '.join(twice)}; expected a name for each")
        return {name: outputs for name, (outputs, _) in self.inside.items()} | dict(self.outside)

    @property
    def accuracy(self) -> dict[str, float]:
        """Of the classifier on the sets in distribution."""
        return {
            name: accuracy(f"the set {name}", np.asarray(outputs.logits), labels)
            for name, (outputs, labels) in self.inside.items()
        }


@dataclass(frozen=True)
class Scored:
    """What one detector made of all sets.

    Attributes:
      figures: its entry in the results.
      scores: by set, (N,) float32.
    """

    figures: dict[str, Any]
    scores: dict[str, Float[np.ndarray, " _"]]


@dataclass(frozen=True)
class Failures:
    """Detectors that could not be fitted or scored; the others go on.

    Attributes:
      limit: how many images of each set are used at most, for the reasons.
      reasons: why, by the words that describe the detectors.
    """

    limit: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, word: str, work: Callable[[], T]) -> T | None:
        """What the work gives; None where it fails, with its reason kept."""
        try:
            return work()
        except (ValueError, ArithmeticError, MemoryError, jax.errors.JaxRuntimeError) as error:
            line = first_line(error)
            self.reasons[word] = line + _hint(self.limit, line)
            return None

    def ordered(self, words: Iterable[str]) -> dict[str, str]:
        """The reasons in the order of the words."""
        return {word: self.reasons[word] for word in words if word in self.reasons}

    def take(self, others: "Failures", words: Iterable[str]) -> None:
        """Takes the reasons of others, in the order of the words."""
        self.reasons.update(others.ordered(words))

    def require_some_success(self, words: Iterable[str]) -> None:
        """Raises UserError with all reasons where none of the detectors is left."""
        if set(words) <= set(self.reasons):
            raise UserError(summary(self.reasons))


def summary(reasons: Mapping[str, str]) -> str:
    """Which detectors failed and why, in a line."""
    return "; ".join(f"{word} failed: {reason}" for word, reason in reasons.items())


def every(candidates: Candidates) -> list[tuple[str, Detector]]:
    """All candidates, each with the word that describes it."""
    return [(word, detector) for word, tried in candidates.items() for detector in tried]


def open_sets(
    config: EvalConfig, candidates: Candidates, crew: Processes, say: Callable[[str], None]
) -> tuple[Benchmark, OpenBenchmark, Place]:
    """Finds all sets of images, and looks for the classifier, before anything is computed.

    Args:
      config: what is evaluated.
      candidates: with which detectors.
      crew: the processes that do it together.
      say: takes lines of progress.

    Raises:
      UserError: sets are missing, or the file that describes them describes none.
    """
    detectors = [detector for _, detector in every(candidates)]
    benchmark, data, place = open_together(
        config,
        crew,
        skip_missing=config.skip_missing,
        validation=any(Validation() in own.ood_sources for own in detectors),
        search=config.search,
        id_validation=any(own.id_validation for own in detectors),
        full_spectrum=config.full_spectrum,
        train_share=config.train_share,
        seed=config.seed,
    )
    for name in data.skipped:
        say(f"skipped {name}: it is missing")
    return benchmark, data, place


def open_together(
    config: Setting, crew: Processes, **options: Any
) -> tuple[Benchmark, OpenBenchmark, Place]:
    """A benchmark's sets, opened by one process after the other, and where its classifier is.

    Args:
      config: which benchmark, and where its images lie.
      crew: the processes.
      options: further ones of `benchmarks.open_benchmark`.
    """
    benchmark = benchmarks.get(config.dataset)
    place = look(config, benchmark)
    data = crew.in_turn(
        lambda: benchmarks.open_benchmark(
            benchmark,
            preprocessing=place.preprocessing(benchmark),
            data_dir=config.data_dir,
            source=config.source,
            download=config.download,
            limit=config.limit,
            **options,
        )
    )
    return benchmark, data, place


def open_inputs(
    config: EvalConfig,
    benchmark: Benchmark,
    data: OpenBenchmark,
    place: Place,
    crew: Processes,
    say: Callable[[str], None],
    show_progress: bool,
) -> Inputs:
    """Brings a classifier to the sets; it is trained on the spot if need be.

    Args:
      config: what is evaluated.
      benchmark: as `open_sets` gives it, like the next.
      data: the sets.
      place: where the classifier lies, or will.
      crew: the processes that do it together.
      say: takes lines of progress.
      show_progress: shows bars on stderr.

    Raises:
      UserError: there is no classifier, or it does not fit the rest.
    """
    loaded, directory = crew.in_turn(
        lambda: find_classifier(config, benchmark, place, say, show_progress)
    )
    crew.require_same(foundation(loaded, data))
    preprocessing = loaded.spec.preprocessing
    backbone = devices.spread(loaded.backbone(config.cut))
    bad = BadImages() if config.skip_bad_images else None
    read = Reader(
        preprocessing,
        config.batch_size,
        show_progress,
        config.workers,
        bad,
        crew,
        as_bytes=True,
        content=config.whole_fingerprints,
    )
    memo = crew.agreed(memo_of(config, loaded, backbone, data, say, read))
    read = replace(read, memo=memo)
    return Inputs(config, benchmark, data, loaded, directory, backbone, read, memo)


def that_can_be(
    backbone: Backbone, candidates: Mapping[str, Tried], failures: Failures
) -> dict[str, Tried]:
    """The detectors for which the network was given all; the others have failed.

    Args:
      backbone: the network.
      candidates: the detectors by the words that describe them.
      failures: takes the others, with their reason.

    Raises:
      UserError: no detector is left.
    """
    for word, tried in candidates.items():
        for detector in tried:
            asked = (*detector.needs, *detector.fit_needs)
            reasons = [
                heads.unmet(backbone, word, detector),
                *(forward.lacking(backbone, need, word) for need in asked),
            ]
            for reason in filter(None, reasons):
                failures.reasons[word] = reason
    failures.require_some_success(candidates)
    return {word: own for word, own in candidates.items() if word not in failures.reasons}


def with_head(inputs: Inputs, candidates: Candidates) -> Inputs:
    """The same with a head that is fitted, if the network is an encoder that has none.

    Raises:
      UserError: a detector needs logits, and there are none.
      ValueError: features that are not finite, classes without a sample.
    """
    train = inputs.read.training(inputs.data.train)
    return replace(inputs, backbone=heads.completed(inputs.backbone, train, every(candidates)))


def pass_training_set(inputs: Inputs, candidates: Candidates) -> Fitter:
    """Runs the network over the training set, and over what stands for OOD images.

    Raises:
      UserError: a detector asks for what there is not.
      ValueError: outputs that are not finite, labels that are no classes.
    """
    read, data = inputs.read, inputs.data
    held_in = data.id_validation
    return fitting.prepare(
        inputs.backbone,
        read.training(data.train),
        every(candidates),
        key=jax.random.key(inputs.config.seed),
        noise=read.noise,
        validation=lambda: read(present(data.validation), "held-out OOD images"),
        id_validation=None if held_in is None else lambda: inputs.outputs_of(held_in, (), None),
        memo=inputs.memo,
    )


def of_present_classes(
    candidates: Candidates, train: ImageSet, num_classes: int, say: Callable[[str], None]
) -> Candidates:
    """Candidates that expect no class but those of the training set.

    Args:
      candidates: the candidates.
      train: the training set.
      num_classes: how many classes the network tells apart.
      say: told which are absent.
    """
    present = np.unique(labels_of(train))
    absent = np.setdiff1d(np.arange(num_classes), present)
    if not len(absent):
        return candidates
    say(
        f"{len(absent)} of {num_classes} classes have no training sample ({written(absent)}), and "
        "no detector expects them"
    )
    return {
        word: tuple(tuning.for_present(detector, present.tolist()) for detector in tried)
        for word, tried in candidates.items()
    }


def choose_options(
    inputs: Inputs,
    fitter: Fitter,
    candidates: Candidates,
    failures: Failures,
    say: Callable[[str], None] = progress.unsaid,
) -> dict[str, tuning.Chosen]:
    """Of several candidates the best on the validation sets, by the word that describes them.

    Args:
      inputs: what is evaluated.
      fitter: prepared for all candidates.
      candidates: the candidates.
      failures: takes the words of which no candidate could be fitted.
      say: told what was chosen for each.
    """
    several = {word: tried for word, tried in candidates.items() if len(tried) > 1}
    if not several:
        return {}
    needs = fitting.all_needs(detector for _, detector in every(candidates))
    early = fitter.seen.early_prototypes
    parts = (present(inputs.data.id_validation), present(inputs.data.validation))
    inside, outside = (inputs.outputs_of(images, needs, early)[0] for images in parts)
    chosen = {}
    for word, tried in several.items():
        title = f"options of {word}"
        shown = inputs.read.progress
        with progress.bar(len(tried), title, shown=shown, unit="combinations") as bar:
            work = partial(tuning.choose, fitter, word, tried, inside, outside, bar.update)
            choice = failures.of(word, work)
        if choice is not None:
            chosen[word] = choice
            say(choice.line(word))
    return chosen


def fit(
    fitter: Fitter,
    candidates: Candidates,
    chosen: Mapping[str, tuning.Chosen],
    failures: Failures,
    crew: Processes = ALONE,
) -> FittedAll:
    """Fits the detectors, with the options that were chosen.

    Args:
      fitter: prepared for all candidates.
      candidates: the candidates.
      chosen: how options were chosen, where there were several candidates.
      failures: has the words that have failed, and takes those that do now.
      crew: the processes, each of which fits its share of the detectors where these are many.
    """
    wanted = {
        word: chosen[word].detector if word in chosen else tried[0]
        for word, tried in candidates.items()
        if word not in failures.reasons
    }
    owners = crew.owners(_divisible(wanted))
    ours = Failures(failures.limit)

    def fitted(word: str) -> Fitted | None:
        made = ours.of(word, partial(fitter.fit, word, wanted[word]))
        return made and replace(made, owner=owners.get(word))

    # First what all do: mixed copies of some rows are a pass that they divide.
    made = {word: fitted(word) for word in wanted if word not in owners}
    own = {word: fitted(word) for word, owner in owners.items() if owner == crew.index}
    if owners:
        known = {word: each.seconds for word, each in own.items() if each is not None}
        for word, seconds in _known_to_all(crew, known, ours).items():
            own.setdefault(word, Fitted(wanted[word], None, seconds, owners[word]))
    failures.take(ours, wanted)
    made |= own
    return fitting.collected(
        fitter, {word: each for word in wanted if (each := made.get(word)) is not None}
    )


def _known_to_all(crew: Processes, facts: Mapping[str, Any], failures: Failures) -> dict[str, Any]:
    """What each process knows of detectors that it alone has; and so with why they have failed."""
    said = crew.known_to_all({"facts": facts, "reasons": failures.reasons})
    for own in said:
        failures.reasons.update(own["reasons"])
    return {word: fact for own in said for word, fact in own["facts"].items()}


def _divisible(wanted: Mapping[str, Detector]) -> list[str]:
    """The words of detectors that one process can fit without the others.

    The first process's is the first: the GROOD whose state the report draws. What consists of
    several detectors takes longest and follows, for the others.
    """
    drawn = first_drawn(wanted)
    words = [word for word, detector in wanted.items() if detector.rows is None]
    return sorted(words, key=lambda word: (word != drawn, wanted[word].name not in COMPOSED))


def pass_test_sets(inputs: Inputs, fitted: FittedAll) -> Passed:
    """Runs the network over all sets that are scored."""

    def outputs_of(images: ImageSet) -> tuple[Outputs, Int[np.ndarray, " n"]]:
        return inputs.outputs_of(images, fitted.needs, fitted.early_prototypes)

    data = inputs.data
    inside = {"test": outputs_of(data.test)}
    inside |= {name: outputs_of(images) for name, images in data.shifted.items()}
    return Passed(inside, {name: outputs_of(images)[0] for name, (_, images) in data.ood.items()})


def score(
    fitted: Fitted,
    passed: Passed,
    groups: Mapping[str, Group],
    chosen: tuning.Chosen | None = None,
    crew: Processes = ALONE,
) -> Scored:
    """A detector's figures, and its scores by set.

    Args:
      fitted: the detector.
      passed: the network's outputs.
      groups: of the OOD sets.
      chosen: how its options were chosen, if they were.
      crew: the processes, of which each scores its share of every set.
    """
    detector, state = fitted.detector, fitted.state
    outputs = passed.outputs

    # The first block compiles: it is scored once before the clock starts.
    fitting.score(detector, state, jax.tree.map(lambda array: array[:1], outputs["test"]))
    start = time.perf_counter()
    scores = _scores(detector, state, outputs, crew)
    seconds = time.perf_counter() - start
    inside = np.concatenate([scores[name] for name in passed.inside])
    datasets = {
        name: {"group": groups[name], "n": len(own), **ood_metrics(inside, own)}
        for name, own in scores.items()
        if name in passed.outside
    }
    figures = {
        "options": dict(detector.options),
        "fit_seconds": fitted.seconds,
        "score_seconds_per_image": seconds / sum(map(len, scores.values())),
        "datasets": datasets,
        **{g: results.group_figures(datasets, g, inside, scores) for g in ("near", "far")},
    }
    if explanation := detector.explain(state):
        figures["explanation"] = explanation
    if chosen is not None:
        figures["search"] = chosen.record()
    return Scored(figures, scores)


def _scores(
    detector: Detector, state: Any, outputs: Mapping[str, Outputs], crew: Processes
) -> dict[str, Float[np.ndarray, " _"]]:
    """Scores of all sets, of which each process makes its share; in one exchange."""
    ends = np.cumsum([len(own.logits) for own in outputs.values()])

    def block(rows: slice) -> Float[np.ndarray, " r"]:
        parts = [np.zeros(0, np.float32)]
        for own, end in zip(outputs.values(), ends.tolist(), strict=True):
            start = end - len(own.logits)
            inside = slice(max(rows.start, start) - start, max(min(rows.stop, end) - start, 0))
            if inside.start < inside.stop:
                chosen = jax.tree.map(lambda array, inside=inside: array[inside], own)
                parts.append(fitting.score(detector, state, chosen))
        return np.concatenate(parts)

    made = crew.shared_rows(int(ends[-1]), block)
    return dict(zip(outputs, np.split(made, ends[:-1]), strict=True))


def score_all(
    fitted: FittedAll,
    passed: Passed,
    groups: Mapping[str, Group],
    failures: Failures,
    chosen: Mapping[str, tuning.Chosen] = MappingProxyType({}),
    crew: Processes = ALONE,
) -> dict[str, Scored]:
    """Figures and scores of all detectors that can be scored, by their names.

    Args:
      fitted: the detectors.
      passed: the network's outputs.
      groups: of the OOD sets.
      failures: takes the names of those that cannot be scored.
      chosen: how options were chosen, by name.
      crew: the processes that score together: each with the detectors that it has fitted, and
        its share of the rows with those that all have.

    Raises:
      UserError: none of them can be scored.
    """
    ours = Failures(failures.limit)

    def scored(owner: int | None, who: Processes) -> dict[str, Scored]:
        found = {
            name: ours.of(name, partial(score, own, passed, groups, chosen.get(name), who))
            for name, own in fitted.detectors.items()
            if own.owner == owner
        }
        return {name: own for name, own in found.items() if own is not None}

    # First what all do: of these each makes its share of the rows.
    made = scored(None, crew)
    if any(own.owner is not None for own in fitted.detectors.values()):
        made |= _scored_by_all(scored(crew.index, ALONE), passed, ours, crew)
    failures.take(ours, fitted.detectors)
    failures.require_some_success(fitted.detectors)
    return {name: made[name] for name in fitted.detectors if name in made}


def _scored_by_all(
    own: Mapping[str, Scored], passed: Passed, failures: Failures, crew: Processes
) -> dict[str, Scored]:
    """What each process has scored alone; in one exchange."""
    ends = np.cumsum([len(outputs.logits) for outputs in passed.outputs.values()])
    rows = [np.concatenate([each.scores[name] for name in passed.outputs]) for each in own.values()]
    # Also where all of its detectors have failed.
    scores = crew.gathered(np.array(rows, np.float32).reshape(len(rows), ends[-1]))
    figures = _known_to_all(crew, {name: each.figures for name, each in own.items()}, failures)
    return {
        name: Scored(
            figures[name], dict(zip(passed.outputs, np.split(row, ends[:-1]), strict=True))
        )
        for name, row in zip(figures, scores, strict=True)
    }


def record(
    inputs: Inputs,
    passed: Passed,
    scored: Mapping[str, Scored],
    failures: Failures,
    command: str,
) -> dict[str, Any]:
    """What ``results.json`` holds; all processes must ask for it at the same time.

    Args:
      inputs: what was evaluated.
      passed: the network's outputs.
      scored: by detector.
      failures: of the other detectors.
      command: the command line that stands for the evaluation.
    """
    config, data, loaded, read = inputs.config, inputs.data, inputs.loaded, inputs.read
    accuracy = passed.accuracy
    held_out = (("id", data.id_validation), ("ood", data.validation))
    preprocessing = asdict(loaded.spec.preprocessing).items()
    return {
        "benchmark": inputs.benchmark.name,
        "model": loaded.spec.model,
        "checkpoint": {
            "directory": str(inputs.directory),
            "source": loaded.spec.source,
            "epochs": loaded.step,
            "fingerprint": loaded.fingerprint,
        },
        "cut": inputs.backbone.cut,
        "seed": config.seed,
        "limit": config.limit,
        "train_share": config.train_share,
        "full_spectrum": config.full_spectrum,
        "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in preprocessing},
        "command": command,
        "versions": provenance.versions(),
        "device": provenance.device(),
        "data": {name: read.described(images) for name, images in data.titled.items()},
        "validation": {n: read.described(s) for n, s in held_out if s is not None},
        "skipped": list(data.skipped),
        "id_accuracy": accuracy["test"],
        "shifted_accuracy": {name: accuracy[name] for name in data.shifted},
        "detectors": {name: own.figures for name, own in scored.items()},
        "failed": dict(failures.reasons),
        "peak_memory_bytes": provenance.peak_memory_bytes(),
    }


def shown_sets(inputs: Inputs, passed: Passed) -> list[ShownSet]:
    """All sets that were scored, for the report; all processes must ask at the same time."""
    groups: dict[str, Group] = {name: group for name, (group, _) in inputs.data.ood.items()}
    outputs, read = passed.outputs, inputs.read
    return [
        ShownSet(name, groups.get(name, "ID"), images, read.readable(images), outputs[name])
        for name, images in inputs.data.titled.items()
        if name in outputs
    ]


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
        raise UserError(f"{error}{_hint(limit, str(error))}") from error


def _hint(limit: int | None, reason: str) -> str:
    few = limit is not None and "sample of class" in reason
    return f" (--limit {limit} leaves few images of each class)" if few else ""


def present(images: ImageSet | None) -> ImageSet:
    """The set, if there is one; raises UserError otherwise."""
    if images is None:
        raise UserError("this benchmark has no held-out OOD images")
    return images


def foundation(loaded: Loaded | OwnModel, data: OpenBenchmark) -> dict[str, Any]:
    """What several processes must have in common: the classifier, and sets of images.

    Args:
      loaded: the classifier.
      data: the sets; of each a few images stand for all.
    """
    sets = {**data.titled, "ID validation": data.id_validation, "validation": data.validation}
    found = {
        f"set {name}": [len(own), sample_checksum(own)]
        for name, own in sets.items()
        if own is not None
    }
    return {"classifier": loaded.fingerprint, **found}


def memo_of(
    config: Setting,
    loaded: Loaded | OwnModel,
    backbone: Backbone,
    data: OpenBenchmark,
    say: Callable[[str], None],
    read: Reader,
) -> Memo:
    """What remembers the network's outputs; all processes must ask at the same time.

    Args:
      config: where it keeps them, if anywhere.
      loaded: the classifier.
      backbone: the same, cut.
      data: the sets.
      say: takes lines on files that cannot be used or written.
      read: knows what tells sets apart.
    """
    if config.cache_dir is None:
        return make_anew
    about = {
        "model": loaded.fingerprint,
        "preprocessing": asdict(loaded.spec.preprocessing),
        "cut": backbone.cut,
        "train": read.identity(data.train),
        "validation": None if data.validation is None else read.identity(data.validation),
        "versions": provenance.versions(),
        # Other numbers of processes give the same, and go on where fewer or more were ended.
        "device": provenance.device(local=True),
    }
    return OutputsCache(config.cache_dir, about, say)


@dataclass(frozen=True)
class Evaluation:
    """What all steps between opening and recording left.

    Attributes:
      seen: the pass over the training set.
      fitted: the detectors.
      passed: the network's outputs.
      scored: figures and scores by detector.
      failures: the detectors that are in neither.
    """

    seen: TrainingPass
    fitted: FittedAll
    passed: Passed
    scored: dict[str, Scored]
    failures: Failures


def evaluate(
    inputs: Inputs, candidates: Candidates, say: Callable[[str], None] = progress.unsaid
) -> Evaluation:
    """All steps between opening and recording: passes, fits, scores.

    Args:
      inputs: what is evaluated.
      candidates: with which detectors.
      say: takes lines of progress.

    Raises:
      UserError: what the data made impossible; no detector could be fitted or scored.
    """
    failures = Failures(inputs.config.limit)
    candidates = that_can_be(inputs.backbone, candidates, failures)
    # "all" stands for all that the network can have.
    for word in [own for own in failures.reasons if own not in inputs.config.detectors]:
        say(f"left out: {failures.reasons.pop(word)}")
    inputs = explained(inputs.config.limit, lambda: with_head(inputs, candidates))
    fitter = explained(inputs.config.limit, lambda: pass_training_set(inputs, candidates))
    chosen = choose_options(inputs, fitter, candidates, failures, say)
    fitted = fit(fitter, candidates, chosen, failures, inputs.read.crew)
    failures.require_some_success(candidates)
    passed = pass_test_sets(inputs, fitted)
    groups: dict[str, Group] = {name: group for name, (group, _) in inputs.data.ood.items()}
    scored = score_all(fitted, passed, groups, failures, chosen, inputs.read.crew)
    return Evaluation(fitter.seen, fitted, passed, scored, failures)


def saved_outputs(inputs: Inputs, made: Evaluation) -> OutputsFolder:
    """The network's outputs, as a folder holds them that `--outputs` reads."""

    def arrays(outputs: Outputs, labels: Any = None) -> dict[str, np.ndarray]:
        parts = {"features": outputs.features, "logits": outputs.logits, "labels": labels}
        return {name: np.asarray(part) for name, part in parts.items() if part is not None}

    ood: dict[str, dict[str, Any]] = {"near": {}, "far": {}}
    for name, (group, _) in inputs.data.ood.items():
        ood[group][name] = arrays(made.passed.outside[name])
    network = inputs.backbone
    head = None if network.head is None else devices.on_one(network.head(network.arrays))
    return OutputsFolder(
        arrays(made.seen.outputs, made.seen.labels),
        arrays(*made.passed.inside["test"]),
        ood["near"],
        ood["far"],
        None if head is None else {"weights": np.asarray(head[0]), "bias": np.asarray(head[1])},
    )
