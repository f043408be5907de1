"""Classifiers on disk: orbax checkpoints of the arrays, with what is needed to use them."""

import contextlib
import gc
import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from grood_jax import models
from grood_jax.data import Preprocessing
from grood_jax.models import Staged
from grood_jax.support.errors import UserError

KEPT = 2
"""Checkpoints kept of a training run: the newest, and the one before."""

ABANDONED_SECONDS = 0.5
"""How long reads may still be under way when another read has failed."""


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


def fingerprint(model: nnx.Module) -> str:
    """The `fingerprint_of` a model's arrays."""
    return fingerprint_of(arrays_of(model))


def fingerprint_of(arrays: Any) -> str:
    """A SHA-256 over names, shapes, dtypes and bytes of a pytree of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for path, value in jax.tree_util.tree_leaves_with_path(arrays):
        array = np.ascontiguousarray(value)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_model(directory: Path, model: Staged, spec: ModelSpec) -> None:
    """Writes a classifier into a directory of its own.

    Raises:
      UserError: the directory holds a checkpoint already.
    """
    require_no_checkpoint(directory)
    with manager(directory) as checkpoints:
        save(checkpoints, 0, model, spec)


def require_no_checkpoint(directory: Path) -> None:
    """Refuses a directory that is in use, or makes it.

    Raises:
      UserError: it holds a checkpoint already, or cannot be made.
    """
    if latest_step(directory) is not None:
        raise UserError(f"{directory} holds a checkpoint already; choose another directory")
    try:
        place(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory} cannot be made: {error.strerror}") from error


def place(directory: Path) -> Path:
    """The directory's absolute path.

    Raises:
      UserError: no directory can lie there, or none that orbax could write to.
    """
    try:
        found = directory.expanduser().resolve()
        str(found).encode()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{str(directory)!r} is the path of no directory: {error}") from error
    return found


@contextlib.contextmanager
def manager(directory: Path, kept: int = KEPT) -> Iterator[Any]:
    """An orbax manager over the directory's checkpoints; waits for what is being written."""
    import orbax.checkpoint as ocp

    with _quiet():
        several: dict[str, Any] = {}
        if jax.process_count() > 1:
            # Each of several processes reads, or one writes, without waiting for the others.
            own = jax.process_index()
            place(directory).mkdir(parents=True, exist_ok=True)
            several["create"] = False
            several["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
            )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=kept, enable_async_checkpointing=False, **several
        )
        with ocp.CheckpointManager(place(directory), options=options) as opened:
            yield opened


