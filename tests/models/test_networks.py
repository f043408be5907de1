"""Shapes, stages, sizes and numbers of the networks, against a reference of PyTorch's rules."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference
from flax import nnx

from grood_jax import models
from grood_jax.models.import_torch import import_state_dict
from grood_jax.models.resnet import BasicBlock, PadShortcut, Projection, Stem

STAGES = {
    "small": ("layer1", "layer2", "layer3"),
    "resnet18_32x32": ("stem", "layer1", "layer2", "layer3", "layer4"),
    **dict.fromkeys(
        ("resnet20", "resnet32", "resnet44", "resnet56"), ("stem", "layer1", "layer2", "layer3")
    ),
}


@cache
def abstract(name: str, classes: int = 10, channels: int = 3) -> models.Staged:
    def create() -> models.Staged:
        return models.create(name, num_classes=classes, channels=channels, rngs=nnx.Rngs(0))

    return nnx.eval_shape(create)


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_names_and_stages() -> None:
    assert set(models.names()) == set(STAGES)
    assert {name: abstract(name).stages for name in models.names()} == STAGES


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18_32x32", 11_173_962), ("resnet20", 269_722), ("resnet56", 853_018)],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(abstract(name)) == count


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
