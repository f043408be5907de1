"""A small evaluation, with names that mean harm, and its report."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from grood_jax import detectors
from grood_jax.backbone.outputs import Outputs
from grood_jax.data import ArraySet
from grood_jax.detectors import Training
from grood_jax.evaluation import fitting, report, results
from grood_jax.maths.metrics import ood_metrics

# Where it is installed it is slow; one test has a stand-in.
sys.modules["umap"] = None  # type: ignore[assignment]

HOSTILE = "<img src=x onerror=\"alert('no')\">$\\frac{{{script}}&amp;</svg>\x1b\n</script>"
SETS = {"test": ("ID", 90), "shifted": ("ID", 40), HOSTILE: ("near", 60), "far_away": ("far", 50)}
CENTERS = {"test": 0.0, "shifted": 0.3, HOSTILE: 1.5, "far_away": 4.0}


@dataclass(frozen=True)
class Example:
    """What `grood_jax.evaluation.report.write` takes."""

    results: dict
    sets: list
    detectors: dict
    scores: dict = field(repr=False)

    def write(self, directory: Path) -> str:
        path = report.write(self.results, self.sets, self.detectors, self.scores, directory)
        assert path == directory / "report.html"
        return path.read_text("utf-8")


def outputs(rng, count, center):
    labels = rng.integers(0, 3, count)
    features = rng.normal(0, 0.3, (count, 5)) + 2 * np.eye(3, 5)[labels] + center
    logits = features[:, :3] * 3
    return Outputs(features.astype(np.float32), logits.astype(np.float32)), labels


def shown_sets(size=8):
    """Sets in which the brightness of an image is its row."""
    rng = np.random.default_rng(0)
    found = []
    for name, (group, count) in SETS.items():
        made, labels = outputs(rng, count, CENTERS[name])
        pixels = (
            np.zeros((count, size, size, 1), np.uint8)
            + np.arange(count, dtype=np.uint8)[:, None, None, None]
        )
        images = ArraySet(name, "made here", pixels, labels.astype(np.int32))
        found.append(report.ShownSet(name, group, images, np.arange(count), made))
    return found


def figures(inside, shown, scores):
    datasets = {
        s.name: {"group": s.group, "n": len(s.rows), **ood_metrics(inside, scores[s.name])}
        for s in shown
        if s.group != "ID"
    }
    return {
        "options": {"k": 1},
        "datasets": datasets,
        **{g: results.group_figures(datasets, g, inside, scores) for g in ("near", "far")},
    }


def example(names=("grood", "msp")):
    made, labels = outputs(np.random.default_rng(1), 120, 0.0)
    training = Training(
        jax.tree.map(jnp.asarray, made), jnp.asarray(labels, jnp.int32), None, None, None
    )
    shown = shown_sets()
    fitted, scores, found = {}, {}, {}
    for name in names:
        options = {"ood_prototype": "prototype-mean"} if name == "grood" else {}
        detector = detectors.create(name, **options)
        state = detector.fit(training, jax.random.key(0))
        fitted[name] = fitting.Fitted(detector, state, 0.1)
        own = {s.name: fitting.score(detector, state, s.outputs) for s in shown}
        inside = np.concatenate([own[s.name] for s in shown if s.group == "ID"])
        scores[name], found[name] = own, figures(inside, shown, own)
    return Example(
        {
            "benchmark": HOSTILE,
            "model": "small",
            "checkpoint": {"directory": HOSTILE, "source": "here", "fingerprint": "0123"},
            "command": f"python -m grood_jax.eval '{HOSTILE}'",
            "device": "one",
            "versions": {"jax": "1"},
            "id_accuracy": 0.9,
            "shifted_accuracy": {"shifted": 0.8},
            "data": {s.name: {"n": len(s.rows), "source": HOSTILE} for s in shown},
            "detectors": found,
        },
        shown,
        fitted,
        scores,
    )
