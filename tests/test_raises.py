"""Every public function raises what its docstring lists, and says of what, whatever it is given.

The functions are those of the package's modules with a section "Raises:". Each has a place in
DOORS, with arguments that are right, of which one at a time is replaced by bad ones; or in INNER,
with the reason why what it takes is no user's. One in neither place fails here.
"""

import functools
import importlib
import inspect
import io
import linecache
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_network as tiny
from flax import linen, nnx
from jax.sharding import Mesh
from PIL import Image

import grood_jax
from grood_jax import benchmarks, detectors, models
from grood_jax.backbone.outputs import Outputs
from grood_jax.benchmarks import Benchmark
from grood_jax.conformal import calibration, drift
from grood_jax.conformal.calibration import Calibration
from grood_jax.conformal.drift import DriftMonitor, DriftState
from grood_jax.data import ArraySet, Preprocessing
from grood_jax.data.sets import UnreadableImage
from grood_jax.deploying.deployment import Deployment, backbone_of
from grood_jax.deploying.ood_classifier import OODClassifier
from grood_jax.deploying.serving.limits import Limits
from grood_jax.deploying.setting import FitConfig
from grood_jax.detectors import Detector, Training
from grood_jax.evaluation import results
from grood_jax.evaluation.setting import EvalConfig, Setting
from grood_jax.models.torch import importing
from grood_jax.neighbors.building import build_bank
from grood_jax.passes.memo import make_anew
from grood_jax.storage import banks, checkpoints
from grood_jax.storage.checkpoints import ModelSpec
from grood_jax.training.options import TrainOptions

pytestmark = pytest.mark.usefixtures("unchecked")

INNER = {
    "cli": "commands: their status and line are in test_command.py and test_fuzz.py",
    "data.download": "needs the network; test_download.py",
    "data.given": "steps of `evaluate` and OODClassifier.fit; test_given.py",
    "data.finding": "takes what a benchmark's description was checked to hold",
    "data.folders": "sets and sources on disk; test_folders.py",
    "data.npz": "sets and sources on disk; test_npz.py",
    "data.pictures": "takes pictures that Pillow has opened; test_pictures.py",
    "data.preprocessing.fit": "takes a picture that Pillow has opened",
    "data.sets": "a protocol",
    "data.tfds": "sets and sources on disk; test_sources.py",
    "data.batching.read_readable": "a step of `batches`",
    "backbone.adapting": "steps of Backbone.from_encoder and `layers`; test_encoders.py",
    "backbone.backbone.Backbone.with_head": "a step of `fit_head`; test_encoders.py",
    "backbone.encoders": "steps of Backbone.from_encoder; test_encoders.py",
    "backbone.flow": "steps of Backbone.from_nnx and from_linen; test_naming.py",
    "backbone.linen": "steps of Backbone.from_linen; test_naming.py",
    "backbone.naming": "steps of Backbone.from_nnx and from_linen; test_naming.py",
    "backbone.nnx": "steps of Backbone.from_nnx; test_naming.py",
    "backbone.stages": "steps of Backbone.from_nnx and from_linen; test_backbone.py",
    "benchmarks.base": "names of sets; test_benchmark_files.py",
    "benchmarks.opening.OpenBenchmark": "names of sets; test_benchmark_files.py",
    "benchmarks.opening.require_labels": "a step of `open_benchmark`; test_labels.py",
    "detectors.base.Detector": "what a detector is made of; test_contract.py",
    "detectors.grood.checked_present": "a step of `grood` and `auto`; test_auto.py",
    "detectors.combine.fit_members": "a step of `combine` and `auto`; test_combine.py",
    "deploying.exporting.export": "a step of `OODClassifier.export`",
    "deploying.ood_classifier.OODClassifier.export": "compiles for seconds; test_exporting.py",
    "deploying.ood_classifier.OODClassifier.put_together": "a step of `load`",
    "deploying.ood_classifier.OODClassifier.take_apart": "a step of `save`",
    "deploying.folders": "steps of `grood fit`; test_fit_folders.py",
    "deploying.pipeline": "steps of `grood fit`; test_pipeline.py",
    "deploying.serving.batching": "a part of the server; test_micro_batching.py",
    "deploying.serving.bodies": "a part of the server; test_app.py",
    "deploying.serving.images": "a part of the server; test_app.py",
    "evaluation.comparing": "steps of `grood compare`; test_comparing.py",
    "evaluation.datasets": "takes no argument but the package's own folder; test_datasets.py",
    "evaluation.evaluated": "of what `evaluate` gives; test_evaluating.py",
    "evaluation.evaluating.chosen": "a step of `evaluate`; test_evaluating.py",
    "evaluation.evaluating.grouped": "a step of `evaluate`; test_evaluating.py",
    "evaluation.tables": "takes results, and forms that doors have checked; test_results.py",
    "evaluation.accuracy": "a step of `grood eval`; test_labels.py",
    "evaluation.classifier": "steps of `grood eval`; test_pipeline.py",
    "evaluation.pipeline": "steps of `grood eval`; test_pipeline.py",
    "evaluation.heads.completed": "a step of `grood eval` and OODClassifier.fit; test_encoders.py",
    "evaluation.own_model": "a step of the command lines; test_own_model.py",
    "evaluation.fitting": "takes what `grood eval` and OODClassifier.fit have checked",
    "evaluation.tuning.choose": "a step of `grood eval`; test_tuning.py",
    "maths.intervals": "takes scores that an evaluation has made; test_intervals.py",
    "maths.mixup.other_classes": "a step of a pass",
    "maths.prototypes.empty_classes": "a step of fitting; test_prototypes.py",
    "models.staged": "stages of a network, which a Backbone calls",
    "models.torch.safetensors": "a step of `read_state_dict`",
    "passes": "takes what the doors have checked; test_reading.py, test_parts.py",
    "storage.checkpoints.Stored": "what `open_classifier` gives; test_checkpoints.py",
    "storage.checkpoints.spec_of": "takes what a manifest was checked to hold",
    "storage.containers": "writes and reads for checkpoints; test_checkpoints.py",
    "storage.earlier": "takes what a file of an earlier version holds; test_earlier.py",
    "storage.included": "takes no argument but the package's own folder; test_included.py",
    "storage.outputs": "steps of `grood eval`; test_outputs.py",
    "storage.packed": "a step of OutputsCache; test_cache.py",
    "storage.parts": "steps of a pass; test_parts.py",
    "storage.saving": "a step of OODClassifier's save and load; test_saving.py",
    "support.files": "steps of doors that name the argument",
    "support.manifest": "takes what a file holds; test_saving.py, test_fuzz.py",
    "support.missing": "takes an error",
    "support.npz": "takes an open file; test_npz.py, test_fuzz.py",
    "support.structures": "takes what a manifest holds; test_structures.py",
    "training.loop": "a run of seconds; its options and sets are in test_training.py",
    "training.runs": "a run of seconds; its options and sets are in test_training.py",
}
"""Functions, and modules of functions, that no user calls with values of his own, and where else
their errors are tested."""

