"""What each part of GROOD is worth: one thing is changed at a time, a table and a figure each.

python experiments/studies/ablations.py --dataset cifar10 --data-dir data/tfds \\
    --checkpoint checkpoints/resnet20 --cache-dir cache

All training images are used, and at most --limit of each test set, evenly spaced. The network's
outputs are kept in --cache-dir. What is changed starts from GROOD's defaults; draws at random are
the same in all rows of a table but where it says otherwise. --draw-only draws the figures of the
results file again. Needs matplotlib, and faiss-cpu for the approximate search, which is left out
without it.

The published program searches an inverted file of FAISS with 4 probes (`IVF`). How many lists it
has is not known here: LISTS are tried, each with PROBES.
"""

import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from grood_jax import benchmarks, build_bank, detectors, models, nearest_distances
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import Outputs
from grood_jax.benchmarks import OpenBenchmark
from grood_jax.cli import command
from grood_jax.detectors import Detector
from grood_jax.detectors.grood import GroodState, compared_gradients
from grood_jax.evaluation import fitting, results
from grood_jax.maths.gradients import distances_to, gradients
from grood_jax.maths.metrics import ood_metrics
from grood_jax.passes import devices
from grood_jax.passes.reading import Reader
from grood_jax.storage import checkpoints
from grood_jax.storage.cache import OutputsCache
from grood_jax.storage.checkpoints import Loaded
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell

CUT = "layer1"
LAMBDAS = tuple(round(0.1 * i, 1) for i in range(11))
NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DRAWS = 3
MIXED_CLASSES, MIXED_WEIGHTS, MIXED_SHARE = (1, 3), (0.5, 0.8, 0.9), 0.1
LISTS, PROBES = (100, 1000), (1, 4, 16)

Scores = dict[str, Float[np.ndarray, " n"]]
Row = dict[str, Any]


@dataclass(frozen=True)
class AblationsConfig:
    """What is measured, on which network, and where it goes.

    Attributes:
      dataset: the benchmark.
      data_dir: where images lie, as for python -m grood_jax.eval.
      checkpoint: directory of the classifier.
      cache_dir: where the network's outputs are kept.
      limit: at most this many images of each test set.
      seed: of all that is random.
      only: the ablations to make anew; the others stay as they are in the results file.
      draw_only: compute nothing, draw the figures of the results file.
      output: the results file (default: experiments/results/ablations_DATASET.json).
      figures: the folder of the figures.
    """

    dataset: str = "cifar10"
    data_dir: Path | None = None
    checkpoint: Path = Path("checkpoints/resnet20")
    cache_dir: Path = Path("cache")
    limit: int = 2000
    seed: int = 0
    only: tuple[str, ...] = ()
    draw_only: bool = False
    output: Path | None = None
    figures: Path = Path("experiments/figures")

    def __post_init__(self) -> None:
        benchmarks.check_name(self.dataset)
        checks.seed("seed", self.seed)
        checks.at_least("limit", self.limit, 1)
        for name in self.only:
            checks.choice("only", name, tuple(ABLATIONS))


