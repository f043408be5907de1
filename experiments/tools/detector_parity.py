"""Detectors beside their authors' code, and OpenOOD's, on one network's outputs; and their times.

pip install torch torchvision statsmodels scikit-learn
python experiments/tools/detector_parity.py --dataset cifar100 --checkpoint checkpoints/densenet \\
    --data-dir data/tfds --openood OpenOOD --weiper weiper --nac ood_coverage --lts lts

The four are checkouts of github.com/Jingkang50/OpenOOD, mgranz/weiper, BierOne/ood_coverage and
andrijazz/lts; the detectors of one that is not given are left out. Their code runs as it is, on the
CPU, over a PyTorch module whose features, activations and gradients are those of our network: what
differs is the detectors alone. Each is run with our options, and where OpenOOD has others, with
those as well. An AUROC is over all OOD images together.

Beside it stand the seconds of each of our fits, the first and the median of later ones, and
microseconds a score, of the same outputs.
"""

import datetime
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats

from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.outputs import LayerMeans
from grood_jax.benchmarks.base import Group
from grood_jax.cli import command
from grood_jax.data.batching import batches
from grood_jax.data.sets import ImageSet, LimitedSet, PartOfSet, labels_of
from grood_jax.detectors import Detector, create
from grood_jax.evaluation import fitting, pipeline, results
from grood_jax.evaluation.setting import EvalConfig
from grood_jax.maths.metrics import ood_metrics
from grood_jax.passes.processes import Processes
from grood_jax.support import checks, provenance
from grood_jax.support.progress import tell

ROWS = 100
"""Images a batch; OpenOOD's configuration of CIFAR has 128. WeiPer's code needs equal batches."""

REPEATS = 3
"""Fits after the first."""


@dataclass(frozen=True)
class ParityConfig:
    """What is compared, and where it lies.

    Attributes:
      checkpoint: the network, as for python -m grood_jax.eval.
      dataset: the benchmark.
      data_dir: where images lie.
      train: so many training images at most; of each class equally many.
      limit: so many images of each other set at most.
      openood: a checkout of OpenOOD.
      weiper: of WeiPer's fork of it.
      nac: of NAC's.
      lts: of LTS.
      detectors: by name; all that have a peer by default.
      seed: of all that is random.
      cache_dir: keeps the network's outputs.
      output: the results file; networks that it has already stay in it.
    """

    checkpoint: Path = Path("checkpoint")
    dataset: str = "cifar10"
    data_dir: Path | None = None
    train: int = 5000
    limit: int = 500
    openood: Path | None = None
    weiper: Path | None = None
    nac: Path | None = None
    lts: Path | None = None
    detectors: tuple[str, ...] = ()
    seed: int = 0
    cache_dir: Path | None = None
    output: Path = Path("experiments/results/detector_parity.json")

    def __post_init__(self) -> None:
        checks.at_least("train", self.train, ROWS)
        checks.at_least("limit", self.limit, ROWS)
        checks.seed("seed", self.seed)


@dataclass(frozen=True)
class Pixels:
    """A set as the peers take it.

    Attributes:
      images: normalised, (N, C, H, W) float32.
      labels: (N,).
    """

    images: Float[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, " n"]

    def loader(self) -> list[dict[str, torch.Tensor]]:
        """Batches as OpenOOD's loaders give them."""
        parts = [slice(at, at + ROWS) for at in range(0, len(self.images), ROWS)]
        return [
            {
                "data": torch.from_numpy(self.images[part].copy()),
                "data_aux": torch.from_numpy(self.images[part].copy()),
                "label": torch.from_numpy(self.labels[part].astype(np.int64)),
            }
            for part in parts
        ]