OURS = (
    *(ArraySet, Benchmark, Calibration, Detector, DriftState, Image.Image, ModelSpec, Outputs),
    *(Preprocessing, Training),
)
"""What checks itself when it is made; that an argument is one is for a type checker to say, unless
the docstring promises a TypeError."""


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """The functions, methods, and classes that check themselves, of a module, by dotted names."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            if "__post_init__" in vars(value):
                yield name, value
            for part, member in vars(value).items():
                if not part.startswith("_"):
                    yield f"{name}.{part}", getattr(member, "__func__", member)
        elif callable(value):
            yield name, value


def docstring_of(function: Any) -> str:
    return inspect.getdoc(getattr(function, "__post_init__", function)) or ""


@functools.cache
def documented() -> dict[str, Any]:
    """All that have a section "Raises:", by their names without the package's."""
    functions = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in pkgutil.walk_packages(grood_jax.__path__, "grood_jax."):
            if any(part.startswith("_") for part in found.name.split(".")):
                continue
            module = importlib.import_module(found.name)
            for name, function in public(module):
                if "Raises:" in docstring_of(function):
                    functions[f"{found.name}.{name}".removeprefix("grood_jax.")] = function
    return functions


def errors_of(function: Any) -> tuple[type[BaseException], ...]:
    """The types that the docstring lists."""
    text = docstring_of(function)
    section = text[text.index("Raises:") :].split("\n\n")[0]
    listed = re.findall(r"^  ([A-Z]\w+(?:, [A-Z]\w+)*):", section, re.MULTILINE)
    assert listed, f"no type of error is listed in {section!r}"
    names = [name for line in listed for name in line.split(", ")]
    known = {**vars(importlib.import_module("builtins")), "UserError": grood_jax.UserError}
    module = importlib.import_module(function.__module__)
    return tuple(known.get(name) or getattr(module, name) for name in names)


def within(name: str, table: Mapping[str, Any]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:end]) in table for end in range(1, len(parts) + 1))


# Arguments that are right.

LABELS = np.arange(12) % 3
ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
KEY = jax.random.key(0)
SPEC = ModelSpec(
    model="small",
    num_classes=3,
    preprocessing=Preprocessing(8, 1, (0.5,), (0.5,)),
    source="made here",
)


