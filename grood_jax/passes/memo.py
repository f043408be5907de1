"""What remembers the results of forward passes, or has them made."""

from collections.abc import Callable, Mapping
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
