"""Convolutions in the CPU's form: the numbers, derivatives and transformations of the plain one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export, lax

import grood_jax.models.convolution as forms
from grood_jax import models
from grood_jax.models.convolution import convolve

NHWC = ("NHWC", "HWIO", "NHWC")

# Shapes of which each takes another way: images, kernel, strides, padding, groups.
CASES = {
    "few channels": ((2, 6, 5, 3), (3, 3, 3, 20), (1, 1), ((1, 1), (1, 1)), 1),
    "product": ((2, 6, 5, 24), (1, 1, 24, 20), (1, 1), ((0, 0), (0, 0)), 1),
    "strided product": ((2, 7, 6, 24), (1, 1, 24, 8), (2, 2), ((0, 0), (0, 0)), 1),
    "window": ((2, 6, 5, 24), (3, 3, 24, 20), (1, 1), ((1, 1), (1, 1)), 1),
    "strided window": ((2, 7, 6, 24), (3, 3, 24, 8), (2, 2), ((1, 1), (1, 1)), 1),
    "groups": ((2, 7, 6, 48), (3, 3, 16, 6), (2, 1), ((1, 1), (1, 1)), 3),
    "each channel": ((2, 7, 6, 5), (3, 3, 1, 5), (2, 1), ((1, 1), (1, 1)), 5),
}
QUICK = tuple(case for case in CASES if case != "few channels")


def arrays(image_shape, kernel_shape, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal(image_shape)
    kernel = rng.standard_normal(kernel_shape) / np.sqrt(np.prod(kernel_shape[:-1]))
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


def by_loops(images, kernel, strides, padding, groups=1):
    """The definition, in float64: one product for each place in the window."""
    (top, bottom), (left, right) = padding
    images, kernel = np.float64(images), np.float64(kernel)
    padded = np.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (padded.shape[1] - kernel.shape[0]) // strides[0] + 1
    width = (padded.shape[2] - kernel.shape[1]) // strides[1] + 1
    found = np.zeros((len(images), height, width, kernel.shape[3]))
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    for i, j, group in np.ndindex(kernel.shape[0], kernel.shape[1], groups):
        rows = slice(i, i + (height - 1) * strides[0] + 1, strides[0])
        columns = slice(j, j + (width - 1) * strides[1] + 1, strides[1])
        own = slice(group * outputs, (group + 1) * outputs)
        picked = padded[:, rows, columns, group * inputs : (group + 1) * inputs]
        found[..., own] += picked @ kernel[i, j, :, own]
    return found


def plain(images, kernel, case):
    return stated(lax.conv_general_dilated, images, kernel, case)


def quick(images, kernel, case):
    return stated(convolve, images, kernel, case)


def stated(form, images, kernel, case, padding=None):
    _, _, strides, sides, groups = CASES[case]
    return form(
        images,
        kernel,
        strides,
        padding or sides,
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


@st.composite
def convolutions(draw):
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pads = st.tuples(st.integers(0, 3), st.integers(0, 3))
    padding = (draw(pads), draw(pads))
    height, width = (
        draw(st.integers(max(1, k - sum(p)), 9)) for k, p in zip(size, padding, strict=True)
    )
    inputs, outputs, groups = draw(
        st.sampled_from(
            [(1, 1, 1), (3, 18, 1), (16, 16, 1), (16, 17, 1), (32, 1, 1), (32, 32, 1)]
            + [(1, 4, 4), (1, 4, 2), (16, 4, 2), (17, 6, 3), (2, 4, 2)]
        )
    )
    image_shape = (draw(st.integers(1, 3)), height, width, inputs * groups)
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return image_shape, (*size, inputs, outputs), strides, padding, groups


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(convolutions())
def test_it_is_the_definition(convolution):
    image_shape, kernel_shape, strides, padding, groups = convolution
    images, kernel = arrays(image_shape, kernel_shape)
    found = convolve(
        images, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
    )
    expected = by_loops(images, kernel, strides, padding, groups)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def slopes_by_loops(images, kernel, weights, strides, padding, groups=1):
    """Slopes of the weighted sum of outputs, by the definition in float64."""
    rows, columns = padding
    images, kernel, weights = map(np.float64, (images, kernel, weights))
    padded = np.pad(images, ((0, 0), rows, columns, (0, 0)))
    of_padded, of_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    height, width = weights.shape[1:3]
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    for i, j, group in np.ndindex(kernel.shape[0], kernel.shape[1], groups):
        places = (
            slice(None),
            slice(i, i + (height - 1) * strides[0] + 1, strides[0]),
            slice(j, j + (width - 1) * strides[1] + 1, strides[1]),
            slice(group * inputs, (group + 1) * inputs),
        )
        own = slice(group * outputs, (group + 1) * outputs)
        of_padded[places] += weights[..., own] @ kernel[i, j, :, own].T
        of_kernel[i, j, :, own] += np.einsum("bhwc,bhwk->ck", padded[places], weights[..., own])
    (_, height, width, _), top, left = images.shape, rows[0], columns[0]
    return of_padded[:, top : top + height, left : left + width], of_kernel


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(convolutions(), st.sampled_from([1, 2**9, 2**19]))
def test_slopes_are_those_of_the_definition(convolution, together):
    image_shape, kernel_shape, strides, padding, groups = convolution
    images, kernel = arrays(image_shape, kernel_shape)

    def outputs(images, kernel):
        return convolve(
            images, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
        )

    with pytest.MonkeyPatch.context() as patch:
        # So that the forms for many images are met.
        patch.setattr(forms, "MANY", 1)
        patch.setattr(forms, "TOGETHER", together)
        found, slopes = jax.vjp(outputs, images, kernel)
        weights = np.random.default_rng(1).standard_normal(found.shape, np.float32)
        own = slopes(jnp.asarray(weights))
        _, moved = jax.jvp(outputs, (images, kernel), (jnp.zeros_like(images), kernel))
    expected = slopes_by_loops(images, kernel, weights, strides, padding, groups)
    for one, two in zip(own, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * max(1, np.abs(two).max()))
    np.testing.assert_allclose(moved, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((-1, 1), (2, -1))], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_padding_by_name_and_below_0(case, padding):
    images, kernel = arrays(*CASES[case][:2])
    found = stated(convolve, images, kernel, case, padding)
    expected = stated(lax.conv_general_dilated, images, kernel, case, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (jnp.float16, {}),
        (jnp.bfloat16, {}),
        (jnp.float32, {"rhs_dilation": (2, 1)}),
        (jnp.float32, {"lhs_dilation": (1, 2)}),
        (jnp.float32, {"feature_group_count": 4}),
        (jnp.float32, {"preferred_element_type": jnp.float32}),
    ],
    ids=str,
)
def test_all_else_is_the_plain_form(dtype, options):
    groups = options.get("feature_group_count", 1)
    images, kernel = arrays((2, 6, 5, 32), (3, 3, 32 // groups, 20), dtype=dtype)
    given = ((1, 1), ((1, 1), (1, 1)))
    found = convolve(images, kernel, *given, dimension_numbers=NHWC, **options)
    expected = lax.conv_general_dilated(images, kernel, *given, dimension_numbers=NHWC, **options)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_other_layouts_and_ranks():
    images, kernel = arrays(*CASES["window"][:2])
    found = convolve(images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME")
    expected = plain(images, kernel, "window")
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-5)
    line, taps = arrays((2, 9, 32), (3, 32, 20))
    numbers = ("NWC", "WIO", "NWC")
    found = convolve(line, taps, (1,), "SAME", dimension_numbers=numbers)
    expected = lax.conv_general_dilated(line, taps, (1,), "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_the_plain_form(case):
    images, kernel = arrays(*CASES[case][:2])
    weights = np.random.default_rng(1).standard_normal(plain(images, kernel, case).shape)

    def total(form, images, kernel):
        # Not linear, so that the value takes part in the derivative.
        return (jnp.float32(weights) * jnp.tanh(form(images, kernel, case))).sum()

    for arguments in ((0,), (1,), (0, 1)):
        own = jax.jit(jax.grad(partial(total, quick), arguments))(images, kernel)
        other = jax.jit(jax.grad(partial(total, plain), arguments))(images, kernel)
        for one, two in zip(own, other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    directions = arrays(*CASES[case][:2], seed=2)
    _, own = jax.jvp(partial(total, quick), (images, kernel), directions)
    _, other = jax.jvp(partial(total, plain), (images, kernel), directions)
    np.testing.assert_allclose(own, other, rtol=1e-4)

    def second(form):
        first = jax.grad(lambda kernel: (form(images, kernel, case) ** 2).sum())
        return jax.jvp(first, (kernel,), directions[1:])[1]

    np.testing.assert_allclose(second(quick), second(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_vmap_over_images_and_over_kernels(case):
    image_shape, kernel_shape = CASES[case][:2]
    images, kernels = arrays((3, *image_shape), (3, *kernel_shape))
    for axes in ((0, 0), (0, None), (None, 0)):
        given = [a if axis == 0 else a[0] for a, axis in zip((images, kernels), axes, strict=True)]
        found = jax.jit(jax.vmap(partial(quick, case=case), axes))(*given)
        expected = jax.vmap(partial(plain, case=case), axes)(*given)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def text_for(platforms, case):
    images, kernel = arrays(*CASES[case][:2])
    made = export.export(jax.jit(partial(quick, case=case)), platforms=platforms)(images, kernel)
    return made.mlir_module()


@pytest.mark.parametrize("case", QUICK)
def test_only_the_cpu_takes_another_form(case):
    cpu = text_for(("cpu",), case)
    forms = ("lhs_dilate = [2, 1]", "dot_general", "optimization_barrier")
    assert sum(form in cpu for form in forms) == 1
    for platform in ("cuda", "tpu"):
        text = text_for((platform,), case)
        assert "stablehlo.convolution" in text
        assert not any(form in text for form in forms)


@pytest.mark.parametrize("case", CASES)
def test_exported_for_all_platforms(case):
    images, kernel = arrays(*CASES[case][:2])
    function = jax.jit(partial(quick, case=case))
    made = export.export(function, platforms=("cpu", "cuda", "tpu"))(images, kernel)
    read = export.deserialize(made.serialize())
    np.testing.assert_array_equal(read.call(images, kernel), function(images, kernel))


def test_exported_for_any_number_of_images():
    images, kernel = arrays(*CASES["strided window"][:2])
    (count,) = export.symbolic_shape("n")
    shape = jax.ShapeDtypeStruct((count, *images.shape[1:]), jnp.float32)
    function = jax.jit(partial(quick, case="strided window"))
    made = export.export(function, platforms=("cpu", "cuda"))(shape, kernel)
    expected = plain(images, kernel, "strided window")
    np.testing.assert_allclose(made.call(images, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "resnet20", "resnet18_32x32"])
def test_the_networks_convolve_so(name):
    model = nnx.eval_shape(lambda: models.create(name, num_classes=2, rngs=nnx.Rngs(0)))
    found = [part for _, part in nnx.iter_graph(model) if isinstance(part, nnx.Conv)]
    assert found
    assert all(part.conv_general_dilated is convolve for part in found)
