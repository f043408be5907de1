"""Cutting a model by the names of its submodules: the same numbers, errors that say what works."""

import importlib.util
import inspect
import re
import warnings
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import grood_jax as gj
from grood_jax.backbone import backbone as module
from grood_jax.backbone import naming
from grood_jax.backbone import nnx as adapter
from grood_jax.backbone.backbone import Backbone

WIDTH, CLASSES = 5, 3


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The module as users import it: without the type checks that the tests put before its own."""
    spec = importlib.util.spec_from_file_location("plain_naming", inspect.getfile(module))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def images(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (4, 6))


class Block(nnx.Module):
    """A residual block: what is inside it is bypassed."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.nn.relu(self.linear(self.norm(x)))


class Net(nnx.Module):
    """Blocks in a list, dropout, a head by another name, and a dictionary of outputs."""

    def __init__(self, seed: int = 0):
        rngs = nnx.Rngs(seed)
        self.stem = nnx.Sequential(nnx.Linear(6, WIDTH, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
        self.blocks = nnx.List([Block(rngs) for _ in range(4)])
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.classifier = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool = True) -> dict[str, Any]:
        assert not train
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return {"tokens": x, "logits": self.classifier(x)}


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jax.nn.relu(linen.Dense(WIDTH, name="linear")(linen.LayerNorm()(x)))


class LinenNet(linen.Module):
    """The like in Linen; it returns logits only."""

    @linen.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = linen.Dense(WIDTH)(x)
        for i in range(4):
            x = LinenBlock(name=f"block{i}")(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(CLASSES, name="logits")(linen.Dropout(0.5, deterministic=not train)(x))


def linen_variables() -> dict[str, Any]:
    return LinenNet().init(jax.random.key(0), jnp.zeros((1, 6)), train=False)


def in_evaluation(net: nnx.Module) -> Any:
    return nnx.view(net, deterministic=True, use_running_average=True)


def by_hand(net: Net, x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits, in the order in which the network is written."""
    own = in_evaluation(net)
    hidden = own.stem(x)
    for block in own.blocks:
        hidden = block(hidden)
    features = own.norm(hidden)
    return np.asarray(features), np.asarray(own.classifier(features))


@pytest.mark.parametrize("cut", ["stem", "stem.layers.0", "blocks.1", "norm", None])
def test_nnx_same_numbers_as_by_hand(cut, images: jax.Array) -> None:
    net = Net()
    backbone = Backbone.from_nnx(net, head="classifier", cut=cut, example=images)
    assert backbone.cut == (cut or "blocks.0")
    features, logits = by_hand(net, images)
    for run in (lambda b, x: b(x), jax.jit(lambda b, x: b(x))):
        outputs = run(backbone, images)
        np.testing.assert_allclose(outputs.features, features, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(outputs.logits, logits, rtol=2e-5, atol=1e-6)


def test_the_cut_is_the_output_of_its_submodule(images: jax.Array) -> None:
    net = Net()
    own = in_evaluation(net)
    backbone = Backbone.from_nnx(net, cut="blocks.0", example=images)
    expected = own.blocks[0](own.stem(images))
    np.testing.assert_allclose(backbone.hidden(images), expected, rtol=2e-5, atol=1e-6)
    # What follows is of the activations given, of any number, and of nothing else.
    moved = jnp.concatenate([expected + 1, expected])
    reference = moved
    for block in list(own.blocks)[1:]:
        reference = block(reference)
    outputs = backbone.finish(moved)
    np.testing.assert_allclose(outputs.features, own.norm(reference), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("cut", ["Dense_0", "block2", "BatchNorm_0", None])
def test_linen_same_numbers_as_the_module(cut, images: jax.Array) -> None:
    variables = linen_variables()
    backbone = Backbone.from_linen(LinenNet(), variables, cut=cut, example=images)
    assert (backbone.cut, backbone.head_name) == (cut or "block1", "logits")
    expected = LinenNet().apply(variables, images, train=False)
    outputs = jax.jit(lambda b, x: b(x))(backbone, images)
    np.testing.assert_allclose(outputs.logits, expected, rtol=2e-5, atol=1e-6)
    weights, bias = backbone.head(backbone.arrays)
    np.testing.assert_allclose(
        outputs.features @ weights + bias[None], expected, rtol=2e-5, atol=1e-6
    )


def test_the_last_linear_layer_is_the_head(images: jax.Array) -> None:
    net = Net()
    backbone = Backbone.from_nnx(net, example=images)
    assert backbone.head_name == "classifier"
    assert "cut 'blocks.0', head 'classifier'" in repr(backbone)
    weights, _ = backbone.head(backbone.arrays)
    np.testing.assert_array_equal(weights, net.classifier.kernel[...])
    same = Backbone.from_nnx(net, head=net.classifier, example=images)
    assert same.head_name == "classifier"


def test_equal_models_have_one_trace_and_the_model_stays_as_it_is(images: jax.Array) -> None:
    traces = []

    @jax.jit
    def run(backbone: Backbone, x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return backbone(x).logits

    first, second = Net(0), Net(1)
    before = [type(own) for _, own in nnx.iter_modules(first)]
    made = [
        run(Backbone.from_nnx(net, cut="stem", example=images), images) for net in (first, second)
    ]
    assert len(traces) == 1 and not np.allclose(*made)
    assert [type(own) for _, own in nnx.iter_modules(first)] == before
    linen_made = [
        jax.tree.structure(Backbone.from_linen(LinenNet(), linen_variables(), example=images))
        for _ in range(2)
    ]
    assert linen_made[0] == linen_made[1]


class UNet(nnx.Module):
    """What is before the middle is read behind it."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.down = nnx.Linear(6, WIDTH, rngs=rngs)
        self.middle = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.up = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        down = jax.nn.relu(self.down(x))
        up = self.up(jnp.concatenate([down, self.middle(down)], axis=1))
        return self.head(jax.nn.relu(up))


@pytest.mark.parametrize("make", [Net, UNet], ids=["residual", "unet"])
def test_what_may_be_cut_is_what_cuts(make, images: jax.Array) -> None:
    """Each claim of the table, tried with numbers: other images, the same activations."""
    net = make()
    network, arrays = adapter.network_of(net, None)
    table = gj.layers(net, images)
    head = naming.HeadAt(table.head)
    straight = np.asarray(Backbone.from_nnx(net, example=images)(images).logits)
    claims = {}
    for layer in table:
        if layer.path == table.head:
            continue
        early = naming.NamedEarly(network, head, layer.path)
        late = naming.NamedLate(network, head, layer.path, (6,), "float32", "float32")
        late_logits = late(arrays, early(arrays, images))[1]
        claims[layer.path] = bool(np.allclose(late_logits, straight, atol=1e-5))
    assert claims == {layer.path: layer.may_be_cut for layer in table if layer.path != table.head}
    assert set(claims.values()) == {True, False}


def test_the_table_is_printed(images: jax.Array) -> None:
    table = gj.layers(UNet(), images)
    assert str(table).splitlines() == [
        "path    layer   output  cut",
        "down    Linear  (B, 5)  may be cut",
        "middle  Linear  (B, 5)  is bypassed: what follows also reads what comes before it",
        "up      Linear  (B, 5)  may be cut",
        "head    Linear  (B, 3)  head",
    ]
    assert len(table) == 4 and table[0].path == "down" and table[1:3][1].path == "up"
    linen_table = gj.layers(LinenNet(), images, linen_variables())
    assert linen_table.head == "logits"
    assert [layer.path for layer in linen_table if layer.may_be_cut][1] == "block0"


def test_without_a_head_the_goal_is_what_the_model_returns(images: jax.Array) -> None:
    table = gj.layers(nnx.Sequential(Block(nnx.Rngs(0)), jax.nn.relu), images[:, :WIDTH])
    assert table.head == ""
    assert [layer.path for layer in table if layer.may_be_cut] == ["layers.0"]


# Models that are run or end otherwise


class Tower(nnx.Module):
    """Two towers; it is not called itself, and the logits are made by a function."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.images = nnx.Linear(6, WIDTH, rngs=rngs)
        self.project = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.words = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def encode(self, x: jax.Array) -> jax.Array:
        return self.project(jax.nn.relu(self.images(x)))


def encode(model: Any, x: jax.Array) -> jax.Array:
    return model.encode(x)


def compare(model: Any, features: jax.Array) -> jax.Array:
    return features @ model.words.kernel[...]


@pytest.mark.parametrize("cut", ["images", None])
def test_heads_that_are_functions(cut, images: jax.Array) -> None:
    net = Tower()
    backbone = Backbone.from_nnx(net, head=compare, cut=cut, example=images, call=encode)
    features = net.encode(images)
    outputs = backbone(images)
    np.testing.assert_allclose(outputs.features, features, rtol=1e-5)
    np.testing.assert_allclose(outputs.logits, compare(net, features), rtol=1e-5, atol=1e-6)
    assert backbone.head is None


class Bare(nnx.Module):
    """No submodule but the head, which sees images of one place."""

    def __init__(self) -> None:
        self.final = nnx.Conv(6, CLASSES, (1, 1), rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.final((2 * x)[:, None, None, :]).squeeze()


def test_nothing_to_cut_and_a_head_that_is_a_convolution(images: jax.Array) -> None:
    net = Bare()
    backbone = Backbone.from_nnx(net, head="final", example=images)
    assert backbone.cut == "features" and backbone.head is None
    outputs = backbone(images)
    np.testing.assert_allclose(outputs.features, 2 * images, rtol=1e-6)
    np.testing.assert_allclose(outputs.logits, net(images), rtol=1e-5)


class TupleBlock(linen.Module):
    """It returns what it has seen, besides."""

    @linen.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        y = linen.Dense(WIDTH)(x)
        return x + y, {"added": y}


class Dense2d(linen.Module):
    """A head that is called on every place, too, and blocks that return more than one array."""

    @linen.compact
    def __call__(self, x: jax.Array, *, train: bool = True) -> tuple[jax.Array, dict[str, Any]]:
        out = {}
        x = linen.Dense(WIDTH, name="embedding")(x)
        for i in range(2):
            x, out[f"block{i}"] = TupleBlock(name=f"block{i}")(x)
        head = linen.Dense(CLASSES, name="head")
        out["logits_2d"] = head(x)
        return head(x.mean(axis=(1, 2))), out


@pytest.mark.parametrize("cut", [None, "block0", "block1"])
def test_blocks_that_return_tuples_and_heads_that_are_called_on_places(cut, key) -> None:
    images = jax.random.normal(key, (3, 2, 2, 6))
    module = Dense2d()
    variables = module.init(jax.random.key(0), images)
    backbone = Backbone.from_linen(module, variables, cut=cut, example=images)
    assert (backbone.cut, backbone.head_name) == (cut or "block0", "head")
    expected, out = module.apply(variables, images)
    np.testing.assert_allclose(backbone(images).logits, expected, rtol=1e-5, atol=1e-6)
    if cut == "block0":
        hidden = linen.Dense(WIDTH).apply({"params": variables["params"]["embedding"]}, images)
        hidden = hidden + out["block0"]["added"]
        np.testing.assert_allclose(backbone.hidden(images), hidden, rtol=1e-5, atol=1e-6)


class Lifted(linen.Module):
    """Blocks inside a transformation of Linen's."""

    how: str

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = linen.Dense(WIDTH, name="stem")(x)
        lift = {"remat": linen.remat, "jit": linen.jit}[self.how]
        for i in range(3):
            x = lift(LinenBlock)(name=f"block{i}")(x)
        return linen.Dense(CLASSES, name="out")(x)


def test_blocks_inside_a_remat_may_be_cut(images: jax.Array) -> None:
    module = Lifted("remat")
    variables = module.init(jax.random.key(0), images)
    backbone = Backbone.from_linen(module, variables, cut="block1", example=images)
    expected = module.apply(variables, images)
    for run in (lambda b, x: b(x).logits, jax.jit(lambda b, x: b(x).logits)):
        np.testing.assert_allclose(run(backbone, images), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'block1/linear', which is bypassed.*'block1' works"):
        Backbone.from_linen(module, variables, cut="block1/linear", example=images)


def test_blocks_inside_a_jit_may_not(images: jax.Array) -> None:
    module = Lifted("jit")
    variables = module.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="'block1', which runs inside a scan, .*; 'stem' works"):
        Backbone.from_linen(module, variables, cut="block1", example=images)


class Auxiliary(nnx.Module):
    """Two linear layers end side by side."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.body = nnx.Linear(6, WIDTH, rngs=rngs)
        self.side = nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.main = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.body(x)
        return self.side(x), self.main(x)


def test_which_head_is_said_where_several_could_be_it(images: jax.Array) -> None:
    with pytest.warns(UserWarning, match="'side', 'main' could each be it; the last, 'main', is"):
        backbone = Backbone.from_nnx(Auxiliary(), example=images)
    assert backbone.head_name == "main"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Backbone.from_nnx(Auxiliary(), head="side", example=images)


class Strange(nnx.Module):
    """Submodules that cannot be cut, for as many reasons."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.twice = nnx.Linear(6, 6, rngs=rngs)
        self.pair = Pair()
        self.table = nnx.Embed(3, 6, rngs=rngs)
        self.counted = Counted()
        self.within = nnx.Linear(6, 6, rngs=rngs)
        self.apart = nnx.Linear(6, 6, rngs=rngs)
        self.never = nnx.Linear(6, 6, rngs=rngs)
        self.head = nnx.Linear(6, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.pair(self.twice(self.twice(x)))["x"]
        x = x + self.table(jnp.arange(1)) + self.counted(x)[:, None]
        within = nnx.split(self.within)

        @jax.checkpoint
        def inside(x: jax.Array) -> jax.Array:
            return nnx.merge(*within)(x)

        return self.head(inside(x)), self.apart(x).T


class Pair(nnx.Module):
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        return {"x": x}


class Counted(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return (x > 0).sum(axis=1)


@pytest.mark.parametrize(
    ("cut", "match"),
    [
        ("twice", r"'twice', which is called 2 times; no submodule of this model works"),
        ("pair", "'pair', which returns a dict of 1"),
        ("table", "'table', which does not depend on the images"),
        ("counted", "'counted', which returns int32"),
        ("apart", "'apart', which is not on the way to the head"),
        ("head", "'head', which is the head"),
        ("within", "the model calls no submodule of that name .what is run in one scan, or by"),
        ("never", "the model calls no submodule of that name"),
    ],
)
def test_cuts_that_cannot_be(cut: str, match: str, images: jax.Array) -> None:
    with pytest.raises(ValueError, match=match):
        Backbone.from_nnx(Strange(), head="head", cut=cut, example=images)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"cut": "blocks.1.linear"}, "which is bypassed: .*; 'blocks.1' works"),
        ({"cut": "block.1"}, "calls no submodule of that name.*near it are 'blocks.1'"),
        ({"cut": "classifier"}, "which is the head; 'norm' works"),
        ({"head": "clasifier"}, "head is 'clasifier'; .*; near it are 'classifier'"),
        (
            {"head": "nothing"},
            "there are 'stem.layers.0', 'stem.layers.1', 'stem', 'blocks",
        ),
    ],
)
def test_names_that_are_none(given: dict[str, Any], match: str, images: jax.Array) -> None:
    with pytest.raises(ValueError, match=match):
        Backbone.from_nnx(Net(), example=images, **given)


def test_a_unet_is_told_what_works(images: jax.Array) -> None:
    with pytest.raises(ValueError, match="'middle', which is bypassed.*; 'up' works"):
        Backbone.from_nnx(UNet(), cut="middle", example=images)
    with pytest.raises(ValueError, match="'block1/linear', which is bypassed.*'block1' works"):
        Backbone.from_linen(LinenNet(), linen_variables(), cut="block1/linear", example=images)


def test_heads_that_are_none(images: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"no linear layer from features \(B, D\) to logits"):
        Backbone.from_nnx(Bare(), example=images)
    with pytest.raises(ValueError, match=r"head is 'pair', which takes an array \(4, 6\) and ret"):
        Backbone.from_nnx(Strange(), head="pair", example=images)
    with pytest.raises(ValueError, match="head is 'twice', which is called more than once"):
        Backbone.from_nnx(Strange(), head="twice", example=images)
    with pytest.raises(ValueError, match="a Linear that is no part of the model"):
        Backbone.from_nnx(Net(), head=nnx.Linear(2, 2, rngs=nnx.Rngs(0)), example=images)
    with pytest.raises(ValueError, match="returns a dict of 2; expected features .B, D.: give"):
        Backbone.from_nnx(Net(), head=compare, example=images)


def test_arguments_of_the_wrong_kind(plain: ModuleType, images: jax.Array) -> None:
    make = plain.Backbone.from_nnx
    with pytest.raises(TypeError, match="cut is 4; expected the path of a submodule"):
        make(Net(), cut=4, example=images)
    with pytest.raises(TypeError, match="head is 4; expected the path of a submodule"):
        make(Net(), head=4, example=images)
    with pytest.raises(TypeError, match="call is 'encode'; expected a function of the model"):
        make(Net(), call="encode", example=images)
    with pytest.raises(TypeError, match="cut is 'stem', but Net has no named stages; .*example="):
        make(Net(), cut="stem")
    with pytest.raises(TypeError, match="cut is None; .*example=images"):
        make(Net())
    with pytest.raises(TypeError, match="head is 'no'; expected the path of an nnx.Linear"):
        make(Net(), head="no", cut=(encode, compare))
    with pytest.raises(TypeError, match="head is 'no'; expected the path of a dense layer"):
        plain.Backbone.from_linen(LinenNet(), linen_variables(), head="no", cut=(encode, compare))


@pytest.mark.parametrize(
    ("example", "error", "match"),
    [
        ("images", TypeError, "example is a str; expected a batch of images as the model takes"),
        (np.zeros(6), ValueError, r"example has shape \(6,\); expected a batch of images"),
        (np.zeros((0, 6)), ValueError, r"example has shape \(0, 6\); expected a batch"),
        (np.zeros((2, 6), np.uint8), TypeError, "example has dtype uint8; expected normalised"),
        (np.zeros((2, 7)), ValueError, r"model cannot run on example \(2, 7\) float32: .*; expect"),
    ],
)
def test_examples_that_are_none(example, error, match: str) -> None:
    with pytest.raises(error, match=match):
        Backbone.from_nnx(Net(), example=example)


def test_channels_first_is_seen() -> None:
    net = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"it looks channels first, .* transpose\(0, 2, 3, 1\)"):
        gj.layers(net, np.zeros((2, 3, 8, 8), np.float32))


