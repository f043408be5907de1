"""The command line of answers: ``python -m grood_jax.predict``."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from jaxtyping import UInt8

from grood_jax.cli import command
from grood_jax.data import Preprocessing, pictures
from grood_jax.data.folders import AGAIN, OTHERS, files_in
from grood_jax.data.npz import stored_array
from grood_jax.support import checks, npz, progress
from grood_jax.support.errors import UserError, first_line
from grood_jax.support.files import open_regular
from grood_jax.support.progress import says

if TYPE_CHECKING:
    import grood_jax.deploying.deployment

DESCRIPTION = """Answers for images, in lines of CSV or JSON: path, class and its name, score
(higher for more OOD), p-value, and whether the image is taken for OOD. The directory is one of
python -m grood_jax.fit; images are files, folders with all their subfolders, or .npz files with an
array of bytes (N, H, W) or (N, H, W, C). Photographs are turned as their EXIF orientation says, and
transparent images laid on white. An image that cannot be read is reported on stderr; the others go
on, and the exit status is 1. Of folders, what is left out is named there too. Only regular files
are read, image files of up to 256 MiB with up to 2^26 pixels; in the answers, what is no text in a
path is written with backslashes."""

COLUMNS = ("path", "class", "name", "score", "p_value", "is_ood")

MAX_FILE = 2**28
"""Bytes of an image file: even uncompressed, no more pixels than are allowed need more."""

Read = tuple[str, UInt8[np.ndarray, "h w c"] | str]
"""An image's path with its pixels, or with what is wrong with it."""