@dataclass(frozen=True)
class Study:
    """A network and the sets that it is studied on."""

    config: AblationsConfig
    loaded: Loaded
    data: OpenBenchmark
    backbones: dict[str, Backbone]
    read: Reader
    caches: dict[str, OutputsCache]

    def prepare(self, made: Iterable[Detector], cut: str = CUT) -> fitting.Fitter:
        """All that detectors are fitted on, with the network cut after a stage."""
        return fitting.prepare(
            self.backbones[cut],
            self.read.training(self.data.train),
            [("grood", detector) for detector in made],
            key=jax.random.key(self.config.seed),
            noise=self.read.noise,
            validation=lambda: self.read(held_out(self.data), "held-out OOD images"),
            memo=self.caches[cut],
        )

    def outputs(self, made: Iterable[Detector] = (), early: Any = None) -> dict[str, Outputs]:
        """Outputs of all test sets; the first is in distribution."""
        needs = fitting.all_needs(made)
        sets = {"test": self.data.test} | {k: images for k, (_, images) in self.data.ood.items()}
        return {
            name: fitting.extract_labelled(
                self.backbones[CUT],
                self.read(images, name),
                needs=needs,
                early_prototypes=early,
                memo=self.caches[CUT],
                about=self.read.identity(images),
            )[0]
            for name, images in sets.items()
        }

    def scored(self, score: Callable[[Outputs], Any], outputs: Mapping[str, Outputs]) -> Scores:
        return {name: np.asarray(score(each)) for name, each in outputs.items()}

    def figures(self, scores: Scores) -> Row:
        """AUROC and so on of each OOD set, and means of near and far ones."""
        sets = {
            name: {
                "group": group,
                "n": len(scores[name]),
                **ood_metrics(scores["test"], scores[name]),
            }
            for name, (group, _) in self.data.ood.items()
        }
        means = {group: results.group_means(sets, group) for group in ("near", "far")}
        return {"datasets": sets} | means

    def fitted(self, made: Mapping[str, Detector]) -> dict[str, Row]:
        """A row for each of several detectors that are fitted and scored as they are."""
        fitter = self.prepare(made.values())
        early = fitter.seen.early_prototypes
        outputs = self.outputs(made.values(), early)
        return {name: self.row(fitter, detector, outputs) for name, detector in made.items()}

    def row(
        self, fitter: fitting.Fitter, detector: Detector, outputs: Mapping[str, Outputs]
    ) -> Row:
        # One name for all, so that all draw the same samples.
        state = fitter.fit("grood", detector).state
        return self.figures(self.scored(lambda each: fitting.score(detector, state, each), outputs))


def held_out(data: OpenBenchmark) -> Any:
    assert data.validation is not None
    return data.validation


def grood(**options: Any) -> Detector:
    return detectors.create("grood", **options)


def by_source(study: Study) -> dict[str, Row]:
    made = {source: grood(ood_prototype=source) for source in ("mixup", "noise", "prototype-mean")}
    made["mixup, farthest fifth"] = grood(farthest_fifth=True)
    if study.data.validation is not None:
        made["validation"] = grood(ood_prototype="validation")
    return study.fitted(made)


def by_lambda(study: Study) -> dict[str, Row]:
    return study.fitted({str(weight): grood(mixup_weight=weight) for weight in LAMBDAS})


def by_cut(study: Study) -> dict[str, Row]:
    outputs = study.outputs()
    return {
        cut: study.row(study.prepare([grood()], cut), grood(), outputs) for cut in study.backbones
    }


def by_interpolation(study: Study) -> dict[str, Row]:
    made = {"off": grood(sampling_ratio=MIXED_SHARE)}
    for count in MIXED_CLASSES:
        for weight in MIXED_WEIGHTS:
            made[f"{count} classes, λ = {weight}" if count > 1 else f"1 class, λ = {weight}"] = (
                grood(
                    sampling_ratio=MIXED_SHARE,
                    interpolate=True,
                    interpolate_classes=count,
                    interpolate_weight=weight,
                )
            )
    return study.fitted(made)


def by_distance(study: Study) -> dict[str, Row]:
    """Scores of the same features by other functions of the same prototypes and training samples.

    Signs are such that what lies near the OOD prototype counts as OOD: its gradient is longer, its
    distance shorter.
    """
    sources = ("mixup", "prototype-mean")
    made = {source: grood(ood_prototype=source) for source in sources}
    knn = {
        "distance of normalised features, k = 50 (`knn`)": detectors.create("knn"),
        "distance of normalised features, k = 1": detectors.create("knn", k=1),
    }
    fitter, outputs = study.prepare([*made.values(), *knn.values()]), study.outputs()
    seen = fitter.seen
    right = np.asarray(seen.outputs.logits.argmax(axis=1) == seen.labels)
    bank = build_bank(seen.outputs.features[np.flatnonzero(right)])
    found: dict[str, Row] = {}
    for source, detector in made.items():
        state = fitter.fit("grood", detector).state
        of = f"p_ood of {source}"
        found |= {
            f"{name}, {of}": study.figures(study.scored(score, outputs))
            for name, score in (
                ("gradient distance", lambda each: fitting.score(detector, state, each)),  # noqa: B023
                ("gradient norm alone", lambda each: gradient_norm(state, each)),  # noqa: B023
                ("nearness to p_ood", lambda each: nearness(state, each)),  # noqa: B023
            )
        }
    found["distance of features, k = 1"] = study.figures(
        study.scored(lambda each: nearest_distances(each.features, bank), outputs)
    )
    return found | {name: study.row(fitter, each, outputs) for name, each in knn.items()}


