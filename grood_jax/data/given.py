"""What a user gives as a set of images: looked through, and turned into batches of one kind.

A set is two arrays (images, labels), images alone, an iterable of such batches, a folder, an
``.npz`` file, a source of tensorflow-datasets, or whatever can be indexed and gives one image, or
an image and its label, at a time. Images are floating-point, normalised as the network takes them;
or bytes, files and pictures, which a `Preprocessing` brings to the network.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8

from grood_jax.backbone.backbone import Backbone, require_backbone
from grood_jax.data.batching import Batch, Share, batches
from grood_jax.data.folders import FolderSource, files_in
from grood_jax.data.npz import NpzSet, NpzSource
from grood_jax.data.pictures import suffixes
from grood_jax.data.preprocessing import Preprocessing, fit
from grood_jax.data.sets import (
    Fingerprint,
    Fingerprinted,
    ImageSet,
    UnreadableImage,
    fingerprint,
)
from grood_jax.data.tfds import first_line
from grood_jax.support import checks
from grood_jax.support.errors import UserError

BYTES_LIKE = 50.0
"""Images that are nowhere negative and reach beyond this have hardly been normalised."""

FEWEST = 2
"""Images of a set: one alone says nothing."""

MOST = 2**20
"""Images of a batch: more would not fit into memory."""

FORMS = (
    "(images, labels), a list of such pairs, a folder, an .npz file, or what gives (image, label) "
    "when it is indexed"
)

Rows = Int[np.ndarray, " r"]
Read = Callable[[np.ndarray | None], Iterable[Batch]]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Given:
    """A set of images as the passes read it.

    Attributes:
      name: what messages call it.
      source: where it came from, for the results.
      shape: of one image.
      read: batches of the rows given, ascending, or of all for None; each image is checked.
      classes: names of the classes, where folders have told them.
      images: the set, where it holds pictures that are prepared by themselves.
      again: whether it can be read more than once.
      known_labels: its labels, where they are known before it is read.
      seen: filled when all has been read: how many images, and their fingerprint.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    read: Read
    classes: tuple[str, ...] = ()
    images: ImageSet | None = None
    again: bool = True
    known_labels: np.ndarray | None = None
    seen: dict[str, Any] = field(default_factory=dict, repr=False)

    def labels(self) -> Int[np.ndarray, " n"]:
        """All labels; where they are not known, the set is read for them."""
        if self.known_labels is not None:
            return self.known_labels
        return np.concatenate([batch.labels[batch.valid] for batch in self.read(None)])

    def count(self) -> int:
        """How many images there are; where it is not known, the set is read for it."""
        whole = self.read(None)
        return len(whole.rows) if isinstance(whole, Share) else len(self.labels())

    def shared(self, index: int, count: int) -> "Given":
        """The same in one of several processes, which reads its share unless that is known.

        Args:
          index: this process's number.
          count: how many there are.
        """
        # What can be read once cannot be divided: all processes read all of it.
        if count == 1 or not self.again or isinstance(self.read(None), Share):
            return self
        rows = np.arange(self.count())

        def read(chosen: np.ndarray | None) -> Iterable[Batch]:
            return Share(self.read, rows if chosen is None else chosen, index, count)

        return replace(self, read=read)

    def described(self) -> dict[str, Any]:
        """Source, number and fingerprint, for the results; once it has been read."""
        return {"source": self.source, **self.seen}


