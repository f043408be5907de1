"""Classifiers on disk: their arrays, with what is needed to use them."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from grood_jax import models
from grood_jax.backbone.backbone import Backbone
from grood_jax.data import Preprocessing
from grood_jax.models import Staged
from grood_jax.storage import containers
from grood_jax.storage.containers import Container, manager
from grood_jax.storage.earlier import CHECKPOINT, Earlier
from grood_jax.support import manifest as manifests
from grood_jax.support.errors import UserError
from grood_jax.support.manifest import fingerprint_of
from grood_jax.support.structures import by_name, from_names, is_key

HOW_TO_MAKE = (
    "make one with python -m grood_jax.train --output-dir, or python -m "
    "grood_jax.models.import_torch --output"
)

TORCH = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors", ".tar", ".th")
"""How the names of files of PyTorch's weights end."""

DEFAULT_CUT = "layer1"
"""Where networks by name are cut unless told otherwise."""

__all__ = [
    "DEFAULT_CUT",
    "Loaded",
    "ModelSpec",
    "Stored",
    "backbone_of",
    "fingerprint",
    "fingerprint_of",
    "latest_step",
    "load_model",
    "load_optimizer",
    "manager",
    "open_classifier",
    "save",
    "save_model",
    "stored_in",
]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a classifier's arrays need beside them to be used.

    Attributes:
      model: the network's name, for `grood_jax.models.create`.
      num_classes: its classes.
      preprocessing: what its input is.
      source: where the weights come from, in words, for the results.
    """

    model: str
    num_classes: int
    preprocessing: Preprocessing
    source: str


@dataclass(frozen=True)
class Loaded:
    """A classifier read from disk.

    Attributes:
      model: the network.
      spec: what it is.
      record: what else was saved with it: a training run's options and history.
      fingerprint: a hash of its arrays.
      step: the checkpoint's number; for a training run the epochs it has seen.
    """

    model: Staged
    spec: ModelSpec
    record: Mapping[str, Any]
    fingerprint: str
    step: int

    def backbone(self, cut: str | None = None) -> Backbone:
        """The network, cut after a stage, that takes images of bytes.

        Args:
          cut: the stage; `DEFAULT_CUT` by default.
        """
        return backbone_of(self.model, self.spec, cut or DEFAULT_CUT)


@dataclass(frozen=True)
class Stored:
    """A classifier on disk: what it is has been read, and its arrays are when asked for.

    Attributes:
      container: where it lies; of it the step that was the newest when it was opened.
      spec: what it is.
      record: what else was saved with it: a training run's options and history.
      fingerprint: a hash of its arrays.
    """

    container: Container
    spec: ModelSpec
    record: Mapping[str, Any]
    fingerprint: str

    @property
    def step(self) -> int:
        """The checkpoint's number; for a training run the epochs it has seen."""
        return self.container.step

    def load(self, *, expected_model: str | None = None) -> Loaded:
        """Reads the network.

        Args:
          expected_model: the name of the network that it must be, if only one will do.

        Raises:
          UserError: it is of another network, or its arrays are not those that were saved.
        """
        directory, spec = self.container.directory, self.spec
        if expected_model is not None and spec.model != expected_model:
            raise UserError(
                f"the checkpoint in {directory} is of model {spec.model}; expected {expected_model}"
            )
        with manifests.described(CHECKPOINT, directory):
            wanted = arrays_of(_abstract(spec))
            self._require_fit(wanted)
        model = model_of(spec, self._arrays(wanted))
        return Loaded(model, spec, self.record, self.fingerprint, self.step)

    def optimizer(self, like: Any) -> Any:
        """Reads the optimizer's state; ``like`` is one of the same structure.

        Raises:
          UserError: there is none, or it is another optimizer's.
        """
        if isinstance(self.container.manifest, Earlier):
            return self._earlier("optimizer", like)
        arrays = self.container.read("optimizer")
        if _layout(like) != {name: f"{a.dtype}{list(a.shape)}" for name, a in arrays.items()}:
            raise UserError(f"the checkpoint in {self.container.directory} has another optimizer's")
        return from_names(like, arrays)

    def _require_fit(self, wanted: Any) -> None:
        """Arrays like those of the network are what was saved, or UserError."""
        saved = {name: str(a) for name, a in self.container.manifest.arrays["model"].items()}
        needed = _layout(wanted)
        differ = [name for name in saved | needed if saved.get(name) != needed.get(name)]
        if differ:
            name = differ[0]
            raise UserError(
                f"the checkpoint in {self.container.directory} does not fit {self.spec.model} with "
                f"{self.spec.num_classes} classes: {name} is {saved.get(name, 'absent')}; expected "
                f"{needed.get(name, 'none')} ({len(differ)} arrays differ)"
            )

    def _arrays(self, wanted: Any) -> Any:
        manifest = self.container.manifest
        if not isinstance(manifest, Earlier):
            return from_names(wanted, self.container.read("model"))
        arrays = self._earlier("model", wanted)
        if fingerprint_of(arrays) != self.fingerprint:
            raise manifest.damaged("its arrays are not what was saved")
        return arrays

    def _earlier(self, item: str, like: Any) -> Any:
        # It kept the tree that it was given, not arrays by name.
        empty = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), like)
        restored = containers.restore(self.container.directory, self.step, item, empty, CHECKPOINT)
        return jax.tree.map(jax.numpy.asarray, restored)


