"""Benchmarks of a user's own, described in a TOML or Python file."""

import runpy
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from grood_jax import models
from grood_jax.benchmarks.base import Benchmark
from grood_jax.data.finding import SetSpec, Source
from grood_jax.data.folders import FolderSource, ImageListSource
from grood_jax.data.npz import NpzSource
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.tfds import TfdsSource
from grood_jax.support import checks
from grood_jax.support.errors import UserError, first_line

SUFFIXES = (".toml", ".py")

_SIZES = ("image_size", "channels", "mean", "std", "resize", "interpolation", "upright")
_SETS = ("train", "test", "id_validation", "validation")
_GROUPS = ("near", "far", "shifted")
_KEYS = ("name", "classes", "model", *_SIZES, *_SETS, *_GROUPS)


def read_benchmark(path: Path) -> Benchmark:
    """Reads a benchmark's description.

    A Python file is run, and is to assign a `Benchmark` to ``benchmark``. A TOML file has the keys
    ``classes`` (their names, or how many), ``image_size``, ``mean``, ``std``, perhaps ``name``,
    ``channels``, ``resize``, ``interpolation``, ``upright`` and ``model``, and tables for its sets:
    ``train``, ``test``, perhaps ``validation`` (held-out OOD images) and ``id_validation``, and by
    name ``near.NAME``, ``far.NAME`` and ``shifted.NAME``. A set's table says where it lies:
    ``folder``, ``npz``, ``imglist`` with ``images``, or ``tfds`` ("NAME:SPLIT"); tried in that
    order if there are several. Paths start from the data directory, which is the file's own folder
    by default. Names of sets differ, and are none of those of the benchmark's own sets.

    Args:
      path: a file that ends in .toml or .py.

    Raises:
      TypeError: ``path`` is no path.
      UserError: it cannot be read, or a key is missing, unknown or of the wrong kind.
    """
    path = checks.path("path", path).expanduser()
    try:
        there = path.is_file()
    except OSError as error:
        raise UserError(f"dataset is {str(path)!r}; {error.strerror}") from error
    if not there:
        raise UserError(f"dataset is {str(path)!r}; there is no such file")
    try:
        made = _run(path) if path.suffix == ".py" else _described(path)
    except Exception as error:
        # A Python file may raise anything.
        why = f"{type(error).__name__}: " if path.suffix == ".py" else ""
        raise UserError(f"{path} describes no benchmark: {why}{first_line(error)}") from error
    return made if made.data_dir is not None else replace(made, data_dir=path.parent)


def _run(path: Path) -> Benchmark:
    found = runpy.run_path(str(path)).get("benchmark")
    if not isinstance(found, Benchmark):
        kind = "nothing" if found is None else f"a {type(found).__name__}"
        raise TypeError(f"benchmark is {kind}; expected a grood_jax.benchmarks.Benchmark")
    return found


def _described(path: Path) -> Benchmark:
    with path.open("rb") as stream:
        given = tomllib.load(stream)
    for key in given:
        checks.choice("key", key, _KEYS)
    needed = ("classes", "image_size", "mean", "std", "train", "test")
    absent = [key for key in needed if key not in given]
    if absent:
        raise ValueError(f"{', '.join(absent)} is missing")
    classes = given["classes"]
    names = tuple(map(str, classes)) if isinstance(classes, list) else ()
    if len(set(names)) != len(names):
        raise ValueError(f"classes is {classes}; expected different names")
    sizes = {"channels": 3} | {key: given[key] for key in _SIZES if key in given}
    sizes |= {key: tuple(map(float, sizes[key])) for key in ("mean", "std")}
    sets = {key: _set(key, given[key], _labels(key, names)) for key in _SETS if key in given}
    groups = {
        group: tuple(
            _set(name, table, _labels(group, names))
            for name, table in _table(group, given.get(group, {})).items()
        )
        for group in _GROUPS
    }
    if not groups["near"] and not groups["far"]:
        raise ValueError("near and far hold no set; expected one at least")
    name = str(given.get("name", path.stem))
    model: Any = checks.choice("model", given.get("model", "resnet18_32x32"), models.names())
    count = len(names) or checks.at_least("classes", classes, 2)
    return Benchmark(
        name=name,
        num_classes=count,
        preprocessing=Preprocessing(**sizes),
        train=replace(sets["train"], name=name),
        test=replace(sets["test"], name=name),
        near=groups["near"],
        far=groups["far"],
        validation=sets.get("validation"),
        model=model,
        class_names=names,
        shifted=groups["shifted"],
        id_validation=sets.get("id_validation"),
    )


def _labels(role: str, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names of the classes that a set in this role has, if it has labels; None if it has none."""
    return None if role in ("validation", "near", "far") else names


def _set(name: str, given: Any, classes: tuple[str, ...] | None) -> SetSpec:
    table = _table(name, given)
    sources: list[Source] = []
    for key in ("folder", "npz", "imglist", "tfds"):
        if key not in table:
            continue
        where = str(table[key])
        if key == "folder":
            if classes == ():
                raise ValueError(
                    f"{name} is a folder, and classes is a number; expected names of its subfolders"
                )
            sources.append(FolderSource(where, classes or ()))
        elif key == "npz":
            sources.append(NpzSource(where))
        elif key == "imglist":
            sources.append(ImageListSource(where, str(table.get("images", "."))))
        else:
            dataset, _, split = where.rpartition(":")
            if not dataset or not split:
                raise ValueError(f"{name}.tfds is {where!r}; expected 'NAME:SPLIT'")
            sources.append(TfdsSource(dataset, split, in_catalogue=False))
    strange = sorted(set(table) - {"folder", "npz", "imglist", "images", "tfds"})
    if strange or not sources:
        raise ValueError(
            f"{name} has the keys {', '.join(table) or 'none'}; expected folder, npz, tfds, or "
            "imglist with images"
        )
    return SetSpec(name, tuple(sources))


def _table(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is {given!r}; expected a table")
    return given