class BridgedResNet(torch.nn.Module):
    """Our network as OpenOOD knows its networks; its class head is PyTorch's."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        assert backbone.head is not None, "the network has no class head"
        weights, bias = backbone.head(backbone.arrays)
        self.fc = torch.nn.Linear(*np.shape(weights))
        with torch.no_grad():
            self.fc.weight.copy_(torch.from_numpy(np.asarray(weights).T.copy()))
            self.fc.bias.copy_(torch.from_numpy(np.asarray(bias).copy()))
        self.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        self.feature_size = self.fc.in_features
        self.backbone = SimpleNamespace(feature_size=self.feature_size)
        self._network = backbone
        self._values = jax.jit(_values)
        self._pulled = jax.jit(_pulled)
        self._known: dict[bytes, Any] = {}

    def forward(
        self, x: torch.Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Any:
        """Logits; with features, or with activations of layers, if asked for."""
        features, *layers = _Through.apply(x, self)
        if torch.is_grad_enabled() and not features.requires_grad:
            features.requires_grad_()  # the gradient that NAC takes starts here
        pooled = self.avgpool(features[:, :, None, None]).flatten(1)
        logits = self.fc(pooled)
        if return_feature_list:
            return logits, [layer[:, :, None, None] for layer in layers]
        return (logits, pooled.clone()) if return_feature else logits

    def intermediate_forward(self, x: torch.Tensor, layer_index: int) -> torch.Tensor:
        """Activations of the last block, 4, or at the cut, 3."""
        images = _channels_last(x)
        maps = (
            self._network.middle(images)[-1] if layer_index == 4 else self._network.hidden(images)
        )
        return torch.from_numpy(np.asarray(maps).transpose(0, 3, 1, 2).copy())

    def layer4(self, maps: torch.Tensor) -> torch.Tensor:
        """From the cut to features, as maps of one place."""
        outputs = self._network.finish(jnp.asarray(_channels_last(maps)))
        return torch.from_numpy(np.asarray(outputs.features).copy())[:, :, None, None]

    def values(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features, and the means of middle layers; remembered."""
        key = images.tobytes()
        if key not in self._known:
            self._known[key] = jax.device_get(self._values(self._network, images))
        return self._known[key]

    def pulled(self, images: np.ndarray, given: tuple[np.ndarray, ...]) -> np.ndarray:
        """The gradient with respect to images."""
        return np.asarray(self._pulled(self._network, images, given))


class AdaScaleNet(BridgedResNet):
    """As OpenOOD wraps a network for AdaSCALE; the scaling is its own code's."""

    def __init__(
        self, backbone: Backbone, scale: Callable[..., torch.Tensor], logits: bool
    ) -> None:
        super().__init__(backbone)
        self._scale, self._of_logits = scale, logits

    def forward_threshold(self, feature: torch.Tensor, percentiles: torch.Tensor) -> torch.Tensor:
        """Scaled logits."""
        scale = self._scale(torch.relu(feature), percentiles)
        if self._of_logits:
            return self.fc(feature) * scale**2.0
        return self.fc(feature * torch.exp(scale)).detach()


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, network: BridgedResNet) -> tuple[torch.Tensor, ...]:
        images = _channels_last(x)
        ctx.images, ctx.network = images, network
        return tuple(torch.from_numpy(value.copy()) for value in network.values(images))

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        pulled = ctx.network.pulled(ctx.images, tuple(each.numpy() for each in given))
        return torch.from_numpy(pulled.transpose(0, 3, 1, 2).copy()), None


def _values(network: Backbone, images: Any) -> tuple[jax.Array, ...]:
    layers = network.middle(images) if network.layers is not None else ()
    means = [layer.mean(axis=tuple(range(1, layer.ndim - 1))) for layer in layers]
    return jnp.asarray(network(images).features), *means


def _pulled(network: Backbone, images: Any, given: Any) -> jax.Array:
    return jax.vjp(lambda x: _values(network, x), images)[1](given)[0]


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy().transpose(0, 2, 3, 1))


def peer_module(root: Path, name: str) -> ModuleType:
    """A module of a checkout's package ``openood``, without what its packages would import."""
    for loaded in [key for key in sys.modules if key.split(".")[0] == "openood"]:
        del sys.modules[loaded]
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    for package in (*above, "openood.utils", "openood.preprocessors"):
        empty = sys.modules[package] = ModuleType(package)
        empty.__path__ = [str(root.joinpath(*package.split(".")))]
    return importlib.import_module(name)