@dataclass(frozen=True)
class Door:
    """Opens what a user gives for one network.

    Attributes:
      backbone: the network; with `opened`, one that normalises bytes as the preprocessing says.
      preprocessing: how bytes and files are brought to it; None where only normalised images, or
        bytes of the right size, are given.
      batch_size: images in a batch, where batches are made here.
      progress: shows bars on stderr.
      accepted: numbers of classes by the shapes and dtypes that the network has been asked about.
    """

    backbone: Backbone
    preprocessing: Preprocessing | None
    batch_size: int = 256
    progress: bool = False
    accepted: dict[tuple[tuple[int, ...], str], int] = field(default_factory=dict, repr=False)

    def open(
        self,
        name: str,
        given: Any,
        *,
        labels: bool,
        again: bool = False,
        classes: tuple[str, ...] = (),
    ) -> Given:
        """Opens a set.

        Args:
          name: what messages call it.
          given: the set.
          labels: whether it must have labels, all of them classes of the network.
          again: whether it is read more than once.
          classes: the folders of a folder of classes, in the order of their labels; by default as
            they sort.

        Raises:
          TypeError: it is of no kind that is known, or its images or labels are not.
          UserError: it cannot be opened, or does not fit the network.
        """
        raw = self._raw(name, given, labels, again, classes)
        classes_of_network = self._require_accepted(name, raw.shape, raw.dtype)
        if labels and raw.labels is not None:
            _require_classes(name, raw.labels, classes_of_network)
        seen: dict[str, Any] = {}
        checked = _Checked(name, classes_of_network if labels else None, raw.shape, raw.images)

        def read(rows: np.ndarray | None) -> Iterable[Batch]:
            own = raw.read(rows)
            if isinstance(own, Share):
                part = own.read
                return replace(own, read=lambda chosen: checked(part(chosen), None))
            return checked(own, seen if rows is None else None)

        if raw.count:
            # What is wrong with all images shows in the first, before the network runs.
            for _ in read(np.arange(min(raw.count, self.batch_size))):
                pass
        once = isinstance(given, Iterator)
        facts = (raw.classes, raw.images, not once, raw.labels)
        return Given(name, raw.source, raw.shape, read, *facts, seen)

    def _raw(
        self, name: str, given: Any, labels: bool, again: bool, classes: tuple[str, ...]
    ) -> "_Raw":
        if isinstance(given, str | Path):
            return self._of_set(name, self._opened_path(name, Path(given), labels, classes))
        if isinstance(given, ImageSet):
            return self._of_set(name, (given, ()))
        if isinstance(given, Share):
            return self._of_function(
                name, lambda rows: given if rows is None else replace(given, rows=given.rows[rows])
            )
        if isinstance(given, Mapping) or hasattr(given, "shape") or _is_pair(given):
            return self._of_arrays(name, *_parted(name, given), labels)
        if _is_lists(given):
            return self._of_items(name, list(zip(*given, strict=True)), labels)
        if callable(given) and not isinstance(given, Iterable):
            return self._of_function(name, given)
        if isinstance(given, Iterator):
            if again:
                raise TypeError(
                    f"{name} is a {type(given).__name__}, which can be read only once, and "
                    f"detectors may read some images again; expected {FORMS}"
                )
            return self._of_stream(name, given, labels)
        if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
            if len(given) == 0:
                raise UserError(f"{name} holds no image; expected at least {FEWEST}")
            if not _is_batch(name, given[0]):
                return self._of_items(name, given, labels)
        if isinstance(given, Iterable):
            return self._of_stream(name, given, labels)
        raise TypeError(f"{name} is a {type(given).__name__}; expected {FORMS}")

    def _opened_path(
        self, name: str, path: Path, labels: bool, classes: tuple[str, ...]
    ) -> tuple[ImageSet, tuple[str, ...]]:
        prepare = self._required(name, f"the path {path}")
        if path.is_file() and path.suffix == ".npz":
            opened = NpzSource(path.name).open(name, path.parent, prepare)
            assert opened is not None
            if labels and (opened.labels < 0).all():
                raise UserError(f"{name} is {path}, which has no array 'labels'; expected one")
            return opened, ()
        if not path.is_dir():
            raise UserError(
                f"{name} is {str(path)!r}; expected a folder or an .npz file, and "
                + ("it is neither" if path.exists() else "nothing is there")
            )
        path = path.resolve()
        if labels and not classes:
            classes = class_folders(name, path)
        folder = FolderSource(path.name, classes if labels else ())
        found = folder.open(name, path.parent, prepare)
        assert found is not None
        return found, folder.classes

    def _required(self, name: str, what: str) -> Preprocessing:
        if self.preprocessing is None:
            raise UserError(
                f"{name} is {what}, and nothing says how images are brought to the network; "
                "expected preprocessing=(mean, std, size), or a Preprocessing"
            )
        return self.preprocessing

    def _of_set(self, name: str, opened: tuple[ImageSet, tuple[str, ...]]) -> "_Raw":
        images, classes = opened
        prepare = self._required(name, f"a set from {images.source}")

        def read(rows: np.ndarray | None) -> Iterable[Batch]:
            return batches(
                images,
                prepare,
                batch_size=self.batch_size,
                indices=rows,
                description=name if self.progress else None,
                normalize=False,
            )

        known = getattr(images, "labels", None)
        return _Raw(images.source, prepare.shape, "uint8", read, known, images, classes)

    def _of_arrays(self, name: str, images: Any, labels: Any, wanted: bool) -> "_Raw":
        pixels = np.asarray(checks.array_of(name, images))
        _require_image_dtype(name, pixels, self.backbone)
        if pixels.ndim not in (3, 4) or (pixels.ndim == 3 and pixels.dtype != np.uint8):
            raise TypeError(
                f"{name} holds images of dtype {pixels.dtype} and shape {pixels.shape}; expected "
                "images (B, H, W, C)"
            )
        if len(pixels) < FEWEST:
            raise UserError(f"{name} has {len(pixels)} images; expected at least {FEWEST}")
        with checks.room(name, pixels.shape):
            classes = _labels(name, labels, len(pixels), wanted)
        if pixels.dtype == np.uint8 and self.preprocessing is not None:
            _require_bytes(name, pixels)
            made = NpzSet(name, "arrays", pixels, classes, self.preprocessing)
            return self._of_set(name, (made, ()))

        def take(rows: np.ndarray) -> Pair:
            return pixels[rows], classes[rows]

        return self._of_rows("arrays", pixels.shape[1:], pixels.dtype, len(pixels), take, classes)

    def _of_items(self, name: str, items: Any, wanted: bool) -> "_Raw":
        image, _ = _parted(name, items[0])
        source = f"{type(items).__module__.partition('.')[0]}.{type(items).__name__}"
        pixels = np.asarray(image) if hasattr(image, "shape") else None
        if pixels is None or (pixels.dtype == np.uint8 and self.preprocessing is not None):
            prepare = self._required(name, f"{source} of images")
            return self._of_set(name, (ItemSet(name, source, items, prepare, wanted), ()))
        _require_image_dtype(name, pixels, self.backbone)

        def take(rows: np.ndarray) -> Pair:
            found = [_parted(name, items[int(row)]) for row in rows]
            images = [np.asarray(image) for image, _ in found]
            odd = next((i for i, own in enumerate(images) if own.shape != pixels.shape), None)
            if odd is not None:
                raise UserError(
                    f"{name}: image {rows[odd]} has shape {images[odd].shape}; expected "
                    f"{pixels.shape} as the first has"
                )
            given = [label for _, label in found]
            return np.stack(images), _labels(
                name, None if given[0] is None else np.asarray(given), len(rows), wanted
            )

        return self._of_rows(source, pixels.shape, pixels.dtype, len(items), take, None)

    def _of_rows(
        self,
        source: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        count: int,
        take: Callable[[np.ndarray], Pair],
        labels: np.ndarray | None,
    ) -> "_Raw":
        def read(rows: np.ndarray | None) -> Iterator[Batch]:
            chosen = np.arange(count) if rows is None else rows
            for start in range(0, len(chosen), self.batch_size):
                yield padded(*take(chosen[start : start + self.batch_size]), self.batch_size)

        return _Raw(source, shape, dtype.name, read, labels, count=count)

    def _of_stream(self, name: str, given: Iterable[Any], wanted: bool) -> "_Raw":
        iterator = iter(given)
        try:
            first = next(iterator)
        except StopIteration:
            once = " (was it read before?)" if iterator is given else ""
            raise UserError(
                f"{name} is a {type(given).__name__} that gives no batch{once}; expected at least "
                "one batch is empty"
            ) from None
        images = first.images if isinstance(first, Batch) else _parted(name, first)[0]
        _require_image_dtype(name, np.asarray(checks.array_of(name, images)), self.backbone)
        if not _is_batch(name, first):
            raise TypeError(
                f"{name} is a {type(given).__name__} that gives images of shape "
                f"{np.shape(images)}; expected batches (B, H, W, C)"
            )
        # What can be read once goes on from its first batch.
        waiting = iter([itertools.chain([first], iterator)])

        def read(rows: np.ndarray | None) -> Iterator[Batch]:
            source = next(waiting, given) if iterator is given else given
            whole = _batches(name, source, self.backbone, wanted)
            return iter(whole) if rows is None else _chosen(whole, rows)

        shape = np.shape(images)[1:]
        return _Raw(type(given).__name__, shape, str(np.asarray(images).dtype), read, None)

    def _of_function(self, name: str, given: Read) -> "_Raw":
        first = next(iter(given(None)), None)
        if not isinstance(first, Batch):
            raise TypeError(
                f"{name} is a function that gives {type(first).__name__} for None; expected "
                "batches (grood_jax.data.Batch) of the rows it is called with, or of all for None"
            )
        return _Raw("a function", first.images.shape[1:], first.images.dtype.name, given)

    def _require_accepted(self, name: str, shape: tuple[int, ...], dtype: str) -> int:
        """The network's number of classes; raises UserError unless it takes such images."""
        key = shape, dtype
        if key not in self.accepted:
            self.accepted[key] = _accepted(self.backbone, name, shape, dtype)
        return self.accepted[key]


