"""What the adapters share: stages by a model's own names, and what static parts must be."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array

Early = Callable[[Any, Array], Array]
Late = Callable[[Any, Array], tuple[Array, Array]]
Head = Callable[[Any], tuple[Array, Array]]
Middle = Callable[[Any, Array], tuple[Array, ...]]
Local = Callable[[Any, Array], Array]
Functions = tuple[Callable[..., Any], Callable[..., Any]]
Cut = str | Functions

TRAINING = (
    "the model ran in training mode: its batch statistics or random state would change with the "
    "batch; put it in evaluation mode (use_running_average=True, deterministic=True) in the "
    "functions that the backbone calls"
)


class Parts(NamedTuple):
    """What a backbone is made of; see `grood_jax.backbone.backbone.Backbone`."""

    arrays: Any
    early: Early
    late: Late
    head: Head | None = None
    layers: Middle | None = None
    cut: str = ""
    head_name: str = ""
    local: Local | None = None


def check_hashable(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` can be a static part of what is compiled."""
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be hashed ({error}), as jit demands of what is static; expected "
            "functions, or frozen dataclasses and modules with hashable attributes"
        ) from error


@dataclass(frozen=True)
class ByName:
    """A model's own method for a named stage; equal for equal names, so nothing retraces."""

    method: str
    cut: str

    def __call__(self, model: Any, x: Array) -> Any:
        """What the method makes of images or activations."""
        return getattr(model, self.method)(x, self.cut)


@dataclass(frozen=True)
class Activations:
    """A model's own method for its middle layers."""

    def __call__(self, model: Any, images: Array) -> Any:
        """The activations of middle layers."""
        return model.activations(images)


def is_functions(cut: Any) -> bool:
    """Whether a cut is a pair of functions."""
    return isinstance(cut, tuple) and len(cut) == 2 and all(callable(part) for part in cut)


def own_stages(model: Any) -> tuple[str, ...] | None:
    """The names of the stages at which a model can cut itself; None where it cannot."""
    if not (hasattr(model, "early") and hasattr(model, "late")):
        return None
    stages = getattr(model, "stages", None)
    return None if stages is None else tuple(stages)


def stages(model: Any, cut: Any) -> tuple[Callable[..., Any], Callable[..., Any], str]:
    """The functions (early, late) of a model, and what the cut is called.

    Raises:
      TypeError: ``cut`` is neither a name nor two functions, or the model has no stages.
      ValueError: the model has no such stage.
    """
    if isinstance(cut, tuple) and is_functions(cut):
        check_hashable("cut", cut)
        return cut[0], cut[1], "functions"
    if not isinstance(cut, str):
        raise TypeError(
            f"cut is {cut!r}; expected the name of a stage or two functions (early, late), or "
            "example=images beside it, a batch that the model takes"
        )
    named = own_stages(model)
    if named is None:
        raise TypeError(
            f"cut is {cut!r}, but {type(model).__name__} has no named stages; expected "
            "example=images too, a batch that the model takes, to cut at any submodule; or a model "
            "with `stages`, `early` and `late`, or a cut of two functions (early, late)"
        )
    if cut not in named:
        raise ValueError(
            f"cut is {cut!r}; expected one of {', '.join(named)}, or with example=images, a batch "
            "that the model takes, any submodule"
        )
    return ByName("early", cut), ByName("late", cut), cut


def cuts_itself(model: Any, head: Any, cut: Any, example: Any) -> bool:
    """Whether a model is cut by functions or by its own stages, and not at a submodule's name."""
    own = own_stages(model)
    by_itself = head is None and own is not None and cut in own
    return is_functions(cut) or example is None or by_itself


def stage_parts(
    model: Any,
    arrays: Any,
    *,
    head: Any,
    cut: Any,
    layers: Any,
    stage: Callable[[Callable[..., Any], str], Any],
    head_at: Callable[[str], Head | None],
    linear: str,
) -> Parts:
    """What a backbone is made of that is cut by functions or by its own stages.

    Args:
      model: the model.
      arrays: its arrays.
      head: the path of the layer from features to logits; None for one called ``head``, if any.
      cut: as for `stages`.
      layers: as for `middle`.
      stage: makes a static part of a function of the model and its name.
      head_at: what gives the weights of the linear layer at a path; None where there is none.
      linear: what messages call such a layer.

    Raises:
      TypeError: there is no such layer at ``head``; or as `stages`.
      ValueError: as `stages`.
    """
    early, late, name = stages(model, cut)
    path = "head" if head is None else head
    weights = head_at(path) if isinstance(path, str) else None
    if head is not None and weights is None:
        raise TypeError(
            f"head is {head!r}; expected the path of {linear}, or example=images and the path of a "
            "submodule as cut"
        )
    early, late = stage(early, name), stage(late, name)
    own = path if weights is not None else ""
    return Parts(arrays, early, late, weights, middle(model, layers, stage), name, own)


def middle(model: Any, layers: Any, stage: Callable[..., Middle]) -> Middle | None:
    """What gives the activations of middle layers: the function given, or the model's method.

    Args:
      model: the model.
      layers: ``(model, images) -> activations``, if given.
      stage: makes a static part of such a function and its name.
    """
    if layers is not None:
        check_hashable("layers", layers)
        return stage(layers, "functions")
    has_method = callable(getattr(model, "activations", None))
    return stage(Activations(), "activations") if has_method else None


FLAGS = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}
"""What arguments of these names are in evaluation mode."""


def evaluation_flags(model: Any) -> dict[str, bool]:
    """Those arguments of a model's call that put it in evaluation mode, by their names."""
    taken = inspect.signature(type(model).__call__).parameters
    return {name: value for name, value in FLAGS.items() if name in taken}
