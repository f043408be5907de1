"""Several processes that evaluate together: each reads its share, and all know all outputs.

Within a pass over a set no process waits for another; at its end they exchange what they made.
Every exchange begins with a round in which each says whether it has failed, so that all end where
one does.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from grood_jax.data import Batch, Share
from grood_jax.maths.prototypes import ClassMeans, merge
from grood_jax.passes import runtime
from grood_jax.passes.coordinator import START_SECONDS
from grood_jax.passes.memo import Arrays, Form, Memo, Parts, parts_of
from grood_jax.support import provenance
from grood_jax.support.errors import UserError, first_line

T = TypeVar("T")

BLOCK_BYTES = 2**28
"""Bytes of all processes' rows that are exchanged at once."""

FAIR = 2
"""Things a process at least, where each is done by one: fewer are divided by their rows."""

HELD, WANTED = 0, 1
"""Whether the first process has the outputs of a set already, or wants them made."""


class Stopped(Exception):
    """A pass ends here, because of what happened in this process or another.

    No ValueError: it must reach `Processes.together`, whoever mends what detectors raise.
    """


def joined(batches: Iterable[Batch], form: Form[T], make: Callable[[], T]) -> T:
    """Results with a row for each valid one of the batches, of all processes if a `Share`.

    Args:
      batches: what the results are made of.
      form: how they are arrays.
      make: makes this process's.

    Raises:
      Stopped: a process failed; for another reason than its own, in all but that one.
    """
    if not _divided(batches):
        return make()
    return form.from_arrays(joined_arrays(batches, lambda: form.to_arrays(make())))


def joined_arrays(batches: Iterable[Batch], make: Callable[[], Arrays]) -> Arrays:
    """As `joined`, of arrays with a row for each valid one of the batches."""
    if not _divided(batches):
        return make()
    try:
        arrays = make()
    except Exception as error:
        raise Stopped(str(error)) from error
    return {name: _joined(arrays[name]) for name in sorted(arrays)}


def said_by_all(batches: Iterable[Batch], text: str) -> list[str]:
    """What each process that has a share of the batches says; short."""
    return _said(text) if _divided(batches) else [text]


def joined_means(batches: Iterable[Batch], means: ClassMeans) -> ClassMeans:
    """Means over the batches, of all processes if these are a `Share`."""
    if not _divided(batches):
        return means
    fields = np.asarray(means.means), np.asarray(means.counts)
    made = tuple(np.zeros_like(array) for array in fields)
    counts = _round(len(fields[1]))
    # Cut alike, by the largest: blocks of both are of the same classes.
    size = _rows_at_once(fields[0], counts)
    for blocks in zip(*(_blocks(array, counts, size) for array in fields), strict=True):
        start = blocks[0][0]
        pairs = zip(*(block for _, block in blocks), strict=True)
        parts = [ClassMeans(*map(jax.numpy.asarray, pair)) for pair in pairs]
        merged = reduce(merge, parts)
        for array, values in zip(made, (merged.means, merged.counts), strict=True):
            part = array[start : start + size]
            part[:] = np.asarray(values)[: len(part)]
    return ClassMeans(*map(jax.numpy.asarray, made))


