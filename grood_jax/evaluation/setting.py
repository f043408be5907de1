"""Which images, which classifier and which randomness: what the command lines are told."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from grood_jax import benchmarks, models
from grood_jax.data.finding import Kind
from grood_jax.evaluation.tables import Form
from grood_jax.passes.coordinator import START_SECONDS
from grood_jax.support import checks


@dataclass(frozen=True)
class Setting:
    """What evaluating detectors and fitting one have in common.

    Attributes:
      dataset: the benchmark: digits, fashion_mnist, or OpenOOD's cifar10, cifar100, imagenet200 and
        imagenet1k; or a TOML or Python file that describes another.
      data_dir: where images lie: OpenOOD's folder of benchmark_imglist and images, sets that
        tensorflow-datasets has prepared, NAME_SPLIT.npz files, or any of these (default: that of
        tensorflow-datasets).
      source: look only for this form of data.
      download: prepare missing data sets that tensorflow-datasets knows.
      checkpoint: directory of the classifier (default: checkpoints/DATASET-MODEL-seedSEED; if it
        is missing, digits with seed 0 take the network that comes with the package, and small
        benchmarks train one on the spot).
      model: the network; the checkpoint's or the benchmark's by default. Or a function that makes
        one of your own: package.module:function, or path/to/file.py:function.
      cut: the stage after which the network is cut, for mix-up (default: layer1; of your own model
        any submodule, by default one about a third of the way).
      seed: of all that is random.
      limit: use at most this many images of each set, evenly spaced; a network that is trained on
        the spot is trained on all.
      batch_size: images in each forward pass.
      workers: threads that read and decode images (default: one for each core, up to 32).
      present_classes: which classes detectors may expect: all of the network's, or those that the
        training data hold.
      distributed: work in several processes that are given the same command, each of which reads
        its share of the images; the first writes.
      coordinator: HOST:PORT of the first process; found on TPU pods, Slurm and Open MPI, as are:
      num_processes: how many there are.
      process_id: this one's number, from 0.
      start_seconds: how long processes wait for one another at the start.
      cache_dir: keep the network's outputs there, as they are made; a run that was ended goes on
        where it stopped, and the next one with the same network and images runs no network.
    """

    dataset: str = "digits"
    data_dir: Path | None = None
    source: Kind | None = None
    download: bool = False
    checkpoint: Path | None = None
    model: str | None = None
    cut: str | None = None
    seed: int = 0
    limit: int | None = None
    batch_size: int = 256
    workers: int | None = None
    present_classes: Literal["all", "data"] = "all"
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    start_seconds: int = START_SECONDS
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        benchmarks.check_name(self.dataset)
        checks.seed("seed", self.seed)
        if isinstance(self.model, str) and ":" in self.model:
            checks.function("model", self.model)
        elif self.model is not None:
            checks.choice("model", self.model, models.names())
        checks.at_least("batch_size", self.batch_size, 1)
        checks.choice("present_classes", self.present_classes, ("all", "data"))
        for name in ("limit", "workers"):
            if getattr(self, name) is not None:
                checks.at_least(name, getattr(self, name), 1)
        for name in ("coordinator", "num_processes", "process_id"):
            if getattr(self, name) is not None and not self.distributed:
                raise ValueError(f"{name} is given; expected distributed too")
        checks.at_least("start_seconds", self.start_seconds, 1)

    def in_common(self) -> dict[str, Any]:
        """What processes that work together must be given alike: all but places and speed."""
        return {
            f"option {name}": value
            for name, value in vars(self).items()
            if name not in ("process_id", "workers") and not isinstance(value, Path)
        }


@dataclass(frozen=True)
class EvalConfig(Setting):
    """What is evaluated, and how.

    Attributes:
      detectors: detectors by name, options behind a colon (grood:k=5,ood_prototype=noise), or
        "all".
      output_dir: of results.json (default: results/DATASET).
      train_share: fit on this share of the training images, drawn at random.
      full_spectrum: count the benchmark's covariate-shifted sets as in distribution.
      skip_missing: leave out OOD and shifted sets that are missing.
      skip_bad_images: leave out images that cannot be read, and count them, instead of ending.
      search: choose options that are not given by the AUROC on ID and OOD validation images;
        every tenth ID test image is for validation then, and no longer in the test set.
      whole_fingerprints: tell sets apart by all their content; by default where that is more than
        256 MiB, by labels and by names, sizes and times of change of their files.
      format: of the tables that are printed.
      report: write report.html, and its figures as files, beside results.json; needs matplotlib.
      save_scores: write scores.npz beside results.json: float32 arrays by DETECTOR/SET.
      outputs: evaluate features and logits that lie in this folder, of any network, in place of
        images; by default with all detectors that need none.
      save_outputs: write the network's features and logits into this folder, for --outputs.
    """

    detectors: tuple[str, ...] = ("grood", "msp")
    output_dir: Path | None = None
    train_share: float = 1.0
    full_spectrum: bool = False
    skip_missing: bool = False
    skip_bad_images: bool = False
    search: bool = False
    whole_fingerprints: bool = False
    format: Form = "table"
    report: bool = True
    save_scores: bool = False
    outputs: Path | None = None
    save_outputs: Path | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        super().__post_init__()
        checks.fraction("train_share", self.train_share, zero=False)
        checks.choice("format", self.format, get_args(Form))
        self._require_sense_of_outputs()

    def _require_sense_of_outputs(self) -> None:
        if self.save_outputs is not None and self.full_spectrum:
            raise ValueError(
                "save_outputs is given with full_spectrum; expected one of them: the folder has no "
                "place for shifted sets"
            )
        if self.outputs is None:
            return
        for field in fields(self):
            if field.name not in WITH_OUTPUTS and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} is given with outputs; expected only "
                    f"{', '.join(sorted(WITH_OUTPUTS - {'outputs'}))} beside it"
                )


WITH_OUTPUTS = {
    *("outputs", "detectors", "output_dir", "seed", "format", "report", "save_scores"),
    "present_classes",
}
"""What can be said of an evaluation that has outputs for images."""
