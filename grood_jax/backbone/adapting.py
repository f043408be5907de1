"""Encoders of any framework, and models that are to be taken as they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array

from grood_jax.backbone.encoders import FeaturesOf, Itself, NoLogits
from grood_jax.backbone.flow import Network
from grood_jax.backbone.naming import NamedEarly, named_parts
from grood_jax.backbone.stages import Parts, check_hashable


def is_linen(model: Any) -> bool:
    """Whether it is a flax.linen module."""
    from flax import linen

    return isinstance(model, linen.Module)


def is_nnx(model: Any) -> bool:
    """Whether it is a flax.nnx module."""
    from flax import nnx

    return isinstance(model, nnx.Module)


def network_of(model: Any, variables: Any, call: Any) -> tuple[Network, Any]:
    """A module of Flax in evaluation mode, and its arrays.

    Raises:
      TypeError: it is none, or ``variables`` are given with another module than linen's.
    """
    if is_linen(model):
        from grood_jax.backbone import linen

        return linen.network_of(model, variables, call)
    if variables is not None:
        raise TypeError(
            f"variables is a {type(variables).__name__}, and model a {type(model).__name__}; "
            "expected variables of a flax.linen module alone"
        )
    from grood_jax.backbone import nnx

    return nnx.network_of(model, call)


@dataclass(frozen=True)
class _Encode:
    encode: Callable[[Any, Array], Any]

    def __call__(self, arrays: Any, images: Array) -> Any:
        features = self.encode(arrays, images)
        return features.reshape(len(features), -1) if getattr(features, "ndim", 2) > 2 else features


@dataclass(frozen=True)
class _Returned:
    """What a network returns as it is."""

    network: Network

    def __call__(self, arrays: Any, images: Array) -> Any:
        def unhooked(path: str, module: Any, call: Any, args: Any, kwargs: Any) -> Any:
            del path, module
            return call(*args, **kwargs)

        return self.network.run(arrays, images, unhooked, frozenset())[1]


def encoder_of(
    encoder: Any,
    arrays: Any,
    *,
    local: Any = None,
    cut: Any,
    example: Any,
    call: Any,
    takes_bytes: bool,
) -> Parts:
    """An encoder's arrays and functions; see `Backbone.from_encoder`.

    Returns:
      Its parts, with a ``late`` that gives features alone.

    Raises:
      TypeError: it is neither a function nor a module, ``local`` is no function, or ``cut`` is
        given without ``example``.
      ValueError: as `grood_jax.backbone.naming.named_parts`.
    """
    if local is not None and not callable(local):
        raise TypeError(f"local is {local!r}; expected a function (arrays or model, images)")
    check_hashable("local", local)
    if not (is_nnx(encoder) or is_linen(encoder)):
        if not callable(encoder):
            raise TypeError(
                f"encoder is {encoder!r}; expected a function (arrays, images) -> features, or a "
                "module of flax.nnx or flax.linen"
            )
        if cut is not None or call is not None:
            raise TypeError(
                "cut or call is given, and encoder is a function; expected a module of Flax (cut a "
                "function by Backbone.from_functions)"
            )
        check_hashable("encoder", encoder)
        return Parts(arrays, _Encode(encoder), Itself(), cut="features", local=local)
    if is_nnx(encoder) and arrays is not None:
        raise TypeError("arrays are given, and encoder is an nnx module, which has its own")
    network, own = network_of(encoder, arrays, call)
    if example is not None:
        named = named_parts(
            network, own, head=NoLogits(), cut=cut, example=example, takes_bytes=takes_bytes
        )
        made = named._replace(late=FeaturesOf(named.late))
    elif cut is not None:
        raise TypeError(
            f"cut is {cut!r}, and example is None; expected a batch of images beside it"
        )
    else:
        early = NamedEarly(network, NoLogits(), "")
        made = Parts(own, early, Itself(), cut="features")
    if local is None:
        return made
    return made._replace(local=_Returned(network_of(encoder, arrays, local)[0]))
