"""Shapes, stages, sizes and numbers of the networks, against a reference of PyTorch's rules."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference
from flax import nnx
from jax import export

from grood_jax import models
from grood_jax.models.resnet import BasicBlock, PadShortcut, Projection, Stem
from grood_jax.models.swin import neighbours
from grood_jax.models.torch.importing import import_state_dict


def layers(count: int) -> tuple[str, ...]:
    return tuple(f"layer{i + 1}" for i in range(count))


STAGES = {
    "small": layers(3),
    **dict.fromkeys(("resnet20", "resnet32", "resnet44", "resnet56"), ("stem", *layers(3))),
    **dict.fromkeys(("resnet18_32x32", "resnet18_64x64"), ("stem", *layers(4))),
    **dict.fromkeys(("resnet18_224x224", "resnet18", "resnet34", "resnet50"), ("stem", *layers(4))),
    **dict.fromkeys(("swin_t", "regnet_y_16gf"), ("stem", *layers(4))),
    "vit_b_16": ("stem", *layers(12)),
    "efficientnet_lite0": ("stem", *layers(7), "top"),
    "densenet_bc_100_12": (
        *("stem", "layer1", "transition1", "layer2", "transition2", "layer3", "top"),
    ),
}


@cache
def abstract(name: str, classes: int = 10, channels: int = 3) -> models.Staged:
    def create() -> models.Staged:
        return models.create(name, num_classes=classes, channels=channels, rngs=nnx.Rngs(0))

    return nnx.eval_shape(create)


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.slow
def test_names_and_stages() -> None:
    assert set(models.names()) == set(STAGES)
    assert {name: abstract(name).stages for name in models.names()} == STAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet18_32x32", 10, 11_173_962),
        ("resnet20", 10, 269_722),
        ("resnet56", 10, 853_018),
        # num_params of torchvision's weights.
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("vit_b_16", 1000, 86_567_656),
        ("swin_t", 1000, 28_288_354),
        ("regnet_y_16gf", 1000, 83_590_140),
        # 4.7 million, says tensorflow/tpu's README of EfficientNet-Lite.
        ("efficientnet_lite0", 1000, 4_652_008),
        # 0.8 million, says table 2 of the paper (arXiv 1608.06993).
        ("densenet_bc_100_12", 10, 769_162),
    ],
)
def test_published_parameter_counts(name: str, classes: int, count: int) -> None:
    assert parameters(abstract(name, classes)) == count


@pytest.mark.parametrize(
    ("name", "classes", "channels"),
    [*((name, 10, 3) for name in torch_reference.DEPTHS), ("resnet20", 100, 1)],
)
def test_parameters_and_statistics_are_pytorchs(name: str, classes: int, channels: int) -> None:
    shapes = torch_reference.shapes(name, classes, channels)
    sizes = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    running = {key for key in sizes if "running" in key}
    counters = {key for key in sizes if key.endswith("num_batches_tracked")}
    model = abstract(name, classes, channels)
    assert parameters(model) == sum(sizes[key] for key in sizes.keys() - running - counters)
    statistics = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert sum(leaf.size for leaf in statistics) == sum(sizes[key] for key in running)
    # Nothing else: no random state, say, that would have to be saved.
    others = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat)))
    assert not jax.tree.leaves(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hidden", "width"),
    [
        ("small", [(32, 32, 16), (16, 16, 32), (8, 8, 64)], 64),
        (
            "resnet18_32x32",
            [(32, 32, 64), (32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)],
            512,
        ),
        ("resnet20", [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64)], 64),
        ("resnet56", [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64)], 64),
    ],
)
def test_shapes_at_every_stage(name: str, hidden: list[tuple[int, ...]], width: int) -> None:
    model = nnx.view(abstract(name), use_running_average=True)
    images = jax.ShapeDtypeStruct((5, 32, 32, 3), jnp.float32)
    for cut, shape in zip(model.stages, hidden, strict=True):
        early = jax.eval_shape(lambda m, x, c=cut: m.early(x, c), model, images)
        assert early.shape == (5, *shape)
        features, logits = jax.eval_shape(lambda m, e, c=cut: m.late(e, c), model, early)
        assert (features.shape, logits.shape) == ((5, width), (5, 10))
    assert jax.eval_shape(lambda m, x: m(x), model, images).shape == (5, 10)


def halved(size: int, widths: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Stages of which each halves height and width."""
    return [(size >> i, size >> i, width) for i, width in enumerate(widths)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "hidden"),
    [
        ("resnet18_64x64", 64, [(64, 64, 64), *halved(64, (64, 128, 256, 512))]),
        ("resnet18_224x224", 224, [(56, 56, 64), *halved(56, (64, 128, 256, 512))]),
        ("resnet34", 224, [(56, 56, 64), *halved(56, (64, 128, 256, 512))]),
        ("resnet50", 224, [(56, 56, 64), *halved(56, (256, 512, 1024, 2048))]),
        ("regnet_y_16gf", 384, halved(192, (32, 224, 448, 1232, 3024))),
        ("swin_t", 224, [(56, 56, 96), *halved(56, (96, 192, 384, 768))]),
        ("vit_b_16", 224, [(197, 768)] * 13),
        (
            "efficientnet_lite0",
            224,
            [(112, 112, 32), *halved(112, (16, 24, 40, 80))]
            + [(14, 14, 112), (7, 7, 192), (7, 7, 320), (7, 7, 1280)],
        ),
    ],
)
def test_shapes_at_every_stage_of_the_larger(name: str, size: int, hidden: list) -> None:
    model = nnx.view(abstract(name), use_running_average=True, raise_if_not_found=False)
    # Of any number of images, as exported networks are.
    (count,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32)
    found = jax.eval_shape(lambda m, x: m.activations(x), model, images)
    assert [activations.shape[1:] for activations in found] == hidden
    assert model.stages[0] == "stem" and "layer1" in model.stages
    early = jax.eval_shape(lambda m, x: m.early(x, "layer1"), model, images)
    assert early.shape == (count, *hidden[1])
    features, logits = jax.eval_shape(lambda m, x: m.late(x, "layer1"), model, early)
    assert (features.shape, logits.shape) == ((count, hidden[-1][-1]), (count, 10))


