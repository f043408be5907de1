"""Encoders: networks that give features and no logits, and the heads that they may be given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from grood_jax.backbone.stages import Parts, check_hashable
from grood_jax.support import checks

Wanted = Literal["", "linear", "prototypes"]
"""A head that is to be fitted; empty where none is asked for."""

EXPECTED = "expected 'linear', 'prototypes' or a pair (weights (D, C), bias (C,))"


@dataclass(frozen=True)
class EncoderEarly:
    """From images to the activations at the cut."""

    encode: Callable[..., Any]

    def __call__(self, arrays: Any, images: Array) -> Any:
        """The activations at the cut."""
        return self.encode(arrays["encoder"], images)


@dataclass(frozen=True)
class EncoderLocal:
    """From images to features of places."""

    local: Callable[..., Any]

    def __call__(self, arrays: Any, images: Array) -> Any:
        """Features of places, (B, …, D)."""
        return self.local(arrays["encoder"], images)


@dataclass(frozen=True)
class EncoderLate:
    """From the activations at the cut to features, and logits if there is a head.

    Attributes:
      finish: from the encoder's arrays and activations to features.
      unit: whether features are brought to length 1, as embeddings that are compared by angle.
      wanted: the head that is to be fitted; None where there is one.
      fitted: whether the head was fitted, and is no part of what was given.
    """

    finish: Callable[..., Any]
    unit: bool
    wanted: Wanted | None
    fitted: bool = False

    def __call__(self, arrays: Any, hidden: Array) -> tuple[Any, Any]:
        """Features (B, D) and logits (B, C); (B, 0) without a head."""
        features = self.finish(arrays["encoder"], hidden)
        if not isinstance(features, jax.Array) or features.ndim != 2:
            return features, jnp.zeros((len(hidden), 0))
        if self.unit:
            lengths = jnp.linalg.norm(features, axis=1, keepdims=True)
            features = features / jnp.where(lengths > 0, lengths, 1)
        if self.wanted is not None:
            return features, jnp.zeros((len(features), 0))
        weights, bias = arrays["head"]["weights"], arrays["head"]["bias"]
        if weights.shape[0] != features.shape[1]:
            raise ValueError(
                f"the head is for features of width {weights.shape[0]}; the encoder's have width "
                f"{features.shape[1]}"
            )
        logits = jnp.matmul(features.astype(jnp.float32), weights, precision=Precision.HIGHEST)
        return features, logits + bias[None]


@dataclass(frozen=True)
class EncoderHead:
    """From arrays to the head's weights and bias."""

    def __call__(self, arrays: Any) -> tuple[Array, Array]:
        """Weights (D, C) and bias (C,)."""
        return arrays["head"]["weights"], arrays["head"]["bias"]


@dataclass(frozen=True)
class Itself:
    """What is given is the features already."""

    def __call__(self, arrays: Any, hidden: Array) -> Any:
        """The features."""
        del arrays
        return hidden


@dataclass(frozen=True)
class NoLogits:
    """In the place of a head that is not there."""

    def __call__(self, model: Any, features: Array) -> Array:
        """Logits of no class, (B, 0)."""
        del model
        return jnp.zeros((features.shape[0], 0))


@dataclass(frozen=True)
class FeaturesOf:
    """The features that a `Late` gives."""

    late: Callable[..., Any]

    def __call__(self, arrays: Any, hidden: Array) -> Any:
        """The features."""
        return self.late(arrays, hidden)[0]


def encoder_parts(encoder: Parts, head: Any, text: Any) -> Parts:
    """What a backbone of an encoder is made of.

    Args:
      encoder: its arrays, and its functions with features in the place of logits.
      head: ``"linear"`` or ``"prototypes"``, to be fitted; or weights (D, C) and bias (C,).
      text: embeddings of the classes' names (C, D), a temperature, and a bias if there is one.

    Raises:
      TypeError, ValueError: ``head`` or ``text`` is none of these, or both are given.
    """
    if head is not None and text is not None:
        raise ValueError("head and text are both given; expected at most one of them")
    check_hashable("encoder", encoder.early)
    check_hashable("encoder", encoder.late)
    given = None
    wanted: Wanted | None = ""
    if text is not None:
        given, name = text_head(text), "text"
    elif isinstance(head, str):
        wanted, name = checks.choice("head", head, ("linear", "prototypes")), ""  # type: ignore[assignment]
    elif head is not None:
        given, name = linear_head(head), "given"
    arrays: dict[str, Any] = {"encoder": encoder.arrays, "head": {}}
    late = EncoderLate(encoder.late, text is not None, wanted)
    local = None if encoder.local is None else EncoderLocal(encoder.local)
    early = EncoderEarly(encoder.early)
    made = encoder._replace(arrays=arrays, early=early, late=late, local=local)
    return made if given is None else headed(made, *given, name=name, fitted=False)


def headed(
    parts: Parts, weights: Float[Array, "d c"], bias: Float[Array, " c"], *, name: str, fitted: bool
) -> Parts:
    """An encoder with a linear head.

    Args:
      parts: as `encoder_parts` makes them without a head.
      weights: (D, C).
      bias: (C,).
      name: what the head is called.
      fitted: whether it was fitted.
    """
    late = parts.late
    assert isinstance(late, EncoderLate)
    return parts._replace(
        arrays={"encoder": parts.arrays["encoder"], "head": {"weights": weights, "bias": bias}},
        late=EncoderLate(late.finish, late.unit, None, fitted),
        head=EncoderHead(),
        head_name=name,
    )


def text_head(text: Any) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    """The head whose logits are cosines with embeddings, over a temperature.

    Raises:
      TypeError: ``text`` is no tuple of an array of numbers and a temperature.
      ValueError: embeddings that are zero or not finite, or a temperature that is not positive.
    """
    if not isinstance(text, tuple) or len(text) not in (2, 3):
        raise TypeError(
            f"text is a {type(text).__name__}; expected (embeddings (C, D), temperature), or with "
            "a bias (embeddings, temperature, bias): logits are cosine / temperature + bias"
        )
    embeddings = checks.finite("text", checks.shaped("text", text[0], ("C", "D")))
    temperature = checks.positive("temperature of text", text[1])
    bias = checks.number("bias of text", text[2]) if len(text) == 3 else 0.0
    lengths = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    if not bool((lengths > 0).all()):
        raise ValueError(f"text holds {int((lengths == 0).sum())} rows of zeros; expected others")
    return (embeddings / lengths / temperature).T, jnp.full(len(embeddings), bias, jnp.float32)


def linear_head(head: Any) -> tuple[Float[Array, "d c"], Float[Array, " c"]]:
    """A head that is given by its weights and bias.

    Raises:
      TypeError: it is no pair.
      ValueError: shapes that do not fit each other, or NaN.
    """
    if not isinstance(head, tuple) or len(head) != 2:
        raise TypeError(f"head is {head!r}; {EXPECTED}")
    weights = checks.finite("weights of head", checks.shaped("weights of head", head[0], "DC"))
    bias = checks.shaped("bias of head", head[1], (weights.shape[1],))
    return weights, checks.finite("bias of head", bias)
