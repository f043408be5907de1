"""A network's outputs in a folder, in forms that any program writes.

``train``, ``test``, ``near/NAME`` and ``far/NAME`` hold ``features`` (N, D) and ``logits`` (N, C),
the first two also ``labels`` (N,). There may be ``head``, with ``weights`` and ``bias``, and
``id_validation``, as ``test`` is. Each is a file ``.npz`` or ``.safetensors``, or a folder of
``.npy`` files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grood_jax.models.torch import safetensors
from grood_jax.support import npz
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.files import open_regular, require_directory, written_whole

Arrays = Mapping[str, np.ndarray]

SUFFIXES = (".npz", ".safetensors")
OF_SETS, OF_HEADS = ("features", "logits"), ("weights",)
GROUPS = ("near", "far")


@dataclass(frozen=True)
class OutputsFolder:
    """What lies in a folder of outputs.

    Attributes:
      train: arrays of the training set.
      test: of the test set.
      near: of OOD sets that look like the training data, by name.
      far: of those that do not.
      head: weights and bias of the class head, if they are there.
      id_validation: as the test set, of images that detectors may be fitted on, if it is there.
    """

    train: Arrays
    test: Arrays
    near: Mapping[str, Arrays]
    far: Mapping[str, Arrays]
    head: Arrays | None = None
    id_validation: Arrays | None = None


def read_outputs(folder: Path) -> OutputsFolder:
    """Reads a folder of outputs.

    Raises:
      UserError: there is none, a set is missing, or a file is damaged or lacks an array.
    """
    if not folder.is_dir():
        raise UserError(f"outputs is {folder}; expected a folder with train, test, near and far")
    sets = {name: _found(folder, name) for name in ("train", "test", "head", "id_validation")}
    absent = [name for name in ("train", "test") if sets[name] is None]
    if absent:
        raise UserError(
            f"{folder} has no {' and no '.join(absent)}; expected {absent[0]}.npz, "
            f"{absent[0]}.safetensors or a folder {absent[0]} of .npy files"
        )
    groups = {group: _names(folder / group) for group in GROUPS}
    if not any(groups.values()):
        raise UserError(f"{folder} has no OOD sets; expected some in {folder / 'near'} or far")
    ood = {
        group: {name: _read(_required(folder / group, name), OF_SETS) for name in names}
        for group, names in groups.items()
    }
    head, held = sets["head"], sets["id_validation"]
    return OutputsFolder(
        _read(_required(folder, "train"), OF_SETS),
        _read(_required(folder, "test"), OF_SETS),
        ood["near"],
        ood["far"],
        None if head is None else _read(head, OF_HEADS),
        None if held is None else _read(held, OF_SETS),
    )


def write_outputs(folder: Path, outputs: OutputsFolder) -> None:
    """Writes a folder of outputs, each set as a ``.npz``; files of other names are left alone.

    Raises:
      UserError: a set's name cannot be that of a file, or the folder cannot be written to.
    """
    for place in (folder, *(folder / group for group in GROUPS)):
        require_directory("save_outputs", place)
    for group, sets in (("near", outputs.near), ("far", outputs.far)):
        for name, arrays in sets.items():
            if Path(name).name != name:
                raise UserError(f"the set {name!r} cannot be a file; expected a plain name")
            _write(folder / group / f"{name}.npz", arrays)
    _write(folder / "train.npz", outputs.train)
    _write(folder / "test.npz", outputs.test)
    for name, extra in (("head", outputs.head), ("id_validation", outputs.id_validation)):
        if extra is not None:
            _write(folder / f"{name}.npz", extra)


def _write(path: Path, arrays: Arrays) -> None:
    named: dict[str, Any] = dict(arrays)
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **named)


def _names(folder: Path) -> list[str]:
    """The sets in a folder, in order."""
    if not folder.is_dir():
        return []
    entries = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = {p.name if p.is_dir() else p.stem for p in entries if p.is_dir() or _is_file(p)}
    return sorted(found)


def _is_file(path: Path) -> bool:
    return path.suffix in SUFFIXES


def _found(folder: Path, name: str) -> Path | None:
    """Where a set lies, if it is there.

    Raises:
      UserError: it is there in two forms.
    """
    forms = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    there = [path for path in forms if path.exists()]
    there += [path for path in (folder / name,) if path.is_dir()]
    if len(there) > 1:
        raise UserError(f"{folder} has {there[0].name} and {there[1].name}; expected one of them")
    return there[0] if there else None


def _required(folder: Path, name: str) -> Path:
    path = _found(folder, name)
    assert path is not None
    return path


def _read(path: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            arrays = {file.stem: _array(file) for file in sorted(path.glob("*.npy"))}
        elif path.suffix == ".npz":
            with open_regular(path) as stream:
                arrays = npz.read(stream)
        else:
            with open_regular(path) as stream:
                arrays = safetensors.arrays(stream.read())
    except Exception as error:
        # Whatever damage makes the readers of archives and arrays raise.
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    absent = [name for name in wanted if name not in arrays]
    if absent:
        raise UserError(
            f"{path} has arrays {', '.join(arrays) or 'none'}; expected {', '.join(wanted)}"
        )
    return arrays


def _array(path: Path) -> np.ndarray:
    with open_regular(path) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
