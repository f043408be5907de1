"""An abstract run of a network: which submodules are called, and what depends on what.

The run has no numbers. Its program is followed from the images on: an array is known by the calls
that every way from the images to it leads through, and by those that any way does.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from grood_jax.support.errors import first_line

Hook = Callable[[str, Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""``(path, submodule, call, args, kwargs) -> output``, in place of ``call(*args, **kwargs)``."""

ONCE = (
    *("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
"""Operations that do just once what is written in them."""

AGAIN = ("remat", "remat2", "checkpoint")
"""Those of them that do it anew where gradients ask for it."""


@runtime_checkable
class Network(Hashable, Protocol):
    """A model of some framework, in evaluation mode and without its arrays."""

    @property
    def what(self) -> str:
        """What its framework calls it."""

    def run(
        self, arrays: Any, images: Array, hook: Hook, paths: frozenset[str] | None
    ) -> tuple[Any, Any]:
        """Runs the model, with ``hook`` around the calls of submodules (None: of all).

        Returns:
          The model as it was run, and what it returned.
        """

    @property
    def captures(self) -> bool:
        """Whether `captured` works."""

    def captured(self, arrays: Any, images: Array, path: str) -> Any:
        """The output of a submodule that runs inside a remat."""

    def is_linear(self, submodule: Any) -> bool:
        """Whether a submodule is a linear layer."""

    def weights(self, arrays: Any, path: str) -> tuple[Array, Array]:
        """The weights (D, C) and bias (C,) of a linear layer."""


@dataclass(frozen=True)
class Flow:
    """How an array depends on the images.

    Attributes:
      through: the calls through which every way from the images to it leads, as bits.
      after: the calls through which any does.
    """

    through: int = 0
    after: int = 0

    def __and__(self, other: "Flow") -> "Flow":
        """Of what is made of two arrays."""
        return Flow(self.through & other.through, self.after | other.after)


@dataclass(frozen=True)
class Called:
    """A call of a submodule.

    Attributes:
      path: of the submodule.
      kind: the name of its class.
      linear: whether it is a linear layer.
      entered: its first array, shape and dtype; None where there is none.
      left: its output, or the first part of that; None where that is no array.
      returned: what it returned, in words.
      entering: how its first array depends on the images; None where it does not.
      leaving: how its output does.
      nested: whether it runs inside another program, a scan or jit.
      again: whether it runs inside a remat.
      passed_on: whether the call that ended next returned just this output.
    """

    path: str
    kind: str
    linear: bool
    entered: jax.ShapeDtypeStruct | None
    left: jax.ShapeDtypeStruct | None
    returned: str
    entering: Flow | None = None
    leaving: Flow | None = None
    nested: bool = False
    again: bool = False
    passed_on: bool = False


@dataclass(frozen=True)
class Run:
    """An abstract run of a network.

    Attributes:
      network: what was run.
      images: shape and dtype of the images.
      calls: of submodules, in the order in which they ended; bits of `Flow` count them.
      returned: what the model returned, shapes and dtypes in the place of arrays.
      ends: how the arrays in it depend on the images, those that do.
    """

    network: Network
    images: jax.ShapeDtypeStruct
    calls: tuple[Called, ...]
    returned: Any
    ends: tuple[Flow, ...]


class _Recorder:
    """Stands around all calls of a run, and names what enters and leaves them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.calls: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.last: Any = None
        self.started = 0

    def __call__(
        self, path: str, module: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name, self.started = f"call {self.started}", self.started + 1
        entered = first_array(args, kwargs)
        if entered is not None:
            args, kwargs = with_first(checkpoint_name(entered, f"into {name}"), args, kwargs)
        returned = call(*args, **kwargs)
        left = main_part(returned)
        if self.calls and left is self.last:
            self.calls[-1]["passed_on"] = True
        self.names.append(name)
        self.calls.append(
            {
                "path": path,
                "kind": type(module).__name__.removeprefix(HOOKED),
                "linear": self.network.is_linear(module),
                "entered": struct(entered),
                "left": struct(left),
                "returned": described(returned),
            }
        )
        self.last = None if left is None else checkpoint_name(left, f"from {name}")
        return with_main(returned, self.last)


HOOKED = "Hooked"
"""Before the names of classes whose calls have a hook."""


def abstract_run(network: Network, arrays: Any, images: jax.ShapeDtypeStruct) -> Run:
    """Runs a network without numbers, and follows what depends on the images.

    Args:
      network: the network.
      arrays: its arrays.
      images: shape and dtype of a batch.

    Raises:
      ValueError: the model cannot run on such images.
    """
    recorder = _Recorder(network)
    returned: list[Any] = []

    def run(arrays: Any, images: Array) -> list[Any]:
        output = network.run(arrays, images, recorder, None)[1]
        returned.append(jax.tree.map(lambda leaf: struct(leaf) or leaf, output))
        return [leaf for leaf in jax.tree.leaves(output) if is_array(leaf)]

    try:
        program = jax.make_jaxpr(run)(arrays, images).jaxpr
    except Exception as error:
        raise ValueError(_cannot_run(network.what, images, error)) from error
    bits = {f"from {name}": 1 << place for place, name in enumerate(recorder.names)}
    flows = {program.invars[-1]: Flow()}
    tags: dict[str, Flow | None] = {}
    again: set[str] = set()
    _follow(program, flows, tags, bits, again)
    ends = tuple(flows[var] for var in program.outvars if _is_variable(var) and var in flows)
    calls = (
        Called(
            **call,
            entering=tags.get(f"into {name}"),
            leaving=tags.get(f"from {name}"),
            nested=call["left"] is not None and f"from {name}" not in tags,
            again=f"from {name}" in again,
        )
        for name, call in zip(recorder.names, recorder.calls, strict=True)
    )
    return Run(network, images, tuple(calls), returned[0], ends)


def joined(flows: Sequence[Flow]) -> Flow:
    """Of what is made of all these."""
    first, *others = flows
    for flow in others:
        first = first & flow
    return first


def _follow(
    program: Any,
    flows: dict[Any, Flow],
    tags: dict[str, Flow | None],
    bits: Mapping[str, int],
    again: set[str],
) -> None:
    """Follows the images through a program.

    Args:
      program: a jaxpr.
      flows: of the variables that depend on the images: at first of inputs, in the end of all.
      tags: takes the flows of what has a name.
      bits: of the names of calls' outputs.
      again: takes the names that stand inside a remat.
    """
    for step in program.eqns:
        read = [flows[var] for var in step.invars if _is_variable(var) and var in flows]
        name = step.params.get("name")
        if not str(name).startswith(("into call ", "from call ")):
            name = None
        if name is not None:
            tags[name] = None
        if not read:
            continue
        made, inner = joined(read), _inner(step)
        if name is not None:
            bit = bits.get(name, 0)
            made = tags[name] = Flow(made.through | bit, made.after | bit)
        if inner is None:
            flows.update(dict.fromkeys(step.outvars, made))
            continue
        pairs = zip(inner.invars, step.invars, strict=True)
        within = {own: flows[var] for own, var in pairs if _is_variable(var) and var in flows}
        if step.primitive.name in AGAIN:
            known = {*tags}
            _follow(inner, within, tags, bits, again)
            again |= {*tags} - known
        else:
            # What has a name in there is computed there, and cannot be replaced from without.
            _follow(inner, within, {}, {}, set())
        for own, var in zip(inner.outvars, step.outvars, strict=True):
            if _is_variable(own) and own in within:
                flows[var] = within[own]


def _inner(step: Any) -> Any:
    """The program that a step runs just once on its own inputs; None where there is none."""
    if step.primitive.name not in ONCE:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        held = step.params.get(name)
        inner = getattr(held, "jaxpr", held)
        if inner is not None and len(inner.invars) == len(step.invars):
            return inner
    return None


def _is_variable(var: Any) -> bool:
    # A literal has a value.
    return not hasattr(var, "val")


def is_array(value: Any) -> bool:
    """Whether it is one of JAX's arrays, traced or not."""
    return isinstance(value, jax.Array)


def struct(value: Any) -> jax.ShapeDtypeStruct | None:
    """Shape and dtype of an array; None of anything else."""
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if is_array(value) else None


def first_array(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer is called on; None where that is no array."""
    given = (*args, *kwargs.values())
    return given[0] if given and is_array(given[0]) else None


def with_first(
    array: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another first array."""
    if args:
        return (array, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): array}


def main_part(returned: Any) -> Any:
    """The array that a layer returns, alone or before others; None where it returns none."""
    if type(returned) in (tuple, list) and returned:
        returned = returned[0]
    return returned if is_array(returned) else None


def with_main(returned: Any, array: Any) -> Any:
    """The same with another array in that place."""
    if array is None:
        return returned
    return array if is_array(returned) else type(returned)([array, *returned[1:]])


def described(value: Any) -> str:
    """What was returned, in words."""
    if hasattr(value, "shape"):
        return f"an array {tuple(value.shape)}"
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"a {type(value).__name__}{size}"


def _cannot_run(what: str, images: jax.ShapeDtypeStruct, error: Exception) -> str:
    shape = images.shape
    hint = ""
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
        hint = "; it looks channels first, and Flax takes channels last: transpose(0, 2, 3, 1)"
    return (
        f"the {what} cannot run on example {shape} {images.dtype}: {first_line(error)}; expected "
        f"images as it takes them (give call=, a function of the {what} and images, where it takes "
        f"more){hint}"
    )
