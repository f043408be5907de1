"""Finding all the sets that are wanted, or saying of all at once what is missing."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from grood_jax.data import download as downloading
from grood_jax.data.preprocessing import Preprocessing
from grood_jax.data.sets import ImageSet
from grood_jax.data.tfds import TfdsSource
from grood_jax.support.errors import UserError

Kind = Literal["openood", "tfds", "npz", "folder"]

_NPZ = (
    "numpy.savez writes such a file: arrays images (N, H, W, 3) of bytes and labels (N,), the "
    "latter for sets of the training classes"
)


@runtime_checkable
class Source(Protocol):
    """A place where a set may be found.

    Attributes:
      kind: what a user calls such places.
    """

    @property
    def kind(self) -> str:
        """What a user calls such places."""
        ...

    @property
    def place(self) -> str:
        """Where it is looked for, relative to the data directory, for messages."""
        ...

    def open(self, name: str, data_dir: Path, preprocessing: Preprocessing) -> ImageSet | None:
        """Opens the set, or returns None if it is not there; raises UserError if it is damaged."""
        ...


@dataclass(frozen=True)
class SetSpec:
    """A set of images and its possible sources.

    Attributes:
      name: the set's name in results.
      sources: where it may be found, in the order in which they are tried; or a function that
        makes a set that is built in.
      how_to_get: how a user gets a set that tensorflow-datasets cannot download; ``{data_dir}``
        stands for the folder of all prepared sets, quoted for a shell.
      cropped: its images are stored at the size that networks take, and their borders are not cut
        off.
    """

    name: str
    sources: tuple[Source, ...] | Callable[[], ImageSet]
    how_to_get: str = ""
    cropped: bool = False

    @property
    def in_catalogue(self) -> str | None:
        """The first name under which tensorflow-datasets can download it."""
        if callable(self.sources):
            return None
        known = (s for s in self.sources if isinstance(s, TfdsSource) and s.in_catalogue)
        return next((source.dataset for source in known), None)

    def of_kind(self, kind: Kind | None) -> "SetSpec":
        """The set with only its sources of a kind; of any kind for None. Built-in sets stay."""
        if kind is None or callable(self.sources):
            return self
        own = tuple(source for source in self.sources if source.kind == kind)
        how_to_get = _NPZ if kind == "npz" else self.how_to_get
        return replace(self, sources=own, how_to_get=how_to_get)


@dataclass(frozen=True)
class Wanted:
    """A set that is looked for.

    Attributes:
      title: what messages call it.
      spec: the set.
      optional: whether one may go on without it.
    """

    title: str
    spec: SetSpec
    optional: bool = False


def find_sets(
    wanted: Sequence[Wanted],
    data_dir: Path,
    preprocessing: Preprocessing,
    *,
    download: bool,
    skip_missing: bool,
    source: Kind | None = None,
) -> list[ImageSet | None]:
    """Opens sets; what is missing is downloaded if that is asked for.

    Args:
      wanted: the sets.
      data_dir: the folder of all prepared sets.
      preprocessing: the size and channels that images are brought to.
      download: prepare missing sets that tensorflow-datasets knows. Nothing is downloaded as
        long as it is known that another set cannot be had.
      skip_missing: go on without optional sets that are missing.
      source: look only in places of this kind.

    Returns:
      The sets in order, None for those that are skipped.

    Raises:
      UserError: sets are missing or damaged; each is named with where it was looked for and how
        to get it.
    """
    wanted = [replace(w, spec=w.spec.of_kind(source)) for w in wanted]
    opened_sets: dict[int, ImageSet] = {}
    problems: dict[int, str] = {}

    def look(index: int) -> None:
        try:
            opened = _open(wanted[index].spec, data_dir, preprocessing)
        except UserError as error:
            problems[index] = str(error)
        else:
            if opened is not None:
                opened_sets[index] = opened

    for index in range(len(wanted)):
        look(index)
    absent = {i: w for i, w in enumerate(wanted) if i not in opened_sets and i not in problems}
    names = {i: name for i, w in absent.items() if (name := w.spec.in_catalogue) is not None}
    obstacles = downloading.obstacles(names.values(), data_dir) if download else {}
    within_reach = {i: n for i, n in names.items() if download and n not in obstacles}
    lost = [
        i for i, w in absent.items() if i not in within_reach and not (w.optional and skip_missing)
    ]
    problems |= {i: _missing(wanted[i], data_dir) for i in lost}
    if problems:
        listed = "; ".join(problems[i] for i in sorted(problems))
        ways = _ways([wanted[i] for i in lost], data_dir, download, obstacles)
        raise UserError(
            ". ".join([f"{len(problems)} of {len(wanted)} sets cannot be used: {listed}", *ways])
        )
    for dataset in dict.fromkeys(within_reach.values()):
        downloading.prepare(dataset, data_dir)
    for index in within_reach:
        look(index)
    if problems:
        raise UserError("; ".join(problems.values()))
    return [opened_sets.get(i) for i in range(len(wanted))]


def _open(spec: SetSpec, data_dir: Path, preprocessing: Preprocessing) -> ImageSet | None:
    if callable(spec.sources):
        return spec.sources()
    if spec.cropped:
        preprocessing = replace(preprocessing, resize=None)
    opened = (source.open(spec.name, data_dir, preprocessing) for source in spec.sources)
    return next((images for images in opened if images is not None), None)


def _missing(wanted: Wanted, data_dir: Path) -> str:
    assert not callable(wanted.spec.sources)
    places = [source.place for source in wanted.spec.sources]
    if not places:
        return f"{wanted.title} is missing (it is not to be had in this form)"
    looked = " or ".join(filter(None, [", ".join(places[:-1]), places[-1]]))
    return f"{wanted.title} is missing (looked for {looked} in {data_dir})"


def _ways(
    lost: Sequence[Wanted], data_dir: Path, download: bool, obstacles: Mapping[str, list[str]]
) -> list[str]:
    """How a user gets the sets: what holds for several is said once."""
    names = [name for wanted in lost if (name := wanted.spec.in_catalogue) is not None]
    ways = []
    if names and not download:
        ways.append(f"To get them: {downloading.how_to_download(names, data_dir)}")
    elif names:
        blocked: dict[str, list[str]] = {}
        for name in dict.fromkeys(names):
            for reason in obstacles[name]:
                blocked.setdefault(reason, []).append(name)
        reasons = [f"{', '.join(sets)}: {reason}" for reason, sets in blocked.items()]
        ways.append(f"--download cannot get {'; '.join(reasons)}")
        ways.append("Or copy sets that tensorflow-datasets prepared elsewhere to these folders")
    by_hand: dict[str, dict[str, None]] = {}
    for spec in (w.spec for w in lost if w.spec.in_catalogue is None and w.spec.how_to_get):
        how = spec.how_to_get.format(data_dir=shlex.quote(str(data_dir)))
        by_hand.setdefault(how, {})[spec.name] = None
    ways += [f"To get {', '.join(sets)}: {how}" for how, sets in by_hand.items()]
    if any(wanted.optional for wanted in lost):
        ways.append("--skip-missing goes on without missing OOD sets")
    return ways
