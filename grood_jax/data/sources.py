"""Where images come from: a set in memory, or one that tensorflow-datasets has prepared."""

import contextlib
import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.data.preprocessing import fit_images
from grood_jax.errors import UserError

CONNECT_SECONDS = 4.0
"""How long a download host has to answer before a download is given up."""


@runtime_checkable
class ImageSet(Protocol):
    """A set of labelled images with random access, at the size that the network takes."""

    @property
    def name(self) -> str:
        """The set's name in its benchmark."""
        ...

    @property
    def source(self) -> str:
        """Where it came from, for the results."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices; label −1 where there is none."""
        ...


@dataclass(frozen=True)
class ArraySet:
    """A set held in memory."""

    name: str
    source: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class LimitedSet:
    """At most ``limit`` images of another set, evenly spaced through it."""

    full: ImageSet
    limit: int
    name: str = field(init=False)
    source: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.full.name)
        object.__setattr__(self, "source", f"{self.full.source} ({len(self)} of {len(self.full)})")

    def __len__(self) -> int:
        """How many images there are."""
        return min(self.limit, len(self.full))

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices."""
        # Spaced over the whole set: many sets are stored class by class.
        return self.full.read(np.asarray(indices) * len(self.full) // len(self))


@dataclass(frozen=True)
class TfdsSet:
    """A set read through tensorflow-datasets' random access, without TensorFlow."""

    name: str
    source: str
    data: Any
    image_size: int
    channels: int

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.data)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices, decoded by tensorflow-datasets."""
        records = self.data.__getitems__([int(index) for index in indices])
        images = fit_images([r["image"] for r in records], self.image_size, self.channels)
        return images, np.asarray([r.get("label", -1) for r in records], np.int32)


@dataclass(frozen=True)
class TfdsSource:
    """A set's name, split and provenance in tensorflow-datasets' layout.

    Attributes:
      dataset: the name under the data directory, e.g. ``cifar10`` or ``emnist/letters``.
      split: the split.
      in_catalogue: whether tensorflow-datasets itself can prepare it.
      how_to_get: for other sets, what to put there.
    """

    dataset: str
    split: str
    in_catalogue: bool = True
    how_to_get: str = ""

    def find(self, data_dir: Path) -> Path | None:
        """The newest prepared version's folder, or None.

        Raises:
          UserError: it is there, but not as ArrayRecord or without the split.
        """
        versions = [p.parent for p in (data_dir / self.dataset).glob("*/dataset_info.json")]
        if not versions:
            return None
        newest = max(versions, key=lambda p: [int(n) for n in p.name.split(".") if n.isdigit()])
        with quiet_tfds() as tfds:
            builder = tfds.builder_from_directory(newest)
            splits = builder.info.splits
            if self.split not in splits:
                raise UserError(
                    f"{self.dataset} in {newest} has splits {', '.join(splits) or 'none'}; "
                    f"expected {self.split!r}"
                )
            split = splits[self.split]
            file_format = str(builder.info.file_format.value)
            if file_format != "array_record":
                raise UserError(
                    f"{self.dataset} in {newest} is stored as {file_format}; expected array_record "
                    "(prepare it again with --download into another --data-dir)"
                )
            missing = [str(path) for path in split.filepaths if not Path(path).is_file()]
            if missing:
                raise UserError(f"{self.dataset} in {newest} is incomplete: no {missing[0]}")
        return newest

    def open(self, name: str, folder: Path, image_size: int, channels: int) -> TfdsSet:
        """Opens the set found in ``folder``."""
        with quiet_tfds() as tfds:
            data = tfds.builder_from_directory(folder).as_data_source(split=self.split)
        source = f"tfds:{self.dataset}:{folder.name}:{self.split}"
        return TfdsSet(name, source, data, image_size, channels)

    def hint(self, data_dir: Path) -> str:
        """How a user gets the set."""
        if self.in_catalogue:
            return f"run again with --download (tensorflow-datasets: {self.dataset})"
        return f"{self.how_to_get} into {data_dir / self.dataset}"

    def download(self, data_dir: Path) -> None:
        """Downloads and prepares a set of the catalogue, as ArrayRecord.

        Raises:
          UserError: its host cannot be reached, TensorFlow is needed and missing, or
            tensorflow-datasets fails otherwise.
        """
        with quiet_tfds() as tfds, _without_cloud_lookups():
            try:
                builder = tfds.builder(
                    self.dataset, data_dir=str(data_dir), file_format="array_record"
                )
                for url in _urls(builder):
                    _require_host(self.dataset, url)
                builder.download_and_prepare()
            except UserError:
                raise
            except ImportError as error:
                raise UserError(
                    f"preparing {self.dataset} needs TensorFlow ({error}): "
                    "pip install 'grood-jax[tf]'"
                ) from error
            except Exception as error:
                # tensorflow-datasets raises whatever its many download back ends raise.
                line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                raise UserError(f"{self.dataset} could not be prepared: {line}") from error


def default_data_dir() -> Path:
    """Where tensorflow-datasets keeps data unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """The tensorflow-datasets module, with its chatter below errors silenced."""
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow_datasets", "etils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        yield tfds
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_cloud_lookups() -> Iterator[None]:
    """Keeps tensorflow-datasets from asking its cloud bucket, which it retries for minutes."""
    from tensorflow_datasets.core.utils import gcs_utils

    before = gcs_utils._is_gcs_disabled
    gcs_utils._is_gcs_disabled = True
    try:
        yield
    finally:
        gcs_utils._is_gcs_disabled = before


def _urls(builder: Any) -> list[str]:
    """One download address a host, of those the builder has checksums for."""
    by_host = {urllib.parse.urlsplit(url).netloc: url for url in builder.url_infos}
    return list(by_host.values())


def _require_host(dataset: str, url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxies = {k.lower() for k in os.environ}
    if "https_proxy" in proxies or "http_proxy" in proxies:
        return
    try:
        socket.create_connection((parts.hostname or "", port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{dataset} cannot be downloaded: {parts.hostname} cannot be reached ({error})"
        ) from error
