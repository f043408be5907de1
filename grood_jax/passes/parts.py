"""A pass over the rows of a set, in parts that are kept as they are made.

A part is a run of rows, whichever process made it. Beside the parts lie sums, of each process those
of its rows, where a pass sums something. All processes say what they find, and decide alike which
of it is used: none of a part's rows is in another, and sums are of rows that no other has summed.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from grood_jax.data import Batch, Share
from grood_jax.passes.memo import Arrays, Form, Parts
from grood_jax.passes.processes import joined, joined_arrays, said_by_all
from grood_jax.support.errors import UserError

T = TypeVar("T")

Span = tuple[int, int]
"""Rows from the first to before the second."""

PART_ROWS = 4096
"""A part ends with the batch that brings it to so many rows, …"""

PART_SECONDS = 30.0
"""… or that ends so long after the part began: that much is made again at most."""

SUMS_SHARE = 0.05
"""Of the time between two writings of sums the last one took this much at most."""


Run = Callable[[Iterable[Batch], Span | None, bool], Iterator[tuple[Any, Bool[np.ndarray, " b"]]]]
"""Gives results of each batch, with which of its rows are valid, for the batches, where their rows
lie among those of the pass (None: they are all of them), and whether they are fresh: to be summed,
where something is."""


@runtime_checkable
class Sums(Protocol):
    """What a pass sums beside its results."""

    def arrays(self) -> Arrays:
        """All that has been summed so far."""
        ...

    def add(self, arrays: Arrays) -> None:
        """Adds the arrays of other rows; called before any batch is run."""
        ...


def run_pass(
    batches: Iterable[Batch],
    form: Form[T],
    run: Run,
    *,
    parts: Parts | None = None,
    sums: Sums | None = None,
    keep: Callable[[Any, Bool[np.ndarray, " b"]], Any] | None = None,
) -> T:
    """Results with a row for each valid one of the batches, of all processes if a `Share`.

    With ``parts``, rows that an earlier run has left there are not made again; sums go on from
    those that it left. In as many processes as then, with batches of the same size, all has the
    bits of a pass that nothing ended.

    Args:
      batches: padded batches of one shape; in parts only if they are a `Share`.
      form: how the results are arrays.
      run: runs the network.
      parts: where parts are kept, if they are; what the first process says counts.
      sums: what ``run`` sums on the way, if anything.
      keep: gives the valid rows of a batch's results where nothing is kept; `valid_rows` if None.

    Raises:
      ValueError: there is no batch.
      Stopped: as `grood_jax.passes.processes.joined`.
    """
    keep = keep or valid_rows
    if not isinstance(batches, Share):
        return gathered(run(batches, None, True), keep)
    own = None if parts is None else _Listing.of(parts, sums is not None)
    said = said_by_all(batches, "null" if own is None else own.as_text())
    if said[0] == "null":
        block = batches.block.start, batches.block.stop
        return joined(batches, form, lambda: gathered(run(batches, block, True), keep))
    listings = [_Listing.from_text(text) for text in said]
    pieces = _Pieces(batches, parts, form, sums)
    todo = pieces.take_up(listings)
    arrays = joined_arrays(batches, lambda: pieces.completed(todo, run))
    return form.from_arrays(pieces.in_order(arrays))


def valid_rows(tree: Any, valid: Bool[np.ndarray, " b"]) -> Any:
    """The valid rows of a batch's results, in host memory."""
    # Beyond these are rows that make the batch divisible among devices.
    return jax.tree.map(lambda array: np.asarray(array)[: len(valid)][valid], tree)


def gathered(
    results: Iterable[tuple[Any, Bool[np.ndarray, " b"]]],
    keep: Callable[[Any, Bool[np.ndarray, " b"]], Any] = valid_rows,
) -> Any:
    """The valid rows of all batches' results, joined.

    Each result is fetched when the next is under way, so that the device does not wait.

    Args:
      results: of each batch, with which of its rows are valid.
      keep: gives the valid rows, where they are to be joined.

    Raises:
      ValueError: there is no batch.
    """
    found: list[Any] = []
    waiting: list[tuple[Any, np.ndarray]] = []
    for result in results:
        found += [keep(*waiting.pop())] if waiting else []
        waiting.append(result)
    if not waiting:
        raise ValueError("batches is empty; expected at least one batch")
    found.append(keep(*waiting.pop()))

    def join(*arrays: Any) -> Any:
        # JAX's stay on their device.
        return (jnp if isinstance(arrays[0], jax.Array) else np).concatenate(arrays)

    return jax.tree.map(join, *found)


