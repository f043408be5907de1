"""What remembers the results of forward passes, or has them made."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

T = TypeVar("T")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form(Generic[T]):
    """How the results of a pass are arrays by name: for what keeps them, or sends them.

    Attributes:
      names: the arrays that are wanted; "name" stands also for "name 0", "name 1", …
      to_arrays: the arrays of results.
      from_arrays: results of arrays, of which there may be more than are wanted.
    """

    names: tuple[str, ...]
    to_arrays: Callable[[T], Arrays]
    from_arrays: Callable[[Arrays], T]


@runtime_checkable
class Memo(Protocol):
    """Gives results of an earlier call about the same, or has them made."""

    def __call__(self, about: Mapping[str, Any], form: Form[T], make: Callable[[], T]) -> T:
        """The results.

        Args:
          about: what decides them, in JSON's types.
          form: how they are arrays.
          make: computes them.
        """
        ...


def make_anew(about: Mapping[str, Any], form: Form[T], make: Callable[[], T]) -> T:
    """A `Memo` that remembers nothing."""
    del about, form
    return make()


@runtime_checkable
class Parts(Protocol):
    """Keeps what a pass has made so far, until its results are whole."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What decides the results, in JSON's types."""
        ...

    @property
    def there(self) -> bool:
        """Whether there is any part."""
        ...

    @property
    def say(self) -> Callable[[str], None]:
        """Takes lines."""
        ...

    def names(self) -> list[str]:
        """Names of all parts."""
        ...

    def facts(self, name: str) -> Mapping[str, Any]:
        """What was said of a part; raises UserError where it is not what was written."""
        ...

    def read(self, name: str) -> Arrays:
        """The arrays of a part; raises UserError where they are not what was written."""
        ...

    def write(self, name: str, facts: Mapping[str, Any], arrays: Arrays) -> None:
        """Keeps a part, in the place of that of the same name; raises UserError if it cannot."""
        ...

    def remove(self) -> None:
        """Forgets all parts."""
        ...

    def remove_all_of(self, held: Collection[str]) -> None:
        """Forgets all parts, unless one has arrays of other names than those that are held."""
        ...


@runtime_checkable
class KeepsParts(Memo, Protocol):
    """A `Memo` that also keeps what passes have made before they were ended."""

    def parts(self, about: Mapping[str, Any]) -> Parts | None:
        """Where parts of the results about this lie."""
        ...


def parts_of(memo: Memo, about: Mapping[str, Any]) -> Parts | None:
    """Where a memo keeps parts of results, if it does."""
    return memo.parts(about) if isinstance(memo, KeepsParts) else None
