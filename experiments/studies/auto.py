"""How `auto` fares beside every detector, on one benchmark after another.

python experiments/studies/auto.py --datasets digits fashion_mnist cifar10 --data-dir data/tfds \\
    --checkpoints cifar10=checkpoints/resnet20 --limit 2000

Each benchmark is evaluated as python -m grood_jax.eval does, with all detectors and the variants of
GROOD and Mahalanobis that `auto` has as members. The results file holds mean AUROCs near and far,
`auto`'s place among all, by how much it is ahead of the best of the others and which that is, and
what `auto` chose and why. The bounds of its recipe were set with these three benchmarks in view;
others had not been looked at.
"""

import datetime
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grood_jax import benchmarks
from grood_jax.cli import command
from grood_jax.cli import eval as evaluation
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell

DETECTORS = (
    "all",
    "grood:ood_prototype=noise",
    "grood:ood_prototype=prototype-mean",
    "grood:ood_prototype=[mixup,noise,prototype-mean]",
    "grood:ood_prototype=[mixup,noise,prototype-mean],score=norm",
    "mahalanobis:normalize=true,shrinkage=0.1",
)


@dataclass(frozen=True)
class AutoConfig:
    """What is measured, on which networks, and where it goes.

    Attributes:
      datasets: the benchmarks.
      data_dir: where images lie, as for python -m grood_jax.eval.
      checkpoints: DATASET=DIRECTORY of classifiers; those of python -m grood_jax.eval by default.
      limit: at most this many images of each set.
      seed: of all that is random.
      evaluations: holds a folder DATASET with results.json for each benchmark.
      output: the results file.
    """

    datasets: tuple[str, ...] = ("digits",)
    data_dir: Path | None = None
    checkpoints: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    evaluations: Path = Path("results/auto")
    output: Path = Path("experiments/results/auto.json")

    def __post_init__(self) -> None:
        for name in self.datasets:
            benchmarks.check_name(name)
        for pair in self.checkpoints:
            if not all(pair.partition("=")):
                raise ValueError(f"checkpoints holds {pair!r}; expected DATASET=DIRECTORY")
        checks.seed("seed", self.seed)


def compared(detectors: dict[str, Any], group: str) -> dict[str, Any] | None:
    """Mean AUROCs of a group of sets, best first, and how `auto` stands; None where it has none."""
    means = {name: own[group]["auroc"] for name, own in detectors.items() if own[group]}
    if not means:
        return None
    order = sorted(means, key=lambda name: -means[name])
    best = next(name for name in order if name != "auto")
    return {
        "place": order.index("auto") + 1,
        "of": len(order),
        "best of the others": best,
        "ahead of it by": means["auto"] - means[best],
        "auroc": {name: means[name] for name in order},
    }


def measured(config: AutoConfig, dataset: str) -> dict[str, Any]:
    """A benchmark's evaluation, and how `auto` stands in it."""
    places = dict(pair.split("=", 1) for pair in config.checkpoints)
    found = evaluation.run(
        evaluation.EvalConfig(
            dataset=dataset,
            data_dir=config.data_dir,
            checkpoint=Path(places[dataset]) if dataset in places else None,
            limit=config.limit,
            seed=config.seed,
            detectors=DETECTORS,
            output_dir=config.evaluations / dataset,
            skip_missing=True,
            report=False,
        ),
        say=tell,
    )
    detectors = found["detectors"]
    groups = {group: compared(detectors, group) for group in ("near", "far")}
    return {
        "model": found["model"],
        "id_accuracy": found["id_accuracy"],
        "data": {name: own["n"] for name, own in found["data"].items()},
        "explanation": detectors["auto"]["explanation"],
        **{group: own for group, own in groups.items() if own is not None},
        "failed": found["failed"],
    }


def main(config: AutoConfig) -> None:
    rows = {}
    for dataset in config.datasets:
        rows[dataset] = measured(config, dataset)
        for group in ("near", "far"):
            if own := rows[dataset].get(group):
                tell(
                    f"{dataset}, {group}: auto {own['auroc']['auto']:.4f}, place {own['place']} of "
                    f"{own['of']}, {own['ahead of it by']:+.4f} to {own['best of the others']}"
                )
    config.output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": f"python experiments/studies/auto.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "limit": config.limit,
        "benchmarks": rows,
    }
    config.output.write_text(json.dumps(about, indent=2) + "\n")
    tell(f"results in {config.output}")


if __name__ == "__main__":
    import tyro

    given = tyro.cli(AutoConfig, description=__doc__)
    sys.exit(command.status(lambda: main(given)))
