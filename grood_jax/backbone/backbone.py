"""A classifier cut in two pure functions: the one seam to neural-network frameworks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from grood_jax.backbone.outputs import Outputs
from grood_jax.support import checks

Early = Callable[[Any, Array], Array]
Late = Callable[[Any, Array], tuple[Array, Array]]
Head = Callable[[Any], tuple[Array, Array]]
Layers = Callable[[Any, Array], tuple[Array, ...]]
Cut = str | tuple[Callable[..., Any], Callable[..., Any]]

_TRAINING = (
    "the model ran in training mode: its batch statistics or random state would change with the "
    "batch; put it in evaluation mode (use_running_average=True, deterministic=True) in the "
    "functions that the backbone calls"
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Backbone:
    """A classifier as a pytree of arrays and two static pure functions.

    ``early(arrays, images) -> e`` yields the activations at the cut;
    ``late(arrays, e) -> (h, z)`` the penultimate features (B, D) and logits (B, C).

    Attributes:
      arrays: the model's arrays, a pytree.
      early: from images to the activations at the cut.
      late: from the activations to features and logits.
      head: from arrays to the class head's weights (D, C) and bias (C,), where there is one.
      layers: from arrays and images to the activations of middle layers, where they can be had.
      input_std: what images were divided by, for each channel; empty where it is not known.
      input_mean: what was subtracted from them; with both, images may be given as bytes.
    """

    arrays: Any
    early: Early = field(metadata={"static": True})
    late: Late = field(metadata={"static": True})
    head: Head | None = field(default=None, metadata={"static": True})
    layers: Layers | None = field(default=None, metadata={"static": True})
    input_std: tuple[float, ...] = field(default=(), metadata={"static": True})
    input_mean: tuple[float, ...] = field(default=(), metadata={"static": True})

    @classmethod
    def from_functions(
        cls,
        arrays: Any,
        early: Early,
        late: Late,
        head: Head | None = None,
        *,
        layers: Layers | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of any framework's model.

        Args:
          arrays: the model's arrays, a pytree.
          early: ``(arrays, images) -> activations``, pure, in evaluation mode.
          late: ``(arrays, activations) -> (features, logits)``, pure, in evaluation mode.
          head: ``arrays -> (weights (D, C), bias (C,))``, if detectors are to use it.
          layers: ``(arrays, images) -> activations`` of middle layers, a tuple of arrays
            (B, …, C_l), if detectors are to use them.
          input_std: what images were divided by, for each channel, if detectors are to move
            pixels.
          input_mean: what was subtracted from images in [0, 1] before, for each channel. With both,
            images may be given as bytes from 0 to 255, which are normalised in the compiled pass.

        Raises:
          TypeError: a stage is not callable, or not hashable (then every call would compile);
            ``input_std`` holds what is no number.
          ValueError: ``input_std`` holds what is not positive.
        """
        stages = {"early": early, "late": late, "head": head, "layers": layers}
        for name, stage in stages.items():
            if stage is None and name in ("head", "layers"):
                continue
            if not callable(stage):
                raise TypeError(f"{name} is {stage!r}; expected a function")
            _check_hashable(name, stage)
        return cls(
            arrays, early, late, head, layers, _checked_std(input_std), _checked_mean(input_mean)
        )

    @classmethod
    def from_nnx(
        cls,
        model: Any,
        *,
        cut: Cut,
        layers: Callable[..., Any] | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of a flax.nnx module; the module itself is left as it is.

        The backbone holds the arrays that the module has now: training the module further does
        not change it.

        Args:
          model: the module. It is used in evaluation mode, whatever mode it is in. If it has an
            nnx.Linear by the name of ``head``, that is taken for the layer from features to
            logits.
          cut: the name of a stage, where the model has ``stages`` and methods
            ``early(images, cut)`` and ``late(hidden, cut)`` as `grood_jax.models` have; or two
            functions ``(early(model, images), late(model, hidden))``.
          layers: ``(model, images) -> activations`` of middle layers, as for `from_functions`;
            by default the model's method ``activations(images)``, if it has one.
          input_std: as for `from_functions`, like the next.
          input_mean: what was subtracted from images.

        Raises:
          TypeError: ``model`` is no nnx module, or has no stages for a named cut; a function is
            not hashable.
          ValueError: the model has no such stage; and, at the first call, the model runs in
            training mode all the same.
        """
        from flax import nnx

        if not isinstance(model, nnx.Module):
            raise TypeError(f"model is a {type(model).__name__}; expected a flax.nnx.Module")
        early, late, name = _stages(model, cut)
        evaluation = nnx.view(
            model, deterministic=True, use_running_average=True, raise_if_not_found=False
        )
        graph, arrays = nnx.split(evaluation)
        _check_hashable("model", graph)
        # Variables are mutable, and so far they are the caller's own.
        arrays = jax.tree.map(lambda array: array, arrays)
        has_head = isinstance(getattr(model, "head", None), nnx.Linear)
        return cls(
            arrays,
            _NnxStage(graph, early, name),
            _NnxStage(graph, late, name),
            _NnxHead(graph) if has_head else None,
            _middle(model, layers, partial(_NnxStage, graph)),
            _checked_std(input_std),
            _checked_mean(input_mean),
        )

    @classmethod
    def from_linen(
        cls,
        module: Any,
        variables: Mapping[str, Any],
        *,
        cut: Cut,
        layers: Callable[..., Any] | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of a flax.linen module with its variables.

        Args:
          module: the module, with methods that run in evaluation mode.
          variables: its collections, ``{"params": …, "batch_stats": …}``. If the parameters have
            a dense layer by the name of ``head``, that is taken for the layer from features to
            logits.
          cut: as for `from_nnx`; the functions take the bound module first.
          layers: as for `from_nnx`; it takes the bound module first.
          input_std: as for `from_functions`, like the next.
          input_mean: what was subtracted from images.

        Raises:
          TypeError: ``module`` is no linen module, or has no stages for a named cut; it or a
            function is not hashable; ``variables`` is no mapping.
          ValueError: the module has no such stage, ``variables`` has no "params"; and, at the
            first call, it lacks another collection, or the module runs in training mode.
        """
        from flax import linen

        if not isinstance(module, linen.Module):
            raise TypeError(f"module is a {type(module).__name__}; expected a flax.linen.Module")
        if not isinstance(variables, Mapping):
            raise TypeError(f"variables is a {type(variables).__name__}; expected a mapping")
        if "params" not in variables:
            raise ValueError(f"variables has collections {sorted(variables)}; expected 'params'")
        _check_hashable("module", module)
        early, late, name = _stages(module, cut)
        head = variables["params"].get("head")
        has_head = isinstance(head, Mapping) and jnp.ndim(head.get("kernel", 0)) == 2
        return cls(
            dict(variables),
            _LinenStage(module, early, name),
            _LinenStage(module, late, name),
            _linen_head if has_head else None,
            _middle(module, layers, partial(_LinenStage, module)),
            _checked_std(input_std),
            _checked_mean(input_mean),
        )

    @property
    def takes_bytes(self) -> bool:
        """Whether images may be given as bytes from 0 to 255."""
        return bool(self.input_mean) and bool(self.input_std)

    def normalized(self, images: Shaped[Array | np.ndarray, "b ..."]) -> Float[Array, "b ..."]:
        """Images as the model takes them.

        Args:
          images: normalised images, (B, ...), floating-point: they stay as they are. Or bytes from
            0 to 255, (B, H, W, C), where `input_mean` and `input_std` are known.

        Raises:
          TypeError: ``images`` are neither.
          ValueError: ``images`` are no array.
        """
        if not self.takes_bytes or getattr(images, "dtype", None) != np.uint8:
            return _floating("images", images)
        std = np.asarray(self.input_std, np.float32).reshape(1, 1, 1, -1)
        mean = np.asarray(self.input_mean, np.float32).reshape(1, 1, 1, -1)
        return jnp.asarray(images) * (np.float32(1 / 255) / std) - mean / std

    def __repr__(self) -> str:
        """One line: how much it holds, and what it can give."""
        leaves = jax.tree.leaves(self.arrays)
        numbers = sum(int(np.size(leaf)) for leaf in leaves)
        gives = [name for name in ("head", "layers") if getattr(self, name) is not None]
        extra = f", with {' and '.join(gives)}" if gives else ""
        return f"Backbone({len(leaves)} arrays, {numbers:,} numbers{extra})"

    def hidden(self, images: Shaped[Array | np.ndarray, "b ..."]) -> Float[Array, "b ..."]:
        """The activations at the cut, (B, ...).

        Args:
          images: as for `normalized`.

        Raises:
          TypeError: as `normalized`.
          ValueError: as `normalized`; ``early`` returned anything but an array (B, ...), or the
            model runs in training mode.
        """
        images = self.normalized(images)
        returned = self.early(self.arrays, images)
        count = images.shape[0]
        if not isinstance(returned, Array) or returned.ndim < 1 or returned.shape[0] != count:
            raise ValueError(
                f"early returned {_described(returned)}; expected an array ({count}, ...)"
            )
        return returned

    def finish(self, hidden: Float[Array | np.ndarray, "b ..."]) -> Outputs:
        """Features and logits from the activations at the cut.

        Args:
          hidden: activations at the cut, (B, ...), floating-point.

        Raises:
          TypeError: ``hidden`` are not floating-point.
          ValueError: ``hidden`` are no array, ``late`` returned anything but features (B, D) and
            logits (B, C), or the model runs in training mode.
        """
        hidden = _floating("hidden", hidden)
        returned = self.late(self.arrays, hidden)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"late returned {_described(returned)}; expected (features, logits)")
        count = hidden.shape[0]
        for name, part, width in zip(("features", "logits"), returned, "DC", strict=True):
            if not isinstance(part, Array) or part.ndim != 2 or part.shape[0] != count:
                raise ValueError(
                    f"late returned {_described(part)} for {name}; expected an array "
                    f"({count}, {width})"
                )
        features, logits = returned
        return Outputs(features.astype(jnp.float32), logits.astype(jnp.float32))

    def middle(
        self, images: Shaped[Array | np.ndarray, "b ..."]
    ) -> tuple[Float[Array, "b ..."], ...]:
        """The activations of middle layers, (B, …, C_l) each.

        Args:
          images: as for `normalized`.

        Raises:
          TypeError: as `normalized`.
          ValueError: as `normalized`; the backbone has no ``layers``, they returned anything but a
            tuple of arrays (B, …, C_l), or the model runs in training mode.
        """
        if self.layers is None:
            raise ValueError("layers is None; expected a function of arrays and images")
        images = self.normalized(images)
        returned = self.layers(self.arrays, images)
        count = images.shape[0]
        if not isinstance(returned, tuple) or not returned:
            raise ValueError(f"layers returned {_described(returned)}; expected a tuple of arrays")
        for part in returned:
            if not isinstance(part, Array) or part.ndim < 2 or part.shape[0] != count:
                raise ValueError(
                    f"layers returned {_described(part)}; expected arrays ({count}, ..., channels)"
                )
        return returned

    def __call__(self, images: Shaped[Array | np.ndarray, "b ..."]) -> Outputs:
        """Features (B, D) and logits (B, C) of images; raises as `hidden` and `finish` do."""
        return self.finish(self.hidden(images))