def pixels() -> ArraySet:
    return ArraySet("toy", "made here", np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 3)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue()


@functools.cache
def network() -> Any:
    return models.create("small", num_classes=3, channels=1, image_size=8, rngs=nnx.Rngs(0))


class Plain(linen.Module):
    """A linen module, of which no more is used than its type."""


def flat(arrays: Any, images: jax.Array) -> jax.Array:
    """Features of images."""
    return jnp.asarray(images)


def in_places(arrays: Any, images: jax.Array) -> jax.Array:
    """Features of two places in each image."""
    return jnp.asarray(images).reshape(len(images), 2, -1)


@functools.cache
def classifier() -> OODClassifier:
    return OODClassifier.fit(
        tiny.backbone(),
        tiny.pairs(8, 0),
        detector=detectors.msp(),
        calibration=[tiny.images(24, 1)],
        key=KEY,
    )


@functools.cache
def deployed() -> Deployment:
    """A classifier of three classes with its network."""
    backbone = backbone_of(network(), SPEC, "layer1")
    images = np.zeros((24, 8, 8, 1), np.float32)
    made = OODClassifier.fit(
        backbone,
        [(images[:6], np.arange(6) % 3)],
        detector=detectors.msp(),
        calibration=[images],
        key=KEY,
    )
    return Deployment(made, network(), SPEC, "layer1", tuple("abc"))


@functools.cache
def torch_state() -> dict[str, np.ndarray]:
    """Weights of a ResNet-20 in PyTorch's names and layouts."""
    made = nnx.eval_shape(lambda: models.create("resnet20", num_classes=3, rngs=nnx.Rngs(0)))
    shapes = importing.torch_shapes(made, "resnet20")
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@functools.cache
def bank() -> Any:
    return build_bank(ROWS)


def defaults(function: Any) -> dict[str, Any]:
    return {name: own.default for name, own in inspect.signature(function).parameters.items()}


def fitted() -> dict[str, Any]:
    return {
        "backbone": tiny.backbone(),
        "train_batches": tiny.pairs(8, 0),
        "detector": detectors.msp(),
        "calibration": [tiny.images(24, 1)],
        "key": KEY,
        "target_tpr": 0.9,
        "per_class": False,
        "preprocessing": None,
        "noise": None,
        "validation": None,
        "id_validation": tiny.pairs(8, 0),
        "memo": make_anew,
    }


def evaluated(home: Path) -> dict[str, Any]:
    """Results and scores, written."""
    inside, outside = np.arange(3.0, dtype=np.float32), np.arange(2.0, 5, dtype=np.float32)
    row = {"group": "far", "n": 3, **grood_jax.ood_metrics(inside, outside)}
    held = dict.fromkeys(results.ENTRIES, "") | {
        "shifted_accuracy": {},
        "detectors": {"msp": {"datasets": {"other": row}}},
    }
    results.write(held, home / "results.json")
    results.write_scores({"msp": {"test": inside, "other": outside}}, home / "scores.npz")
    return held