def gradient_norm(state: GroodState, outputs: Outputs) -> Float[jax.Array, " n"]:
    """``‖g(x)‖₂``, which is the share of ``p_ood`` in the softmax over negative distances."""
    found = gradients(jnp.asarray(outputs.features), state.class_prototypes, state.ood_prototype)
    return jnp.linalg.norm(found, axis=1)


def nearness(state: GroodState, outputs: Outputs) -> Float[jax.Array, " n"]:
    """``−‖h − p_ood‖₂``."""
    return -distances_to(jnp.asarray(outputs.features), state.ood_prototype[None, :])[:, 0]


def by_share(study: Study) -> dict[str, Row]:
    """Draws of different samples at each share; p_ood is the same."""
    made = {share: grood(sampling_ratio=share) for share in SHARES}
    fitter, outputs = study.prepare(made.values()), study.outputs()
    found = {}
    for share, detector in made.items():
        draws = []
        for draw in range(DRAWS if share < 1 else 1):
            state = fitter.fit(f"draw {draw}", detector).state
            scores = study.scored(lambda each: fitting.score(detector, state, each), outputs)  # noqa: B023
            draws.append(study.figures(scores))
        means = {
            group: {m: float(np.mean([d[group][m] for d in draws])) for m in draws[0][group]}
            for group in ("near", "far")
        }
        extra = {"rows of the bank": f"{state.bank.size:,}"}
        if len(draws) > 1:
            spread = max(np.ptp([d[g]["auroc"] for d in draws]) for g in groups_of(draws[0]))
            extra["widest range of AUROC"] = f"{spread:.4f}"
        else:
            extra["widest range of AUROC"] = "one draw"
        found[f"{share:.0%}"] = means | {"draws": draws, "extra": extra}
    return found


def by_neighbour(study: Study) -> dict[str, Row]:
    fitter, outputs = study.prepare([grood()]), study.outputs()
    state = fitter.fit("grood", grood()).state
    found = {}
    for k in NEIGHBOURS:
        detector = grood(k=k)
        scores = study.scored(lambda each: fitting.score(detector, state, each), outputs)  # noqa: B023
        found[str(k)] = study.figures(scores)
    return found


def by_search(study: Study) -> dict[str, Row]:
    """Distances to the row that an inverted file finds, computed anew from that row."""
    try:
        import faiss
    except ImportError:
        tell("faiss is not installed: approximate search is left out")
        return {}
    fitter, outputs = study.prepare([grood()]), study.outputs()
    state = fitter.fit("grood", grood()).state
    queries = {
        name: np.asarray(compared_gradients(grood(), state, each)) for name, each in outputs.items()
    }
    rows = _rows(state)
    exact = study.scored(lambda each: fitting.score(grood(), state, each), outputs)
    found = {"exact": study.figures(exact) | {"extra": {"nearest row found": "100.0%"}}}
    for lists in LISTS:
        places_of = by_lists(faiss, rows, lists)
        for probes in PROBES:
            scores, right = {}, []
            for name, each in queries.items():
                places = places_of(each, probes)
                scores[name] = np.linalg.norm(each - rows[places], axis=1)
                right.append(scores[name] <= exact[name] * (1 + 1e-5))
            recall = f"{np.concatenate(right).mean():.1%}"
            found[f"IVF, {lists} lists, {probes} probe{'s' * (probes > 1)}"] = study.figures(
                scores
            ) | {"extra": {"nearest row found": recall}}
    return found


def by_lists(
    faiss: Any, rows: Float[np.ndarray, "n d"], lists: int
) -> Callable[[Float[np.ndarray, "q d"], int], Int[np.ndarray, " q"]]:
    """An inverted file's search: queries and probes to the row that it takes for the nearest."""
    # The quantizer must outlive this call.
    quantizer = faiss.IndexFlatL2(rows.shape[1])
    index = faiss.IndexIVFFlat(quantizer, rows.shape[1], lists)
    index.train(rows)
    index.add(rows)

    def places(queries: Float[np.ndarray, "q d"], probes: int) -> Int[np.ndarray, " q"]:
        assert quantizer is not None
        index.nprobe = probes
        found = index.search(queries, 1)[1][:, 0]
        if (found < 0).any():
            raise ValueError(f"no row in the {probes} of {lists} lists that a query probes")
        return found

    return places