def require_backbone(backbone: Any) -> Backbone:
    """Returns ``backbone``; raises TypeError unless it is one, with how to make one."""
    if not isinstance(backbone, Backbone):
        raise TypeError(
            f"backbone is a {type(backbone).__name__}; expected a Backbone: make it with "
            "Backbone.from_nnx(model, cut=…), from_linen or from_functions"
        )
    return backbone


def _checked_std(input_std: Sequence[float]) -> tuple[float, ...]:
    values = checks.several("input_std", input_std, "a number for each channel")
    return tuple(checks.positive("input_std", value) for value in values)


def _checked_mean(input_mean: Sequence[float]) -> tuple[float, ...]:
    values = checks.several("input_mean", input_mean, "a number for each channel")
    return tuple(checks.number("input_mean", value) for value in values)


def _floating(name: str, array: Any) -> Array:
    array = checks.array_of(name, array)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.ndim < 1:
        raise TypeError(
            f"{name} has dtype {array.dtype} and shape {array.shape}; expected floating-point "
            "numbers, (B, ...)"
        )
    with checks.room(name, array.shape), np.errstate(over="ignore"):
        if isinstance(array, np.ndarray) and (array.itemsize > 8 or not array.dtype.isnative):
            # JAX knows neither long doubles nor another order of bytes.
            array = array.astype(np.float32)
        return jnp.asarray(array)