def test_an_example_may_be_bytes_where_the_model_is_given_normalised_images() -> None:
    net = nnx.Sequential(
        nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)),
        lambda x: x.mean(axis=(1, 2)),
        nnx.Linear(4, 2, rngs=nnx.Rngs(1)),
    )
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    backbone = Backbone.from_nnx(net, example=pixels[:1], input_std=(0.5,), input_mean=(0.5,))
    expected = net(pixels.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(backbone(pixels).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_training_mode_is_refused(images: jax.Array) -> None:
    class Insists(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(6, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(6, 2, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.norm(x, use_running_average=False))

    with pytest.raises(ValueError, match="cannot run on example .* ran in training mode"):
        Backbone.from_nnx(Insists(), example=images)


def test_low_precision_stays_what_it_was(images: jax.Array) -> None:
    net = nnx.Sequential(
        nnx.Linear(6, WIDTH, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
        nnx.Linear(WIDTH, CLASSES, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
    )
    backbone = Backbone.from_nnx(net, cut="layers.0", example=images)
    hidden = backbone.hidden(images)
    assert hidden.dtype == jnp.bfloat16
    # Mixed activations are float32.
    same = backbone.finish(hidden.astype(jnp.float32)).logits
    np.testing.assert_array_equal(same, backbone(images).logits)
    assert re.search("cut 'layers.0', head 'layers.1'", repr(backbone))