@pytest.mark.parametrize(("name", "depends"), [("vit_b_16", True), ("swin_t", False)])
def test_only_vit_has_arrays_that_depend_on_the_images_size(name: str, depends: bool) -> None:
    larger = nnx.eval_shape(
        lambda: models.create(name, num_classes=10, image_size=384, rngs=nnx.Rngs(0))
    )
    assert (parameters(larger) != parameters(abstract(name))) == depends


def test_vit_takes_images_of_one_size() -> None:
    with pytest.raises(ValueError, match="image_size is 100; .* expects a multiple of 16"):
        models.create("vit_b_16", num_classes=2, image_size=100, rngs=nnx.Rngs(0))
    images = jax.ShapeDtypeStruct((1, 224, 208, 3), jnp.float32)
    with pytest.raises(ValueError, match="images have 224 × 208 pixels; expected 224 × 224"):
        jax.eval_shape(lambda m, x: m(x), abstract("vit_b_16"), images)


def test_swins_windows_know_what_was_rolled_together() -> None:
    # 14 × 7, rolled by 3 in height only: rows 11 to 13 come from the top.
    found = neighbours(14, 7, (3, 0))
    assert found.shape == (2, 49, 49)
    assert found[0].all()
    rolled = np.repeat(np.arange(7) >= 4, 7)
    np.testing.assert_array_equal(found[1], rolled[:, None] == rolled[None])


def test_strides_of_resnet18() -> None:
    model = abstract("resnet18_32x32")
    strides = [
        [(block.conv1.strides, block.conv2.strides) for block in getattr(model, name).layers]
        for name in ("layer1", "layer2", "layer3", "layer4")
    ]
    two = [(2, 1), (1, 1)]
    assert strides == [[(1, 1), (1, 1)], two, two, two]
    assert model.stem.conv.kernel_size == (3, 3) and model.stem.conv.strides == 1


@pytest.mark.parametrize("shortcut", [Projection, PadShortcut])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_pads_and_strides_as_pytorch_does(shortcut: type, stride: int) -> None:
    inputs, outputs = 4, 8
    shapes = {"b.conv1.weight": (outputs, inputs, 3, 3), "b.conv2.weight": (outputs, outputs, 3, 3)}
    norms = ["b.bn1", "b.bn2"]
    if shortcut is Projection:
        shapes["b.shortcut.0.weight"] = (outputs, inputs, 1, 1)
        norms.append("b.shortcut.1")
    for norm in norms:
        shapes |= {f"{norm}.{array}": (outputs,) for array in ("weight", "bias")}
        shapes |= {f"{norm}.running_{array}": (outputs,) for array in ("mean", "var")}
    state = torch_reference.draw(shapes)
    arrays = {
        "conv1": {"kernel": state["b.conv1.weight"].transpose(2, 3, 1, 0)},
        "conv2": {"kernel": state["b.conv2.weight"].transpose(2, 3, 1, 0)},
        "norm1": _norm(state, "b.bn1"),
        "norm2": _norm(state, "b.bn2"),
    }
    if shortcut is Projection:
        arrays["shortcut"] = {
            "conv": {"kernel": state["b.shortcut.0.weight"].transpose(2, 3, 1, 0)},
            "norm": _norm(state, "b.shortcut.1"),
        }
    graph, variables = nnx.split(
        nnx.eval_shape(lambda: BasicBlock(inputs, outputs, stride, shortcut, rngs=nnx.Rngs(0)))
    )
    nnx.replace_by_pure_dict(variables, jax.tree.map(jnp.asarray, arrays))
    block = nnx.view(nnx.merge(graph, variables), use_running_average=True)
    # PyTorch pads both sides alike; XLA's "SAME" would not, at even sizes and stride 2.
    for size in ((8, 6), (7, 5), (8, 5)):
        x = np.random.default_rng(1).standard_normal((2, inputs, *size)).astype(np.float32)
        found = jax.jit(lambda b, x: b(x))(block, x.transpose(0, 2, 3, 1))
        expected = torch_reference.block(x, state, "b", stride)
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-5)