def _described(returned: Any) -> str:
    if isinstance(returned, Array | np.ndarray):
        return f"an array {returned.shape}"
    size = f" of {len(returned)}" if isinstance(returned, tuple | list) else ""
    return f"{type(returned).__name__}{size}"


def _check_hashable(name: str, value: Any) -> None:
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{name} cannot be hashed ({error}), as jit demands of what is static; expected "
            "functions, or frozen dataclasses and modules with hashable attributes"
        ) from error


@dataclass(frozen=True)
class _ByName:
    """A model's own method for a named stage; equal for equal names, so nothing retraces."""

    method: str
    cut: str

    def __call__(self, model: Any, x: Array) -> Any:
        return getattr(model, self.method)(x, self.cut)


def _stages(model: Any, cut: Cut) -> tuple[Callable[..., Any], Callable[..., Any], str]:
    if isinstance(cut, tuple) and len(cut) == 2 and all(callable(part) for part in cut):
        _check_hashable("cut", cut)
        return cut[0], cut[1], "functions"
    if not isinstance(cut, str):
        raise TypeError(
            f"cut is {cut!r}; expected the name of a stage or two functions (early, late)"
        )
    stages = getattr(model, "stages", None)
    if stages is None or not (hasattr(model, "early") and hasattr(model, "late")):
        raise TypeError(
            f"cut is {cut!r}, but {type(model).__name__} has no named stages; expected a model "
            "with `stages`, `early` and `late`, or a cut of two functions (early, late)"
        )
    if cut not in stages:
        raise ValueError(f"cut is {cut!r}; expected one of {', '.join(stages)}")
    return _ByName("early", cut), _ByName("late", cut), cut


