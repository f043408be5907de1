"""Backbones of flax.linen modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import errors, linen
from jaxtyping import Array

from grood_jax.backbone.flow import Hook
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


def parts(
    module: Any,
    variables: Any,
    *,
    head: Any,
    cut: Any,
    example: Any,
    call: Any,
    layers: Any,
    takes_bytes: bool,
) -> Parts:
    """What a backbone of a module is made of; see `Backbone.from_linen`."""
    network, arrays = network_of(module, variables, call)
    stage = partial(_LinenStage, module)

    def head_at(path: str) -> _LinenHead | None:
        return _LinenHead(path) if _is_dense(_at(arrays["params"], path)) else None

    if cuts_itself(module, head, cut, example):
        return stage_parts(
            module,
            arrays,
            head=head,
            cut=cut,
            layers=layers,
            stage=stage,
            head_at=head_at,
            linear="a dense layer of the parameters",
        )
    named = named_parts(
        network, arrays, head=head, cut=cut, example=example, takes_bytes=takes_bytes
    )
    return named._replace(layers=middle(module, layers, stage))


def network_of(module: Any, variables: Any, call: Any) -> tuple["LinenNetwork", dict[str, Any]]:
    """A module that is run in evaluation mode, and its arrays.

    Args:
      module: the module.
      variables: its collections.
      call: how it is run, ``(module, images) -> anything``; by default it is called.

    Raises:
      TypeError: it is no module or cannot be static; ``variables`` is no mapping.
      ValueError: ``variables`` has no "params".
    """
    if not isinstance(module, linen.Module):
        raise TypeError(f"module is a {type(module).__name__}; expected a flax.linen.Module")
    if not isinstance(variables, Mapping):
        raise TypeError(f"variables is a {type(variables).__name__}; expected a mapping")
    if "params" not in variables:
        raise ValueError(f"variables has collections {sorted(variables)}; expected 'params'")
    if call is not None and not callable(call):
        raise TypeError(f"call is {call!r}; expected a function of the module and images")
    check_hashable("call", call)
    check_hashable("module", module)
    return LinenNetwork(module, call), dict(variables)


@dataclass(frozen=True)
class LinenNetwork:
    """A module without its variables."""

    module: Any
    call: Callable[..., Any] | None

    @property
    def what(self) -> str:
        """What linen calls it."""
        return "module"

    def run(
        self, arrays: Any, images: Array, hook: Hook, paths: frozenset[str] | None
    ) -> tuple[Any, Any]:
        """As `grood_jax.backbone.flow.Network.run`; functions of the module are given it bound."""

        def around(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            wanted = path and context.method_name == "__call__"
            if not wanted or (paths is not None and path not in paths):
                return call(*args, **kwargs)
            return hook(path, context.module, call, args, kwargs)

        with linen.intercept_methods(around):
            returned = _applied(self.module, arrays, images, self._call)
        return self.module.bind(arrays), returned

    captures = True

    def captured(self, arrays: Any, images: Array, path: str) -> Any:
        """The output of a submodule, wherever it runs."""

        def wanted(module: Any, method: str) -> bool:
            return method == "__call__" and "/".join(module.path) == path

        kept = self.module.apply(
            arrays,
            images,
            method=self._call,
            capture_intermediates=wanted,
            mutable=["intermediates"],
        )[1]
        return _at(kept["intermediates"], path)["__call__"][0]

    def _call(self, module: Any, images: Array) -> Any:
        if self.call is not None:
            return self.call(module, images)
        return module(images, **evaluation_flags(module))

    def is_linear(self, submodule: Any) -> bool:
        """Whether it is a linen.Dense."""
        return isinstance(submodule, linen.Dense)

    def weights(self, arrays: Any, path: str) -> tuple[Array, Array]:
        """The weights (D, C) and bias (C,) of a linen.Dense."""
        return _LinenHead(path)(arrays)


@dataclass(frozen=True)
class _LinenStage:
    module: Any
    function: Callable[..., Any]
    name: str

    def __call__(self, arrays: Any, x: Array) -> Any:
        return _applied(self.module, arrays, x, self.function)


def _applied(module: Any, arrays: Any, x: Array, function: Callable[..., Any]) -> Any:
    """What a function makes of the bound module and ``x``, in evaluation mode."""
    try:
        return module.apply(arrays, x, method=function)
    except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
        raise ValueError(f"{TRAINING} ({type(error).__name__})") from error
    except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
        raise ValueError(
            f"variables has collections {sorted(arrays)}; expected all that the module reads: "
            f"{error}"
        ) from error


def _at(parameters: Any, path: str) -> Any:
    for name in path.split("/"):
        parameters = parameters.get(name) if isinstance(parameters, Mapping) else None
    return parameters


def _is_dense(parameters: Any) -> bool:
    return isinstance(parameters, Mapping) and jnp.ndim(parameters.get("kernel", 0)) == 2


@dataclass(frozen=True)
class _LinenHead:
    path: str

    def __call__(self, arrays: Any) -> tuple[Array, Array]:
        head = _at(arrays["params"], self.path)
        weights = head["kernel"]
        return weights, head.get("bias", jnp.zeros(weights.shape[1]))