def described(home: Path) -> Path:
    for name in ("train", "test"):
        np.savez(home / f"{name}.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=[0, 1])
    path = home / "mine.toml"
    path.write_text(
        "classes = 2\nimage_size = 8\nchannels = 1\nmean = [0.5]\nstd = [0.5]\n"
        'train.npz = "train.npz"\ntest.npz = "test.npz"\nfar.other.npz = "test.npz"\n'
    )
    return path


def saved(home: Path, write: Callable[[Path], object]) -> Path:
    """Where something was written, once."""
    path = home / "saved"
    if not path.exists():
        write(path)
    return path


def unused(home: Path) -> Path:
    """Where nothing is."""
    return home / f"new{len(list(home.iterdir()))}"


class Broken(ArraySet):
    """A set that cannot be read."""

    def read(self, indices: Any) -> Any:
        raise UnreadableImage("gone")


def state_dict(home: Path) -> Path:
    """A file of safetensors."""
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    path = home / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return path


OF_SHAPE = {"features": ROWS, "labels": LABELS, "num_classes": 3}
BACKBONE = {"input_std": (0.5,), "input_mean": (0.5,)}
NUMBERS = ("fraction", "percent", "positive", "number", "seed")
HEAD = (jnp.ones((4, 3)), jnp.zeros(3))
TRAINING = Training(Outputs(jnp.asarray(ROWS), ROWS @ HEAD[0]), jnp.asarray(LABELS), head=HEAD)


def outputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, logits and labels."""
    return ROWS, ROWS[:, :3].copy(), LABELS


DOORS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "evaluation.evaluating.evaluate": lambda home: {
        "backbone": tiny.backbone(),
        "train": tiny.pairs(8, 0),
        "test": tiny.pairs(8, 1),
        "ood": {"other": tiny.images(4, 2)},
        "detectors": ["msp"],
        "preprocessing": None,
        "validation": None,
        "id_validation": None,
        "present_classes": "all",
        "seed": 0,
        "batch_size": 8,
        "progress": False,
        "name": "toy",
    },
    "evaluation.from_outputs.evaluate_outputs": lambda home: {
        "train": outputs(),
        "test": outputs(),
        "near": {"other": outputs()},
        "far": {"more": outputs()},
        "head": (np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)),
        "id_validation": None,
        "detectors": ["msp"],
        "present_classes": "all",
        "seed": 0,
        "name": "toy",
        "source": "made here",
    },
    "backbone.backbone.Backbone.from_functions": lambda home: {
        "cls": grood_jax.Backbone,
        "arrays": {},
        "early": tiny.early,
        "late": tiny.late,
        "head": tiny.head,
        "layers": tiny.layers,
        **BACKBONE,
    },
    "backbone.backbone.Backbone.from_nnx": lambda home: {
        "cls": grood_jax.Backbone,
        "model": network(),
        "head": "head",
        "cut": "layer1",
        "example": np.zeros((2, 8, 8, 1), np.float32),
        "call": None,
        "layers": tiny.layers,
        **BACKBONE,
    },
    "backbone.backbone.Backbone.from_linen": lambda home: {
        "cls": grood_jax.Backbone,
        "module": Plain(),
        "variables": {"params": {}},
        "head": None,
        "cut": (tiny.early, tiny.late),
        "example": None,
        "call": None,
        "layers": tiny.layers,
        **BACKBONE,
    },
    "backbone.backbone.Backbone.from_encoder": lambda home: {
        **defaults(grood_jax.Backbone.from_encoder),
        "cls": grood_jax.Backbone,
        "encoder": flat,
        **BACKBONE,
    },
    "backbone.listing.layers": lambda home: {
        **defaults(grood_jax.layers),
        "model": network(),
        "example": np.zeros((2, 8, 8, 1), np.float32),
    },
    "evaluation.heads.fit_head": lambda home: {
        "backbone": grood_jax.Backbone.from_encoder(flat),
        "images": ROWS,
        "labels": LABELS,
        "head": "prototypes",
        "num_classes": 3,
        "batch_size": 4,
    },
    **{
        f"backbone.backbone.Backbone.{name}": lambda home, argument=argument, width=width: {
            "self": replace(tiny.backbone(), local=in_places),
            argument: np.zeros((2, *width), np.float32),
        }
        for name, argument, width in (
            ("normalized", "images", tiny.SHAPE),
            ("hidden", "images", tiny.SHAPE),
            ("middle", "images", tiny.SHAPE),
            ("local_features", "images", tiny.SHAPE),
            ("finish", "hidden", (12,)),
        )
    },
    "benchmarks.check_name": lambda home: {"dataset": "digits"},
    "benchmarks.get": lambda home: {"dataset": "digits"},
    "benchmarks.opening.open_benchmark": lambda home: {
        **defaults(benchmarks.open_benchmark),
        "benchmark": benchmarks.read_benchmark(described(home)),
        "data_dir": home,
        "limit": 2,
    },
    "benchmarks.files.read_benchmark": lambda home: {"path": described(home)},
    "conformal.calibration.calibrate": lambda home: {
        "scores": ROWS[:, 0],
        "classes": LABELS,
        "num_classes": 3,
    },
    "conformal.calibration.conformal_p_values": lambda home: {
        "calibration": calibration.calibrate(ROWS[:, 0]),
        "scores": ROWS[:, 1],
        "classes": None,
    },
    "conformal.calibration.threshold": lambda home: {
        "calibration": calibration.calibrate(ROWS[:, 0]),
        "target_tpr": 0.9,
    },
    "conformal.calibration.is_ood": lambda home: {
        "calibration": calibration.calibrate(ROWS[:, 0], LABELS, 3),
        "scores": ROWS[:, 1],
        "target_tpr": 0.9,
        "classes": LABELS,
    },
    "conformal.calibration.false_discovery": lambda home: {
        "p_values": np.linspace(0.1, 1, 12),
        "rate": 0.1,
    },
    "conformal.drift.init": lambda home: {"calibration_size": 9},
    "conformal.drift.update": lambda home: {
        "state": drift.init(9),
        "p_values": np.linspace(0.1, 1, 10),
    },
    "conformal.drift.DriftMonitor.start": lambda home: {
        "cls": DriftMonitor,
        "calibration_size": 9,
        "false_alarm_rate": 0.05,
    },
    "conformal.drift.DriftMonitor.save": lambda home: {
        "self": DriftMonitor.start(9),
        "path": unused(home),
    },
    "conformal.drift.DriftMonitor.load": lambda home: {
        "cls": DriftMonitor,
        "path": saved(home, DriftMonitor.start(9).save),
    },
    "data.batching.batches": lambda home: {
        "images": pixels(),
        "preprocessing": SPEC.preprocessing,
        "batch_size": 2,
        "indices": np.arange(3),
        "description": None,
        "workers": 1,
        "on_unreadable": None,
        "normalize": True,
    },
    "data.builtin.digits": lambda home: {"part": "test"},
    "data.builtin.photographs": lambda home: {"part": "test"},
    "data.preprocessing.decode": lambda home: {
        "encoded": png(),
        "image_size": 4,
        "channels": 1,
        "max_pixels": 100,
        "resize": 4,
        "interpolation": "bilinear",
        "formats": ("PNG",),
        "upright": True,
        "seconds": 5.0,
    },
    "data.preprocessing.fit_pixels": lambda home: {
        "pixels": np.zeros((8, 8, 1), np.uint8),
        "image_size": 4,
        "channels": 1,
        "resize": 4,
        "interpolation": "bilinear",
    },
    "data.preprocessing.Preprocessing": lambda home: {
        "image_size": 4,
        "channels": 1,
        "mean": (0.5,),
        "std": (0.5,),
        "resize": 4,
        "interpolation": "bilinear",
        "upright": False,
    },
    "deploying.deployment.load": lambda home: {"model": None, "path": saved(home, deployed().save)},
    "deploying.setting.FitConfig": lambda home: defaults(FitConfig),
    "deploying.serving.limits.Limits": lambda home: defaults(Limits),
    "evaluation.setting.Setting": lambda home: defaults(Setting),
    "evaluation.setting.EvalConfig": lambda home: defaults(EvalConfig),
    "training.options.TrainOptions": lambda home: defaults(TrainOptions),
    "deploying.ood_classifier.OODClassifier.fit": lambda home: {"cls": OODClassifier, **fitted()},
    "deploying.ood_classifier.OODClassifier.with_target": lambda home: {
        "self": classifier(),
        "target_tpr": 0.9,
        "per_class": False,
    },
    "deploying.ood_classifier.OODClassifier.predict": lambda home: {
        "self": classifier(),
        "images": tiny.images(2, 0),
    },
    "deploying.ood_classifier.OODClassifier.discoveries": lambda home: {
        "self": classifier(),
        "images": tiny.images(2, 0),
        "rate": 0.1,
    },
    "deploying.ood_classifier.OODClassifier.nearest": lambda home: {
        "self": classifier(),
        "images": tiny.images(2, 0),
        "k": 2,
    },
    "deploying.ood_classifier.OODClassifier.predict_and_nearest": lambda home: {
        "self": classifier(),
        "images": tiny.images(2, 0),
        "k": 2,
    },
    "deploying.ood_classifier.OODClassifier.save": lambda home: {
        "self": classifier(),
        "path": unused(home),
    },
    "deploying.ood_classifier.OODClassifier.load": lambda home: {
        "cls": OODClassifier,
        "path": saved(home, classifier().save),
        "backbone": tiny.backbone(),
    },
    "detectors.register": lambda home: {"factory": detectors.msp, "name": "mine"},
    "detectors.options": lambda home: {"name": "msp"},
    "detectors.create": lambda home: {"name": "knn", "given": {"k": 3}},
    "detectors.rebuild": lambda home: {"name": "knn", "given": {"k": 3}},
    "detectors.base.require_head": lambda home: {"name": "mine", "training": TRAINING},
    "detectors.combine.combine": lambda home: {
        "members": [detectors.msp(), detectors.energy()],
        "how": "mean",
        "held_out": 0.1,
    },
    "detectors.spec.parse_spec": lambda home: {"text": "knn:k=3"},
    "evaluation.results.read": lambda home: {
        "path": (evaluated(home), home / "results.json")[1],
    },
    "evaluation.results.read_scores": lambda home: {
        "results": evaluated(home),
        "path": home / "scores.npz",
    },
    "evaluation.tuning.create_candidates": lambda home: {
        "specs": ("msp",),
        "search_options": False,
    },
    "maths.gradients.ood_gradients": lambda home: {
        "features": ROWS,
        "class_prototypes": ROWS[:3],
        "ood_prototype": ROWS[0],
    },
    "maths.metrics.ood_metrics": lambda home: {"id_scores": ROWS[:, 0], "ood_scores": ROWS[:, 1]},
    "maths.mixup.mix_with_prototypes": lambda home: {
        "hidden": ROWS,
        "prototypes": ROWS[:3],
        "targets": LABELS,
        "weight": 0.5,
    },
    "maths.prototypes.class_prototypes": lambda home: dict(OF_SHAPE),
    "models.creating.create": lambda home: {
        "name": "small",
        "num_classes": 3,
        "channels": 1,
        "image_size": 8,
        "rngs": nnx.Rngs(0),
    },
    "models.creating.stages": lambda home: {"name": "small"},
    "models.torch.files.read_state_dict": lambda home: {"path": state_dict(home)},
    "models.torch.importing.import_state_dict": lambda home: {
        "state": torch_state(),
        "name": "resnet20",
    },
    "neighbors.building.build_bank": lambda home: {
        "vectors": ROWS,
        "dtype": "float32",
        "memory": 2**20,
    },
    "neighbors.building.build_bank_in_pieces": lambda home: {
        "pieces": [ROWS, ROWS],
        "dtype": "float32",
        "memory": 2**20,
    },
    "neighbors.building.bank_rows": lambda home: {"bank": bank()},
    "neighbors.building.merge_banks": lambda home: {"banks": [bank(), bank()]},
    "neighbors.building.grow_bank": lambda home: {"bank": bank(), "vectors": ROWS},
    "neighbors.building.thin_bank": lambda home: {
        "bank": bank(),
        "sampling_ratio": 0.5,
        "key": KEY,
    },
    "neighbors.building.sampled_rows": lambda home: {
        "key": KEY,
        "count": 9,
        "sampling_ratio": 0.5,
    },
    "neighbors.searching.nearest_distances": lambda home: {
        "queries": ROWS,
        "bank": bank(),
        "k": 2,
        "return_indices": True,
    },
    "neighbors.sharding.shard_bank": lambda home: {
        "vectors": ROWS,
        "mesh": Mesh(np.array(jax.devices()[:1]), ("bank",)),
        "bank_axis": "bank",
        "query_axis": None,
        "memory": 2**20,
    },
    "storage.checkpoints.save_model": lambda home: {
        "directory": unused(home),
        "model": network(),
        "spec": SPEC,
    },
    **{
        f"storage.checkpoints.{name}": lambda home: {
            "directory": saved(home, lambda path: checkpoints.save_model(path, network(), SPEC))
        }
        for name in ("stored_in", "open_classifier", "latest_step")
    },
    "storage.banks.save_bank": lambda home: {"directory": unused(home), "bank": bank()},
    "storage.banks.load_bank": lambda home: {
        "directory": saved(home, lambda path: banks.save_bank(path, bank()))
    },
    "support.arrays.shaped": lambda home: {"name": "x", "array": ROWS, "shape": ("N", 4)},
    "support.arrays.classes": lambda home: {
        "name": "x",
        "labels": LABELS,
        "count": 3,
        "shape": (12,),
    },
    "support.checks.at_least": lambda home: {"name": "x", "value": 3, "low": 1, "high": 9},
    "support.checks.function": lambda home: {"name": "x", "value": "mine.py:build"},
    **{f"support.checks.{kind}": lambda home: {"name": "x", "value": 1} for kind in NUMBERS},
}
DOORS["support.checks.fraction"] = lambda home: {"name": "x", "value": 0.5, "zero": False}

DETECTORS = sorted(
    f"detectors.{name}.{name}"
    for name in detectors.names()
    if "Raises:" in docstring_of(getattr(detectors, name, None))
)
"""Their options have right values by default."""


def given_to(name: str, home: Path) -> dict[str, Any]:
    if name in DOORS:
        return DOORS[name](home)
    return defaults(documented()[name])


GIVEN = {
    "evaluation.from_outputs.evaluate_outputs.detectors": "None is all: seconds; test_outputs.py",
    "evaluation.results.read_scores.results": "what `read` gave",
    "maths.metrics.ood_metrics.ModuleNotFoundError": "scikit-learn is here; test_missing.py",
    "support.arrays.classes.count": "a size that the caller has counted",
    "support.arrays.classes.shape": "a literal of ours",
    "support.arrays.shaped.shape": "a literal of ours",
    "support.checks.at_least.high": "a literal of ours",
    "support.checks.at_least.low": "a literal of ours",
}
"""Arguments that are no user's, and errors that need a state of the machine."""

MORE: dict[str, Callable[[], tuple[Any, ...]]] = {
    "evaluation.from_outputs.evaluate_outputs.test": lambda: [[p[:1] for p in outputs()]],
    "benchmarks.get.dataset": lambda: ("nothing.toml",),
    "data.batching.batches.images": lambda: (Broken(**vars(pixels())),),
    "deploying.ood_classifier.OODClassifier.fit.calibration": lambda: ([tiny.images(2, 1)],),
    "deploying.ood_classifier.OODClassifier.with_target.target_tpr": lambda: (0.999,),
    "detectors.auto.auto.present_classes": lambda: ([0], [-1, 2]),
    "detectors.base.require_head.training": lambda: (replace(TRAINING, head=None),),
    "data.preprocessing.decode.max_pixels": lambda: (1,),
    "detectors.create.given": lambda: ({"k": "three"},),
    "detectors.gram.gram.powers": lambda: ((0,), (1, 1)),
    "detectors.register.name": lambda: ("knn",),
    "detectors.residual.residual.dim": lambda: (0,),
    "detectors.spec.parse_spec.text": lambda: ("knn:k",),
    "detectors.temperature_scaling.temperature_scaling.temperature": lambda: (-1.0,),
    "detectors.vim.vim.dim": lambda: (0,),
}
"""Bad values beside those of an argument's kind."""

THEIRS = {
    "backbone.backbone.Backbone.finish.hidden": "a network's own function is given another shape",
    "data.batching.batches.images": "a set says itself what cannot be read",
}
"""Arguments of which others may complain in words of their own."""


CALLED = {
    "backbone.backbone.Backbone.finish.hidden": "late returned",
    "backbone.backbone.Backbone.hidden.images": "early returned",
    "backbone.backbone.Backbone.middle.images": "layers returned",
    "benchmarks.opening.open_benchmark.full_spectrum": "--full-spectrum",
    "benchmarks.opening.open_benchmark.source": "to be had in this form",
    "data.preprocessing.Preprocessing.image_size": "resize",
    "data.preprocessing.decode.encoded": "it is no",
    "data.preprocessing.decode.max_pixels": "after resizing; expected at most",
    "deploying.serving.limits.Limits.max_batch": "max_queue",
    "deploying.serving.limits.Limits.max_body": "max_held",
    "detectors.create.given": "k",
    "detectors.create.name": "detector",
    "detectors.options.name": "detector",
    "detectors.rebuild.given": "has no option",
    "detectors.rebuild.name": "detector",
    "detectors.spec.parse_spec.text": "detector",
    "evaluation.evaluating.evaluate.detectors": "detector",
    "evaluation.tuning.create_candidates.specs": "detector",
    "evaluation.heads.fit_head.images": "features of the training set",
    "maths.mixup.mix_with_prototypes.hidden": "prototypes",
    "maths.prototypes.class_prototypes.features": "labels",
    "models.creating.create.name": "model",
    "models.creating.stages.name": "model",
    "models.torch.importing.import_state_dict.name": "model",
    "neighbors.building.build_bank.vectors": "bank",
    "neighbors.building.build_bank_in_pieces.pieces": "bank",
    "neighbors.building.grow_bank.vectors": "bank",
    "neighbors.building.merge_banks.banks": "bank",
    "neighbors.sharding.shard_bank.vectors": "bank",
    "support.arrays.classes.labels": "x",
    "support.arrays.shaped.array": "x",
    **{f"support.checks.{kind}.value": "x" for kind in (*NUMBERS, "at_least", "function")},
}
"""What messages say of arguments that they do not name."""


def bad_values(value: Any, home: Path) -> Iterator[Any]:
    """What an argument must not be, where it may be ``value``."""
    yield from (None, object(), b"\xff")
    if not isinstance(value, str | Path):
        yield "nonsense"
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        yield from (0, jnp.zeros(2), jax.random.split(value))
    elif isinstance(value, np.ndarray | jax.Array):
        yield from (3.5, value[None], value[:1, ..., None], [[1, 2], [3]], np.array(["a", "b"]))
        yield from (value.astype(np.complex64), np.array([object()]))
        if jnp.issubdtype(value.dtype, jnp.floating):
            for spoilt in (np.nan, np.inf, 1e38):
                yield np.where(np.arange(value.size).reshape(value.shape) == 1, spoilt, value)
        else:
            yield from (value + 0.5, value - 5, value + 100, value.astype(np.int64) + 2**40)
    elif isinstance(value, bool):
        yield from ("yes", 2)
    elif isinstance(value, int):
        yield from (-1, 0, 2.5, True, 2**70, np.nan, [value])
    elif isinstance(value, float):
        yield from (-1.0, 0.0, 2.0, np.nan, np.inf, 10**400, [value], True)
    elif isinstance(value, str):
        yield from ("", "nonsense", 3, "\0", [value])
    elif isinstance(value, Path):
        (home / "file").write_bytes(b"nonsense")
        (home / "folder").mkdir(exist_ok=True)
        (home / "folder" / "file").write_bytes(b"nonsense")
        yield from (home / "nothing" / "here", home / "file", home / "folder", "\0", "x" * 5000)
        yield home / "file" / "below"
    elif isinstance(value, tuple | list):
        yield from (3, [None], (), [object()], ["nonsense"], [np.nan], [-1.0])
    elif isinstance(value, Mapping):
        yield from (3, {"nonsense": None}, {3: 4}, [])
    else:
        yield 3


def bad_for(kind: Any, value: Any, home: Path) -> Iterator[Any]:
    """What an argument of that kind must not be."""
    for bad in bad_values(value, home):
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield bad if isinstance(bad, tuple | list) else [bad]
        elif kind is not inspect.Parameter.VAR_KEYWORD:
            yield bad
        elif isinstance(bad, Mapping) and all(isinstance(option, str) for option in bad):
            yield bad


def call(name: str, function: Any, arguments: Mapping[str, Any]) -> Any:
    """Calls it, and reads what it gives to the end if it gives that bit by bit."""
    given, spread = [], {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in arguments:
            continue
        value = arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            given += list(value)
        elif parameter.kind is parameter.VAR_KEYWORD:
            spread |= value
        elif parameter.kind is parameter.KEYWORD_ONLY:
            spread[parameter.name] = value
        else:
            given.append(value)
    answer = function(*given, **spread)
    return list(answer) if inspect.isgenerator(answer) else answer


def raised_by_us(error: BaseException) -> bool:
    """Whether a ``raise`` of this package is where it comes from."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
    ours = str(Path(grood_jax.__file__).parent) in file
    return ours and linecache.getline(file, line).strip().startswith("raise")


def complaints(name: str, home: Path) -> tuple[list[str], set[type]]:
    function = documented()[name]
    allowed = errors_of(function)
    said, seen = [], set()
    given = given_to(name, home)
    call(name, function, given)
    for parameter, value in given.items():
        place = f"{name}.{parameter}"
        if parameter in ("self", "cls") or place in GIVEN:
            continue
        kind = inspect.signature(function).parameters[parameter].kind
        usual = () if isinstance(value, OURS) else bad_for(kind, value, home)
        for bad in (*usual, *MORE.get(place, tuple)()):
            right = given_to(name, home)
            try:
                call(name, function, right | {parameter: bad})
            except Exception as error:
                seen.add(type(error))
                shown = f"{parameter}={bad!r:.60}: {type(error).__name__}({str(error)[:150]})"
                if not isinstance(error, allowed):
                    said.append(f"not documented: {shown}")
                elif place not in THEIRS and not raised_by_us(error):
                    said.append(f"not of our own: {shown}")
                elif not isinstance(value, Path) and place not in THEIRS:
                    named = (parameter, CALLED.get(place, parameter))
                    if not any(word in str(error) for word in named):
                        said.append(f"does not name it: {shown}")
    return said, seen


def test_each_function_has_a_place():
    names = [name for name in documented() if name not in DETECTORS]
    assert len(names) > 100
    assert [name for name in names if not within(name, INNER) and name not in DOORS] == []
    assert [name for name in DOORS if name not in documented()] == []
    assert [name for name in DOORS if within(name, INNER)] == []
    unused = [part for part in INNER if not any(within(name, {part: ""}) for name in names)]
    assert unused == []


@pytest.fixture(autouse=True)
def _registry(monkeypatch):
    """What a door registers is forgotten."""
    monkeypatch.setattr(detectors, "_factories", dict(detectors._factories))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*DOORS, *DETECTORS])
def test_what_is_raised_is_what_the_docstring_says(name, tmp_path):
    function = documented()[name]
    parameters = set(inspect.signature(function).parameters)
    assert set(given_to(name, tmp_path)) == parameters, "an argument has no right value"
    said, seen = complaints(name, tmp_path)
    assert said == []
    # What is documented is also raised.
    never = [
        kind.__name__
        for kind in errors_of(function)
        if not any(issubclass(error, kind) for error in seen)
        and f"{name}.{kind.__name__}" not in GIVEN
    ]
    assert never == []


def test_a_wrong_docstring_is_noticed(tmp_path, monkeypatch):
    def silent(k):
        """Nothing.

        Raises:
          KeyError: never.
        """
        if k is None:
            raise ValueError("k is None")
        return k + 1

    monkeypatch.setitem(documented(), "support.silent", silent)
    monkeypatch.setitem(DOORS, "support.silent", lambda home: {"k": 1})
    said, seen = complaints("support.silent", tmp_path)
    assert any(line.startswith("not documented: k=None: ValueError") for line in said)
    assert any(line.startswith("not documented: k=<object") for line in said)
    assert seen == {ValueError, TypeError}
