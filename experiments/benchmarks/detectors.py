"""Every detector beside the same one in pytorch-ood and oodeel, on the same features and logits.

python experiments/benchmarks/detectors.py

The peers are no dependencies; one that is missing is named. Written for version 0.4 of both:
pip install torch pytorch-ood faiss-cpu matplotlib datasets && pip install --no-deps oodeel
(oodeel asks for a NumPy older than JAX's, but runs with a newer one).

Features are made up: not negative, around a center for each class, with a linear head on them; half
of the queries lie between classes. Peers get our options, and their scores are mapped to our sign
and scale before they are compared. What a peer defines otherwise stays so; a note says what.
Nothing is drawn at random, so `grood` and `nnguide` do not have their default options, and
detectors that need images through a network are left out.

All run on the CPU with all cores, by blocks of 1,024 samples; oodeel computes the logits anew.
What is compared runs in turn, and medians are compared. Only the first fit has compilation in it.
The machine must be idle: beside other work PyTorch's threads wait for one another, and its times
grow tenfold and more where ours double.
"""

import functools
import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float, Int

import grood_jax as gj
from grood_jax.backbone.outputs import Outputs
from grood_jax.cli import command
from grood_jax.detectors import Detector, Training
from grood_jax.evaluation import fitting, results
from grood_jax.support import checks, provenance
from grood_jax.support.files import require_directory
from grood_jax.support.progress import tell

OURS = "grood-jax"
MODULES = {"pytorch-ood": "pytorch_ood.detector", "oodeel": "oodeel.methods"}
VERSIONS = ("torch", *MODULES, "scipy", "faiss-cpu")

MISSING = "not installed"
BLOCK = fitting.SCORE_ROWS

BETWEEN, WITHIN, RANK, BLUR, SHIFT = 0.3, 1.0, 64, 0.5, 0.4
"""Of made-up features: deviation of the centers, deviation about them in a few directions, how many
directions, deviation about them in every column, and what is taken away before the ReLU."""

STEEPNESS = 0.4
"""What logits are multiplied by. About a twentieth of the samples are classified wrong."""

ROUNDING = 1e-3
"""Scores that differ by less, relative to the standard deviation of ours, differ by rounding."""

NOTES = {
    "pytorch-ood": {
        "entropy": "clips probabilities at 1e-7",
        "gen": "clips probabilities at 1e-7, which the power 0.1 makes 0.2",
        "openmax": "fits all samples of a class, not only those classified right; shifts tails to "
        "10,000, not to 1 as libMR's Python class and ours, so its Weibull variable is another",
        "temperature_scaling": "50 steps of L-BFGS with rate 0.01 end before the most likely T",
        "vim": "float32 eigenvectors, which mix where eigenvalues are nearly equal at the cut",
        "vra": "percentiles of each feature, not of all together; features below the lower one "
        "are raised to it, not made 0",
    },
    "oodeel": {
        "ash": "keeps what is above an interpolated quantile: of 512 features 52, not 51",
        "gen": "1 − p of a confident sample is 0 or a rounding, which the power 0.1 makes 0.2; "
        "ours is the sum of the other probabilities",
        "react": "each fit keeps one more copy of the features than the fit before",
        "she": "the pattern most alike, not the predicted class's",
        "vim": "origin at the features' mean even with 'pseudo', which it applies to layer −1 "
        "only, and numbers layers from 0",
    },
}
"""What a peer does otherwise, beside what `MAPPINGS` undoes."""