def without(spans: Iterable[Span], taken: Iterable[Span]) -> list[Span]:
    """The rows of some spans that are in none of others, in order."""
    left = [span for span in spans if span[0] < span[1]]
    for first, last in taken:
        cut = []
        for start, stop in left:
            cut += [(start, min(stop, first)), (max(start, last), stop)]
        left = [(start, stop) for start, stop in cut if start < stop]
    return sorted(left)


def within(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """The rows of some spans that are in others too, in order."""
    spans = list(spans)
    return without(spans, without(spans, others))


def share_of(spans: Sequence[Span], index: int, count: int) -> list[Span]:
    """A process's share of the rows of spans, in order; no other's has two more or fewer."""
    total = sum(stop - start for start, stop in spans)
    first, last = total * index // count, total * (index + 1) // count
    found, before = [], 0
    for start, stop in spans:
        part = start + max(0, first - before), min(stop, start + last - before)
        found += [part] if part[0] < part[1] else []
        before += stop - start
    return found


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The same rows in as few spans as can be."""
    found: list[Span] = []
    for start, stop in sorted(spans):
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


@dataclass(frozen=True, order=True)
class _Part:
    """A part that a process has: its rows, and how many processes worked when it was made."""

    start: int
    stop: int
    of: int

    @property
    def span(self) -> Span:
        return self.start, self.stop

    @property
    def name(self) -> str:
        return f"rows-{self.start}-{self.stop}-of-{self.of}"

    @staticmethod
    def named(name: str) -> "_Part | None":
        found = re.fullmatch(r"rows-(\d+)-(\d+)-of-(\d+)", name)
        return None if found is None else _Part(*map(int, found.groups()))


@dataclass(frozen=True, order=True)
class _Sum:
    """Sums that a process has: whose they are, and of which rows."""

    owner: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def name(self) -> str:
        return f"sums-{self.owner}"


@dataclass(frozen=True)
class _Listing:
    """What a process has found of parts and sums; none of the arrays has been read yet."""

    parts: tuple[_Part, ...] = ()
    sums: tuple[_Sum, ...] = ()
    complaints: tuple[str, ...] = ()

    @staticmethod
    def of(parts: Parts, summed: bool) -> "_Listing":
        names = parts.names()
        found = [part for part in map(_Part.named, names) if part is not None]
        sums, complaints = [], []
        for name in names if summed else ():
            owner = re.fullmatch(r"sums-(\d+)", name)
            if owner is None:
                continue
            try:
                sums.append(_Sum(int(owner[1]), _spans(parts.facts(name)["rows"])))
            except UserError as error:
                complaints.append(str(error))
        return _Listing(tuple(found), tuple(sums), tuple(complaints))

    def as_text(self) -> str:
        parts = [[part.start, part.stop, part.of] for part in self.parts]
        return json.dumps([parts, [[own.owner, own.spans] for own in self.sums], self.complaints])

    @staticmethod
    def from_text(text: str) -> "_Listing":
        parts, sums, complaints = json.loads(text) or ([], [], [])
        return _Listing(
            tuple(_Part(*part) for part in parts),
            tuple(_Sum(owner, _spans(spans)) for owner, spans in sums),
            tuple(complaints),
        )


def _spans(given: Iterable[Sequence[int]]) -> tuple[Span, ...]:
    return tuple((int(start), int(stop)) for start, stop in given)


def _chosen(
    listings: Sequence[_Listing], blocks: Sequence[slice], summed: bool
) -> tuple[dict[_Part, int], dict[_Sum, int]]:
    """Parts and sums that have no row in common, and the process that reads each.

    Args:
      listings: what each process has found.
      blocks: the rows of each, if it has no others.
      summed: whether parts are of use only where they are in some sums.
    """
    parts: dict[_Part, list[int]] = {}
    sums: dict[_Sum, list[int]] = {}
    for number, listing in enumerate(listings):
        for part in listing.parts:
            parts.setdefault(part, []).append(number)
        for own in listing.sums:
            sums.setdefault(own, []).append(number)
    summers: dict[_Sum, int] = {}
    taken: list[Span] = []
    # What is of more rows was begun with what is of fewer.
    for own in sorted(sums, key=lambda own: (-own.rows, own)):
        if not within(own.spans, taken):
            summers[own] = own.owner if own.owner in sums[own] else sums[own][0]
            taken += own.spans
    readers: dict[_Part, int] = {}
    end = 0
    for part in sorted(parts, key=lambda part: (part.start, -part.stop, part.of)):
        if end <= part.start < part.stop and not (summed and without([part.span], taken)):
            owners = [n for n, block in enumerate(blocks) if block.start <= part.start < block.stop]
            readers[part] = next((n for n in owners if n in parts[part]), parts[part][0])
            end = part.stop
    return readers, summers


@dataclass
class _Pieces:
    """What this process has of a pass: parts that were left, and those that it makes."""

    share: Share
    parts: Parts | None
    form: Form[Any]
    sums: Sums | None
    made: list[tuple[Span, Arrays]] = field(default_factory=list)
    summed: list[Span] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    lost: str = ""

    def take_up(self, listings: Sequence[_Listing]) -> list[tuple[Span, bool]]:
        """Reads what was left; the spans that are still to be made, and whether they are fresh.

        Args:
          listings: what each process has found.
        """
        index, count, total = self.share.index, self.share.count, len(self.share.rows)
        blocks = [Share(list, self.share.rows, number, count).block for number in range(count)]
        parts, sums = _chosen(listings, blocks, self.sums is not None)
        read = self._read(
            [part for part, reader in parts.items() if reader == index],
            [own for own, reader in sums.items() if reader == index],
        )
        found = [_Listing.from_text(text) for text in said_by_all(self.share, read.as_text())]
        counted = [span for own in found for one in own.sums for span in one.spans]
        whole = [part for own in found for part in own.parts]
        if self.sums is not None:
            # Where sums were damaged, what is in no others has to be run for them.
            whole = [part for part in whole if not without([part.span], counted)]
        held = [part.span for part in whole]
        self.made = [piece for piece in self.made if piece[0] in held]
        if index == 0 and self.parts is not None:
            self._tell([*listings, *found], held, total)
        left = without([(0, total)], held)
        if all(part.of == count for part in whole):
            # Each goes on where it was, batch for batch.
            own = within(left, [(blocks[index].start, blocks[index].stop)])
        else:
            own = share_of(left, index, count)
        again = [(span, False) for span in within(own, counted)]
        return sorted([(span, True) for span in without(own, counted)] + again)

    def completed(self, todo: Sequence[tuple[Span, bool]], run: Run) -> Arrays:
        """The arrays of all rows that this process has, in order, once it has made what it is to.

        Args:
          todo: the spans to be made, and whether they are fresh.
          run: runs the network.
        """
        last = max((span[1] for span, fresh in todo if fresh), default=None)
        due = 0.0
        for whole, fresh in todo:
            for span, arrays in self._made(whole, fresh, run):
                self.made.append((span, arrays))
                self._write(_Part(*span, self.share.count).name, {}, arrays)
                if not fresh or self.sums is None:
                    continue
                self.summed = _merged([*self.summed, span])
                began = time.monotonic()
                if span[1] == last or began >= due:
                    name = _Sum(self.share.index, ()).name
                    self._write(name, {"rows": self.summed}, self.sums.arrays())
                    due = began + (time.monotonic() - began) * (1 + 1 / SUMS_SHARE)
        if not todo:
            # Others have rows, and what is exchanged must have their shapes.
            results = run(self.share.without_rows(), (0, 0), False)
            self.made.append(((0, 0), self.form.to_arrays(gathered(results))))
        return self._joined()

    def in_order(self, arrays: Arrays) -> Arrays:
        """All processes' arrays, those of one after the other's, in the order of their rows."""
        texts = said_by_all(self.share, json.dumps([self.ends, self.lost]))
        said = list(map(json.loads, texts))
        ends = [(start, count) for own, _ in said for start, count in own if count]
        if self.share.index == 0 and self.parts is not None:
            for number, (_, lost) in enumerate(said):
                if lost and number:
                    self.parts.say(f"process {number}: {lost}")
        if ends == sorted(ends):
            return arrays
        starts, counts = np.array(ends, np.int64).T
        afters = np.cumsum(counts)
        blocks = [np.arange(afters[i] - counts[i], afters[i]) for i in np.argsort(starts)]
        order = np.concatenate(blocks)
        return {name: array[order] for name, array in arrays.items()}

    def _read(self, parts: Iterable[_Part], sums: Iterable[_Sum]) -> _Listing:
        """Reads parts and sums; those that are whole, and what is wrong with the others."""
        whole: tuple[list[_Part], list[_Sum]] = [], []
        complaints = []
        for own in sums:
            assert self.parts is not None and self.sums is not None
            try:
                self.sums.add(self.parts.read(own.name))
                self.summed += own.spans
                whole[1].append(own)
            except UserError as error:
                complaints.append(str(error))
        for part in parts:
            assert self.parts is not None
            try:
                self.made.append((part.span, self._wanted(self.parts.read(part.name))))
                whole[0].append(part)
            except UserError as error:
                complaints.append(str(error))
        return _Listing(tuple(whole[0]), tuple(whole[1]), tuple(complaints))

    def _wanted(self, arrays: Arrays) -> Arrays:
        """The arrays of a part that are wanted; there may be more.

        Raises:
          UserError: some are missing.
        """
        found: Arrays = {}
        for wanted in self.form.names:
            own = [n for n in arrays if re.fullmatch(re.escape(wanted) + r"( \d+)?", n)]
            if not own:
                raise UserError(f"a part has no {wanted}, which other detectors did not need")
            found |= {name: arrays[name] for name in own}
        return found

    def _tell(self, listings: Iterable[_Listing], held: Sequence[Span], total: int) -> None:
        assert self.parts is not None
        for complaint in dict.fromkeys(line for own in listings for line in own.complaints):
            self.parts.say(f"cache: {complaint}; it is made anew")
        rows = sum(stop - start for start, stop in held)
        if rows:
            title = self.parts.about.get("set", "a set")
            self.parts.say(f"{title}: taken up at row {rows} of {total}")

    def _write(self, name: str, facts: Mapping[str, Any], arrays: Arrays) -> None:
        """Keeps a part; where that fails a line says so, and no other is tried."""
        if self.parts is None or self.lost:
            return
        try:
            self.parts.write(name, facts, arrays)
        except UserError as error:
            self.lost = f"cache: {error}; going on without"
            if self.share.index == 0:
                self.parts.say(self.lost)

    def _made(self, rows: Span, fresh: bool, run: Run) -> Iterator[tuple[Span, Arrays]]:
        """Makes a span, part by part."""
        batches = self.share.read(self.share.rows[slice(*rows)])
        results = iter(run(batches, rows, fresh))
        stop = rows[0]

        def one_part() -> Iterator[tuple[Any, Bool[np.ndarray, " b"]]]:
            nonlocal stop
            start, began = stop, time.monotonic()
            for result, valid in results:
                stop = min(stop + len(valid), rows[1])
                yield result, valid
                if stop - start >= PART_ROWS or time.monotonic() - began >= PART_SECONDS:
                    return

        while (start := stop) < rows[1]:
            arrays = self.form.to_arrays(gathered(one_part()))
            yield (start, stop), arrays
        # What follows the last batch is done too.
        next(results, None)

    def _joined(self) -> Arrays:
        """Arrays of all pieces, each forgotten when it has been copied."""
        self.made.sort(key=lambda piece: piece[0])
        firsts = self.made[0][1]
        counts = [len(next(iter(arrays.values()))) for _, arrays in self.made]
        self.ends = [(span[0], count) for (span, _), count in zip(self.made, counts, strict=True)]
        if len(self.made) == 1:
            return firsts
        joined = {n: np.empty((sum(counts), *a.shape[1:]), a.dtype) for n, a in firsts.items()}
        for end, count in zip(np.cumsum(counts).tolist(), counts, strict=True):
            arrays = self.made.pop(0)[1]
            for name, array in joined.items():
                array[end - count : end] = arrays[name]
        return joined
