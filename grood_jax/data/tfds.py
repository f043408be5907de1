"""Sets that tensorflow-datasets has prepared, read by random access and without TensorFlow."""

import contextlib
import itertools
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import Fingerprint, UnreadableImage, fingerprint_of_files
from grood_jax.support import checks
from grood_jax.support.errors import UserError, first_line

_VERSION = re.compile(r"\d+\.\d+\.\d+")


Record = tuple[bytes, int]
"""An encoded image and its label, −1 where there is none."""


@dataclass(frozen=True)
class TfdsSet:
    """A set of encoded images in ArrayRecord files.

    Attributes:
      name: the set's name in its benchmark.
      source: where it came from, for the results.
      data: tensorflow-datasets' random access to the records, images left encoded.
      files: the files, each with the index of the first record after it.
      preprocessing: the size and channels that images are brought to.
    """

    name: str
    source: str
    data: Any
    files: tuple[tuple[Path, int], ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.data)

    def read(
        self, indices: Int[np.ndarray, " n"]
    ) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices.

        Raises:
          UnreadableImage: a file is damaged, or an image in it.
        """
        rows = [int(index) for index in indices]
        images = np.empty((len(rows), *self.preprocessing.shape), np.uint8)
        records = self._records(rows)
        for place, (row, (encoded, _)) in enumerate(zip(rows, records, strict=True)):
            try:
                images[place] = self.preprocessing.decode(encoded)
            except Exception as error:
                # Pillow's many decoders raise whatever they meet.
                raise self._damaged(row, error) from error
        return images, self._labels(records)

    def read_labels(self, indices: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Labels at the indices, without decoding images; raises as `read`."""
        return self._labels(self._records([int(index) for index in indices]))

    def _labels(self, records: list[Record]) -> Int[np.ndarray, " n"]:
        labels = np.asarray([label for _, label in records], np.int64)
        return checks.int32(f"labels of {self.name}", labels)

    def fingerprint(self, content: bool = False) -> Fingerprint:
        """Of the files, which hold the labels too."""
        files = [file for file, _ in self.files]
        return fingerprint_of_files(files, self.source.encode(), content)

    def check_files(self) -> None:
        """Reads the last record of each file: a truncated one is found before the work begins.

        Raises:
          UserError: a file is damaged.
        """
        ends = [end for _, end in self.files]
        self._records(
            [end - 1 for start, end in zip([0, *ends], ends, strict=False) if start < end]
        )

    def _records(self, rows: list[int]) -> list[Record]:
        try:
            # ArrayRecord refuses to read nothing.
            found = self.data.data_source.__getitems__(rows) if rows else []
            return list(map(_parsed, found))
        except Exception as error:
            # ArrayRecord raises RuntimeError, and does not say in which file.
            for row in rows:
                self._try_record(row)
            raise UserError(f"{self.name}: {first_line(error)}") from error

    def _try_record(self, row: int) -> None:
        try:
            _parsed(self.data.data_source[row])
        except Exception as error:
            raise self._damaged(row, error) from error

    def _damaged(self, row: int, error: Exception) -> UnreadableImage:
        file = self.files[bisect_right([end for _, end in self.files], row)][0]
        return UnreadableImage(
            f"{self.name}: image {row} cannot be read from {file} ({first_line(error)}); the file "
            "is damaged: copy it or prepare the set again"
        )


@dataclass(frozen=True)
class TfdsSource:
    """A set's name and split in tensorflow-datasets' layout.

    Attributes:
      dataset: the name under the data directory, e.g. ``cifar10`` or ``emnist/letters``.
      split: the split.
      in_catalogue: whether tensorflow-datasets itself can download and prepare it.
    """

    dataset: str
    split: str
    in_catalogue: bool = True
    kind: ClassVar[str] = "tfds"

    @property
    def place(self) -> str:
        """Where it is looked for."""
        return self.dataset

    def open(self, name: str, data_dir: Path, preprocessing: Preprocessing) -> TfdsSet | None:
        """Opens the newest prepared version, or returns None if there is none.

        Args:
          name: the set's name in its benchmark.
          data_dir: the folder of all prepared sets.
          preprocessing: the size and channels wanted.

        Raises:
          UserError: it is there, but damaged or incomplete, not stored as ArrayRecord, without
            the split, or without images.
        """
        folder = _newest(data_dir / self.dataset)
        if folder is None:
            return None
        with quiet_tfds() as tfds:
            builder = _builder(tfds, folder)
            split = self._checked_split(builder)
            data = builder.as_data_source(
                split=self.split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        ends = itertools.accumulate(split.shard_lengths)
        files = tuple(zip(map(Path, split.filepaths), ends, strict=True))
        source = f"tfds:{self.dataset}:{folder.name}:{self.split}"
        found = TfdsSet(name, source, data, files, preprocessing)
        found.check_files()
        return found

    def _checked_split(self, builder: Any) -> Any:
        where = f"{self.dataset} in {builder.data_dir}"
        splits, features = builder.info.splits, builder.info.features
        if self.split not in splits:
            raise UserError(
                f"{where} has splits {_listed(splits) or 'none'}; expected {self.split!r}"
            )
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise UserError(
                f"{where} is stored as {file_format}; expected array_record (prepare it again "
                "with --download into another --data-dir)"
            )
        if "image" not in features:
            raise UserError(f"{where} has features {_listed(features)}; expected 'image'")
        paths = [Path(path) for path in splits[self.split].filepaths]
        absent = [str(path) for path in paths if not path.is_file()]
        if absent:
            raise UserError(
                f"{where} is incomplete: {absent[0]} is missing ({len(absent)} of {len(paths)} "
                "files)"
            )
        return splits[self.split]


def _parsed(record: bytes) -> Record:
    """What is needed of a record; to take all out of it takes as long as to decode a small image.

    Raises:
      Exception: it is none, or holds no image, or several labels.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    (encoded,) = features["image"].bytes_list.value
    (label,) = features["label"].int64_list.value or (-1,)
    return encoded, label


def default_data_dir() -> Path:
    """Where tensorflow-datasets keeps data unless told otherwise."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


@contextlib.contextmanager
def quiet_tfds() -> Iterator[Any]:
    """The tensorflow-datasets module, with its chatter below errors silenced."""
    loggers = [logging.getLogger(name) for name in ("absl", "etils", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        import tensorflow_datasets as tfds

        yield tfds
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _builder(tfds: Any, folder: Path) -> Any:
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:
        # Whatever its parsers of the two JSON files raise.
        raise UserError(f"{folder} cannot be read: {first_line(error)}") from error


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _newest(folder: Path) -> Path | None:
    """The folder of the highest version; one left by an interrupted download does not count."""
    versions = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name)
    ]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)
