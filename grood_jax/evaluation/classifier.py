"""The classifier that a setting asks for: read, one that comes along, or trained on the spot."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from grood_jax import benchmarks, models
from grood_jax.benchmarks import Benchmark
from grood_jax.data import Preprocessing
from grood_jax.evaluation import own_model
from grood_jax.evaluation.own_model import OwnModel
from grood_jax.evaluation.setting import Setting
from grood_jax.storage import checkpoints, included
from grood_jax.storage.checkpoints import Loaded, Stored
from grood_jax.support.errors import UserError
from grood_jax.training.options import recipe
from grood_jax.training.runs import default_directory, train_on


@dataclass(frozen=True)
class Place:
    """Where the classifier lies that a setting asks for, opened once.

    Attributes:
      directory: the place.
      stored: what lies there; None where nothing does yet.
      own: a model of the user's own, which lies nowhere.
    """

    directory: Path
    stored: Stored | None
    own: OwnModel | None = None

    def preprocessing(self, benchmark: Benchmark) -> Preprocessing:
        """What images are brought to: what the checkpoint says, if there is one yet."""
        if self.own is not None:
            return self.own.spec.preprocessing
        return benchmark.preprocessing if self.stored is None else self.stored.spec.preprocessing


def look(setting: Setting, benchmark: Benchmark) -> Place:
    """Looks where the classifier lies that a setting asks for; reads none of its arrays.

    Raises:
      UserError: what lies there is no classifier, or damaged; a model of the user's own cannot be
        made.
    """
    if setting.model is not None and own_model.is_function(setting.model):
        if setting.checkpoint is not None:
            raise UserError(
                f"checkpoint is {setting.checkpoint}, and model {setting.model} is a function, "
                "which brings its own weights; expected one of them"
            )
        made = own_model.make(setting.model, benchmark.preprocessing, setting.cut)
        return Place(Path(setting.model), None, made)
    model = setting.model or benchmark.model
    directory = setting.checkpoint or default_directory(benchmark.name, model, setting.seed)
    return Place(directory, checkpoints.stored_in(directory))


def find_classifier(
    setting: Setting,
    benchmark: Benchmark,
    place: Place,
    say: Callable[[str], None],
    show_progress: bool,
) -> tuple[Loaded | OwnModel, Path]:
    """The classifier that a setting asks for, trained on the spot if need be.

    Args:
      setting: what is asked for.
      benchmark: what it is to be evaluated on.
      place: as `look` gives it.
      say: takes lines of progress.
      show_progress: shows bars on stderr.

    Returns:
      The classifier and where it lies.

    Raises:
      UserError: there is none, or it does not fit the benchmark or the cut.
    """
    if place.own is not None:
        say(f"classifier: {place.own.spec.model}, {place.own.network}")
        _check_fit(place.own, f"model {place.own.spec.model}", benchmark)
        return place.own, place.directory
    model = setting.model or benchmark.model
    if setting.checkpoint is None:
        # Before a network is trained that has no such stage.
        _require_stage(setting.cut, model)
    directory, stored = place.directory, place.stored
    if stored is None and (loaded := _included(setting, benchmark, model)) is not None:
        say(f"classifier: {model} ({loaded.spec.source})")
        return loaded, included.PLACE
    trains = setting.checkpoint is None and benchmark.trains_on_the_spot
    if trains and (stored is None or stored.step < recipe(benchmark.name).epochs):
        loaded = _trained(setting, benchmark, model, directory, say, show_progress)
    elif stored is None:
        raise UserError(_how_to_train(setting, model, directory))
    else:
        expected = setting.model if setting.checkpoint else model
        loaded = stored.load(expected_model=expected)
        say(f"classifier: {loaded.spec.model} from {directory} ({loaded.spec.source})")
    _check_fit(loaded, f"the checkpoint in {directory}", benchmark)
    _require_stage(setting.cut, loaded.spec.model)
    return loaded, directory


def _included(setting: Setting, benchmark: Benchmark, model: str) -> Loaded | None:
    # A file may describe another benchmark of that name.
    built_in = benchmark is benchmarks.get("digits")
    if setting.checkpoint is not None or not built_in:
        return None
    return included.find(benchmark.name, model, setting.seed)


def _trained(
    setting: Setting,
    benchmark: Benchmark,
    model: str,
    directory: Path,
    say: Callable[[str], None],
    show_progress: bool,
) -> Loaded:
    say(
        f"training {model} on all training images of {benchmark.name}; the checkpoint will "
        f"lie in {directory}"
    )
    start = time.perf_counter()
    loaded = train_on(
        benchmark,
        replace(recipe(benchmark.name), seed=setting.seed),
        model=model,
        directory=directory,
        data_dir=setting.data_dir,
        source=setting.source,
        say=say,
        show_progress=show_progress,
    )
    say(f"trained in {time.perf_counter() - start:.0f} s")
    return loaded


def _how_to_train(setting: Setting, model: str, directory: Path) -> str:
    words = ["--dataset", setting.dataset, "--model", model, "--seed", str(setting.seed)]
    if setting.data_dir is not None:
        words += ["--data-dir", str(setting.data_dir)]
    words += ["--output-dir", str(directory)]
    return (
        f"there is no checkpoint in {directory}; train one with python -m grood_jax.train "
        + shlex.join(words)
        + ("" if setting.checkpoint else ", or name another with --checkpoint")
    )


def _require_stage(cut: str | None, model: str) -> None:
    cut = cut or checkpoints.DEFAULT_CUT
    stages = models.stages(model)
    if cut not in stages:
        raise UserError(f"cut is {cut!r}; expected a stage of {model}: {', '.join(stages)}")


def _check_fit(loaded: Loaded | OwnModel, what: str, benchmark: Benchmark) -> None:
    spec, wanted = loaded.spec, benchmark.preprocessing
    facts = [
        ("classes", spec.num_classes, benchmark.num_classes),
        ("channels", spec.preprocessing.channels, wanted.channels),
    ]
    if callable(benchmark.test.sources):
        # Built in at one size.
        facts.append(("pixels a side", spec.preprocessing.image_size, wanted.image_size))
    if spec.num_classes == 0:
        # An encoder has no classes of its own.
        del facts[0]
    for name, has, expected in facts:
        if has != expected:
            raise UserError(f"{what} has {has} {name}; benchmark {benchmark.name} needs {expected}")