def _rows(state: GroodState) -> Float[np.ndarray, "n d"]:
    """The rows of a float32 bank, without its padding."""
    return np.asarray(state.bank.vectors)[np.asarray(state.bank.places) >= 0]


def by_dtype(study: Study) -> dict[str, Row]:
    """The bfloat16 bank, which settles its winners in float32, and gradients that are rounded."""
    made = {dtype: grood(bank_dtype=dtype) for dtype in ("float32", "bfloat16")}
    fitter, outputs = study.prepare(made.values()), study.outputs()
    states = {name: fitter.fit("grood", each).state for name, each in made.items()}
    scores = {
        name: study.scored(lambda each: fitting.score(made[name], states[name], each), outputs)  # noqa: B023
        for name in made
    }
    bytes_of = {
        name: sum(leaf.nbytes for leaf in jax.tree.leaves(state.bank))
        for name, state in states.items()
    }

    def rounded(array: Any) -> Any:
        return jnp.asarray(array).astype(jnp.bfloat16).astype(jnp.float32)

    bank = build_bank(rounded(_rows(states["float32"])))
    name = "all gradients rounded to bfloat16"
    scores[name] = study.scored(
        lambda each: nearest_distances(
            rounded(compared_gradients(made["float32"], states["float32"], each)), bank
        ),
        outputs,
    )
    bytes_of[name] = bank.size * bank.width * 2
    reference = scores["float32"]
    found = {}
    for name, own in scores.items():
        apart = max(
            float(np.max(np.abs(own[part] - reference[part]) / np.maximum(reference[part], 1e-12)))
            for part in own
        )
        found[name] = study.figures(own) | {
            "extra": {
                "bank on the device": f"{bytes_of[name] / 2**20:.1f} MiB",
                "largest relative difference of a score": f"{apart:.0e}",
            }
        }
    return found


@dataclass(frozen=True)
class Ablation:
    """An ablation: what it is called, what its rows are, and how they come about."""

    title: str
    rows: str
    make: Callable[[Study], dict[str, Row]]
    scale: str | None = None
    """Of the axis of the figure: "linear" or "log" where rows are numbers."""


ABLATIONS = {
    "source": Ablation("Source of the OOD prototype", "p_ood of", by_source),
    "lambda": Ablation("Weight λ on the sample in mix-up", "λ", by_lambda, "linear"),
    "cut": Ablation("Stage after which mix-up takes place", "cut after", by_cut),
    "interpolate": Ablation(
        f"Interpolation at scoring, {MIXED_SHARE:.0%} of the training set in the bank",
        "interpolated with",
        by_interpolation,
    ),
    "distance": Ablation("What the score is", "score", by_distance),
    "share": Ablation(
        f"Share of the training set in the bank, means of {DRAWS} draws", "share", by_share, "log"
    ),
    "k": Ablation("Which neighbour", "k", by_neighbour, "log"),
    "search": Ablation("Exact and approximate search", "search", by_search),
    "dtype": Ablation("Precision of the bank", "bank", by_dtype),
}