def on_cpu() -> None:
    """Peers ask for CUDA by name."""
    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *args, **kwargs: self
    torch.cuda.FloatTensor = torch.FloatTensor
    torch.cuda.LongTensor = torch.LongTensor


Scoring = Callable[[Backbone, Pixels, list[Pixels], Any], list[np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A detector and its peer.

    Attributes:
      name: of ours, for the table.
      ours: our detector.
      peer: whose code, and with which options where they are not ours.
      scores: from the network, the training set, the sets and our fitted state, the peer's scores,
        lower for more OOD.
      note: what differs.
    """

    name: str
    ours: Detector
    peer: str
    scores: Scoring
    note: str = ""


def postprocessor(
    root: Path,
    module: str,
    kind: str,
    options: Mapping[str, Any],
    *,
    split: str = "train",
    before: Callable[[ModuleType, Any], None] | None = None,
    change: Callable[[Any], None] | None = None,
    network: Callable[[Backbone], BridgedResNet] = BridgedResNet,
) -> Scoring:
    """Scores by one of OpenOOD's postprocessors.

    Args:
      root: the checkout.
      module: its module in openood.postprocessors.
      kind: its class.
      options: its ``postprocessor_args``.
      split: the loader that it is fitted on.
      before: what is set on the module; takes our fitted state, too.
      change: what is set on the postprocessor after it was fitted.
      network: as what our network is shown to it.
    """

    def scores(
        backbone: Backbone, train: Pixels, sets: list[Pixels], state: Any
    ) -> list[np.ndarray]:
        loaded = peer_module(root, f"openood.postprocessors.{module}")
        if before is not None:
            before(loaded, state)
        info = importlib.import_module("openood.postprocessors.info")
        info.num_classes_dict["these"] = int(train.labels.max()) + 1
        config = SimpleNamespace(
            dataset=SimpleNamespace(name="these"),
            postprocessor=SimpleNamespace(
                postprocessor_args=SimpleNamespace(**options), postprocessor_sweep=SimpleNamespace()
            ),
        )
        made = getattr(loaded, kind)(config)
        shown = network(backbone).eval()
        made.setup(shown, {split: train.loader()}, {})
        if change is not None:
            change(made)
        return [
            np.concatenate(
                [
                    made.postprocess(shown, batch["data"])[1].detach().numpy().ravel()
                    for batch in part.loader()
                ]
            )
            for part in sets
        ]

    return scores


def same_heads(module: ModuleType, state: Any) -> None:
    """Makes WeiPer's code take the perturbed heads of our state instead of drawing its own."""
    weights = torch.from_numpy(np.array(state.weights))
    bias = torch.from_numpy(np.tile(state.bias, weights.shape[1] // len(state.bias)))

    def space(model: Any, latents: torch.Tensor, *args: Any, **options: Any) -> Any:
        return latents @ weights + bias, None

    utils = sys.modules[f"{module.__package__}.weiper_kldiv.utils"]
    for each in (module, utils):
        setattr(each, "calculate_weiper_space", space)  # noqa: B010


def nac_scores(root: Path) -> Scoring:
    """NAC-UE of the layer avgpool, by the authors' code, all training samples counted."""

    def scores(
        backbone: Backbone, train: Pixels, sets: list[Pixels], state: Any
    ) -> list[np.ndarray]:
        coverage = peer_module(root, "openood.postprocessors.nac.coverage")
        network = BridgedResNet(backbone).eval()
        hyper = {"avgpool": {"O": 50, "M": 50, "sig_alpha": 100, "method": "sigmoid(o*g_kl)"}}
        own = coverage.KMNC(
            {"avgpool": network.feature_size},
            hyper=hyper,
            unpack=lambda batch, device: (batch["data"], batch["label"]),
        )

        def pooled(maps: torch.Tensor, method: str) -> torch.Tensor:
            return maps.sum(dim=[2, 3])

        own.assess(network, train.loader(), pooled)
        own.update()
        return [
            np.asarray(own.assess_ood(network, part.loader(), pooled, progress=False)[0]).ravel()
            for part in sets
        ]

    return scores


def lts_scores(root: Path) -> Scoring:
    """LTS as the authors' evaluation has it: the energy of scaled logits."""

    def scores(
        backbone: Backbone, train: Pixels, sets: list[Pixels], state: Any
    ) -> list[np.ndarray]:
        spec = importlib.util.spec_from_file_location("lts", root / "lts.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network = BridgedResNet(backbone).eval()

        @torch.no_grad()
        def of(batch: Mapping[str, torch.Tensor]) -> np.ndarray:
            logits, features = network(batch["data"], return_feature=True)
            return torch.logsumexp(logits * module.lts(features, 85), dim=1).numpy()

        return [np.concatenate([of(batch) for batch in part.loader()]) for part in sets]

    return scores


def cases(config: ParityConfig, num_classes: int, std: tuple[float, ...]) -> Iterator[Case]:
    """All detectors whose peer's code was given."""
    if config.weiper is not None:
        root = config.weiper / "Weiper" / "OpenOOD"
        options = {"lambda_1": 2.5, "lambda_2": 0.1, "n_bins": 100, "n_repeats": 100}
        options |= {"perturbation_distance": 1.8, "smoothing": 4, "smoothing_perturbed": 15}
        options |= {"exact_minmax": True, "n_samples_for_setup": 300_000}
        found = postprocessor(
            root, "weiper_kldiv_postprocessor", "WeiPerKLDivPostprocessor", options
        )
        why = "heads are drawn at random; the peer draws them anew for each batch"
        yield Case("weiper", create("weiper"), "authors", found, why)
        found = postprocessor(
            *(root, "weiper_kldiv_postprocessor", "WeiPerKLDivPostprocessor", options),
            before=same_heads,
        )
        yield Case("weiper", create("weiper"), "authors", found, "the peer gets our heads")
    if config.nac is not None:
        every = create("nac_ue", samples=config.train)
        yield Case("nac_ue", every, "authors, avgpool alone", nac_scores(config.nac))
    if config.lts is not None:
        yield Case("lts", create("lts"), "authors", lts_scores(config.lts))
    if config.openood is not None:
        yield from openood_cases(config.openood, num_classes, std)


def openood_cases(root: Path, num_classes: int, std: tuple[float, ...]) -> Iterator[Case]:
    """Those of OpenOOD."""
    relation = postprocessor(root, "relation_postprocessor", "RelationPostprocessor", {"pow": 1})
    yield Case("relation", create("relation"), "OpenOOD", relation)

    cfood = {"alpha": 1.0, "k": 0.01, "avg_topk": False}
    found = postprocessor(root, "cfood_postprocessor", "CFOODPostprocessor", cfood)
    yield Case("cfood", create("cfood", sampling_ratio=1.0), "OpenOOD", found, "all references")

    # The last layer as a map is the features'.
    mixture: dict[str, Any] = {"feature_type_list": ["flat"], "reduce_dim_list": ["pca_50"]}
    mixture |= {"num_clusters_list": [num_classes], "alpha_list": [1.0]}
    found = postprocessor(
        *(root, "gmm_postprocessor", "GMMPostprocessor", mixture), network=LastLayer
    )
    why = "k-means has other seeds; the peer adds 1e-45 to densities, so that far ones are equal"
    yield Case("gmm", create("gmm"), "OpenOOD", found, why)

    for noise, why in (
        (0.0, "no step; the peer multiplies in float32"),
        (0.0014, "the peer's default: a step of each image"),
    ):
        ensemble = {"noise": noise, "feature_type_list": ["mean"], "alpha_list": [1.0]}
        ensemble |= {"reduce_dim_list": ["none"]}
        found = postprocessor(
            root, "mds_ensemble_postprocessor", "MDSEnsemblePostprocessor", ensemble
        )
        name = "mahalanobis_ensemble, first layer"
        yield Case(name, first_layer(), "OpenOOD", found, why)

    odin = {"temperature": 1000, "noise": 0.0014}
    found = postprocessor(
        *(root, "iodin_postprocessor", "IODINPostprocessor", odin),
        change=lambda made: setattr(made, "input_std", std),
    )
    yield Case("i_odin", create("i_odin"), "OpenOOD", found)

    rank = {"accelerate": False, "temperature": 1}
    found = postprocessor(root, "rankfeat_postprocessor", "RankFeatPostprocessor", rank)
    yield Case("rankfeat:where=both", create("rankfeat", where="both"), "OpenOOD", found)

    for variant in ("a", "l"):
        for shift, why in ((1, "of fewer than 100 features the peer takes none for Q"), (5, "")):
            yield adascale_case(root, variant, shift, why)


def adascale_case(root: Path, variant: str, shift: int, why: str) -> Case:
    """AdaSCALE with a share of features that shift, in percent."""
    options = {"percentile": [60, 85], "k1": 5, "k2": shift, "lmbda": 10, "o": 0.05}

    def network(backbone: Backbone) -> BridgedResNet:
        scale = importlib.import_module("openood.networks.adascale_net").ada_scale
        return AdaScaleNet(backbone, scale, variant == "l")

    found = postprocessor(
        *(root, "adascale_postprocessor", "AdaScalePostprocessor", options),
        split="val",
        change=lambda made: made.set_hyperparam([[60, 85], 5, shift, 10, 0.05]),
        network=network,
    )
    own = create("adascale", variant=variant, shift_share=shift)
    return Case(f"adascale:variant={variant},shift_share={shift}", own, "OpenOOD", found, why)


class LastLayer(BridgedResNet):
    """Gives the features as its only layer."""

    def forward(
        self, x: torch.Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Any:
        logits, features = super().forward(x, return_feature=True)
        return logits, [features[:, :, None, None]]


def first_layer() -> Detector:
    """Our ensemble of the first layer alone."""
    own = create("mahalanobis_ensemble", standardize=False)

    def alone(outputs: Any) -> Any:
        extra = {need: outputs.extra[need][:1] for need in outputs.extra if need == LayerMeans()}
        return replace(outputs, extra=extra)

    return replace(
        own,
        fit=lambda training, key: own.fit(replace(training, outputs=alone(training.outputs)), key),
        score=lambda state, outputs: own.score(state, alone(outputs)),
        fit_key=None,
    )


def pixels(images: ImageSet, inputs: pipeline.Inputs) -> Pixels:
    """All of a set, normalised."""
    read = batches(images, inputs.loaded.spec.preprocessing, batch_size=ROWS)
    parts = [(batch.images[batch.valid], batch.labels[batch.valid]) for batch in read]
    stacked, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Pixels(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2)), labels)


def timed(fitter: pipeline.Fitter, case: Case) -> tuple[fitting.Fitted, list[float]]:
    """The fitted detector and the seconds of the first and of later fits."""
    runs = [replace(fitter, fits={}).fit(case.name, case.ours) for _ in range(1 + REPEATS)]
    return runs[-1], [run.seconds for run in runs]


def auroc(scores: list[np.ndarray]) -> float:
    """Of the first set against all others together."""
    return ood_metrics(scores[0], np.concatenate(scores[1:]))["auroc"]


def compared(
    case: Case,
    fitter: pipeline.Fitter,
    outputs: list[Any],
    backbone: Backbone,
    train: Pixels,
    sets: list[Pixels],
) -> dict[str, Any]:
    """One detector's row."""
    fitted, seconds = timed(fitter, case)
    fitting.score(case.ours, fitted.state, outputs[0])
    start = time.perf_counter()
    ours = [fitting.score(case.ours, fitted.state, part) for part in outputs]
    spent = time.perf_counter() - start
    torch.manual_seed(0)
    theirs = [-scores for scores in case.scores(backbone, train, sets, fitted.state)]
    flat = [np.concatenate(scores).astype(np.float64) for scores in (ours, theirs)]
    return {
        "peer": case.peer,
        "options": dict(case.ours.options),
        "auroc": auroc(ours),
        "peer_auroc": auroc(theirs),
        "spearman": float(stats.spearmanr(*flat).statistic),
        "note": case.note,
        "first_fit_seconds": seconds[0],
        "fit_seconds": statistics.median(seconds[1:]),
        "score_microseconds": spent / len(flat[0]) * 1e6,
    }


def balanced(images: ImageSet, count: int, num_classes: int) -> ImageSet:
    """Equally many images of each class, the first in order."""
    labels = labels_of(images)
    each = min(count // num_classes, int(np.bincount(labels, minlength=num_classes).min()))
    rows = [np.flatnonzero(labels == label)[:each] for label in range(num_classes)]
    return PartOfSet(images, np.sort(np.concatenate(rows)), f"{each} of each class")


def run(config: ParityConfig) -> dict[str, Any]:
    """Compares all detectors on one network."""
    on_cpu()
    own = EvalConfig(
        dataset=config.dataset,
        data_dir=config.data_dir,
        checkpoint=config.checkpoint,
        seed=config.seed,
        skip_missing=True,
        cache_dir=config.cache_dir,
    )
    benchmark, data, place = pipeline.open_sets(own, {}, Processes(), tell)
    limited: dict[str, tuple[Group, ImageSet]] = {
        name: (group, LimitedSet(part, min(config.limit, len(part))))
        for name, (group, part) in data.ood.items()
    }
    data = replace(
        data,
        train=balanced(data.train, config.train, benchmark.num_classes),
        test=LimitedSet(data.test, min(config.limit, len(data.test))),
        ood=limited,
    )
    inputs = pipeline.open_inputs(own, benchmark, data, place, Processes(), tell, True)
    std = inputs.loaded.spec.preprocessing.std
    wanted = [
        case
        for case in cases(config, benchmark.num_classes, std)
        if not config.detectors or case.name.split(":")[0].split(",")[0] in config.detectors
    ]
    candidates = {str(at): (case.ours,) for at, case in enumerate(wanted)}
    fitter = pipeline.pass_training_set(inputs, candidates)
    needs = fitting.all_needs(case.ours for case in wanted)
    outputs = [inputs.outputs_of(part, needs, None)[0] for part in _sets(data)]
    shown = [pixels(part, inputs) for part in _sets(data)]
    train = pixels(data.train, inputs)
    backbone = inputs.loaded.backbone(own.cut)
    rows = {}
    for case in wanted:
        name = f"{case.name} ({case.note})" if case.name in rows else case.name
        rows[name] = compared(case, fitter, outputs, backbone, train, shown)
        line = rows[name]
        apart = abs(line["auroc"] - line["peer_auroc"])
        tell(f"{name}: {line['auroc']:.4f}, {case.peer} {line['peer_auroc']:.4f} ({apart:.1e})")
    return {
        "model": inputs.loaded.spec.model,
        "cut": own.cut,
        "train": len(train.labels),
        "sets": {part.name: len(part) for part in _sets(data)},
        "detectors": rows,
    }


def _sets(data: Any) -> list[ImageSet]:
    return [data.test, *(part for _, part in data.ood.values())]


def main() -> None:
    config = command.parse(ParityConfig(), "experiments.tools.detector_parity", __doc__ or "", None)
    held = (
        json.loads(config.output.read_text()) if config.output.exists() else {"detector_parity": {}}
    )
    made = run(config)
    made["command"] = provenance.command_line(
        "python experiments/tools/detector_parity.py", config, never=("output",), folders=False
    )
    found = {
        "command": made["command"],
        "date": datetime.date.today().isoformat(),
        "versions": provenance.versions() | {"torch": metadata.version("torch")},
        "device": provenance.device(),
        "detector_parity": held["detector_parity"]
        | {f"{config.dataset}, {made['train']} training images": made},
    }
    results.write(found, config.output)


if __name__ == "__main__":
    main()