def backbone_of(model: Any, spec: ModelSpec, cut: str) -> Backbone:
    """The backbone of a network by name, cut after a stage, that takes images of bytes."""
    return Backbone.from_nnx(
        model, cut=cut, input_std=spec.preprocessing.std, input_mean=spec.preprocessing.mean
    )


def fingerprint(model: nnx.Module) -> str:
    """The `fingerprint_of` a model's arrays."""
    return fingerprint_of(arrays_of(model))


def save_model(directory: str | Path, model: Staged, spec: ModelSpec) -> None:
    """Writes a classifier into a directory of its own.

    Raises:
      TypeError: ``directory`` is no path, or ``model`` no network.
      UserError: the directory holds a checkpoint already.
    """
    if not isinstance(model, Staged):
        raise TypeError(f"model is a {type(model).__name__}; expected one of grood_jax.models")
    with manager(containers.require_unused(directory)) as opened:
        save(opened, 0, model, spec)


def save(
    opened: Any,
    step: int,
    model: Staged,
    spec: ModelSpec,
    *,
    optimizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes one checkpoint: all of it or, when killed, nothing.

    Args:
      opened: from `manager`.
      step: its number.
      model: the network.
      spec: what it is.
      optimizer: the optimizer's state, a pytree of arrays, if training is to go on from here.
      record: what else to keep, in JSON's types.
    """
    about = {
        "spec": asdict(spec),
        "record": dict(record or {}),
        "fingerprint": fingerprint(model),
    }
    groups = {"model": by_name(arrays_of(model))}
    if optimizer is not None:
        groups["optimizer"] = by_name(optimizer)
    containers.save(opened, step, CHECKPOINT, about, groups)


def stored_in(directory: str | Path) -> Stored | None:
    """The newest whole checkpoint of a classifier in the directory, opened once; None if none.

    Raises:
      TypeError: ``directory`` is no path.
      UserError: what lies there is a file, something else, or damaged.
    """
    return None if latest_step(directory) is None else open_classifier(directory)


def open_classifier(directory: str | Path) -> Stored:
    """As `stored_in`, where there must be one.

    Raises:
      TypeError: ``directory`` is no path.
      UserError: there is none, or as `stored_in`.
    """
    _require_no_file(directory)
    return _stored(containers.open_latest(directory, CHECKPOINT, HOW_TO_MAKE))


def _stored(container: Container) -> Stored:
    about = container.manifest.about
    with manifests.described(CHECKPOINT, container.directory):
        spec = spec_of(container.directory, about["spec"])
        return Stored(container, spec, dict(about["record"]), str(about["fingerprint"]))


def latest_step(directory: str | Path) -> int | None:
    """The number of the newest whole checkpoint in the directory, if there is one.

    Raises:
      TypeError: ``directory`` is no path.
      UserError: it is a file.
    """
    _require_no_file(directory)
    return containers.latest_step(directory)


def load_model(directory: str | Path, *, expected_model: str | None = None) -> Loaded:
    """Reads the newest checkpoint of a classifier; see `open_classifier` and `Stored.load`."""
    return open_classifier(directory).load(expected_model=expected_model)


def load_optimizer(directory: str | Path, step: int, like: Any) -> Any:
    """Reads the state of the optimizer that was saved at a step; see `Stored.optimizer`."""
    container = containers.open_step(containers.place(directory), step, CHECKPOINT)
    return _stored(container).optimizer(like)


def model_of(spec: ModelSpec, arrays: Any) -> Staged:
    """The network of that description with these arrays, as `arrays_of` gives them."""
    graph, state = nnx.split(_abstract(spec))
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(graph, state)


def _abstract(spec: ModelSpec) -> Staged:
    return nnx.eval_shape(
        lambda: models.create(
            spec.model,
            num_classes=spec.num_classes,
            channels=spec.preprocessing.channels,
            image_size=spec.preprocessing.image_size,
            rngs=nnx.Rngs(0),
        )
    )


def _layout(arrays: Any) -> dict[str, str]:
    """Dtype and shape by name, of what is stored of each array."""

    def stored(leaf: Any) -> Any:
        return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{a.dtype}{list(a.shape)}"
        for path, a in jax.tree_util.tree_leaves_with_path(jax.tree.map(stored, arrays))
    }


def _require_no_file(directory: str | Path) -> None:
    path = containers.place(directory)
    if path.is_file():
        how = HOW_TO_MAKE
        if path.suffix.lower() in TORCH:
            how = (
                "import PyTorch's weights first, with python -m grood_jax.models.import_torch "
                f"{shlex.quote(str(directory))} --model NAME --output DIRECTORY"
            )
        raise UserError(f"{directory} is a file; expected the directory of a checkpoint: {how}")


def spec_of(directory: Path, saved: Any) -> ModelSpec:
    """A description as it was saved, with `dataclasses.asdict`.

    Raises:
      UserError: it is none; ``directory`` is named.
    """
    try:
        given = dict(saved)
        sizes = dict(given.pop("preprocessing"))
        sizes |= {"mean": tuple(sizes["mean"]), "std": tuple(sizes["std"])}
        return ModelSpec(preprocessing=Preprocessing(**sizes), **given)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"the checkpoint in {directory} does not say what it is of ({error})"
        ) from error


def arrays_of(model: nnx.Module) -> Any:
    """A model's arrays, nested dictionaries."""
    # Keys as strings: the files have no others, and the order of leaves must not depend on it.
    return nnx.to_pure_dict(nnx.split(model)[1])
