"""Does GROOD gain from features of length one, or whitened ones, for its prototypes?

python experiments/studies/space.py --data-dir data/tfds --imagenet-small imagenet_small.toml \\
    --checkpoints checkpoints --cache-dir cache

The settings are those of `auto.py`, and checkpoints are made as it says. Features of the training
samples, of what stands for OOD samples and of the sets are all brought to a space, and GROOD is
fitted there: "normalized" divides them by their norms; "whitened" takes away the classes'
covariance, shrunk by half to its mean eigenvalue. The results file holds AUROCs, means over near
and far sets, and over settings the mean of each and how far it is ahead of the features as they
are, with bootstrap intervals.
"""

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from auto import GROUPS, NETWORKS, SETTINGS, AutoConfig, fitter_of, mean_of, opened, passed_by

from grood_jax.backbone.outputs import Outputs
from grood_jax.cli import command
from grood_jax.detectors import Training
from grood_jax.detectors._statistics import fit_class_gaussians, product, unit_rows
from grood_jax.evaluation import pipeline
from grood_jax.evaluation.fitting import Fitter
from grood_jax.support import provenance
from grood_jax.support.progress import tell

SHRINKAGE = 0.5
"""Of the covariance, for whitened features."""

WORDS = (
    "grood",
    "grood:score=norm",
    "grood:ood_prototype=prototype-mean",
    "grood:ood_prototype=[mixup,noise,prototype-mean],score=norm",
)
"""GROOD as published, and as `auto` has it, and two in between."""

Transform = Callable[[Outputs], Outputs]


@dataclass(frozen=True)
class SpaceConfig(AutoConfig):
    """What is measured, and where things lie."""

    output: Path = Path("experiments/results/space.json")


def _of_features(change: Callable[[jax.Array], jax.Array]) -> Transform:
    compiled = jax.jit(change)
    return lambda outputs: replace(outputs, features=compiled(jnp.asarray(outputs.features)))


def spaces(fitter: Fitter) -> dict[str, Transform]:
    """From outputs to outputs whose features lie in each space."""
    training = Training(fitter.seen.outputs, fitter.seen.labels)
    gaussians = fit_class_gaussians("whitening", training, shrinkage=SHRINKAGE)
    return {
        "raw": lambda outputs: outputs,
        "normalized": _of_features(unit_rows),
        "whitened": _of_features(
            lambda features: product(features - gaussians.center[None, :], gaussians.whitening)
        ),
    }


def measured(
    own: Any, passed: pipeline.Passed, fitter: Fitter, change: Transform
) -> dict[str, dict[str, float]]:
    """Mean AUROCs near and far of all words in a space."""
    outputs = change(fitter.seen.outputs)
    sources = {source: change(part) for source, part in fitter.ood.items()}
    there = replace(fitter, seen=replace(fitter.seen, outputs=outputs), ood=sources, fits={})
    failures = pipeline.Failures()
    fitted = pipeline.fit(there, own.candidates, {}, failures)
    groups = {name: group for name, (group, _) in own.data.ood.items()}
    moved = pipeline.Passed(
        {name: (change(part), labels) for name, (part, labels) in passed.inside.items()},
        {name: change(part) for name, part in passed.outside.items()},
    )
    scored = pipeline.score_all(fitted, moved, groups, failures)
    assert not failures.reasons, failures.reasons
    return {
        group: {word: one.figures[group]["auroc"] for word, one in scored.items()}
        for group in GROUPS
        if group in groups.values()
    }


def summary(rows: dict[str, Any], seed: int) -> dict[str, Any]:
    """Means over settings of each word in each space, and of what it gains over raw features."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        held = [row["spaces"] for row in rows.values() if group in row["spaces"]["raw"]]
        for space in held[0]:
            for word in WORDS:
                there = [row[space][group][word] for row in held]
                gains = [row[space][group][word] - row["raw"][group][word] for row in held]
                found.setdefault(group, {}).setdefault(word, {})[space] = {
                    "auroc": mean_of(there, seed),
                    "ahead of raw by": mean_of(gains, seed),
                }
    return found


def run(config: SpaceConfig, network: str, settings: Sequence[str]) -> dict[str, Any]:
    """A network's settings."""
    own = opened(config, NETWORKS[network], WORDS)
    passed = passed_by(own)
    rows = {}
    for name in settings:
        fitter = fitter_of(own, SETTINGS[name][1], config.seed)
        found = {
            space: measured(own, passed, fitter, change) for space, change in spaces(fitter).items()
        }
        rows[name] = {"train": len(fitter.seen.labels), "spaces": found}
        for space, groups in found.items():
            shown = {g: [round(v, 4) for v in values.values()] for g, values in groups.items()}
            tell(f"{name}, {space}: {shown}")
    return rows


def main(config: SpaceConfig) -> None:
    rows: dict[str, Any] = {}
    for network in dict.fromkeys(SETTINGS[name][0] for name in config.settings):
        own = [name for name in config.settings if SETTINGS[name][0] == network]
        rows |= run(config, network, own)
        about = {
            "command": provenance.command_line(
                "python experiments/studies/space.py", config, never=("output",), folders=False
            ),
            "date": datetime.date.today().isoformat(),
            "versions": provenance.versions(),
            "device": provenance.device(),
            "space_settings": rows,
            "space_summary": summary(rows, config.seed),
        }
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    import tyro

    given = tyro.cli(SpaceConfig, description=__doc__)
    raise SystemExit(command.status(lambda: main(given)))