@dataclass(frozen=True)
class Processes:
    """The processes that do the same work together; by default this one alone.

    Attributes:
      index: this process's number; the first, 0, leads: it alone writes and reports.
      count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.index == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work that all processes do: where one fails, all of them do.

        Raises:
          UserError: another process failed, or this one did for what a user can mend.
        """
        if self.count == 1:
            yield
            return
        try:
            _round()
            yield
            # Not before what the first process writes is written.
            _round()
        except Stopped as stopped:
            cause = stopped.__cause__
            if cause is None:
                raise UserError(str(stopped)) from None
            _tell_failure()
            if isinstance(cause, ValueError):
                raise UserError(str(cause)) from cause
            raise cause from None
        except Exception:
            _tell_failure()
            raise

    def in_turn(self, work: Callable[[], T]) -> T:
        """Does the work in the first process, then in the others: they find what it left."""
        if self.count == 1:
            return work()
        if self.leads:
            result = work()
            _round()
            return result
        _round()
        return work()

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Refuses processes that differ.

        Args:
          facts: what each must have in common with the first, by name, in JSON's types.

        Raises:
          UserError: one of them differs from the first process's.
        """
        if self.count == 1:
            return
        said = list(map(json.loads, _said(json.dumps(facts, default=str))))
        for number, theirs in enumerate(said):
            for name in sorted({*said[0], *theirs}):
                ours = said[0].get(name)
                if theirs.get(name) != ours:
                    raise UserError(
                        f"process {number} has the {name} {theirs.get(name)!r}, and process 0 has "
                        f"{ours!r}; give all processes the same command, checkpoint and data"
                    )

    def share(
        self,
        read: Callable[[Int[np.ndarray, " r"]], Iterable[Batch]],
        rows: Int[np.ndarray, " n"],
    ) -> Iterable[Batch]:
        """This process's batches of the rows: a `Share`, or all that ``read`` gives if alone."""
        return read(rows) if self.count == 1 else Share(read, rows, self.index, self.count)

    def gathered(self, array: np.ndarray) -> np.ndarray:
        """The rows of all processes' arrays, which must agree in all but their number."""
        return array if self.count == 1 else _joined(array)

    def shared_rows(self, count: int, make: Callable[[slice], np.ndarray]) -> np.ndarray:
        """A row for each of ``count``, made by each process of its share, and known to all.

        Args:
          count: how many rows there are.
          make: makes the rows of a block.

        Raises:
          ValueError: a process could not make its rows; all raise it, with that one's reason.
        """
        if self.count == 1:
            return make(slice(0, count))
        made, reason = np.zeros(0), ""
        try:
            made = make(Share(list, np.arange(count), self.index, self.count).block)
        except (ValueError, ArithmeticError, MemoryError, jax.errors.JaxRuntimeError) as error:
            reason = first_line(error)
        for said in filter(None, _said(reason)):
            raise ValueError(said)
        return _joined(made)

    def owners(self, names: Sequence[str]) -> dict[str, int]:
        """The process that alone works on a thing, by name: the first on the first, and so on.

        Empty where there is one process, or so few things a process that shares would differ.

        Args:
          names: of the things.
        """
        if self.count == 1 or len(names) < FAIR * self.count:
            return {}
        return {name: number % self.count for number, name in enumerate(names)}

    def known_to_all(self, facts: Any) -> list[Any]:
        """Facts of every process, in JSON's types and in their order."""
        if self.count == 1:
            return [facts]
        # JSON has no line feed of its own.
        lines = _joined(np.frombuffer(json.dumps(facts).encode() + b"\n", np.uint8))
        return list(map(json.loads, lines.tobytes().splitlines()))

    def told(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, in JSON's types and few words; the others do not."""
        if self.count == 1:
            return make()
        return json.loads(_said(json.dumps(make()) if self.leads else "null")[0])

    def agreed(self, memo: Memo) -> Memo:
        """A `Memo` that only the first process has, and that gives all of them its results.

        Parts of them each process keeps where its own memo does.
        """
        return memo if self.count == 1 else _Agreed(memo, self.leads)


@dataclass(frozen=True)
class _Agreed:
    memo: Memo
    leads: bool

    def __call__(self, about: Mapping[str, Any], form: Form[T], make: Callable[[], T]) -> T:
        if not self.leads:
            if _round()[0] == HELD:
                arrays = _from_first({})
                if (own := self.parts(about)) is not None:
                    own.remove_all_of(arrays)
                return form.from_arrays(arrays)
            results = make()
            self._forget_parts(about)
            return results
        asked = False

        def make_together() -> T:
            nonlocal asked
            asked = True
            _round(WANTED)
            return make()

        results = self.memo(about, form, make_together)
        if asked:
            self._forget_parts(about)
        else:
            _round(HELD)
            _from_first(form.to_arrays(results))
        return results

    def parts(self, about: Mapping[str, Any]) -> Parts | None:
        return parts_of(self.memo, about)

    def _forget_parts(self, about: Mapping[str, Any]) -> None:
        """Each process its own, once the first has none any more: it has kept the whole."""
        own = self.parts(about)
        left = 0 if own is None else int(own.there)
        if not _round(left)[0] and own is not None:
            own.remove()


ALONE = Processes()
"""This process, without others."""


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    seconds: int = START_SECONDS,
) -> Processes:
    """Meets the other processes, unless they have met; before anything is computed.

    From then on a process that has died, or cannot be reached, is noticed by the others within half
    a minute: they end with a line that names it.

    Args:
      coordinator: HOST:PORT of the first process; found by JAX on TPU pods, Slurm and Open MPI,
        as are the others.
      num_processes: how many processes there are.
      process_id: this one's number, from 0.
      seconds: how long to wait for the others.

    Raises:
      UserError: they cannot be found, or have other versions or devices.
    """
    runtime.meet(coordinator, num_processes, process_id, seconds)
    return met()