@dataclass(frozen=True)
class _Raw:
    """A set that has been opened, and not yet looked through."""

    source: str
    shape: tuple[int, ...]
    dtype: str
    read: Read
    labels: np.ndarray | None = None
    images: ImageSet | None = None
    classes: tuple[str, ...] = ()
    count: int = 0


@dataclass(frozen=True)
class ItemSet:
    """What gives a picture, or a picture and its label, when it is indexed.

    Attributes:
      name: what messages call it.
      source: where it came from, for the results.
      items: pictures as bytes (H, W, C), encoded, as paths or as Pillow has them; alone, in pairs
        with labels, or in mappings with ``image`` and ``label``.
      preprocessing: the size and channels that images are brought to.
      labelled: whether each must have a label.
    """

    name: str
    source: str
    items: Any
    preprocessing: Preprocessing
    labelled: bool

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.items)

    def read(self, indices: Rows) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
        """Images and labels at the indices.

        Raises:
          UnreadableImage: an image cannot be read.
        """
        images = np.empty((len(indices), *self.preprocessing.shape), np.uint8)
        labels = []
        for place, row in enumerate(indices):
            image, label = _parted(self.name, self.items[int(row)])
            try:
                images[place] = _pixels(image, self.preprocessing)
            except (ValueError, TypeError, OSError) as error:
                raise UnreadableImage(f"{self.name}: image {row}: {first_line(error)}") from error
            labels.append(label)
        known = None if labels[0] is None else np.asarray(labels)
        return images, _labels(self.name, known, len(images), self.labelled)


