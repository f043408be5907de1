"""Detectors by name. Each is a factory that returns a pair of pure functions, `Detector`."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from grood_jax.detectors.adascale import adascale
from grood_jax.detectors.ash import ash
from grood_jax.detectors.auto import AutoState, auto
from grood_jax.detectors.base import (
    Detector,
    MixedTraining,
    Noise,
    OODSource,
    Training,
    Validation,
    require_head,
)
from grood_jax.detectors.cfood import cfood
from grood_jax.detectors.combine import combine
from grood_jax.detectors.combood import combood
from grood_jax.detectors.dice import dice
from grood_jax.detectors.energy import energy
from grood_jax.detectors.entropy import entropy
from grood_jax.detectors.fdbd import fdbd
from grood_jax.detectors.gen import gen
from grood_jax.detectors.gl_mcm import gl_mcm
from grood_jax.detectors.global_mahalanobis import global_mahalanobis
from grood_jax.detectors.gmm import gmm
from grood_jax.detectors.gradnorm import gradnorm
from grood_jax.detectors.gram import gram
from grood_jax.detectors.grood import GroodState, grood
from grood_jax.detectors.i_odin import i_odin
from grood_jax.detectors.kl_matching import kl_matching
from grood_jax.detectors.knn import knn
from grood_jax.detectors.lts import lts
from grood_jax.detectors.mahalanobis import mahalanobis
from grood_jax.detectors.mahalanobis_ensemble import mahalanobis_ensemble
from grood_jax.detectors.max_logit import max_logit
from grood_jax.detectors.mcm import mcm
from grood_jax.detectors.msp import msp
from grood_jax.detectors.nac_ue import nac_ue
from grood_jax.detectors.nci import nci
from grood_jax.detectors.nnguide import nnguide
from grood_jax.detectors.odin import odin
from grood_jax.detectors.openmax import openmax
from grood_jax.detectors.rankfeat import rankfeat
from grood_jax.detectors.react import react
from grood_jax.detectors.relation import relation
from grood_jax.detectors.relative_mahalanobis import relative_mahalanobis
from grood_jax.detectors.residual import residual
from grood_jax.detectors.scale import scale
from grood_jax.detectors.she import she
from grood_jax.detectors.temperature_scaling import temperature_scaling
from grood_jax.detectors.vim import vim
from grood_jax.detectors.vra import vra
from grood_jax.detectors.weiper import weiper
from grood_jax.support import checks

ENTRY_POINTS = "grood_jax.detectors"
"""The group of entry points under which other packages offer detectors."""

_factories: dict[str, Callable[..., Detector]] = {
    factory.__name__: factory
    for factory in (
        grood,
        msp,
        adascale,
        ash,
        auto,
        cfood,
        combood,
        dice,
        energy,
        entropy,
        fdbd,
        gen,
        gl_mcm,
        global_mahalanobis,
        gmm,
        gradnorm,
        gram,
        i_odin,
        kl_matching,
        knn,
        lts,
        mahalanobis,
        mahalanobis_ensemble,
        max_logit,
        mcm,
        nac_ue,
        nci,
        nnguide,
        odin,
        openmax,
        rankfeat,
        react,
        relation,
        relative_mahalanobis,
        residual,
        scale,
        she,
        temperature_scaling,
        vim,
        vra,
        weiper,
    )
}

_PURE = frozenset(_factories.values())
"""Factories whose detectors depend on their options alone; of other packages' nothing is known."""

KEPT = 128
"""Detectors that `create` keeps: a detector made anew is compiled anew."""

_made: dict[tuple[str, str], Detector] = {}