def save(
    checkpoints: Any,
    step: int,
    model: Staged,
    spec: ModelSpec,
    *,
    optimizer: Any = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Writes one checkpoint: all of it or, when killed, nothing.

    Args:
      checkpoints: from `manager`.
      step: its number.
      model: the network.
      spec: what it is.
      optimizer: the optimizer's state, a pytree of arrays, if training is to go on from here.
      record: what else to keep, in JSON's types.
    """
    import orbax.checkpoint as ocp

    about = {
        "spec": asdict(spec),
        "record": record or {},
        "fingerprint": fingerprint(model),
        "arrays": _layout(arrays_of(model)),
    }
    # Among several processes orbax takes no JAX arrays of one of them.
    stored = (lambda array: array) if jax.process_count() == 1 else np.asarray
    items = {
        "model": ocp.args.StandardSave(jax.tree.map(stored, arrays_of(model))),
        "about": ocp.args.JsonSave(about),
    }
    if optimizer is not None:
        items["optimizer"] = ocp.args.StandardSave(jax.tree.map(stored, optimizer))
    checkpoints.save(step, args=ocp.args.Composite(**items))


def latest_step(directory: Path) -> int | None:
    """The number of the newest whole checkpoint in the directory, if there is one."""
    if not os.path.isdir(place(directory)):
        return None
    with manager(directory) as checkpoints:
        return checkpoints.latest_step()


def read_spec(directory: Path) -> ModelSpec | None:
    """What the directory's newest checkpoint is of, without its arrays; None if there is none.

    Raises:
      UserError: the checkpoint does not say it.
    """
    step = latest_step(directory)
    if step is None:
        return None
    with manager(directory) as checkpoints:
        return _about(checkpoints, directory, step)[1]


def load_model(directory: Path, *, expected_model: str | None = None) -> Loaded:
    """Reads the newest checkpoint of a classifier.

    Args:
      directory: where it lies.
      expected_model: the name of the network that it must be, if only one will do.

    Raises:
      UserError: there is none, it is of another network, or its arrays are not those that were
        saved.
    """
    step = latest_step(directory)
    if step is None:
        raise UserError(
            f"there is no checkpoint in {directory}; make one with python -m grood_jax.train "
            "--output-dir, or python -m grood_jax.models.import_torch --output"
        )
    with manager(directory) as checkpoints:
        about, spec = _about(checkpoints, directory, step)
        with described(f"the checkpoint in {directory}"):
            if expected_model is not None and spec.model != expected_model:
                raise UserError(
                    f"the checkpoint in {directory} is of model {spec.model}; expected "
                    f"{expected_model}"
                )
            wanted = _wanted(directory, spec, about)
        arrays = restore(checkpoints, directory, step, "model", wanted)
    model = model_of(spec, arrays)
    found = fingerprint(model)
    if found != about["fingerprint"]:
        raise UserError(
            f"the checkpoint in {directory} is damaged: its arrays have the fingerprint "
            f"{found[:12]}…; expected {about['fingerprint'][:12]}…"
        )
    return Loaded(model, spec, about["record"], found, step)


def _about(checkpoints: Any, directory: Path, step: int) -> tuple[Mapping[str, Any], ModelSpec]:
    about = restore(checkpoints, directory, step, "about")
    with described(f"the checkpoint in {directory}"):
        missing = {"spec", "record", "fingerprint", "arrays"} - set(about)
        if missing:
            raise UserError(
                f"the checkpoint in {directory} is none of grood-jax: it has no "
                + ", ".join(sorted(missing))
            )
        return about, spec_of(directory, about["spec"])


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


def _wanted(directory: Path, spec: ModelSpec, about: Mapping[str, Any]) -> Any:
    """Arrays like those of the network, which those saved must be like too."""
    wanted = arrays_of(_abstract(spec))
    saved, needed = about["arrays"], _layout(wanted)
    differ = [name for name in saved | needed if saved.get(name) != needed.get(name)]
    if differ:
        name = differ[0]
        raise UserError(
            f"the checkpoint in {directory} does not fit {spec.model} with {spec.num_classes} "
            f"classes: {name} is {saved.get(name, 'absent')}; expected "
            f"{needed.get(name, 'none')} ({len(differ)} arrays differ)"
        )
    return wanted


def load_optimizer(directory: Path, step: int, like: Any) -> Any:
    """Reads the optimizer's state saved at a step; ``like`` is one of the same structure.

    Raises:
      UserError: there is none, or it is another optimizer's.
    """
    with manager(directory) as checkpoints:
        abstract = jax.eval_shape(lambda: like)
        return restore(checkpoints, directory, step, "optimizer", abstract)


def restore(checkpoints: Any, directory: Path, step: int, item: str, like: Any = None) -> Any:
    """Reads one item of a checkpoint; JSON, or arrays ``like`` those given.

    NumPy's stay NumPy's, JAX's come to this process's first device.

    Raises:
      UserError: it is not there, or damaged.
    """
    import orbax.checkpoint as ocp

    if like is not None:
        # They were saved from devices that another process or machine does not have.
        own = SingleDeviceSharding(jax.local_devices()[0])

        def here(array: Any) -> Any:
            if isinstance(array, np.ndarray):
                return array
            return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=own)

        like = jax.tree.map(here, like)
    wanted = ocp.args.JsonRestore() if like is None else ocp.args.StandardRestore(like)
    try:
        with _abandoned_reads():
            return checkpoints.restore(step, args=ocp.args.Composite(**{item: wanted}))[item]
    except Exception as error:
        # Orbax and tensorstore raise whatever their layers raise on a missing or broken file.
        line = (str(error).strip() or repr(error)).splitlines()[0].split(" See full ")[0]
        raise UserError(
            f"checkpoint {step} in {directory} is damaged or incomplete ({item}): {line}"
        ) from error


@contextlib.contextmanager
def _abandoned_reads() -> Iterator[None]:
    """Waits for reads that tensorstore has under way when another one fails.

    They report to an event loop that orbax has closed by then, and Python would print that.
    """
    before = sys.unraisablehook

    def others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = others
    try:
        yield
    except Exception:
        time.sleep(ABANDONED_SECONDS)
        gc.collect()
        raise
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def described(what: str) -> Iterator[None]:
    """Raises UserError for whatever a description that was altered makes its readers raise.

    Args:
      what: was described, for the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} is damaged or of another version: {type(error).__name__} ({error})"[:500]
        ) from error


def _layout(arrays: Any) -> dict[str, str]:
    """Dtype and shape of each array, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