@dataclass(frozen=True)
class _Checked:
    """Looks through batches on their way: dtype and shape, finite values, labels, how many."""

    name: str
    classes: int | None
    shape: tuple[int, ...]
    images: ImageSet | None

    def __call__(self, given: Iterable[Batch], seen: dict[str, Any] | None) -> Iterator[Batch]:
        digest, marks, count = hashlib.sha256(), hashlib.sha256(), 0
        fast = isinstance(self.images, Fingerprinted)
        for batch in given:
            # No copy of what is whole.
            rows = slice(None) if batch.valid.all() else batch.valid
            images, labels = batch.images[rows], batch.labels[rows]
            _require_values(self.name, images, self.shape, count)
            if self.classes is not None:
                _require_classes(self.name, labels, self.classes, count)
            if seen is not None and not fast:
                digest.update(np.ascontiguousarray(images).data)
                marks.update(np.ascontiguousarray(labels).data)
            count += len(images)
            yield batch
        if seen is None:
            return
        if count < FEWEST:
            raise UserError(f"{self.name} has {count} images; expected at least {FEWEST}")
        if fast and self.images is not None:
            made = fingerprint(self.images)
        else:
            both = hashlib.sha256(digest.digest() + marks.digest())
            made = Fingerprint(both.hexdigest(), "content")
        seen |= {"n": count, "fingerprint": made.checksum, "fingerprint_of": made.of}


