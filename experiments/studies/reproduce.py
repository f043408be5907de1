"""Trains, evaluates and records a benchmark over several seeds, in one file for the tables.

python experiments/studies/reproduce.py --dataset fashion_mnist --data-dir data/tfds --seeds 0 1 2
python experiments/tools/tables.py experiments/results/fashion_mnist_seeds.json

Started again, it goes on where it stopped: training after the last whole epoch, and an evaluation
is not repeated whose results.json is of the same network, command, versions and device.
"""

import datetime
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grood_jax import benchmarks, models
from grood_jax.cli import command, train
from grood_jax.cli import eval as evaluation
from grood_jax.evaluation import results
from grood_jax.evaluation.tuning import create_candidates
from grood_jax.storage.checkpoints import Loaded
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell
from grood_jax.training import loop as training

DETECTORS = (
    "grood",
    "grood:ood_prototype=prototype-mean",
    "grood:ood_prototype=noise",
    "msp",
    "energy",
    "knn",
    "mahalanobis",
    "vim",
)


@dataclass(frozen=True)
class ReproduceConfig:
    """What is trained and evaluated, and where it lies.

    Attributes:
      dataset: the benchmark.
      seeds: of training and of all that is random in an evaluation.
      data_dir: where images lie, as for python -m grood_jax.eval.
      model: the network; the benchmark's by default.
      epochs: of training; those of the benchmark's recipe by default.
      detectors: as for python -m grood_jax.eval.
      checkpoint_root: holds a folder DATASET-MODEL-seedSEED for each seed.
      evaluations: holds a folder DATASET-MODEL-seedSEED with results.json for each seed.
      output: the results file (default: experiments/results/DATASET_seeds.json, and with another
        network than the benchmark's DATASET_MODEL_seeds.json).
    """

    dataset: str = "digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    data_dir: Path | None = None
    model: models.Name | None = None
    epochs: int | None = None
    detectors: tuple[str, ...] = DETECTORS
    checkpoint_root: Path = Path("checkpoints")
    evaluations: Path = Path("results")
    output: Path | None = None

    def __post_init__(self) -> None:
        benchmarks.check_name(self.dataset)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected at least one, and none twice")
        for seed in self.seeds:
            checks.seed("seeds", seed)
        if self.epochs is not None:
            checks.at_least("epochs", self.epochs, 1)


def main(config: ReproduceConfig) -> dict[str, Any]:
    create_candidates(config.detectors, search_options=False)
    benchmark = benchmarks.get(config.dataset)
    model = config.model or benchmark.model
    named = benchmark.name if model == benchmark.model else f"{benchmark.name}_{model}"
    output = config.output or Path(f"experiments/results/{named}_seeds.json")
    found: dict[str, dict[str, Any]] = {}
    last: dict[str, Any] = {}
    for seed in config.seeds:
        run = f"{benchmark.name}-{model}-seed{seed}"
        loaded = _trained(config, seed, model, config.checkpoint_root / run)
        last = _evaluated(config, seed, loaded, run)
        found[str(seed)] = {
            "id_accuracy": last["id_accuracy"],
            "checkpoint": loaded.fingerprint,
            "options": loaded.record["options"],
            "history": loaded.record["history"],
            "detectors": {
                name: {key: of[key] for key in ("options", "datasets", "near", "far")}
                for name, of in last["detectors"].items()
            },
        }
    made = {
        "benchmark": benchmark.name,
        "model": model,
        "command": provenance.command_line(
            "python experiments/studies/reproduce.py",
            config,
            always=("dataset",),
            never=("output",),
            folders=False,
        ),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cut": last["cut"],
        "preprocessing": last["preprocessing"],
        "data": last["data"],
        "seeds": found,
    }
    results.write(made, output)
    tell(f"results in {output}")
    return made


def _trained(config: ReproduceConfig, seed: int, model: models.Name, directory: Path) -> Loaded:
    """The finished network of a seed; trained, or trained on, if it is not there."""
    recipe = training.recipe(config.dataset)
    return train.run(
        train.TrainConfig(
            dataset=config.dataset,
            model=model,
            data_dir=config.data_dir,
            output_dir=directory,
            options=replace(recipe, seed=seed, epochs=config.epochs or recipe.epochs),
        ),
        say=tell,
        show_progress=sys.stderr.isatty(),
    )


def _evaluated(config: ReproduceConfig, seed: int, loaded: Loaded, run: str) -> dict[str, Any]:
    """The evaluation of a seed's network, an earlier one if it is of just this."""
    wanted = evaluation.EvalConfig(
        dataset=config.dataset,
        detectors=config.detectors,
        data_dir=config.data_dir,
        checkpoint=config.checkpoint_root / run,
        output_dir=config.evaluations / run,
        seed=seed,
        report=False,
    )
    named = provenance.command_line(evaluation.PROGRAM, wanted, always=("dataset",), folders=False)
    made = {"command": named, "versions": provenance.versions(), "device": provenance.device()}
    path = config.evaluations / run / "results.json"
    if path.exists():
        earlier = json.loads(path.read_text())
        same = all(earlier.get(key) == value for key, value in made.items())
        if same and earlier["checkpoint"]["fingerprint"] == loaded.fingerprint:
            tell(f"{path} is of this network and command; it is not made anew")
            return earlier
    return evaluation.run(wanted, say=tell, show_progress=sys.stderr.isatty(), commandline=named)


if __name__ == "__main__":
    import tyro

    given = tyro.cli(ReproduceConfig, description=__doc__)
    sys.exit(command.status(lambda: main(given)))