@dataclass(frozen=True)
class PredictConfig:
    """What is asked, and of what.

    Attributes:
      directory: of the classifier, as python -m grood_jax.fit writes it.
      images: files, folders, or .npz files.
      format: of the lines.
      batch_size: images at once.
      model: the function that makes the network, if the directory was fitted on one of your own:
        package.module:function, or path/to/file.py:function.
      fdr: decide on all images together, so that of those taken for OOD at most this share is
        expected to be in distribution (they are answered when all have been read).
    """

    directory: tyro.conf.Positional[Path] = tyro.MISSING
    images: tyro.conf.Positional[tuple[Path, ...]] = tyro.MISSING
    format: Literal["csv", "jsonl"] = "csv"
    batch_size: int = 64
    model: str | None = None
    fdr: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
          TypeError: an option of the wrong type.
          ValueError: an option outside its range.
        """
        checks.at_least("batch_size", self.batch_size, 1)
        checks.function("model", self.model)
        if self.fdr is not None and not 0 < checks.fraction("fdr", self.fdr) < 1:
            raise ValueError(f"fdr is {self.fdr}; expected a number in (0, 1)")


@says
def run(
    config: PredictConfig,
    *,
    stream: io.TextIOBase | None = None,
    say: Callable[[str], None] = print,
    show_progress: bool = False,
) -> int:
    """Writes a line of answers for each image, as they come.

    Args:
      config: what is asked.
      stream: takes the lines; stdout by default.
      say: takes a line for each image that cannot be read.
      show_progress: shows a bar on stderr.

    Returns:
      How many images could not be read, links to nothing and the like in folders among them.

    Raises:
      UserError: the directory cannot be used, or there is no image.
    """
    from grood_jax.deploying import deployment

    deployed = deployment.load(config.directory, config.model)
    asked = _find(config.images)
    paths, failed = asked.paths, asked.failed
    for line in asked.complaints:
        say(line)
    if not paths:
        raise UserError(
            f"no image in {', '.join(map(str, config.images)) or 'nothing'}; expected files that "
            f"end in {', '.join(pictures.suffixes())} or .npz"
        )
    lines = _lines(config.format, sys.stdout if stream is None else stream)
    answered: list[dict[str, Any]] = []
    with (
        closing(_read_ahead(paths, deployed.preprocessing, config.batch_size)) as batches,
        progress.bar(len(paths), "images", shown=show_progress) as bar,
    ):
        for done, batch in batches:
            for path, wrong in batch:
                if isinstance(wrong, str):
                    say(f"{path}: {wrong}")
                    failed += 1
            good = [(path, pixels) for path, pixels in batch if not isinstance(pixels, str)]
            rows = _answers(deployed, good) if good else []
            if config.fdr is None:
                lines(rows)
            else:
                answered += rows
            bar.update(done)
    if config.fdr is not None and answered:
        from grood_jax.conformal.calibration import false_discovery

        chosen = false_discovery(np.array([row["p_value"] for row in answered]), config.fdr)
        lines([{**row, "is_ood": bool(ood)} for row, ood in zip(answered, chosen, strict=True)])
    if failed:
        say(f"{failed} of {len(paths) + asked.failed} paths could not be read")
    return failed


def _answers(
    deployed: "grood_jax.deploying.deployment.Deployment", good: Sequence[Read]
) -> list[dict[str, Any]]:
    prediction = deployed.predict(np.stack([np.asarray(pixels) for _, pixels in good]))
    return [
        {
            "path": path,
            "class": int(prediction.label[i]),
            "name": deployed.class_names[prediction.label[i]],
            "score": float(prediction.score[i]),
            "p_value": float(prediction.p_value[i]),
            "is_ood": bool(prediction.is_ood[i]),
        }
        for i, (path, _) in enumerate(good)
    ]


def _lines(kind: str, stream: Any) -> Callable[[list[dict[str, Any]]], None]:
    if kind == "csv":
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()

    def write(rows: list[dict[str, Any]]) -> None:
        if kind == "csv":
            writer.writerows({**row, "is_ood": str(row["is_ood"]).lower()} for row in rows)
        else:
            stream.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        stream.flush()

    return write


@dataclass(frozen=True)
class _Asked:
    """What the given paths stand for; one that is missing is reported when it is read.

    Attributes:
      paths: of files.
      complaints: what lies in folders and is left out, in lines.
      failed: how much of that may have been an image.
    """

    paths: list[Path]
    complaints: list[str]
    failed: int


def _find(given: Sequence[Path]) -> _Asked:
    paths: list[Path] = []
    complaints: list[str] = []
    failed = 0
    for path in given:
        # Not path.is_dir(): that raises for a path that no file can have.
        if not os.path.isdir(path):
            paths.append(path)
            continue
        files = files_in(path, (*pictures.suffixes(), ".npz"))
        paths += [path / inner for inner in files.paths]
        complaints += files.complaints(path)
        failed += sum(
            len(some) for why, some in files.left_out.items() if why not in (OTHERS, AGAIN)
        )
    return _Asked(paths, complaints, failed)


def _read_ahead(
    paths: Sequence[Path], preprocessing: Preprocessing, size: int
) -> Generator[tuple[int, list[Read]]]:
    """Images in order, ``size`` at a time and how many paths they end; the next are read ahead."""

    def read() -> Iterator[tuple[int, list[Read]]]:
        done = 0
        batch: list[Read] = []
        for path in paths:
            for image in _read(path, preprocessing):
                if len(batch) == size:
                    yield done, batch
                    done, batch = 0, []
                batch.append(image)
            done += 1
        if batch or done:
            yield done, batch

    with ThreadPoolExecutor(max_workers=1) as pool:
        source = read()
        ahead = pool.submit(next, source, None)
        while (ready := ahead.result()) is not None:
            ahead = pool.submit(next, source, None)
            yield ready


def _read(path: Path, preprocessing: Preprocessing) -> Iterator[Read]:
    name = _written(path)
    try:
        if path.suffix.lower() == ".npz":
            for number, pixels in enumerate(_arrays(path)):
                yield f"{name}[{number}]", preprocessing.fit_pixels(pixels)
        else:
            with open_regular(path) as stream:
                length = os.fstat(stream.fileno()).st_size
                if length > MAX_FILE:
                    raise ValueError(f"it has {length} bytes; expected at most {MAX_FILE}")
                encoded = stream.read()
            yield (
                name,
                preprocessing.decode(encoded, formats=pictures.file_formats(), upright=True),
            )
    except Exception as error:
        # NumPy's and zipfile's readers raise whatever they meet.
        yield name, (isinstance(error, OSError) and error.strerror) or first_line(error)


def _written(path: Path) -> str:
    """A path as one line of UTF-8, which a name of arbitrary bytes need not be."""
    text = str(path)
    if text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


def _arrays(path: Path) -> UInt8[np.ndarray, "n ..."]:
    with open_regular(path) as stream, npz.opened(stream) as archive:
        held = npz.names_of(archive)
        names = [name for name in ("images", "x_test") if name in held] or held
        if not names:
            raise ValueError("it holds no array; expected bytes (N, H, W) or (N, H, W, C)")
        array = stored_array(path, archive, names[0])
    channels = array.shape[3] if array.ndim == 4 else 1
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or channels not in (1, 3):
        raise ValueError(
            f"array {names[0]} has dtype {array.dtype} and shape {array.shape}; expected bytes "
            "(uint8), (N, H, W) or (N, H, W, C) with 1 or 3 channels"
        )
    return array


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(PredictConfig(), "grood_jax.predict", DESCRIPTION, argv)
    failed = 0

    def work() -> None:
        nonlocal failed
        failed = run(config, say=progress.tell, show_progress=True)

    return command.status(work) or min(failed, 1)