def door(
    backbone: Backbone,
    preprocessing: Any = None,
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Door:
    """What opens sets for a network.

    Args:
      backbone: the network.
      preprocessing: how bytes and files are brought to it: a `Preprocessing`, or (mean, std, size).
        The door's backbone then normalises bytes itself.
      batch_size: images in a batch.
      progress: shows bars on stderr.

    Raises:
      TypeError: ``backbone`` is none, or ``preprocessing`` is neither.
      UserError: the backbone normalises in another way.
    """
    require_backbone(backbone)
    checks.at_least("batch_size", batch_size, 1, MOST)
    prepare = _preparation(preprocessing)
    if prepare is not None:
        for name, ours in (("mean", backbone.input_mean), ("std", backbone.input_std)):
            theirs = tuple(map(float, getattr(prepare, name)))
            if ours and not np.allclose(ours, theirs):
                raise UserError(
                    f"preprocessing has the {name} {theirs}; expected {ours}, the backbone's "
                    f"input_{name}"
                )
        backbone = replace(
            backbone,
            input_mean=tuple(map(float, prepare.mean)),
            input_std=tuple(map(float, prepare.std)),
        )
    return Door(backbone, prepare, batch_size, progress)


def pictures_of(given: Any, prepare: Preprocessing) -> Any:
    """Pictures of any size as bytes (B, H, W, C) of one; arrays of images stay as they are.

    Args:
      given: paths, encoded images, pictures of Pillow's or arrays of bytes (H, W, C); or one.
      prepare: the size and channels that they are brought to.

    Raises:
      UserError: one of them is no image, or cannot be read; it is named by its place.
    """
    if isinstance(given, str | Path | bytes) or hasattr(given, "convert"):
        given = [given]
    if not isinstance(given, list | tuple) or not given or np.ndim(given[0]) > 3:
        return given
    if isinstance(given[0], np.ndarray) and given[0].dtype != np.uint8:
        return given
    found = ItemSet("images", "pictures", given, prepare, labelled=False)
    return found.read(np.arange(len(given)))[0]


def padded(images: np.ndarray, labels: Int[np.ndarray, " n"], size: int) -> Batch:
    """A batch of ``size`` rows, zeros in those that are not valid."""
    missing = size - len(images)
    with np.errstate(over="ignore"):
        images = images if images.dtype == np.uint8 else images.astype(np.float32)
    return Batch(
        np.pad(images, [(0, missing)] + [(0, 0)] * (images.ndim - 1)),
        np.pad(labels.astype(np.int32), (0, missing)),
        np.arange(size) < len(images),
    )


def _preparation(given: Any) -> Preprocessing | None:
    if given is None or isinstance(given, Preprocessing):
        return given
    if isinstance(given, tuple | list) and len(given) == 3:
        mean, std = (tuple(map(float, np.atleast_1d(part))) for part in given[:2])
        return Preprocessing(checks.at_least("size", given[2], 1), len(mean), mean, std)
    raise TypeError(
        f"preprocessing is {given!r}; expected (mean, std, size), as ((0.5,), (0.25,), 32), or a "
        "Preprocessing"
    )


def class_folders(name: str, path: Path) -> tuple[str, ...]:
    """The names of a folder's folders with images, in order.

    Args:
      name: what messages call it.
      path: the folder.

    Raises:
      UserError: it is none, or images lie in it that are in no folder.
    """
    if not path.is_dir():
        raise UserError(f"{name} is {path}; expected a folder, and there is none")
    inside = files_in(path, suffixes()).paths
    tops = {Path(file).parts[0] for file in inside if len(Path(file).parts) > 1}
    loose = next((file for file in inside if len(Path(file).parts) == 1), None)
    if loose is not None or not tops:
        what = "no images" if loose is None else f"{loose} in no folder"
        raise UserError(f"{name} is {path}, which holds {what}; expected a folder for each class")
    return tuple(sorted(tops))


def _is_pair(entry: Any) -> bool:
    """Whether this is images and their labels, whole sets of both or one of each."""
    if not isinstance(entry, tuple | list) or len(entry) != 2:
        return False
    image, label = entry
    if isinstance(image, tuple | list | Mapping | Batch) or hasattr(label, "convert"):
        return False
    if not hasattr(image, "shape"):
        # Two pictures, encoded or by their names, are no picture with its label.
        return type(label) is not type(image)
    return np.ndim(label) < len(image.shape) - 1


def _is_lists(given: Any) -> bool:
    """Whether this is a list of images, and one of their labels."""
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[0], list):
        return False
    images, labels = given
    return not _is_pair(images) and np.ndim(labels) > 0 and len(images) == len(labels)


