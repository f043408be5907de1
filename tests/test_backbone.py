"""The seam to the frameworks: same numbers, evaluation mode, a pytree, and errors that say what."""

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from grood_jax.backbone import backbone as module
from grood_jax.backbone.backbone import Backbone

WIDTH, CLASSES = 5, 3


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    """The module as users import it: without the type checks that the tests put before its own."""
    spec = importlib.util.spec_from_file_location("plain_backbone", inspect.getfile(module))
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def images(key: jax.Array) -> jax.Array:
    return 3 * jax.random.normal(key, (6, 4)) + 1


class Net(nnx.Module):
    """Linear, batch norm; dropout, head. In training mode, as nnx makes it, unless told."""

    stages = ("first", "second")

    def __init__(
        self, *, use_bias: bool = True, norm: bool | None = None, drop: bool | None = None
    ):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, WIDTH, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, CLASSES, use_bias=use_bias, rngs=rngs)
        self.norm.mean[...] = jnp.arange(WIDTH, dtype=jnp.float32)
        self.norm.var[...] = jnp.arange(1, WIDTH + 1, dtype=jnp.float32)
        self.overrides = (norm, drop)

    def early(self, x: jax.Array, cut: str) -> jax.Array:
        norm, _ = self.overrides
        x = self.norm(self.first(x), use_running_average=norm)
        return x if cut == "first" else self.second(x)

    def late(self, x: jax.Array, cut: str) -> tuple[jax.Array, jax.Array]:
        _, drop = self.overrides
        features = self.drop(self.second(x) if cut == "first" else x, deterministic=drop)
        return features, self.head(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.late(self.early(x, "first"), "first")[1]


class LinenNet(linen.Module):
    """The same layers in Linen."""

    norm_training: bool = False
    drop_training: bool = False
    use_bias: bool = True
    stages = ("first", "second")

    def setup(self) -> None:
        self.first = linen.Dense(WIDTH)
        self.norm = linen.BatchNorm(use_running_average=not self.norm_training)
        self.drop = linen.Dropout(0.5, deterministic=not self.drop_training)
        self.second = linen.Dense(WIDTH)
        self.head = linen.Dense(CLASSES, use_bias=self.use_bias)

    def early(self, x: jax.Array, cut: str) -> jax.Array:
        x = self.norm(self.first(x))
        self.sow("intermediates", "normed", x)
        return x if cut == "first" else self.second(x)

    def late(self, x: jax.Array, cut: str) -> tuple[jax.Array, jax.Array]:
        features = self.drop(self.second(x) if cut == "first" else x)
        return features, self.head(features)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.late(self.early(x, "first"), "first")[1]


def reference(arrays: dict[str, np.ndarray], x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits in evaluation mode, in float64."""
    a = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    y = np.asarray(x, np.float64) @ a["first"] + a["first_bias"]
    y = (y - a["mean"]) / np.sqrt(a["var"] + 1e-5) * a["scale"] + a["shift"]
    features = y @ a["second"] + a["second_bias"]
    return features, features @ a["head"] + a["head_bias"]


def nnx_arrays(net: Net) -> dict[str, np.ndarray]:
    return {
        "first": np.array(net.first.kernel[...]),
        "first_bias": np.array(net.first.bias[...]),
        "mean": np.array(net.norm.mean[...]),
        "var": np.array(net.norm.var[...]),
        "scale": np.array(net.norm.scale[...]),
        "shift": np.array(net.norm.bias[...]),
        "second": np.array(net.second.kernel[...]),
        "second_bias": np.array(net.second.bias[...]),
        "head": np.array(net.head.kernel[...]),
        "head_bias": np.zeros(CLASSES) if net.head.bias is None else np.array(net.head.bias[...]),
    }


def linen_variables(net: Net) -> dict[str, Any]:
    a = nnx_arrays(net)
    params = {
        "first": {"kernel": a["first"], "bias": a["first_bias"]},
        "norm": {"scale": a["scale"], "bias": a["shift"]},
        "second": {"kernel": a["second"], "bias": a["second_bias"]},
        "head": {"kernel": a["head"], "bias": a["head_bias"]},
    }
    variables = {
        "params": params,
        "batch_stats": {"norm": {"mean": a["mean"], "var": a["var"]}},
    }
    return jax.tree.map(jnp.asarray, variables)


def plain_early(a: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    y = x @ a["first"] + a["first_bias"][None]
    return (y - a["mean"][None]) / jnp.sqrt(a["var"][None] + 1e-5) * a["scale"][None]


def plain_late(a: dict[str, jax.Array], hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = (hidden + a["shift"][None]) @ a["second"] + a["second_bias"][None]
    return features, features @ a["head"] + a["head_bias"][None]


def plain_head(a: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return a["head"], a["head_bias"]


def by_functions(net: Net, cut: str = "first") -> Backbone:
    del cut
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in nnx_arrays(net).items()}
    return Backbone.from_functions(arrays, plain_early, plain_late, plain_head)


def early_part(net: Any, x: jax.Array) -> jax.Array:
    return net.early(x, "second")


def late_part(net: Any, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
    return net.late(hidden, "second")


ADAPTERS: dict[str, Callable[..., Backbone]] = {
    "nnx": lambda net, cut="first": Backbone.from_nnx(net, cut=cut),
    "nnx-functions": lambda net, cut="first": Backbone.from_nnx(net, cut=(early_part, late_part)),
    "linen": lambda net, cut="first": Backbone.from_linen(
        LinenNet(), linen_variables(net), cut=cut
    ),
    "linen-functions": lambda net, cut="first": Backbone.from_linen(
        LinenNet(), linen_variables(net), cut=(early_part, late_part)
    ),
    "functions": by_functions,
}
every = pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)


RUNS: dict[str, Callable[[Backbone, jax.Array], Any]] = {
    "eager": lambda b, x: b(x),
    "jit": lambda b, x: jax.jit(lambda b, x: b(x))(b, x),
    "closure": lambda b, x: jax.jit(lambda x: b(x))(x),
    "grad": lambda b, x: jax.grad(lambda x: b(x).logits.sum())(x),
    "shapes": lambda b, x: jax.eval_shape(lambda b, x: b(x).logits, b, x),
}
everyhow = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
eager_and_jit = pytest.mark.parametrize("run", [RUNS["eager"], RUNS["jit"]], ids=["eager", "jit"])


@every
@pytest.mark.parametrize("cut", ["first", "second"])
def test_same_numbers_as_the_model_itself(make, cut: str, images: jax.Array) -> None:
    net = Net()
    features, logits = reference(nnx_arrays(net), images)
    backbone = make(net, cut)
    for outputs in (backbone(images), jax.jit(lambda b, x: b(x))(backbone, images)):
        np.testing.assert_allclose(outputs.features, features, atol=1e-5)
        np.testing.assert_allclose(outputs.logits, logits, atol=1e-5)
        assert (outputs.features.dtype, outputs.logits.dtype) == (jnp.float32, jnp.float32)
        assert outputs.extra == {}
    # The model's own evaluation mode says the same.
    evaluated = nnx.view(net, deterministic=True, use_running_average=True)
    np.testing.assert_allclose(evaluated(images), logits, atol=1e-5)
    again = backbone.finish(backbone.hidden(images))
    np.testing.assert_array_equal(again.logits, backbone(images).logits)


@every
def test_head_reproduces_the_logits(make, images: jax.Array) -> None:
    backbone = make(Net())
    assert backbone.head is not None
    weights, bias = backbone.head(backbone.arrays)
    assert (weights.shape, bias.shape) == ((WIDTH, CLASSES), (CLASSES,))
    outputs = backbone(images)
    np.testing.assert_allclose(
        outputs.features @ weights + bias[None], outputs.logits, atol=1e-5, rtol=1e-5
    )


def test_heads_without_bias(images: jax.Array) -> None:
    net = Net(use_bias=False)
    variables = linen_variables(net)
    del variables["params"]["head"]["bias"]
    for backbone in (
        Backbone.from_nnx(net, cut="first"),
        Backbone.from_linen(LinenNet(use_bias=False), variables, cut="first"),
    ):
        weights, bias = backbone.head(backbone.arrays)
        np.testing.assert_array_equal(bias, np.zeros(CLASSES))
        outputs = backbone(images)
        np.testing.assert_allclose(outputs.features @ weights, outputs.logits, atol=1e-5)


class Headless(nnx.Module):
    stages = ("only",)

    def __init__(self, head: Any) -> None:
        self.head = head

    def early(self, x: jax.Array, cut: str) -> jax.Array:
        return x

    def late(self, x: jax.Array, cut: str) -> tuple[jax.Array, jax.Array]:
        return x, x


def test_heads_that_are_no_linear_layer() -> None:
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    assert Backbone.from_nnx(Headless(norm), cut="only").head is None
    assert Backbone.from_nnx(Headless(None), cut="only").head is None
    for head in ({}, {"Dense_0": {"kernel": jnp.ones((2, 2))}}, {"kernel": jnp.ones((1, 1, 2, 2))}):
        variables = {"params": {"head": head}}
        assert Backbone.from_linen(LinenNet(), variables, cut="first").head is None
    assert Backbone.from_linen(LinenNet(), {"params": {}}, cut="first").head is None
    assert Backbone.from_functions({}, plain_early, plain_late).head is None


# Evaluation mode


def snapshot(net: Net) -> tuple[list[np.ndarray], Any]:
    arrays = [
        np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for leaf in jax.tree.leaves(nnx.state(net))
    ]
    return arrays, (net.norm.use_running_average, net.drop.deterministic)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_untouched(net: Net, before: tuple[list[np.ndarray], Any]) -> None:
    arrays, flags = snapshot(net)
    assert flags == before[1]
    for old, new in zip(before[0], arrays, strict=True):
        np.testing.assert_array_equal(old, new)


@everyhow
def test_nnx_model_is_left_in_training_mode(run, images: jax.Array) -> None:
    net = Net()
    before = snapshot(net)
    assert before[1] == (False, False)
    run(Backbone.from_nnx(net, cut="first"), images)
    assert_untouched(net, before)


@everyhow
@pytest.mark.parametrize("mode", [{"norm": False}, {"drop": False}], ids=["norm", "drop"])
def test_nnx_model_that_insists_on_training_is_refused(run, mode, images: jax.Array) -> None:
    net = Net(**mode)
    before = snapshot(net)
    backbone = Backbone.from_nnx(net, cut="first")
    for _ in range(2):
        with pytest.raises(ValueError, match="the model ran in training mode.*use_running_average"):
            run(backbone, images)
    assert_untouched(net, before)
    # Nor did the refused runs leave anything in the backbone: its statistics are the model's.
    np.testing.assert_array_equal(backbone.arrays["norm"]["mean"][...], net.norm.mean[...])
    assert int(backbone.arrays["drop"]["rngs"]["count"][...]) == int(net.drop.rngs.count[...])


@everyhow
@pytest.mark.parametrize("mode", ["norm_training", "drop_training"])
def test_linen_module_in_training_mode_is_refused(run, mode: str, images: jax.Array) -> None:
    variables = linen_variables(Net())
    before = jax.tree.map(np.array, variables)
    backbone = Backbone.from_linen(LinenNet(**{mode: True}), variables, cut="first")
    with pytest.raises(ValueError, match="the model ran in training mode.*use_running_average"):
        run(backbone, images)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_training_the_model_further_does_not_change_the_backbone(images: jax.Array) -> None:
    net = Net()
    backbone = Backbone.from_nnx(net, cut="first")
    before = backbone(images).logits
    net.norm.mean[...] += 1
    net.head.kernel[...] *= 2
    np.testing.assert_array_equal(backbone(images).logits, before)
    assert not np.allclose(Backbone.from_nnx(net, cut="first")(images).logits, before)


class Recorder(nnx.Module):
    """Keeps its activations for whoever looks, which is no training."""

    stages = ("only",)

    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def early(self, x: jax.Array, cut: str) -> jax.Array:
        x = self.norm(x)
        self.seen = nnx.Intermediate(x)
        return x

    def late(self, x: jax.Array, cut: str) -> tuple[jax.Array, jax.Array]:
        return x, x


@eager_and_jit
def test_a_model_may_record_its_activations(run, images: jax.Array) -> None:
    run(Backbone.from_nnx(Recorder(), cut="only"), images)


# A pytree


@every
def test_is_a_pytree(make, images: jax.Array) -> None:
    backbone = make(Net())
    leaves, structure = jax.tree.flatten(backbone)
    assert leaves and all(isinstance(leaf, jax.Array) for leaf in leaves)
    rebuilt = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(rebuilt(images).logits, backbone(images).logits)
    zero = jax.tree.map(lambda leaf: leaf if _is_key(leaf) else jnp.zeros_like(leaf), backbone)
    assert isinstance(zero, Backbone)
    np.testing.assert_array_equal(zero(images).logits, np.zeros((6, CLASSES)))


@every
def test_rebuilt_from_the_same_model_it_does_not_retrace(make, images: jax.Array) -> None:
    traces = []

    @jax.jit
    def run(backbone: Backbone, x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return backbone(x).logits

    net = Net()
    first = run(make(net), images)
    second = run(make(net), images)
    np.testing.assert_array_equal(first, second)
    assert len(traces) == 1
    # Other weights of the same network are other arrays, not another program.
    net.head.kernel[...] *= 2
    third = run(make(net), images)
    assert len(traces) == 1
    assert not np.allclose(third, first)
    run(make(net), images[:2])
    assert len(traces) == 2


@pytest.mark.parametrize("name", ["nnx", "linen"])
def test_another_cut_is_another_program(name: str, images: jax.Array) -> None:
    traces = []

    @jax.jit
    def hidden(backbone: Backbone, x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return backbone.hidden(x)

    net = Net()
    found = [hidden(ADAPTERS[name](net, cut), images) for cut in ("first", "second")]
    assert len(traces) == 2
    assert not np.allclose(*found)


def test_arrays_may_be_numpys_and_of_lower_precision(images: jax.Array) -> None:
    backbone = by_functions(Net())
    expected = backbone(images)
    wide = backbone(np.asarray(images, np.float64))
    np.testing.assert_array_equal(wide.logits, expected.logits)
    hidden = np.asarray(backbone.hidden(np.asarray(images)))
    np.testing.assert_array_equal(backbone.finish(hidden).logits, expected.logits)
    half = backbone(images.astype(jnp.bfloat16))
    assert half.logits.dtype == jnp.float32
    np.testing.assert_allclose(half.logits, expected.logits, atol=0.2)


# Errors


NOT_ARRAYS: dict[str, tuple[Any, str]] = {
    "tuple": (lambda a, x: (x, x), r"early returned tuple of 2; expected an array \(6, ...\)"),
    "none": (lambda a, x: None, r"early returned NoneType; expected an array \(6, ...\)"),
    "scalar": (lambda a, x: x.sum(), r"early returned an array \(\); expected an array \(6, ...\)"),
    "batch": (
        lambda a, x: x[:2],
        r"early returned an array \(2, 4\); expected an array \(6, ...\)",
    ),
}


@eager_and_jit
@pytest.mark.parametrize(("early", "match"), NOT_ARRAYS.values(), ids=NOT_ARRAYS)
def test_early_returns_something_else(run, early, match: str, images: jax.Array) -> None:
    with pytest.raises(ValueError, match=match):
        run(Backbone.from_functions({}, early, lambda a, e: (e, e)), images)


@eager_and_jit
@pytest.mark.parametrize(
    ("late", "match"),
    [
        (lambda a, e: e, r"late returned an array \(6, 4\); expected \(features, logits\)"),
        (lambda a, e: [e, e], r"late returned list of 2; expected \(features, logits\)"),
        (lambda a, e: (e, e, e), r"late returned tuple of 3; expected \(features, logits\)"),
        (lambda a, e: {"h": e}, r"late returned dict; expected \(features, logits\)"),
        (
            lambda a, e: (e[:, :, None], e),
            r"returned an array \(6, 4, 1\) for features; expected an array \(6, D\)",
        ),
        (
            lambda a, e: (e, e[:2]),
            r"returned an array \(2, 4\) for logits; expected an array \(6, C\)",
        ),
        (lambda a, e: (e, e.sum()), r"returned an array \(\) for logits; expected an array \(6, C"),
        (lambda a, e: (e, "z"), r"late returned str for logits; expected an array \(6, C\)"),
    ],
)
def test_late_returns_something_else(run, late, match: str, images: jax.Array) -> None:
    with pytest.raises(ValueError, match=match):
        run(Backbone.from_functions({}, lambda a, x: x, late), images)


@dataclass
class Unhashable:
    """A function that jit could not take for static."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("never called")


@dataclass(frozen=True)
class UnhashableWithin:
    sizes: Any

    __call__ = Unhashable.__call__


@pytest.mark.parametrize("stage", ["early", "late", "head"])
def test_functions_that_are_none(plain: ModuleType, stage: str) -> None:
    given = {"early": plain_early, "late": plain_late, "head": plain_head}
    with pytest.raises(TypeError, match=f"{stage} is 3; expected a function"):
        plain.Backbone.from_functions({}, **given | {stage: 3})
    for function in (Unhashable(), UnhashableWithin([1])):
        with pytest.raises(TypeError, match=f"{stage} cannot be hashed .unhashable type: "):
            plain.Backbone.from_functions({}, **given | {stage: function})


@pytest.mark.parametrize("name", ["nnx", "linen"])
@pytest.mark.parametrize(
    ("cut", "error", "match"),
    [
        ("third", ValueError, "cut is 'third'; expected one of first, second"),
        ("", ValueError, "cut is ''; expected one of first, second"),
        (2, TypeError, "cut is 2; expected the name of a stage or two functions"),
        (("a", "b"), TypeError, r"cut is \('a', 'b'\); expected the name of a stage or two fun"),
        ((plain_early,), TypeError, "expected the name of a stage or two functions"),
        ((plain_early, Unhashable()), TypeError, "cut cannot be hashed"),
    ],
)
def test_cuts_that_are_none(plain: ModuleType, name: str, cut, error, match: str) -> None:
    with pytest.raises(error, match=match):
        if name == "nnx":
            plain.Backbone.from_nnx(Net(), cut=cut)
        else:
            plain.Backbone.from_linen(LinenNet(), linen_variables(Net()), cut=cut)


def test_models_of_another_kind(plain: ModuleType) -> None:
    with pytest.raises(TypeError, match="model is a LinenNet; expected a flax.nnx.Module"):
        plain.Backbone.from_nnx(LinenNet(), cut="first")
    with pytest.raises(TypeError, match="module is a Net; expected a flax.linen.Module"):
        plain.Backbone.from_linen(Net(), {"params": {}}, cut="first")
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="cut is 'first', but Linear has no named stages; expected"):
        plain.Backbone.from_nnx(linear, cut="first")
    with pytest.raises(TypeError, match="cut is 'first', but Dense has no named stages; expected"):
        plain.Backbone.from_linen(linen.Dense(2), {"params": {}}, cut="first")
    listed = Headless(None)
    listed.sizes = [1, 2]
    with pytest.raises(TypeError, match="model cannot be hashed .unhashable type: 'list'"):
        plain.Backbone.from_nnx(listed, cut="only")
    unhashable = LinenNet(use_bias=np.ones(2))
    with pytest.raises(TypeError, match="module cannot be hashed"):
        plain.Backbone.from_linen(unhashable, {"params": {}}, cut="first")


def test_variables_that_do_not_fit(plain: ModuleType, images: jax.Array) -> None:
    variables = linen_variables(Net())
    with pytest.raises(TypeError, match="variables is a list; expected a mapping"):
        plain.Backbone.from_linen(LinenNet(), [variables], cut="first")
    with pytest.raises(ValueError, match=r"collections \['batch_stats'\]; expected 'params'"):
        plain.Backbone.from_linen(
            LinenNet(), {"batch_stats": variables["batch_stats"]}, cut="first"
        )
    backbone = Backbone.from_linen(LinenNet(), {"params": variables["params"]}, cut="first")
    for run in (RUNS["eager"], RUNS["jit"]):
        with pytest.raises(ValueError, match=r"variables has collections \['params'\]; expected"):
            run(backbone, images)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
def test_images_that_are_not_normalised(plain: ModuleType, images: jax.Array, dtype) -> None:
    backbone = plain.Backbone.from_functions({}, lambda a, x: x, lambda a, e: (e, e))
    stored = images.astype(dtype)
    message = f"has dtype {jnp.dtype(dtype)} and shape .6, 4.; expected floating-point numbers"
    with pytest.raises(TypeError, match=f"images {message}"):
        backbone(stored)
    with pytest.raises(TypeError, match=f"images {message}"):
        jax.jit(lambda b, x: b.hidden(x))(backbone, np.asarray(stored))
    with pytest.raises(TypeError, match=f"hidden {message}"):
        backbone.finish(stored)
    with pytest.raises(TypeError, match=r"images has dtype float32 and shape \(\)"):
        backbone(jnp.float32(1))


@pytest.mark.parametrize("dtype", [">f4", np.longdouble])
def test_numbers_that_jax_does_not_know(plain: ModuleType, images: jax.Array, dtype) -> None:
    backbone = plain.Backbone.from_functions({}, lambda a, x: x, lambda a, e: (e, e))
    found = backbone(np.asarray(images).astype(dtype))
    np.testing.assert_array_equal(found.features, images)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, 10**400])
def test_deviations_that_are_none(plain: ModuleType, value) -> None:
    with pytest.raises(ValueError, match="input_std is .*; expected a positive number"):
        plain.Backbone.from_functions({}, len, len, input_std=(1.0, value))