def _norm(state: torch_reference.State, name: str) -> dict[str, np.ndarray]:
    keys = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return {ours: state[f"{name}.{theirs}"] for ours, theirs in keys.items()}


def test_the_reference_tells_symmetric_padding_from_same() -> None:
    state = torch_reference.draw({"w": (5, 3, 3, 3)})
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    expected = torch_reference.conv(x, state["w"], 2)

    def difference(padding: str | list[tuple[int, int]]) -> float:
        found = jax.lax.conv_general_dilated(x, state["w"], (2, 2), padding)
        return float(np.abs(found - expected).max())

    assert difference([(1, 1), (1, 1)]) < 1e-5 < 0.1 < difference("SAME")


def test_pad_shortcut_pads_channels_on_both_sides() -> None:
    x = jnp.arange(2 * 4 * 4 * 2.0).reshape(2, 4, 4, 2)
    padded = PadShortcut(2, 6, 2, rngs=nnx.Rngs(0))(x)
    assert padded.shape == (2, 2, 2, 6)
    np.testing.assert_array_equal(padded[..., 2:4], x[:, ::2, ::2])
    assert not padded[..., :2].any() and not padded[..., 4:].any()


def test_fresh_weights_have_the_spread_of_he_et_al() -> None:
    # arXiv 1502.01852, backward: variance 2 / (k² · outputs).
    kernel = Stem(16, 32, rngs=nnx.Rngs(0)).conv.kernel[...]
    assert kernel.shape == (3, 3, 16, 32)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert abs(float(kernel.mean())) < 0.01


def test_every_cut_of_small_gives_the_same_logits() -> None:
    rng = np.random.default_rng(0)
    graph, variables = nnx.split(abstract("small", classes=4, channels=1))
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), leaf.dtype), variables
    )
    model = nnx.merge(graph, drawn)
    images = rng.standard_normal((2, 9, 8, 1)).astype(np.float32)
    view = nnx.view(model, use_running_average=True)

    @jax.jit
    def run(m, x):
        return m(x), {cut: m.late(m.early(x, cut), cut)[1] for cut in m.stages}

    logits, late = run(view, images)
    assert logits.shape == (2, 4) and bool(jnp.isfinite(logits).all())
    for cut in STAGES["small"]:
        np.testing.assert_allclose(late[cut], logits, rtol=1e-6)
    assert np.ptp(logits) > 0
    # Outside of jit NumPy's arrays come in as they are.
    np.testing.assert_allclose(view(images), logits, rtol=1e-5)
    np.testing.assert_allclose(view.late(images, "input")[1], logits, rtol=1e-5)


def test_create_errors() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match="model is 'resnet_20'.*did you mean 'resnet20'"):
        models.create("resnet_20", num_classes=10, rngs=rngs)
    with pytest.raises(ValueError, match="num_classes is 0; expected at least 1"):
        models.create("small", num_classes=0, rngs=rngs)
    with pytest.raises(ValueError, match="channels is -1; expected at least 1"):
        models.create("small", num_classes=2, channels=-1, rngs=rngs)
    with pytest.raises(TypeError, match="num_classes"):
        models.create("small", num_classes=2.0, rngs=rngs)


@pytest.mark.parametrize("cut", ["layer4", "head", ""])
def test_a_stage_that_is_none(cut: str) -> None:
    model = abstract("resnet20")
    match = f"cut is '{cut}'; expected one of stem, layer1, layer2, layer3"
    with pytest.raises(ValueError, match=match):
        model.early(jnp.zeros((1, 8, 8, 3)), cut)
    with pytest.raises(ValueError, match=match):
        model.late(jnp.zeros((1, 8, 8, 3)), cut)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet18_32x32"])
def test_every_cut_gives_the_numbers_of_the_reference(name: str) -> None:
    state = torch_reference.random_state(name)
    model = nnx.view(import_state_dict(state, name), use_running_average=True)
    # Even and odd sizes, at which PyTorch's padding and XLA's "SAME" differ and agree.
    images = np.random.default_rng(1).standard_normal((2, 3, 12, 10)).astype(np.float32)
    expected = torch_reference.forward(state, images)

    @jax.jit
    def run(model, x):
        hidden = {cut: model.early(x, cut) for cut in model.stages}
        return hidden, {cut: model.late(hidden[cut], cut) for cut in model.stages}, model(x)

    hidden, late, logits = run(model, images.transpose(0, 2, 3, 1))
    _close(logits, expected["logits"])
    for cut in STAGES[name]:
        _close(hidden[cut].transpose(0, 3, 1, 2), expected[cut])
        _close(late[cut][0], expected["features"])
        _close(late[cut][1], expected["logits"])


def _close(found: jax.Array, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