@dataclass(frozen=True)
class _Activations:
    """A model's own method for its middle layers."""

    def __call__(self, model: Any, images: Array) -> Any:
        return model.activations(images)


def _middle(
    model: Any, layers: Callable[..., Any] | None, stage: Callable[..., Layers]
) -> Layers | None:
    if layers is not None:
        _check_hashable("layers", layers)
        return stage(layers, "functions")
    has_method = callable(getattr(model, "activations", None))
    return stage(_Activations(), "activations") if has_method else None


@dataclass(frozen=True)
class _NnxStage:
    graph: Any
    function: Callable[..., Any]
    name: str

    def __call__(self, arrays: Any, x: Array) -> Any:
        from flax import nnx

        # A copy, for a model in training mode would write into the arrays it is given; and it
        # does so in silence: compare what the call left behind.
        model = nnx.merge(self.graph, arrays, copy=True)
        before = _state_leaves(model)
        result = self.function(model, x)
        after = _state_leaves(model)
        if len(before) != len(after) or any(
            old is not new for old, new in zip(before, after, strict=True)
        ):
            raise ValueError(_TRAINING)
        return result


def _state_leaves(model: Any) -> list[Any]:
    from flax import nnx

    # What a model records of its activations is no state that later calls read.
    return jax.tree.leaves(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate))))


@dataclass(frozen=True)
class _NnxHead:
    graph: Any

    def __call__(self, arrays: Any) -> tuple[Array, Array]:
        from flax import nnx

        head = nnx.merge(self.graph, arrays).head
        weights = head.kernel[...]
        bias = jnp.zeros(weights.shape[1]) if head.bias is None else head.bias[...]
        return weights, bias


@dataclass(frozen=True)
class _LinenStage:
    module: Any
    function: Callable[..., Any]
    name: str

    def __call__(self, arrays: Any, x: Array) -> Any:
        from flax import errors

        try:
            return self.module.apply(arrays, x, method=self.function)
        except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
            raise ValueError(f"{_TRAINING} ({type(error).__name__})") from error
        except (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError) as error:
            raise ValueError(
                f"variables has collections {sorted(arrays)}; expected all that the module reads: "
                f"{error}"
            ) from error


def _linen_head(arrays: Any) -> tuple[Array, Array]:
    head = arrays["params"]["head"]
    weights = head["kernel"]
    return weights, head.get("bias", jnp.zeros(weights.shape[1]))