def met() -> Processes:
    """The processes that have met, by `start` or ``jax.distributed.initialize``; or this one alone.

    All of them must ask at the same time.

    Raises:
      UserError: they have other versions or devices.
    """
    if not jax.distributed.is_initialized():
        return ALONE
    crew = Processes(*runtime.own_place())
    # Before devices are looked for, which another version may do in another way.
    versions = {f"version of {name}": own for name, own in provenance.versions().items()}
    crew.require_same({"number of processes": crew.count, **versions})
    kind = jax.local_devices()[0].device_kind
    crew.require_same({"number of devices": jax.local_device_count(), "kind of device": kind})
    return crew


def leads() -> bool:
    """Whether this is the first of the processes that have met, which writes; or alone."""
    return runtime.own_place()[0] == 0


def _divided(batches: Iterable[Batch]) -> bool:
    """Whether other processes have batches of the same rows."""
    return isinstance(batches, Share) and batches.count > 1


def _said(text: str, failed: bool = False) -> list[str]:
    """What every process says, once all are here; raises Stopped if one has failed."""
    said = [own.partition(" ") for own in runtime.exchange(f"{failed:d} {text}")]
    broken = [number for number, (mark, _, _) in enumerate(said) if mark == "1"]
    if broken and not failed:
        raise Stopped(f"process {broken[0]} failed; what it said tells why")
    return [own for _, _, own in said]


def _round(number: int = 0) -> Int[np.ndarray, " p"]:
    """Every process's number, once all are here; raises Stopped if one has failed."""
    return np.array([int(own) for own in _said(str(number))])


def _tell_failure() -> None:
    _said("0", failed=True)


def _rows_at_once(array: np.ndarray, counts: Int[np.ndarray, " p"]) -> int:
    row = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
    return max(1, min(int(counts.max()), BLOCK_BYTES // (row * len(counts))))


def _blocks(
    array: np.ndarray, counts: Int[np.ndarray, " p"], size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Where each block of rows starts, and all processes' (P, size, ...), padded by zeros."""
    for start in range(0, int(counts.max()), size):
        part = array[start : start + size]
        padded = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (array.ndim - 1))
        yield start, _allgathered(padded)


def _allgathered(array: np.ndarray) -> np.ndarray:
    """All processes' arrays of one shape, (P, ...)."""
    try:
        return np.asarray(multihost_utils.process_allgather(array))
    except jax.errors.JaxRuntimeError as error:
        runtime.await_verdict()
        raise UserError(f"processes cannot exchange arrays: {first_line(error)}") from error


def _joined(array: np.ndarray) -> np.ndarray:
    """The rows of all processes, those of the first before those of the second."""
    counts = _round(len(array))
    ends = np.cumsum(counts)
    gathered = np.empty((ends[-1], *array.shape[1:]), array.dtype)
    size = _rows_at_once(array, counts)
    for start, block in _blocks(array, counts, size):
        for part, end, count in zip(block, ends, counts, strict=True):
            kept = part[: max(0, count - start)]
            first = end - count + start
            gathered[first : first + len(kept)] = kept
    return gathered


def _from_first(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first process's arrays; the others give none."""
    layout = [[name, array.dtype.str, array.shape[1:]] for name, array in arrays.items()]
    said = json.dumps(layout).encode() if arrays else b""
    layout = json.loads(_joined(np.frombuffer(said, np.uint8)).tobytes())
    return {
        name: _joined(arrays.get(name, np.empty((0, *shape), dtype)))
        for name, dtype, shape in layout
    }
