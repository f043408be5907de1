"""Convolutions in the form that XLA's CPU backend computes fastest."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

FEWEST_CHANNELS = 16
"""Below this many input channels in a group the plain form is the fastest; and XLA itself takes
Eigen where neither input nor output has more."""

MANY = 2**19
"""From so many numbers of images on a loop over parts, which compiles longer, is worth its time."""

TOGETHER = 2**19
"""Numbers of images, each as often as the kernel is wide, of which a slope is one product."""

_Images = Float[Array, "b h w c"]
_Kernel = Float[Array, "i j _ k"]
_Outputs = Float[Array, "b _ _ k"]
_Form = Callable[[Array, Array], Array]
_NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def convolve(
    images: Float[Array, "..."],
    kernel: Float[Array, "..."],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **options: Any,
) -> Float[Array, "..."]:
    """`jax.lax.conv_general_dilated`, for ``nnx.Conv(..., conv_general_dilated=convolve)``.

    On CPUs, float32 convolutions of images (B, H, W, C) without dilation take other forms, which
    sum the same products (experiments/benchmarks/models.py and training.py have the times):

    * A window of one pixel is a matrix product.
    * A window over each channel by itself is a sum over the window's places: XLA has no library
      for it.
    * Other windows are stated with rows dilated by two, in images and kernel alike, and with twice
      the stride. XLA gives what is so stated to Eigen, and else to YNNPACK, which takes longer on
      several cores (`IsConvolutionOpSupportedByYnn` in xla/backends/cpu/ynn_support.cc).
    * Slopes of such a window's kernel are, for many images, matrix products of a few images each:
      XLA lays images and slopes out anew, pixel by pixel, and multiplies windows as large as these.

    All else, and all on other devices, is computed as it is stated. Derivatives are everywhere
    those of the plain form, of any order and in both modes.

    Args:
      images: one array of images, as `jax.lax.conv_general_dilated` takes it.
      kernel: likewise.
      strides: between windows.
      padding: on each side, or by name.
      lhs_dilation: of the images.
      rhs_dilation: of the kernel.
      dimension_numbers: the layouts.
      feature_group_count: groups of channels.
      options: all others of `jax.lax.conv_general_dilated`.
    """

    def plain(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            **options,
        )

    if (
        images.ndim != 4
        or not images.dtype == kernel.dtype == jnp.float32
        or lax.conv_dimension_numbers(images.shape, kernel.shape, dimension_numbers) != _NHWC
        or any(by != 1 for by in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        or any(option is not None for option in options.values())
    ):
        return plain(images, kernel)
    sides = (
        lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
        if isinstance(padding, str)
        else padding
    )
    forms = _cpu_forms(images.shape, kernel.shape, strides, sides, feature_group_count)
    if not any(forms):
        return plain(images, kernel)
    return _with_slopes(
        *(
            plain if form is None else partial(lax.platform_dependent, cpu=form, default=plain)
            for form in forms
        )
    )(images, kernel)


def _with_slopes(forward: _Form, in_images: _Form, in_kernel: _Form) -> _Form:
    """A form whose derivatives in each argument are those of others, linear in what moves."""

    @jax.custom_jvp
    def run(images: _Images, kernel: _Kernel) -> _Outputs:
        return forward(images, kernel)

    @partial(run.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        (images, kernel), (moved_images, moved_kernel) = primals, tangents
        outputs = run(images, kernel)
        parts = [jnp.zeros_like(outputs)]
        if not isinstance(moved_images, SymbolicZero):
            parts.append(in_images(moved_images, kernel))
        if not isinstance(moved_kernel, SymbolicZero):
            parts.append(in_kernel(images, moved_kernel))
        return outputs, sum(parts[2:], parts[1]) if len(parts) > 1 else parts[0]

    return run


def _cpu_forms(
    images_shape: Sequence[Any],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
) -> tuple[_Form | None, _Form | None, _Form | None]:
    """How a CPU computes it, and what is transposed for slopes of images and of the kernel.

    None stands for the plain form.
    """
    count, _, _, channels = images_shape
    *size, inputs, outputs = kernel_shape
    strided = any(by != 1 for by in strides)
    if groups == 1 and math.prod(size) == 1 and not any(map(any, padding)):
        product = partial(_product, strides=strides)
        return product, None if strided else product, product
    if inputs == 1 and groups == channels == outputs and min(map(min, padding)) >= 0:
        places = partial(_by_places, strides=strides, padding=padding)
        return places, places, places
    if inputs < FEWEST_CHANNELS:
        return None, None, None
    eigen = in_kernel = partial(_by_eigen, strides=strides, padding=padding, groups=groups)
    of_one = math.prod(images_shape[1:])
    if groups == 1 and isinstance(count, int) and count * of_one >= MANY and min(padding[1]) >= 0:
        fit = max(1, TOGETHER // (of_one * size[1]))
        together = max(n for n in range(1, count + 1) if count % n == 0 and n <= fit)
        in_kernel = partial(_by_rows, strides=strides, padding=padding, together=together)
    if max(channels, outputs) <= FEWEST_CHANNELS:
        return None, None, in_kernel
    # Transposed, strides fill images with zeros, and Eigen multiplies these too.
    return eigen, None if strided else eigen, in_kernel


def _product(images: _Images, kernel: _Kernel, *, strides: Sequence[int]) -> _Outputs:
    return jnp.einsum("bhwc,ck->bhwk", images[:, :: strides[0], :: strides[1]], kernel[0, 0])


def _by_places(
    images: _Images,
    kernel: _Kernel,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> _Outputs:
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    # Else every place would pad for itself.
    padded = lax.optimization_barrier(padded)
    rows, columns = (
        (padded.shape[axis + 1] - kernel.shape[axis]) // strides[axis] + 1 for axis in range(2)
    )
    outputs = jnp.zeros((images.shape[0], rows, columns, images.shape[3]), images.dtype)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            picked = padded[
                :,
                i : i + (rows - 1) * strides[0] + 1 : strides[0],
                j : j + (columns - 1) * strides[1] + 1 : strides[1],
            ]
            outputs += picked * kernel[i, j].reshape(1, 1, 1, -1)
    return outputs


def _by_eigen(
    images: _Images,
    kernel: _Kernel,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
) -> _Outputs:
    (top, bottom), columns = padding
    return lax.conv_general_dilated(
        images,
        kernel,
        (2 * strides[0], strides[1]),
        ((2 * top, 2 * bottom), columns),
        lhs_dilation=(2, 1),
        rhs_dilation=(2, 1),
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )


def _by_rows(
    images: _Images,
    kernel: _Kernel,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    together: int,
) -> _Outputs:
    """Pixels side by side as one vector, times all rows of the kernel; rows are then summed.

    It is stated for its transpose: the slope of the kernel is one matrix product for as many images
    as stay in the cache, and neither is laid out anew.
    """
    rows, columns, inputs, outputs = kernel.shape
    matrix = kernel.transpose(1, 2, 0, 3).reshape(columns * inputs, rows * outputs)

    # Copies of images are made again for slopes, and not kept.
    @partial(jax.checkpoint, prevent_cse=False)
    def of_some(some: _Images, matrix: Float[Array, "p q"]) -> _Outputs:
        padded = jnp.pad(some, ((0, 0), (0, 0), padding[1], (0, 0)))
        last = padded.shape[2] - columns
        beside = [padded[:, :, j : j + last + 1 : strides[1]] for j in range(columns)]
        # Barriers keep what is copied out of the products, there and back.
        vectors = lax.optimization_barrier(jnp.concatenate(beside, axis=-1))
        product = vectors.reshape(-1, columns * inputs) @ matrix
        product = lax.optimization_barrier(product).reshape(*vectors.shape[:3], -1)
        # All shifted within one frame, whose transpose pads slopes once.
        frame = sum(
            jnp.pad(part, ((0, 0), (rows - 1 - i, i), (0, 0), (0, 0)))
            for i, part in enumerate(jnp.split(product, rows, axis=-1))
        )
        top, bottom = (side - rows + 1 for side in padding[0])
        sides = ((0, 0, 0), (top, bottom, 0), (0, 0, 0), (0, 0, 0))
        return lax.pad(lax.optimization_barrier(frame), jnp.float32(0), sides)[:, :: strides[0]]

    groups = images.reshape(-1, together, *images.shape[1:])
    found = lax.map(lambda some: of_some(some, matrix), groups)
    return found.reshape(-1, *found.shape[2:])
