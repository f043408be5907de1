"""Detectors by name. Each is a factory that returns a pair of pure functions, `Detector`."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from grood_jax import checks
from grood_jax.detectors.base import (
    Detector,
    MixedTraining,
    Noise,
    OODSource,
    Training,
    Validation,
    require_head,
)
from grood_jax.detectors.grood import GroodState, grood
from grood_jax.detectors.msp import msp

_FACTORIES: dict[str, Callable[..., Detector]] = {"grood": grood, "msp": msp}

__all__ = [
    "Detector",
    "GroodState",
    "MixedTraining",
    "Noise",
    "OODSource",
    "Training",
    "Validation",
    "create",
    "grood",
    "msp",
    "names",
    "options",
    "require_head",
]


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(_FACTORIES)


def options(name: str) -> dict[str, Any]:
    """The options of a detector, with their defaults.

    Raises:
      ValueError: no detector has that name.
    """
    checks.choice("detector", name, names())
    parameters = inspect.signature(_FACTORIES[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def create(name: str, **given: Any) -> Detector:
    """Makes a detector by name.

    Args:
      name: one of `names()`.
      **given: its options, as its factory takes them.

    Raises:
      ValueError: no detector has that name, or it has no such option (the nearest is named), or
        an option is outside its range.
      TypeError: an option is of the wrong type.
    """
    known = options(name)
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(known) or "no options"
            raise ValueError(f"{name} has no option {option!r}; expected {listed}{hint}")
    return _FACTORIES[name](**given)
