"""A model of the user's own, made by a function that the command line names."""

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from grood_jax.backbone import adapting
from grood_jax.backbone.backbone import Backbone
from grood_jax.backbone.naming import near
from grood_jax.data import Preprocessing
from grood_jax.storage.checkpoints import ModelSpec, fingerprint_of
from grood_jax.support.errors import UserError, first_line

EXPECTED = (
    "expected a grood_jax.Backbone, a flax.nnx module, or a pair (flax.linen module, variables)"
)


@dataclass(frozen=True)
class OwnModel:
    """What a function made; it stands where a `Loaded` classifier does.

    Attributes:
      network: cut, and it takes bytes.
      spec: what it is: ``model`` is the function as it was named, ``preprocessing`` has the
        network's own mean and deviation if it has them, ``num_classes`` is 0 for an encoder that
        has no head yet.
      program: what it computes, in words that are the same in every process.
      model: None: it is made anew, and not saved.
      step: 0.
    """

    network: Backbone
    spec: ModelSpec
    program: str
    model: None = None
    step: int = 0

    def backbone(self, cut: str | None = None) -> Backbone:
        """The network; it is cut already."""
        del cut
        return self.network

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its arrays and of what it computes: the function may have been rewritten."""
        words = f"{fingerprint_of(self.network.arrays)} {self.network.wanted_head} {self.program}"
        return hashlib.sha256(words.encode()).hexdigest()


def is_function(model: str | None) -> bool:
    """Whether a model's name is that of a function that makes it."""
    return model is not None and ":" in model


def make(
    where: str, preprocessing: Preprocessing, cut: str | None = None, *, normalizes: bool = False
) -> OwnModel:
    """Makes a model by calling a function.

    Args:
      where: ``package.module:function`` or ``path/to/file.py:function``. The function takes no
        arguments and returns a `Backbone`, a flax.nnx module, or a flax.linen module with its
        variables. The head of a module is found as `Backbone.from_nnx` finds it.
      preprocessing: what images are brought to, if the model does not say.
      cut: the submodule after which a module is cut; one about a third of the way by default.
      normalizes: whether the model must know itself what its images are normalised by.

    Raises:
      UserError: there is no such file, module or function, it raises an error, or returns something
        else; the model cannot run on such images.
    """
    made = _call(where)
    shape = (2, preprocessing.image_size, preprocessing.image_size, preprocessing.channels)
    example = np.zeros(shape, np.float32)
    try:
        backbone = _backbone(where, made, cut, example)
        if normalizes and not backbone.takes_bytes:
            raise UserError(
                f"model {where} does not say how bytes are normalised; expected a Backbone with "
                "input_mean and input_std"
            )
        std = backbone.input_std or preprocessing.std
        mean = backbone.input_mean or preprocessing.mean
        known = replace(preprocessing, std=std, mean=mean)
        backbone = replace(backbone, input_std=std, input_mean=mean)
        program = jax.make_jaxpr(lambda own, x: own(x).logits)(backbone, example)
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"model {where}: {first_line(error)}") from error
    spec = ModelSpec(
        model=where,
        num_classes=program.out_avals[0].shape[1],
        preprocessing=known,
        source=f"made by {where}",
    )
    # Functions within are written with their address in memory.
    return OwnModel(backbone, spec, re.sub(r"0x[0-9a-f]+", "", str(program)))


def _backbone(where: str, made: Any, cut: str | None, example: np.ndarray) -> Backbone:
    if isinstance(made, Backbone):
        if cut is not None:
            raise UserError(f"cut is {cut!r}, and {where} returns a Backbone, which is cut already")
        return made
    if isinstance(made, tuple) and len(made) == 2 and adapting.is_linen(made[0]):
        return Backbone.from_linen(*made, cut=cut, example=example)
    if adapting.is_nnx(made):
        return Backbone.from_nnx(made, cut=cut, example=example)
    raise UserError(f"model {where} returned a {type(made).__name__}; {EXPECTED}")


def _call(where: str) -> Any:
    place, _, name = where.rpartition(":")
    module = _of_file(where, Path(place)) if place.endswith(".py") else _of_name(where, place)
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        known = [own for own, value in vars(module).items() if callable(value) and own[0] != "_"]
        raise UserError(
            f"model is {where!r}; {place} has no function {name!r}; {near(name, known)}"
        )
    try:
        return function()
    except Exception as error:
        # It is the user's, and may raise anything.
        raise UserError(_raised(f"{name}()", where, error)) from error


def _of_file(where: str, path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"model is {where!r}; there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _importable(path.resolve().parent)
    # Dataclasses and the like look for their module by its name.
    earlier = sys.modules.get(path.stem)
    if earlier is None or getattr(earlier, "__file__", None) == str(path.resolve()):
        sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise UserError(_raised(str(path), where, error)) from error
    return module


def _of_name(where: str, name: str) -> ModuleType:
    _importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"model is {where!r}; there is no module {error.name!r} here; expected "
                "package.module:function or path/to/file.py:function"
            ) from error
        raise UserError(_raised(name, where, error)) from error
    except Exception as error:
        raise UserError(_raised(name, where, error)) from error


def _raised(what: str, where: str, error: Exception) -> str:
    return f"model is {where!r}; {what} raised {type(error).__name__}: {first_line(error)}"


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