def _is_batch(name: str, entry: Any) -> bool:
    """Whether this is a batch, not a single image."""
    if isinstance(entry, Batch):
        return True
    images = _parted(name, entry)[0]
    return hasattr(images, "shape") and len(images.shape) == 4


def _parted(name: str, entry: Any) -> Pair:
    """Images and labels of what holds both; None for labels that are not there."""
    if isinstance(entry, Mapping):
        image = next((entry[key] for key in ("image", "images") if key in entry), None)
        if image is None:
            raise TypeError(f"{name} holds {sorted(map(str, entry))}; expected 'image' and 'label'")
        return image, next((entry[key] for key in ("label", "labels") if key in entry), None)
    if isinstance(entry, tuple | list):
        if not _is_pair(entry):
            raise TypeError(
                f"{name} holds a {type(entry).__name__} of {len(entry)}; expected pairs (images, "
                "labels)"
            )
        return entry[0], entry[1]
    return entry, None


def _pixels(image: Any, prepare: Preprocessing) -> UInt8[np.ndarray, "h w c"]:
    """One picture, brought to its size."""
    if isinstance(image, str | Path):
        image = Path(image).read_bytes()
    if isinstance(image, bytes):
        return prepare.decode(image)
    if hasattr(image, "convert"):
        return fit(
            image,
            prepare.image_size,
            prepare.channels,
            resize=prepare.resize,
            interpolation=prepare.interpolation,
        )
    return prepare.fit_pixels(np.asarray(image))


def _require_image_dtype(name: str, images: np.ndarray, backbone: Backbone) -> None:
    if images.dtype == np.uint8:
        if not backbone.takes_bytes:
            raise TypeError(
                f"{name} holds images of dtype uint8 and shape {images.shape}, and nothing says "
                "how they are normalised; expected preprocessing=(mean, std, size), or normalised "
                "floating-point images"
            )
    elif not jax.numpy.issubdtype(images.dtype, jax.numpy.floating):
        raise TypeError(
            f"{name} holds images of dtype {images.dtype} and shape {images.shape}; expected "
            "normalised floating-point images (B, H, W, C), or bytes (uint8)"
        )


def _require_bytes(name: str, images: np.ndarray) -> None:
    """Refuses bytes that no preprocessing takes, with the layout that they seem to have."""
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        hint = "; they seem to have channels first: images.transpose(0, 2, 3, 1)"
        raise UserError(
            f"{name} holds images of shape {images.shape}; expected (N, H, W), (N, H, W, 1) or "
            f"(N, H, W, 3){hint if images.shape[1] in (1, 3) else ''}"
        )


def _labels(name: str, labels: Any, count: int, wanted: bool) -> Int[np.ndarray, " n"]:
    """Labels as int32, −1 for each where there are none; raises unless they are integers (N,)."""
    if labels is None or not wanted:
        if wanted:
            raise TypeError(f"{name} has no labels; expected {FORMS}")
        return np.full(count, -1, np.int32)
    array = np.asarray(checks.array_of(f"{name}: labels", labels))
    shown = f"{name} holds labels of dtype {array.dtype} and shape {array.shape}"
    hint = ""
    if array.dtype.kind in "USO":
        hint = "; number the classes: numpy.unique(labels, return_inverse=True)[1]"
    elif array.ndim == 2:
        hint = "; they seem to be one-hot: labels.argmax(axis=1)"
    elif array.dtype.kind == "f":
        hint = "; where they are whole numbers: labels.astype(int)"
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{shown}; expected integers ({count},){hint}")
    return checks.int32(f"{name}: labels", array)


def _require_classes(name: str, labels: np.ndarray, classes: int, before: int = 0) -> None:
    try:
        checks.labels(f"labels of {name}", labels, classes)
    except ValueError as error:
        place = f" ({before} images came before these)" if before else ""
        raise UserError(f"{error}{place}") from error


