"""Cutting a network at submodules by their names, without a line of the network's own code."""

import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grood_jax.backbone.flow import (
    Called,
    Flow,
    Network,
    Run,
    abstract_run,
    described,
    first_array,
    is_array,
    joined,
    main_part,
    with_first,
    with_main,
)
from grood_jax.backbone.stages import Parts, check_hashable


@dataclass(frozen=True)
class HeadAt:
    """A layer from features to logits.

    Attributes:
      path: of the layer.
      which: of its calls in a run; some are called on every place of an image besides.
    """

    path: str
    which: int = 0


HeadLayer = HeadAt | Callable[..., Any]
"""The head, or a function ``(model, features) -> logits`` of what the model returns."""


NESTED = "runs inside a scan, remat or jit"


@dataclass(frozen=True)
class Layer:
    """A submodule, as it was called.

    Attributes:
      path: by which it is named.
      kind: the name of its class.
      shape: of its output, (B, ...); empty where that is not one array.
      why_not: why the network cannot be cut after it; empty where it can.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    why_not: str

    @property
    def may_be_cut(self) -> bool:
        """Whether the network can be cut after it."""
        return not self.why_not


@dataclass(frozen=True, repr=False)
class LayerTable(Sequence[Layer]):
    """The submodules of a network, in the order in which they end; printed, it is a table.

    Attributes:
      layers: the submodules.
      head: the path of the layer from features to logits; empty where there is none.
    """

    layers: tuple[Layer, ...]
    head: str

    @overload
    def __getitem__(self, place: int) -> Layer: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Layer, ...]: ...

    def __getitem__(self, place: int | slice) -> Layer | tuple[Layer, ...]:
        return self.layers[place]

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def by_path(self) -> dict[str, Layer]:
        """The submodules by name."""
        return {layer.path: layer for layer in self.layers}

    def __repr__(self) -> str:
        rows = [("path", "layer", "output", "cut")]
        for layer in self.layers:
            shape = ", ".join(["B", *map(str, layer.shape[1:])])
            said = "head" if layer.path == self.head else layer.why_not or "may be cut"
            rows.append((layer.path, layer.kind, f"({shape})" if layer.shape else "", said))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows
        )


def layer_table(run: Run, head: Any) -> LayerTable:
    """The submodules of a network; ``head`` None: the last linear layer, if there is one.

    Raises:
      TypeError: ``head`` is no name.
      ValueError: as `find_head`.
    """
    if head is not None and not isinstance(head, str):
        raise TypeError(f"head is {head!r}; expected the path of a submodule")
    ends = _last_linear(run) if head is None else [find_head(run, head)]
    place = ends[-1] if ends else None
    return _table(run, place, _goal(run, place))


def named_parts(
    network: Network,
    arrays: Any,
    *,
    head: Any,
    cut: Any,
    example: Any,
    takes_bytes: bool,
) -> Parts:
    """What a backbone is made of that is cut by names.

    Args:
      network: the network.
      arrays: its arrays.
      head: the path of the layer from features to logits; a function ``(model, features) ->
        logits`` where features are what the model returns; or None for the last linear layer.
      cut: the path of the submodule after which the network is cut; None for one about a third of
        the way from the images to the head, by the order of calls.
      example: a batch of images; only its shape and dtype matter.
      takes_bytes: whether bytes are normalised before the network sees them.

    Raises:
      TypeError: ``example`` is no batch of images, ``head`` or ``cut`` no name.
      ValueError: the model cannot run on the example, has no such submodules, or what follows the
        cut reads what comes before it.
    """
    if cut is not None and not isinstance(cut, str):
        raise TypeError(
            f"cut is {cut!r}; expected the path of a submodule, as gj.layers lists them"
        )
    if head is not None and not isinstance(head, str) and not callable(head):
        raise TypeError(
            f"head is {head!r}; expected the path of a submodule, as gj.layers lists them"
        )
    images = images_like(example, takes_bytes)
    run = abstract_run(network, arrays, images)
    place = find_head(run, head) if head is None or isinstance(head, str) else None
    last = None if place is None else run.calls[place]
    if last is not None:
        head = HeadAt(last.path, sum(own.path == last.path for own in run.calls[:place]))
    elif not _is_flat(run, run.returned):
        raise ValueError(
            f"the {network.what} returns {described(run.returned)}; expected features (B, D): give "
            f"call=, a function of the {network.what} and images that returns them"
        )
    check_hashable("head", head)
    cut = _choose_cut(_table(run, place, _goal(run, place)), run, cut)
    at_cut = next((own for own in run.calls if own.path == cut), None)
    dtype = "" if at_cut is None or at_cut.left is None else str(at_cut.left.dtype)
    return Parts(
        arrays,
        NamedEarly(network, head, cut, at_cut is not None and at_cut.again),
        NamedLate(network, head, cut, images.shape[1:], str(images.dtype), dtype),
        NamedHead(network, last.path) if last is not None and last.linear else None,
        None,
        cut or "features",
        "" if last is None else last.path,
    )


def images_like(example: Any, takes_bytes: bool) -> jax.ShapeDtypeStruct:
    """What of an example matters: its shape and dtype, for at least two images.

    Raises:
      TypeError: it is no array of numbers, or of bytes where the model takes none.
      ValueError: it holds no image.
    """
    shape, dtype = getattr(example, "shape", None), getattr(example, "dtype", None)
    if shape is None or dtype is None:
        kind = "None" if example is None else f"a {type(example).__name__}"
        raise TypeError(
            f"example is {kind}; expected a batch of images as the model takes them, (B, H, W, C) "
            "floating-point: example=images[:2]"
        )
    if len(shape) < 2 or not shape[0]:
        raise ValueError(f"example has shape {tuple(shape)}; expected a batch of images, (B, ...)")
    if dtype == np.uint8 and takes_bytes:
        dtype = np.dtype(np.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"example has dtype {dtype}; expected normalised floating-point images, or bytes "
            "beside input_mean and input_std"
        )
    return jax.ShapeDtypeStruct(
        (max(2, shape[0]), *shape[1:]), jnp.asarray(np.zeros(0, dtype)).dtype
    )


def near(name: str, names: Iterable[str]) -> str:
    """The names that a wrong one may stand for; where none is near, all or the first of many."""
    known = list(dict.fromkeys(names))
    ends = [own for own in known if name and own.endswith(name)]
    close = list(dict.fromkeys([*difflib.get_close_matches(name, known, 5), *ends[:5]]))
    if close:
        return f"near it are {', '.join(map(repr, close))}"
    more = f", … ({len(known)} in all)" if len(known) > 20 else ""
    return f"there are {', '.join(map(repr, known[:20])) or 'none'}{more}"


def find_head(run: Run, head: str | None) -> int:
    """The call from features to logits, by its number.

    Args:
      run: an abstract run.
      head: the path of the layer, if it is given; None for the last linear layer. Where several
        could be it, a warning says so.

    Raises:
      ValueError: there is no such submodule, none of its calls or several are from features (B, D)
        to logits (B, C), or there is no linear layer.
    """
    what, paths = run.network.what, [call.path for call in run.calls]
    if head is None:
        ends = _last_linear(run)
        if not ends:
            raise ValueError(
                f"the {what} has no linear layer from features (B, D) to logits (B, C) that is not "
                f"inside a scan or jit; give head=, the path of what makes its logits "
                f"({near('head', paths)}); or make it "
                "with Backbone.from_encoder, which needs none"
            )
        if len(ends) > 1:
            named = [repr(paths[place]) for place in ends]
            warnings.warn(
                f"head is not given, and {', '.join(named)} could each be it; the last, "
                f"{named[-1]}, is taken: give head= to be sure",
                UserWarning,
                stacklevel=5,
            )
        return ends[-1]
    if head not in paths:
        raise ValueError(
            f"head is {head!r}; the {what} calls no submodule of that name; {near(head, paths)}"
        )
    places = [place for place, path in enumerate(paths) if path == head]
    reasons = [_no_head(run, run.calls[place]) for place in places]
    if reasons.count("") == 1:
        return places[reasons.index("")]
    why = "is called more than once" if "" in reasons else reasons[-1]
    raise ValueError(
        f"head is {head!r}, which {why}; expected a layer called once, from features (B, D) to "
        "logits (B, C)"
    )


def _no_head(run: Run, call: Called) -> str:
    """Why a call is none from features to logits; empty where it is one."""
    if call.nested or call.again:
        return NESTED
    if not (_is_flat(run, call.entered) and _is_flat(run, call.left)):
        entered = "no array" if call.entered is None else f"an array {call.entered.shape}"
        return f"takes {entered} and returns {call.returned}"
    return "does not depend on the images" if call.entering is None else ""


def _last_linear(run: Run) -> list[int]:
    """The calls of linear layers from features to logits that no other such call follows."""
    # All of something that is returned comes through the head: not so in a residual block.
    ends = [flow.through for flow in run.ends] or [-1]
    linear = [
        place
        for place, call in enumerate(run.calls)
        if call.linear and not _no_head(run, call) and any(through & 1 << place for through in ends)
    ]
    read = 0
    for place in linear:
        entering = run.calls[place].entering
        read |= 0 if entering is None else entering.after
    return [place for place in linear if not read & (1 << place)]


def _is_flat(run: Run, array: Any) -> bool:
    """Whether it is (B, D), or the like with sides of one in between."""
    if (
        not isinstance(array, jax.ShapeDtypeStruct)
        or len(array.shape) < 2
        or array.shape[0] != run.images.shape[0]
    ):
        return False
    return set(array.shape[1:-1]) <= {1}


def _goal(run: Run, head: int | None) -> Flow:
    """How features and logits depend on the images; without a head, what the model returns."""
    if head is None:
        if not run.ends:
            raise ValueError(f"what the {run.network.what} returns does not depend on the images")
        return joined(run.ends)
    call = run.calls[head]
    return joined([flow for flow in (call.entering, call.leaving) if flow is not None])


def _table(run: Run, head: int | None, goal: Flow) -> LayerTable:
    times = Counter(call.path for call in run.calls)
    path = "" if head is None else run.calls[head].path
    layers = {}
    for place, call in enumerate(run.calls):
        why = NESTED if call.nested or (call.again and not run.network.captures) else ""
        if not why and times[call.path] > 1:
            why = f"is called {times[call.path]} times"
        why = "is the head" if call.path == path else why or _why_not(run, call, 1 << place, goal)
        if place == head or call.path not in layers or call.path != path:
            shape = () if call.left is None else call.left.shape
            layers[call.path] = Layer(call.path, call.kind, shape, why)
    return LayerTable(tuple(layers.values()), path)


def _why_not(run: Run, call: Called, bit: int, goal: Flow) -> str:
    if call.left is None:
        return f"returns {call.returned}"
    if call.leaving is None:
        return "does not depend on the images"
    if call.left.shape[:1] != run.images.shape[:1]:
        return f"returns {call.returned}, in which images do not come first"
    if not jnp.issubdtype(call.left.dtype, jnp.floating):
        return f"returns {call.left.dtype}"
    if not goal.after & bit:
        return "is not on the way to the head"
    return "" if goal.through & bit else "is bypassed: what follows also reads what comes before it"


def _choose_cut(table: LayerTable, run: Run, cut: str | None) -> str:
    """Where the network is cut; empty where no cut is given, and none can be."""
    allowed = [layer.path for layer in table if layer.may_be_cut]
    if cut is None:
        # Where an outer submodule returns what its last part does, that is one place.
        passed = {call.path for call in run.calls if call.passed_on}
        places = [path for path in allowed if path not in passed] or allowed
        return places[len(places) // 3] if places else ""
    if cut in allowed:
        return cut
    if cut not in table.by_path:
        raise ValueError(
            f"cut is {cut!r}; the {run.network.what} calls no submodule of that name (what is run "
            f"in one scan, or by other methods, has none); {near(cut, allowed)}"
        )
    works = _works_instead(table, cut, run)
    raise ValueError(f"cut is {cut!r}, which {table.by_path[cut].why_not}; {works}")


def _works_instead(table: LayerTable, cut: str, run: Run) -> str:
    """A submodule nearby that may be cut, in words: what holds the wrong one, or follows it."""
    separator = "/" if "/" in "".join(table.by_path) else "."
    parts = cut.split(separator)
    outer = [separator.join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    place = [layer.path for layer in table].index(cut)
    following = [layer.path for layer in table[place + 1 :]]
    before = [layer.path for layer in reversed(table[:place])]
    for path in (*outer, *following, *before):
        if path in table.by_path and table.by_path[path].may_be_cut:
            return f"{path!r} works"
    return f"no submodule of this {run.network.what} works: leave out cut"


@dataclass(frozen=True)
class NamedEarly:
    """From images to the activations at the cut; without a cut, to features.

    ``inside``: the cut is inside a remat, out of which a network itself must bring its output.
    """

    network: Network
    head: HeadLayer
    cut: str
    inside: bool = False

    def __call__(self, arrays: Any, images: Float[Array, "b ..."]) -> Any:
        """The output of the submodule at the cut, or what enters the head."""
        if self.inside:
            return main_part(self.network.captured(arrays, images, self.cut))
        seen: list[Any] = []

        def hook(path: str, module: Any, call: Any, args: Any, kwargs: Any) -> Any:
            del module
            output = call(*args, **kwargs)
            seen.append(main_part(output) if path == self.cut else first_array(args, kwargs))
            return output

        if not self.cut and not isinstance(self.head, HeadAt):
            return _flat(self.network.run(arrays, images, hook, frozenset())[1])
        place = HeadAt(self.cut) if self.cut or not isinstance(self.head, HeadAt) else self.head
        self.network.run(arrays, images, hook, frozenset({place.path}))
        return _seen_at(place, seen)


@dataclass(frozen=True)
class NamedLate:
    """From the activations at the cut to features and logits.

    The network runs on images of zeros, and the output at the cut is replaced. Nothing that comes
    before it is read after it, so the compiler leaves it out.
    """

    network: Network
    head: HeadLayer
    cut: str
    image_shape: tuple[int, ...]
    image_dtype: str
    dtype: str

    def __call__(self, arrays: Any, hidden: Float[Array, "b ..."]) -> tuple[Any, Any]:
        """Features and logits."""
        seen: list[Any] = []

        def hook(path: str, module: Any, call: Any, args: Any, kwargs: Any) -> Any:
            del module
            if path == self.cut:
                return with_main(call(*args, **kwargs), hidden.astype(self.dtype))
            if not self.cut and self.head == HeadAt(path, len(seen)):
                args, kwargs = with_first(hidden, args, kwargs)
            output = call(*args, **kwargs)
            seen.append((first_array(args, kwargs), main_part(output)))
            return output

        images = jnp.zeros((hidden.shape[0], *self.image_shape), self.image_dtype)
        paths = {self.cut, self.head.path} if isinstance(self.head, HeadAt) else {self.cut}
        model, returned = self.network.run(arrays, images, hook, frozenset(paths))
        if isinstance(self.head, HeadAt):
            features, logits = _seen_at(self.head, seen)
            return _flat(features), _flat(logits)
        features = _flat(returned) if self.cut else hidden
        return features, self.head(model, features)


@dataclass(frozen=True)
class NamedHead:
    """From arrays to the weights and bias of a linear layer."""

    network: Network
    path: str

    def __call__(self, arrays: Any) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
        """Weights (D, C) and bias (C,)."""
        return self.network.weights(arrays, self.path)


def _seen_at(place: HeadAt, seen: Sequence[Any]) -> Any:
    """What was seen at a call of a layer."""
    if len(seen) <= place.which:
        raise ValueError(
            f"{place.path!r} was called {len(seen)} times in this run, and more often on the "
            "example; expected images of the example's shape"
        )
    return seen[place.which]


def _flat(array: Any) -> Any:
    """Without sides of one between the first and the last."""
    return array.reshape(array.shape[0], -1) if is_array(array) and array.ndim > 2 else array