def main(config: AblationsConfig) -> None:
    output = config.output or Path(f"experiments/results/ablations_{config.dataset}.json")
    earlier = json.loads(output.read_text()) if output.exists() else {"ablations": {}}
    if not config.draw_only:
        study = start(config)
        made = {
            "benchmark": config.dataset,
            "model": study.loaded.spec.model,
            "checkpoint": {
                "source": study.loaded.spec.source,
                "fingerprint": study.loaded.fingerprint,
            },
            "cut": CUT,
            "seed": config.seed,
            "limit": config.limit,
            "command": provenance.command_line(
                "python experiments/studies/ablations.py",
                config,
                always=("dataset", "checkpoint"),
                never=("output", "figures", "cache_dir", "only", "draw_only"),
                folders=False,
            ),
            "versions": provenance.versions(),
            "device": provenance.device(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "data": {name: study.read.described(each) for name, each in study.data.titled.items()},
        }
        kept = dict(earlier["ablations"]) if config.only else {}
        for name in config.only or ABLATIONS:
            tell(f"ablation: {name}")
            ablation = ABLATIONS[name]
            rows = ablation.make(study)
            if rows:
                kept[name] = {
                    "title": ablation.title,
                    "rows_are": ablation.rows,
                    "scale": ablation.scale,
                    "rows": rows,
                }
            # After each, so that what was computed stays.
            ordered = {each: kept[each] for each in ABLATIONS if each in kept}
            earlier = made | {"ablations": ordered}
            results.write(earlier, output)
        tell(f"results in {output}")
    config.figures.mkdir(parents=True, exist_ok=True)
    for name, found in earlier["ablations"].items():
        draw(found, config.figures / f"ablation-{output.stem.removeprefix('ablations_')}-{name}")


def start(config: AblationsConfig) -> Study:
    benchmark = benchmarks.get(config.dataset)
    loaded = checkpoints.load_model(config.checkpoint)
    preprocessing = loaded.spec.preprocessing
    validation = benchmark.validation is not None
    # All training images, and some of each test set.
    whole = benchmarks.open_benchmark(
        benchmark,
        preprocessing=preprocessing,
        data_dir=config.data_dir,
        ood=False,
        validation=validation,
    )
    some = benchmarks.open_benchmark(
        benchmark, preprocessing=preprocessing, data_dir=config.data_dir, limit=config.limit
    )
    data = replace(some, train=whole.train, validation=whole.validation)
    read = Reader(preprocessing, 256, sys.stderr.isatty())
    config.cache_dir.mkdir(parents=True, exist_ok=True)
    about = {
        "model": loaded.fingerprint,
        "preprocessing": asdict(preprocessing),
        "train": read.identity(data.train),
        "validation": None if data.validation is None else read.identity(data.validation),
        "versions": provenance.versions(),
        "device": provenance.device(),
    }
    cuts = models.stages(loaded.spec.model)
    backbones = {cut: devices.spread(Backbone.from_nnx(loaded.model, cut=cut)) for cut in cuts}
    caches = {cut: OutputsCache(config.cache_dir, about | {"cut": cut}, tell) for cut in cuts}
    return Study(config, loaded, data, backbones, read, caches)


def groups_of(row: Row) -> list[str]:
    return [group for group in ("near", "far") if row[group]]


def draw(found: dict[str, Any], path: Path) -> None:
    """AUROC and FPR@95 of near and far sets, as PNG and SVG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, scale = found["rows"], found["scale"]
    looks = {"near": ("#d55e00", "o"), "far": ("#0072b2", "^")}
    height = 2.6 if scale else 0.9 + 0.28 * len(rows)
    with matplotlib.rc_context({"svg.hashsalt": "grood-jax", "font.size": 8}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2, sharey=not scale)
        for axis, metric, title in zip(axes, ("auroc", "fpr95"), ("AUROC", "FPR@95"), strict=True):
            for group in groups_of(next(iter(rows.values()))):
                colour, marker = looks[group]
                values = [row[group][metric] for row in rows.values()]
                if scale:
                    places = [number(label) for label in rows]
                    axis.plot(places, values, marker=marker, color=colour, label=group)
                else:
                    places = list(range(len(rows)))
                    axis.plot(values, places, marker, color=colour, label=group)
            axis.grid(color="#dddddd", linewidth=0.6)
            axis.set_axisbelow(True)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            if scale:
                axis.set_xscale(scale)
                axis.set_xlabel(found["rows_are"])
                axis.set_ylabel(title)
                axis.set_xticks([number(label) for label in rows], list(rows))
                axis.minorticks_off()
            else:
                axis.set_xlabel(title)
        if not scale:
            axes[0].set_yticks(range(len(rows)), [label.replace("`", "") for label in rows])
            axes[0].set_ylim(len(rows) - 0.5, -0.5)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside upper right", ncols=2)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def number(label: str) -> float:
    return float(label.rstrip("%"))


if __name__ == "__main__":
    import tyro

    given = tyro.cli(AblationsConfig, description=__doc__)
    sys.exit(command.status(lambda: main(given)))