__all__ = [
    "AutoState",
    "Detector",
    "GroodState",
    "MixedTraining",
    "Noise",
    "OODSource",
    "Training",
    "Validation",
    "adascale",
    "ash",
    "auto",
    "cfood",
    "combine",
    "combood",
    "create",
    "dice",
    "energy",
    "entropy",
    "fdbd",
    "gen",
    "gl_mcm",
    "global_mahalanobis",
    "gmm",
    "gradnorm",
    "gram",
    "grood",
    "i_odin",
    "kl_matching",
    "knn",
    "lts",
    "mahalanobis",
    "mahalanobis_ensemble",
    "max_logit",
    "mcm",
    "msp",
    "nac_ue",
    "names",
    "nci",
    "nnguide",
    "odin",
    "openmax",
    "options",
    "rankfeat",
    "react",
    "rebuild",
    "register",
    "relation",
    "relative_mahalanobis",
    "require_head",
    "residual",
    "scale",
    "she",
    "temperature_scaling",
    "vim",
    "vra",
    "weiper",
]


def register(factory: Callable[..., Detector], name: str | None = None) -> None:
    """Makes a detector known by name, to `create` and to the command line.

    A package does this for its users by an entry point of the group ``grood_jax.detectors``:
    ``mine = "my_package:mine"`` in ``[project.entry-points."grood_jax.detectors"]``.

    Args:
      factory: makes the detector; its options are keywords with defaults.
      name: the name, by default the factory's own.

    Raises:
      TypeError: ``factory`` is no function, or ``name`` no string.
      ValueError: another factory has that name, or an option has no default.
    """
    if not callable(factory):
        raise TypeError(f"factory is {factory!r}; expected a function that makes a detector")
    name = factory.__name__ if name is None else checks.text("name", name)
    if _factories.get(name, factory) is not factory:
        raise ValueError(f"detector {name!r} is registered already; choose another name")
    for option, parameter in inspect.signature(factory).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{name}'s option {option!r} has no default; expected one")
    _factories[name] = factory


@functools.cache
def _load_entry_points() -> None:
    for point in metadata.entry_points(group=ENTRY_POINTS):
        register(point.load(), point.name)


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    _load_entry_points()
    return tuple(_factories)


def options(name: str) -> dict[str, Any]:
    """The options of a detector, with their defaults.

    Raises:
      ValueError: no detector has that name.

    Examples:
      >>> from grood_jax import detectors
      >>> detectors.options("energy")
      {'temperature': 1.0}
    """
    checks.choice("detector", name, names())
    parameters = inspect.signature(_factories[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def create(name: str, **given: Any) -> Detector:
    """Makes a detector by name; asked again with the same options, gives the same one.

    What JAX compiled for it need not be compiled again then.

    Args:
      name: one of `names()`.
      **given: its options, as its factory takes them.

    Raises:
      ValueError: no detector has that name, or it has no such option (the nearest is named), or
        an option is outside its range.
      TypeError: an option is of the wrong type.

    Examples:
      >>> from grood_jax import detectors
      >>> detectors.create("knn", k=10).options
      {'k': 10, 'sampling_ratio': 1.0}
    """
    known = options(name)
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(known) or "no options"
            raise ValueError(f"{name} has no option {option!r}; expected {listed}{hint}")
    factory = _factories[name]
    if factory not in _PURE or not _plain(given):
        return factory(**given)
    # By what is written, for 1, 1.0 and True are equal.
    written = repr(sorted(given.items()))
    made = _made.get((name, written))
    if made is None:
        made = factory(**given)
        if len(_made) >= KEPT:
            _made.clear()
        _made[name, written] = made
    return made


def _plain(given: Any) -> bool:
    """Whether options are numbers, words and lists of them, which `repr` writes whole."""
    if isinstance(given, dict):
        return all(map(_plain, given.values()))
    if type(given) in (list, tuple):
        return all(map(_plain, given))
    return given is None or type(given) in (bool, int, float, str)


def rebuild(name: str, given: Mapping[str, Any]) -> Detector:
    """The detector that has this `Detector.name` and these `Detector.options`.

    Raises:
      ValueError, TypeError: as `create`; ``given`` is no mapping of options by name.
    """
    if not isinstance(given, Mapping) or not all(isinstance(option, str) for option in given):
        raise TypeError(f"given is {given!r}; expected options by name")
    if name != "combine":
        return create(name, **given)
    members = [
        rebuild(member["name"], {key: value for key, value in member.items() if key != "name"})
        for member in given["members"]
    ]
    return combine(members, **{key: value for key, value in given.items() if key != "members"})
