"""A classifier cut in two pure functions: the one seam to neural-network frameworks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from grood_jax.backbone.encoders import EncoderLate, Wanted, encoder_parts, headed
from grood_jax.backbone.outputs import Outputs
from grood_jax.backbone.stages import (
    Cut,
    Early,
    Head,
    Late,
    Local,
    Middle,
    Parts,
    check_hashable,
)
from grood_jax.support import checks


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
      cut: where the network is cut, in a word or two: a stage, a submodule, or "features" where it
        is cut before the head.
      head_name: the head's path, where it has one.
      local: from arrays and images to features of places, where they can be had.
    """

    arrays: Any
    early: Early = field(metadata={"static": True})
    late: Late = field(metadata={"static": True})
    head: Head | None = field(default=None, metadata={"static": True})
    layers: Middle | None = field(default=None, metadata={"static": True})
    input_std: tuple[float, ...] = field(default=(), metadata={"static": True})
    input_mean: tuple[float, ...] = field(default=(), metadata={"static": True})
    cut: str = field(default="", metadata={"static": True})
    head_name: str = field(default="", metadata={"static": True})
    local: Local | None = field(default=None, metadata={"static": True})

    @classmethod
    def from_functions(
        cls,
        arrays: Any,
        early: Early,
        late: Late,
        head: Head | None = None,
        *,
        layers: Middle | None = None,
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
            check_hashable(name, stage)
        return cls._of(Parts(arrays, early, late, head, layers), input_std, input_mean)

    @classmethod
    def _of(
        cls, parts: Parts, input_std: Sequence[float], input_mean: Sequence[float]
    ) -> "Backbone":
        std, mean = _checked_std(input_std), _checked_mean(input_mean)
        return cls(**parts._asdict(), input_std=std, input_mean=mean)

    @classmethod
    def from_nnx(
        cls,
        model: Any,
        *,
        head: str | Callable[..., Any] | None = None,
        cut: Cut | None = None,
        example: Any = None,
        call: Callable[..., Any] | None = None,
        layers: Callable[..., Any] | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of a flax.nnx module; the module itself is left as it is.

        With ``example``, submodules are named by their paths (``blocks.4``; `grood_jax.layers`
        lists them): features are what enters the head, logits what leaves it, and the model may
        return what it likes. One run without numbers checks that what follows the cut reads nothing
        that comes before it.

        The backbone holds the arrays that the module has now: training the module further does
        not change it.

        Args:
          model: the module. It is used in evaluation mode, whatever mode it is in.
          head: the path of the layer from features (B, D) to logits (B, C), or that layer; or a
            function ``(model, features) -> logits`` of the features that the model returns. By
            default, the last nnx.Linear; a warning tells where several could be it.
          cut: the path of the submodule after which the model is cut; by default, one about a third
            of the way, which the attribute ``cut`` then names. Only detectors that mix at the cut
            depend on it. Or, without ``example``, the name of a stage, where the model has
            ``stages`` and methods ``early(images, cut)`` and ``late(hidden, cut)`` as
            `grood_jax.models` have; or two functions ``(early(model, images), late(model,
            hidden))``. The head is then an nnx.Linear, by default that called ``head``.
          example: a batch of images as the model takes them; only its shape and dtype matter.
          call: how the model is run, ``(model, images) -> anything``, if it is not just called
            (arguments ``train`` and ``deterministic`` are given by themselves).
          layers: ``(model, images) -> activations`` of middle layers, as for `from_functions`;
            by default the model's method ``activations(images)``, if it has one.
          input_std: as for `from_functions`, like the next.
          input_mean: what was subtracted from images.

        Raises:
          TypeError: ``model`` is no nnx module, or has no stages for a named cut; ``example`` is no
            batch of images; a function is not hashable.
          ValueError: the model has no such stage or submodule, cannot run on the example, or cannot
            be cut there; and, at the first call, the model runs in training mode all the same.
        """
        from grood_jax.backbone import nnx

        parts = nnx.parts(
            model,
            head=head,
            cut=cut,
            example=example,
            call=call,
            layers=layers,
            takes_bytes=bool(input_std) and bool(input_mean),
        )
        return cls._of(parts, input_std, input_mean)

    @classmethod
    def from_linen(
        cls,
        module: Any,
        variables: Mapping[str, Any],
        *,
        head: str | Callable[..., Any] | None = None,
        cut: Cut | None = None,
        example: Any = None,
        call: Callable[..., Any] | None = None,
        layers: Callable[..., Any] | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of a flax.linen module with its variables.

        Args:
          module: the module; it is run in evaluation mode.
          variables: its collections, ``{"params": …, "batch_stats": …}``.
          head: as for `from_nnx`: a path of names as in the parameters (``block/Dense_0``), the
            last linen.Dense by default.
          cut: as for `from_nnx`; functions take the bound module first.
          example: as for `from_nnx`.
          call: as for `from_nnx`; it takes the bound module first.
          layers: likewise.
          input_std: as for `from_functions`, like the next.
          input_mean: what was subtracted from images.

        Raises:
          TypeError: ``module`` is no linen module, or has no stages for a named cut; ``example`` is
            no batch of images; it or a function is not hashable; ``variables`` is no mapping.
          ValueError: the module has no such stage or submodule, cannot run on the example, or
            cannot be cut there; ``variables`` has no "params"; and, at the first call, it lacks
            another collection, or the module runs in training mode.
        """
        from grood_jax.backbone import linen

        parts = linen.parts(
            module,
            variables,
            head=head,
            cut=cut,
            example=example,
            call=call,
            layers=layers,
            takes_bytes=bool(input_std) and bool(input_mean),
        )
        return cls._of(parts, input_std, input_mean)

    @classmethod
    def from_encoder(
        cls,
        encoder: Any,
        arrays: Any = None,
        *,
        head: Any = None,
        text: Any = None,
        local: Callable[..., Any] | None = None,
        cut: str | None = None,
        example: Any = None,
        call: Callable[..., Any] | None = None,
        input_std: Sequence[float] = (),
        input_mean: Sequence[float] = (),
    ) -> "Backbone":
        """Makes a backbone of a network that gives features and no logits.

        Without a head, detectors that read no logits work (`Detector.logits`): the class of an
        image is then that of the nearest mean of training features. With one, all do.

        Args:
          encoder: a function ``(arrays, images) -> features (B, D)``, pure, in evaluation mode; a
            flax.nnx module; or a flax.linen module.
          arrays: of the function, any pytree; of a linen module, its variables.
          head: ``"linear"``, a logistic regression, or ``"prototypes"``, the classes' means, to be
            fitted on the training features (`grood_jax.fit_head`); or weights (D, C) and bias (C,).
          text: ``(embeddings (C, D), temperature)`` of the classes' names, or with a bias as
            SigLIP has one: features are then brought to length 1, and logits are cosines with the
            embeddings over the temperature, plus the bias.
          local: features of places in an image, in the space of its features, if detectors are to
            use them: ``(arrays, images) -> (B, …, D)``, or of a module ``(model, images) -> …``.
          cut: as for `from_nnx`, for modules with an example; otherwise, the features.
          example: as for `from_nnx`.
          call: as for `from_nnx`, for modules: it returns features.
          input_std: as for `from_functions`, like the next.
          input_mean: what was subtracted from images.

        Raises:
          TypeError: an argument of the wrong kind, or a function that is not hashable.
          ValueError: what `from_nnx` raises; a head or embeddings of wrong shapes or not finite;
            and, at the first call, of another width than the features.
        """
        from grood_jax.backbone import adapting

        made = adapting.encoder_of(
            encoder,
            arrays,
            local=local,
            cut=cut,
            example=example,
            call=call,
            takes_bytes=bool(input_std) and bool(input_mean),
        )
        return cls._of(encoder_parts(made, head, text), input_std, input_mean)

    @property
    def wanted_head(self) -> Wanted | None:
        """The head that is to be fitted, "" if none was asked for; None where there is one."""
        return self.late.wanted if isinstance(self.late, EncoderLate) else None

    @property
    def fitted_head(self) -> tuple[Float[Array, "d c"], Float[Array, " c"]] | None:
        """Weights (D, C) and bias (C,) of a head that was fitted to an encoder, if one was."""
        fitted = isinstance(self.late, EncoderLate) and self.late.fitted
        return (self.arrays["head"]["weights"], self.arrays["head"]["bias"]) if fitted else None

    @property
    def given_arrays(self) -> Any:
        """The arrays without a head that was fitted."""
        return self.arrays if self.fitted_head is None else {**self.arrays, "head": {}}

    def with_head(
        self, weights: Float[Array, "d c"], bias: Float[Array, " c"], name: str = "fitted"
    ) -> "Backbone":
        """An encoder with a head that was fitted to it.

        Args:
          weights: (D, C).
          bias: (C,).
          name: what it is called.

        Raises:
          ValueError: the backbone has a head already.
        """
        if self.wanted_head is None:
            raise ValueError(f"{self} has a head; expected one of Backbone.from_encoder without")
        parts = Parts(*(getattr(self, field) for field in Parts._fields))
        made = headed(parts, weights, bias, name=name, fitted=True)
        return replace(self, **made._asdict())

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
        parts = [f"{len(leaves)} arrays", f"{numbers:,} numbers"]
        parts += [f"cut {self.cut!r}"] if self.cut else []
        parts += [f"head {self.head_name!r}"] if self.head_name else []
        if (wanted := self.wanted_head) is not None:
            parts += [f"a {wanted} head to be fitted" if wanted else "no head"]
        gives = [name for name in ("head", "layers", "local") if getattr(self, name) is not None]
        parts += [f"with {' and '.join(gives)}"] if gives else []
        return f"Backbone({', '.join(parts)})"

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

    def local_features(
        self, images: Shaped[Array | np.ndarray, "b ..."]
    ) -> Float[Array, "b ... d"]:
        """Features of places in each image, (B, …, D).

        Args:
          images: as for `normalized`.

        Raises:
          TypeError: as `normalized`.
          ValueError: as `normalized`; the backbone has no ``local``, or it returned anything but an
            array (B, …, D).
        """
        if self.local is None:
            raise ValueError("local is None; expected a function of arrays and images")
        images = self.normalized(images)
        returned = self.local(self.arrays, images)
        count = images.shape[0]
        if not isinstance(returned, Array) or returned.ndim < 3 or returned.shape[0] != count:
            raise ValueError(
                f"local returned {_described(returned)}; expected an array ({count}, places, "
                "features)"
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
            "Backbone.from_nnx(model, example=images), from_linen, from_encoder or from_functions"
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