Scores = Float[np.ndarray, " q"]
MAPPINGS: dict[str, dict[str, tuple[str, Callable[[Scores, "BenchmarkConfig"], Scores]]]] = {
    "pytorch-ood": {
        "msp": ("1 + s", lambda s, config: 1 + s),
        # A mean, not a sum.
        "gen": ("M s", lambda s, config: min(100, config.classes) * s),
        # Covariances are not divided by N, and the first has half the squared distance.
        "mahalanobis": ("2N s", lambda s, config: 2 * config.rows * s),
        "relative_mahalanobis": ("N s", lambda s, config: config.rows * s),
        "temperature_scaling": ("1 + s", lambda s, config: 1 + s),
    },
    "oodeel": {
        "msp": ("1 + s", lambda s, config: 1 + s),
        "knn": ("√s", lambda s, config: np.sqrt(np.maximum(s, 0))),
        "mahalanobis": ("2 s", lambda s, config: 2 * s),
        "relative_mahalanobis": ("2 s", lambda s, config: 2 * s),
        # A mean, not a sum.
        "she": ("D s", lambda s, config: config.width * s),
    },
}
"""What is done to a peer's scores ``s``, in words and as a function; nothing for the others."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """How much is measured, and how often.

    Attributes:
      rows: training samples.
      queries: samples to score.
      width: columns of the features.
      classes: how many.
      repeats: runs of each fit and of each scoring.
      seed: of the features.
      output: the results file.
    """

    rows: int = 20_000
    queries: int = 10_000
    width: int = 512
    classes: int = 10
    repeats: int = 5
    seed: int = 0
    output: Path = Path("experiments/results/benchmark_detectors.json")

    def __post_init__(self) -> None:
        for name in ("queries", "width", "classes"):
            checks.at_least(name, getattr(self, name), 2)
        checks.at_least("repeats", self.repeats, 1)
        checks.at_least("seed", self.seed, 0)
        # Each class needs samples that are classified right; NNGuide averages 100 neighbours.
        checks.at_least("rows", self.rows, max(100, 10 * self.classes))


@dataclass(frozen=True)
class Data:
    """What is fitted on and scored: ``logits = features @ weights + bias``."""

    known: Outputs
    labels: Int[np.ndarray, " n"]
    queries: Outputs
    weights: Float[np.ndarray, "d c"]
    bias: Float[np.ndarray, " c"]


@dataclass(frozen=True)
class Method:
    """A detector of some library.

    Attributes:
      name: what the library calls it, with the options that are set.
      fit: makes a fitted detector.
      score: scores of all queries by a fitted detector.
    """

    name: str
    fit: Callable[[], Any]
    score: Callable[[Any], Scores]


def make_data(config: BenchmarkConfig) -> Data:
    """Made-up features, and a head that tells which center is nearest."""
    rng = np.random.default_rng(config.seed)
    centers = BETWEEN * rng.exponential(size=(config.classes, config.width))
    axes = WITHIN * rng.standard_normal((RANK, config.width)) / np.sqrt(RANK)
    away = STEEPNESS * (centers - centers.mean(axis=0))
    weights = away.T.astype(np.float32)
    bias = -(away * np.maximum(centers - SHIFT, 0)).sum(axis=1).astype(np.float32) / 2

    def outputs(middle: Float[np.ndarray, "b d"]) -> Outputs:
        reach = np.exp(0.5 * rng.standard_normal((len(middle), 1)))
        noise = reach * (rng.standard_normal((len(middle), RANK)) @ axes)
        noise += BLUR * rng.standard_normal(middle.shape)
        features = np.maximum(middle + noise - SHIFT, 0).astype(np.float32)
        return Outputs(features, features @ weights + bias)

    labels = np.arange(config.rows) % config.classes
    known = outputs(centers[labels])
    first, second = centers[rng.integers(0, config.classes, (2, config.queries))]
    nearness = rng.uniform(0.5, 1, (config.queries, 1))
    nearness[::2] = 1
    queries = outputs(second + nearness * (first - second))
    return Data(known, labels.astype(np.int32), queries, weights, bias)


def options(config: BenchmarkConfig) -> dict[str, dict[str, Any]]:
    """Ours that are not the defaults: no mixed images, no random bank, the peers' dimension."""
    return {
        "grood": {"ood_prototype": "prototype-mean"},
        "nnguide": {"sampling_ratio": 1.0},
        "residual": {"dim": config.width // 2},
        "vim": {"dim": config.width // 2},
    }


def our_method(detector: Detector, data: Data) -> Method:
    head = jnp.asarray(data.weights), jnp.asarray(data.bias)
    training = Training(
        jax.tree.map(jnp.asarray, data.known),
        jnp.asarray(data.labels),
        head=head if detector.head else None,
    )
    return Method(
        _call(detector.name, detector.options),
        lambda: jax.block_until_ready(detector.fit(training, jax.random.key(0))),
        lambda state: fitting.score(detector, state, data.queries),
    )


def _call(name: str, given: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def torch_head(data: Data) -> Any:
    """The head as a PyTorch module."""
    import torch

    head = torch.nn.Linear(*data.weights.shape).requires_grad_(False)
    head.weight.copy_(torch.from_numpy(data.weights.T))
    head.bias.copy_(torch.from_numpy(data.bias))
    return head


def pytorch_ood_methods(data: Data) -> dict[str, Method]:
    """The detectors of pytorch-ood, by our names."""
    import torch
    from pytorch_ood import detector as peer

    known, queries = (
        {
            "logits": torch.from_numpy(each.logits),
            "features": torch.from_numpy(each.features),
            # Pooled features are maps of one pixel, as its documentation has it.
            "feature_maps": torch.from_numpy(each.features)[:, :, None, None],
        }
        for each in (data.known, data.queries)
    )
    labels = torch.from_numpy(data.labels).long()
    dim = data.known.features.shape[1] // 2
    head = torch_head(data)
    weight, bias = head.weight, head.bias
    network = torch.nn.Sequential(torch.nn.Flatten(), head)

    def method(kind: str, factory: Callable[..., Any], *args: Any, **given: Any) -> Method:
        def fit() -> Any:
            made = factory(*args, **given)
            getattr(made, f"fit_{kind}")(known[kind], labels)
            return made

        @torch.no_grad()
        def score(fitted: Any) -> np.ndarray:
            predict, blocks = getattr(fitted, f"predict_{kind}"), queries[kind].split(BLOCK)
            return torch.cat([predict(block) for block in blocks]).numpy()

        return Method(_call(factory.__name__, given), fit, score)

    def gradnorm(fitted: Any) -> np.ndarray:
        return torch.cat([fitted(block) for block in queries["features"].split(BLOCK)]).numpy()

    return {
        "msp": method("logits", peer.MaxSoftmax, None),
        "ash": method("feature_maps", peer.ASH, None, network, percentile=0.9),
        "dice": method("features", peer.DICE, None, weight, bias, p=0.9),
        "energy": method("logits", peer.EnergyBased, None),
        "entropy": method("logits", peer.Entropy, None),
        "fdbd": method("features", peer.fDBD, None, head),
        "gen": method("logits", peer.GEN, None, gamma=0.1, M=100),
        "gradnorm": Method(
            "GradNorm(the head's weight)",
            lambda: peer.GradNorm(network, lambda name: name.endswith("weight")),
            gradnorm,
        ),
        "kl_matching": method("logits", peer.KLMatching, None),
        "knn": method("features", peer.KNN, None, k=50),
        "mahalanobis": method("features", peer.Mahalanobis, None),
        "max_logit": method("logits", peer.MaxLogit, None),
        "nci": method("features", peer.NCI, None, head, alpha=1e-4),
        "nnguide": method("features", peer.NNGuide, None, head, k=100),
        "openmax": method("logits", peer.OpenMax, None, tailsize=20, alpha=3),
        "react": method("feature_maps", peer.ReAct, None, network, percentile=0.9),
        "relative_mahalanobis": method("features", peer.RMD, None),
        "scale": method("feature_maps", peer.SCALE, None, network, percentile=0.85),
        "she": method("features", peer.SHE, None, head),
        "temperature_scaling": method("logits", peer.TemperatureScaling, None),
        "vim": method("features", peer.ViM, None, w=weight, b=bias, d=dim),
        "vra": method(
            *("feature_maps", peer.VRA, None, network), lower_percentile=0.6, upper_percentile=0.95
        ),
    }


def oodeel_methods(data: Data) -> dict[str, Method]:
    """The detectors of oodeel, by our names, for a network that is the head only."""
    import torch
    from oodeel import methods as peer

    features, labels = torch.from_numpy(data.known.features), torch.from_numpy(data.labels).long()
    batches = list(zip(features.split(BLOCK), labels.split(BLOCK), strict=True))
    known = torch.utils.data.DataLoader(batches, batch_size=None)
    blocks = torch.from_numpy(data.queries.features).split(BLOCK)

    def method(layers: list[int], factory: Callable[..., Any], **given: Any) -> Method:
        def fit() -> Any:
            made = factory(**given)
            # Hooks stay in the network: no two detectors can share one.
            network = torch.nn.Sequential(torch.nn.Identity(), torch_head(data))
            made.fit(network, fit_dataset=known, feature_layers_id=list(layers))
            return made

        def score(fitted: Any) -> np.ndarray:
            return np.concatenate([fitted.score(block)[0] for block in blocks])

        return Method(_call(factory.__name__, given), fit, score)

    dim = features.shape[1] // 2
    return {
        "msp": method([], peer.MLS, output_activation="softmax"),
        "ash": method([], peer.Energy, use_ash=True, ash_percentile=0.9),
        "energy": method([], peer.Energy),
        "entropy": method([], peer.Entropy),
        "gen": method([], peer.GEN, gamma=0.1, k=100),
        "knn": method([0], peer.DKNN, nearest=50),
        "mahalanobis": method([0], peer.Mahalanobis, eps=0),
        "max_logit": method([], peer.MLS),
        "react": method([], peer.Energy, use_react=True, react_quantile=0.9),
        "relative_mahalanobis": method([0], peer.RMDS, eps=0),
        "scale": method([], peer.Energy, use_scale=True, scale_percentile=0.85),
        "she": method([0], peer.SHE, eps=0),
        "vim": method([0], peer.VIM, princ_dims=dim, pca_origin="pseudo"),
    }


def measure(
    methods: Mapping[str, Method], repeats: int
) -> tuple[dict[str, dict[str, Any]], dict[str, Scores]]:
    """Times and scores by library. They take turns, so that a disturbance meets all of them."""

    def timed(run: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        found = run()
        return time.perf_counter() - start, found

    first: dict[str, float] = {}
    seconds: dict[str, list[tuple[float, float]]] = {library: [] for library in methods}
    scores = {}
    jax.clear_caches()  # what an earlier detector compiled
    for library, method in methods.items():
        first[library], fitted = timed(method.fit)
        scores[library] = method.score(fitted).astype(np.float64)
    for _ in range(repeats):
        for library, method in methods.items():
            fitting, fitted = timed(method.fit)
            seconds[library].append((fitting, timed(functools.partial(method.score, fitted))[0]))
    figures: dict[str, dict[str, Any]] = {}
    for library, method in methods.items():
        fits, scorings = np.array(seconds[library]).T
        each = scorings / len(scores[library]) * 1e6
        figures[library] = {
            "name": method.name,
            "first_fit_seconds": first[library],
            "fit_seconds": float(np.median(fits)),
            "least_and_most_fit_seconds": [float(fits.min()), float(fits.max())],
            "score_microseconds": float(np.median(each)),
            "least_and_most_score_microseconds": [float(each.min()), float(each.max())],
        }
    return figures, scores


def compare(own: Scores, other: Scores) -> dict[str, Any]:
    """How far a peer's scores are from ours, where both are finite."""
    finite = np.isfinite(own) & np.isfinite(other)
    found: dict[str, Any] = {"not_finite": int((~finite).sum())}
    own, other = own[finite], other[finite]
    if len(own) < 2 or own.std() == 0 or other.std() == 0:
        return found | {"rounding": False}
    difference, deviation = float(np.abs(own - other).max()), float(own.std())
    return found | {
        "largest_difference": difference,
        "standard_deviation": deviation,
        "spearman": float(scipy.stats.spearmanr(own, other).statistic),
        "rounding": not found["not_finite"] and difference <= ROUNDING * deviation,
    }


def available() -> dict[str, str]:
    """Of each peer its version, or why there is none."""
    found = {}
    for package, module in MODULES.items():
        found[package] = version(package)
        if found[package] != MISSING:
            try:
                importlib.import_module(module)
            except ImportError as error:
                found[package] = f"{MISSING} whole: {error}"
        if found[package].startswith(MISSING):
            tell(f"{package} is {found[package]}")
    return found


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def measure_all(config: BenchmarkConfig, data: Data, peers: Mapping[str, str]) -> dict[str, Any]:
    """Figures of every detector by library, or a line that says why there are none."""
    makers = {"pytorch-ood": pytorch_ood_methods, "oodeel": oodeel_methods}
    present = {
        package: makers[package](data)
        for package, state in peers.items()
        if not state.startswith(MISSING)
    }
    found: dict[str, Any] = {}
    for name in gj.detectors.names():
        detector = gj.detectors.create(name, **options(config).get(name, {}))
        if detector.needs or detector.fit_needs or detector.ood is not None:
            found[name] = "left out: needs images through a network"
            tell(f"{name} is {found[name]}")
            continue
        tell(f"measuring {name}")
        methods = {OURS: our_method(detector, data)}
        methods |= {package: named[name] for package, named in present.items() if name in named}
        figures, scores = measure(methods, config.repeats)
        found[name] = dict[str, Any](figures)
        for package in peers:
            if package not in figures:
                found[name][package] = "absent" if package in present else peers[package]
                continue
            mapping, mapped = MAPPINGS[package].get(name, ("s", lambda s, config: s))
            compared = compare(scores[OURS], mapped(scores[package], config))
            note = NOTES[package].get(name, "" if compared["rounding"] else "reason unknown")
            figures[package] |= {"mapping": mapping, **compared, "note": note}
    return found


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measures all, and writes the results file."""
    require_directory("output", config.output.parent)
    jax.config.update("jax_platforms", "cpu")  # as the peers
    peers, threads = available(), os.cpu_count() or 1
    if version("torch") != MISSING:
        import torch

        torch.set_num_threads(threads)
    data = make_data(config)
    found = {
        "command": provenance.command_line(
            "python experiments/benchmarks/detectors.py", config, never=("output",), folders=False
        ),
        "versions": provenance.versions() | {package: version(package) for package in VERSIONS},
        "device": provenance.device(),
        "threads": threads,
        "repeats": config.repeats,
        "rows": config.rows,
        "queries": config.queries,
        "width": config.width,
        "classes": config.classes,
        "accuracy": float((data.known.logits.argmax(axis=1) == data.labels).mean()),
        "peers": peers,
        "detectors": measure_all(config, data, peers),
    }
    results.write(found, config.output)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    sizes = "{rows} training samples, {queries} queries, {width} columns, {classes} classes"
    lines = [
        f"{found['device']}; {found['threads']} threads; medians of {found['repeats']}",
        sizes.format(**found) + f"; accuracy {found['accuracy']:.4f}",
        "difference: the largest of mapped scores, in standard deviations of ours; ≠: no rounding",
        "mapping: of s to our sign and scale; N samples, D columns, M the least of 100 and classes",
        "",
        f"{'detector':20}  {'library':11}  {'first fit, s':>12}  {'fit, s':>8}  "
        f"{'µs a sample':>11}  {'mapping':>8}  {'difference':>10}    {'Spearman':>9}  note",
    ]
    for name, libraries in found["detectors"].items():
        if isinstance(libraries, str):
            lines.append(f"{name:20}  {libraries}")
            continue
        for library, row in libraries.items():
            start = f"{name if library == OURS else '':20}  {library:11}"
            lines.append(f"{start}  {row if isinstance(row, str) else _cells(row)}".rstrip())
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> str:
    times = (
        f"{row['first_fit_seconds']:12.3f}  {row['fit_seconds']:8.3f}  "
        f"{row['score_microseconds']:11.2f}"
    )
    if "mapping" not in row:
        return times
    note = f"{row['not_finite']} not finite; " if row["not_finite"] else ""
    apart = f"{'':10}  {'':9}"
    if "spearman" in row:
        difference = row["largest_difference"] / row["standard_deviation"]
        apart = f"{difference:10.1e} {' ' if row['rounding'] else '≠'}  {row['spearman']:9.6f}"
    return f"{times}  {row['mapping']:>8}  {apart}  {note}{row['note']}"


def main() -> None:
    config = command.parse(
        BenchmarkConfig(), "experiments.benchmarks.detectors", __doc__ or "", None
    )
    raise SystemExit(command.status(lambda: print(table(run(config)))))


if __name__ == "__main__":
    main()
