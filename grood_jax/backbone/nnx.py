"""Backbones of flax.nnx modules."""

import functools
import types
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from grood_jax.backbone.flow import HOOKED, Hook
from grood_jax.backbone.naming import named_parts
from grood_jax.backbone.stages import (
    TRAINING,
    Parts,
    check_hashable,
    cuts_itself,
    evaluation_flags,
    middle,
    stage_parts,
)

_hooks: ContextVar[Callable[..., Any]] = ContextVar("hooks")
"""What stands around the calls of hooked modules in the run that is under way."""


def parts(
    model: Any,
    *,
    head: Any,
    cut: Any,
    example: Any,
    call: Any,
    layers: Any,
    takes_bytes: bool,
) -> Parts:
    """What a backbone of a module is made of; see `Backbone.from_nnx`."""
    network, arrays = network_of(model, call)
    stage = functools.partial(_NnxStage, network.graph)

    def head_at(path: str) -> _NnxHead | None:
        linear = isinstance(_at(model, path), nnx.Linear)
        return _NnxHead(network.graph, path) if linear else None

    if cuts_itself(model, head, cut, example):
        return stage_parts(
            model,
            arrays,
            head=head,
            cut=cut,
            layers=layers,
            stage=stage,
            head_at=head_at,
            linear="an nnx.Linear of the model",
        )
    if isinstance(head, nnx.Module):
        head = _path_of(model, head)
    named = named_parts(
        network, arrays, head=head, cut=cut, example=example, takes_bytes=takes_bytes
    )
    return named._replace(layers=middle(model, layers, stage))


def network_of(model: Any, call: Any) -> tuple["NnxNetwork", Any]:
    """A module in evaluation mode, and its arrays.

    Args:
      model: the module; it is left as it is.
      call: how it is run, ``(model, images) -> anything``; by default it is called.

    Raises:
      TypeError: it is no module, or cannot be static.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model is a {type(model).__name__}; expected a flax.nnx.Module")
    if call is not None and not callable(call):
        raise TypeError(f"call is {call!r}; expected a function of the model and images")
    check_hashable("call", call)
    evaluation = nnx.view(
        model, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graph, arrays = nnx.split(evaluation)
    check_hashable("model", graph)
    # Variables are mutable, and so far they are the caller's own.
    return NnxNetwork(graph, call), jax.tree.map(lambda array: array, arrays)


def _path_of(model: nnx.Module, wanted: nnx.Module) -> str:
    for path, module in nnx.iter_modules(model):
        if module is wanted and path:
            return _joined(path)
    raise ValueError(
        f"head is a {type(wanted).__name__} that is no part of the model; expected the path of a "
        "submodule, or one of them; or a function (model, features) -> logits"
    )


def _joined(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _at(model: nnx.Module, path: str) -> Any:
    """What lies at a path; None where nothing does."""
    named = {_joined(own): module for own, module in nnx.iter_modules(model)}
    return named.get(path, getattr(model, path, None))


@dataclass(frozen=True)
class NnxNetwork:
    """A module without its arrays, in evaluation mode."""

    graph: Any
    call: Callable[..., Any] | None

    @property
    def what(self) -> str:
        """What nnx calls it."""
        return "model"

    def run(
        self, arrays: Any, images: Array, hook: Hook, paths: frozenset[str] | None
    ) -> tuple[Any, Any]:
        """As `grood_jax.backbone.flow.Network.run`."""

        def hooked(model: nnx.Module) -> tuple[Any, Any]:
            places = {}
            for path, module in list(nnx.iter_modules(model)):
                wanted = path and (paths is None or _joined(path) in paths)
                if wanted and any("__call__" in vars(kind) for kind in type(module).__mro__):
                    places[id(module)] = _joined(path)
                    module.__class__ = _hooked(type(module))

            def around(module: Any, call: Any, args: Any, kwargs: Any) -> Any:
                # A copy that a transformation has made goes by no name.
                if id(module) not in places:
                    return call(*args, **kwargs)
                return hook(places[id(module)], module, call, args, kwargs)

            token = _hooks.set(around)
            try:
                if self.call is not None:
                    return model, self.call(model, images)
                return model, model(images, **evaluation_flags(model))
            finally:
                _hooks.reset(token)

        return _evaluated(self.graph, arrays, hooked)

    captures = False
    """What runs inside a transformation are copies, which go by no name."""

    def captured(self, arrays: Any, images: Array, path: str) -> Any:
        """Nothing: see ``captures``."""
        raise NotImplementedError(path)

    def is_linear(self, submodule: Any) -> bool:
        """Whether it is an nnx.Linear."""
        return isinstance(submodule, nnx.Linear)

    def weights(self, arrays: Any, path: str) -> tuple[Array, Array]:
        """The weights (D, C) and bias (C,) of an nnx.Linear."""
        return _NnxHead(self.graph, path)(arrays)


@functools.cache
def _hooked(kind: type) -> type:
    """A subclass whose calls go through the hook of the run that is under way."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(kind.__call__, self)
        around = _hooks.get(None)
        return call(*args, **kwargs) if around is None else around(self, call, args, kwargs)

    body = {"__call__": __call__, "__module__": kind.__module__}
    options = {"pytree": getattr(kind, "_pytree__is_pytree", True)}
    return types.new_class(HOOKED + kind.__name__, (kind,), options, lambda own: own.update(body))


@dataclass(frozen=True)
class _NnxStage:
    graph: Any
    function: Callable[..., Any]
    name: str

    def __call__(self, arrays: Any, x: Array) -> Any:
        return _evaluated(self.graph, arrays, lambda model: self.function(model, x))


def _evaluated(graph: Any, arrays: Any, work: Callable[[Any], Any]) -> Any:
    """What the work makes of the model; ValueError where that changed the model's state."""
    # A copy, for a model in training mode would write into the arrays it is given; and it
    # does so in silence: compare what the call left behind.
    model = nnx.merge(graph, arrays, copy=True)
    before = _state_leaves(model)
    result = work(model)
    after = _state_leaves(model)
    if len(before) != len(after) or any(
        old is not new for old, new in zip(before, after, strict=True)
    ):
        raise ValueError(TRAINING)
    return result


def _state_leaves(model: Any) -> list[Any]:
    # What a model records of its activations is no state that later calls read.
    return jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate))))


@dataclass(frozen=True)
class _NnxHead:
    graph: Any
    path: str

    def __call__(self, arrays: Any) -> tuple[Array, Array]:
        head = _at(nnx.merge(self.graph, arrays), self.path)
        weights = head.kernel[...]
        bias = jnp.zeros(weights.shape[1]) if head.bias is None else head.bias[...]
        return weights, bias