def _require_values(
    name: str, images: Shaped[np.ndarray, "b ..."], shape: tuple[int, ...], before: int
) -> None:
    if images.shape[1:] != shape:
        raise UserError(f"{name} holds images {images.shape[1:]}; expected {shape} as before")
    if images.dtype == np.uint8 or not images.size:
        return
    finite: Bool[np.ndarray, " b"] = np.isfinite(images).all(axis=tuple(range(1, images.ndim)))
    if not finite.all():
        raise UserError(
            f"{name}: image {before + int((~finite).argmax())} holds NaN or infinite values; "
            "expected finite numbers"
        )
    if before == 0 and images.min() >= 0 and images.max() > BYTES_LIKE:
        raise UserError(
            f"{name} holds floating-point images from {images.min():g} to {images.max():g}, which "
            "seem not to be normalised; expected what the network was trained on, or bytes (uint8) "
            "with preprocessing=(mean, std, size); for a network that takes 0 to 255, mean 0 and "
            "std 1/255"
        )


ANY_CLASSES = 2**31 - 1


def _accepted(backbone: Backbone, name: str, shape: tuple[int, ...], dtype: str) -> int:
    found = _classes_for(backbone, shape, dtype)
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] > 4:
        last = (shape[1], shape[2], shape[0])
        if isinstance(_classes_for(backbone, last, dtype), int):
            raise UserError(
                f"{name} holds images of shape {shape}, which seem to have channels first; "
                f"expected {last}: images.transpose(0, 2, 3, 1)"
            )
    if isinstance(found, int):
        return found
    hint = ""
    if len(shape) == 3:
        others = [(*shape[:2], channels) for channels in (1, 3) if channels != shape[2]]
        right = [other for other in others if isinstance(_classes_for(backbone, other, dtype), int)]
        hint = f"; it takes {right[0]}" if right else ""
    raise UserError(
        f"{name} holds images of shape {shape}, which the network does not take: {found}; expected "
        f"images as it was trained on{hint}"
    )


def _classes_for(backbone: Backbone, shape: tuple[int, ...], dtype: str) -> int | str:
    """How many classes the network tells apart on such images, or why it does not take them."""
    kind = np.uint8 if dtype == "uint8" else np.float32
    try:
        images = jax.ShapeDtypeStruct((FEWEST, *shape), kind)
        logits = jax.eval_shape(lambda images: backbone(images).logits, images)
    except Exception as error:
        # Frameworks raise whatever they raise.
        return first_line(error)
    # A head that is to be fitted has as many classes as the training set.
    return int(logits.shape[1]) if backbone.wanted_head is None else ANY_CLASSES


def _batches(name: str, given: Iterable[Any], backbone: Backbone, wanted: bool) -> Iterator[Batch]:
    """What a user gives as batches of one size, the smaller ones padded."""
    size, shape = 0, ()
    for item in given:
        if isinstance(item, Batch):
            yield item
            continue
        given_images, given_labels = _parted(name, item)
        images = np.asarray(checks.array_of(name, given_images))
        _require_image_dtype(name, images, backbone)
        if images.ndim != 4 or not len(images):
            raise TypeError(
                f"{name} holds images of dtype {images.dtype} and shape {images.shape}; expected "
                "normalised floating-point images (B, H, W, C)"
            )
        shape = shape or images.shape[1:]
        if images.shape[1:] != shape:
            raise UserError(f"{name} holds images {images.shape[1:]}; expected {shape} as before")
        size = max(size, len(images))
        with checks.room(name, images.shape):
            batch = padded(images, _labels(name, given_labels, len(images), wanted), size)
        yield batch


def _chosen(whole: Iterable[Batch], rows: Rows) -> Iterator[Batch]:
    """The rows of all batches, which are asked for in ascending order."""
    start = 0
    for batch in whole:
        stop = start + int(batch.valid.sum())
        own = rows[(rows >= start) & (rows < stop)] - start
        if len(own):
            places = np.flatnonzero(batch.valid)[own]
            yield padded(batch.images[places], batch.labels[places], len(batch.valid))
        start = stop


__all__ = ["Door", "Given", "ItemSet", "class_folders", "door", "padded", "pictures_of"]
