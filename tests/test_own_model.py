"""Command lines with a model that a user's own function makes."""

import csv
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import grood_jax as gj
from grood_jax import detectors
from grood_jax.cli import eval, fit, predict, serve
from grood_jax.data import Preprocessing, builtin
from grood_jax.deploying import deployment
from grood_jax.evaluation import own_model
from grood_jax.support.errors import UserError

SOURCE = """
import jax
import jax.numpy as jnp
from flax import linen, nnx

import grood_jax as gj
import helper_of_my_model

half = {"input_mean": (0.5,), "input_std": (0.5,)}


def flat(arrays, images):
    return images.reshape(-1, 64) * arrays


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(helper_of_my_model.SEED)
        self.stem = nnx.Linear(64, 8, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(3)])
        self.classes = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, images):
        x = self.stem(images.reshape(-1, 64))
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.classes(x)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, images):
        return linen.Dense(8)(linen.Dense(5)(images.reshape(-1, 64)))


def encoder():
    return gj.Backbone.from_encoder(flat, jnp.float32(1), head="linear", **half)


def headless():
    return gj.Backbone.from_encoder(flat, jnp.float32(1))


def squared():
    return gj.Backbone.from_encoder(lambda a, x: x.reshape(-1, 64) ** 2 * a, jnp.float32(1))


def network():
    return Net()


def in_linen():
    module = LinenNet()
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def of_others():
    return gj.Backbone.from_encoder(flat, jnp.float32(2), head="linear", **half)


def nine():
    return gj.Backbone.from_encoder(flat, jnp.float32(1), head=(jnp.ones((64, 9)), jnp.ones(9)))


def listed():
    return [1, 2]


def broken():
    raise RuntimeError("no weights here")


def in_colour():
    return nnx.Sequential(nnx.Linear(3, 8, rngs=nnx.Rngs(0)))


number = 3
"""
DIGITS = Preprocessing(8, 1, (0.3,), (0.4,))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_own_model.py").write_text(SOURCE)
    (folder / "helper_of_my_model.py").write_text("SEED = 0\n")
    return str(folder / "my_own_model.py")


def test_evaluates_a_module_with_what_is_found_in_it(model, tmp_path) -> None:
    words = ["--model", f"{model}:network", "--detectors", "msp", "mahalanobis", "--no-report"]
    assert eval.main([*words, "--limit", "60", "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["model"] == f"{model}:network"
    assert results["cut"] == "blocks.0"
    assert results["checkpoint"]["source"] == f"made by {model}:network"
    assert set(results["detectors"]) == {"msp", "mahalanobis"}
    assert results["preprocessing"]["mean"] != [0.5]


def test_evaluates_an_encoder_with_a_head_that_it_fits(model, tmp_path) -> None:
    words = ["--model", f"{model}:encoder", "--detectors", "msp", "--no-report"]
    assert eval.main([*words, "--limit", "200", "--output-dir", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    # A logistic regression on pixels.
    assert results["id_accuracy"] > 0.85
    # The network's own, not the benchmark's.
    assert results["preprocessing"]["mean"] == results["preprocessing"]["std"] == [0.5]


def test_an_encoder_without_a_head_goes_on_without_what_reads_logits(
    model, tmp_path, capsys
) -> None:
    words = ["--model", f"{model}:headless", "--no-report", "--limit", "200"]
    words += ["--output-dir", str(tmp_path), "--detectors", "msp"]
    reason = "msp failed: msp needs logits, and the encoder has no head; give Backbone.from_encoder"
    assert eval.main(words) == 1
    assert f"error: {reason}" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    assert eval.main([*words, "mahalanobis"]) == 1
    assert f"error: {reason}" in capsys.readouterr().err
    results = json.loads((tmp_path / "results.json").read_text())
    assert (set(results["detectors"]), set(results["failed"])) == ({"mahalanobis"}, {"msp"})


@pytest.fixture(scope="module")
def deployed(model, tmp_path_factory) -> Path:
    """Fitted by the command line on the encoder, with the head that it was given."""
    folder = tmp_path_factory.mktemp("deployed")
    words = ["--model", f"{model}:encoder", "--detector", "mahalanobis", "--limit", "300"]
    assert fit.main([*words, "--output-dir", str(folder / "made")]) == 0
    return folder / "made"


def test_fits_and_answers(model, deployed, tmp_path, capsys) -> None:
    known = builtin.digits("test")
    for number in range(3):
        Image.fromarray(known.images[number][..., 0]).save(tmp_path / f"{number}.png")
    words = [str(deployed), str(tmp_path), "--model", f"{model}:encoder"]
    assert predict.main(words) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["class"]) for row in rows] == known.labels[:3].tolist()
    loaded = deployment.load(deployed, f"{model}:encoder")
    assert loaded.preprocessing.mean == (0.5,)
    again = loaded.predict(known.images[:3])
    np.testing.assert_allclose([float(row["score"]) for row in rows], again.score, rtol=1e-4)


def test_serves_what_it_fitted(model, deployed, monkeypatch) -> None:
    served = []
    monkeypatch.setattr(serve, "serve", lambda load, *_: served.append(load()))
    assert serve.main([str(deployed), "--model", f"{model}:encoder"]) == 0
    assert served[0].preprocessing.image_size == 8


def test_a_deployment_needs_the_function_that_made_its_model(model, deployed) -> None:
    with pytest.raises(
        UserError, match="was fitted on a model of one's own; .* --model .*:encoder"
    ):
        deployment.load(deployed)
    with pytest.raises(UserError, match="was fitted on the classifier"):
        deployment.load(deployed, f"{model}:of_others")


def test_a_classifier_saved_from_python_is_served_with_its_function(model, tmp_path) -> None:
    images, labels = builtin.digits("train").images[:200], builtin.digits("train").labels[:200]
    backbone = own_model.make(f"{model}:encoder", DIGITS).network
    pixels = np.asarray(backbone.normalized(images))
    gj.OODClassifier.fit(
        backbone,
        [(pixels[:150], labels[:150])],
        detector=detectors.create("mahalanobis"),
        calibration=[(pixels[150:], labels[150:])],
        key=jax.random.key(0),
    ).save(tmp_path / "saved")
    with pytest.raises(
        UserError, match="holds no network.*name the function that makes it with --m"
    ):
        deployment.load(tmp_path / "saved")
    loaded = deployment.load(tmp_path / "saved", f"{model}:encoder")
    assert loaded.class_names == tuple("01234567")
    assert (loaded.predict(images).label == labels).mean() > 0.9
    with pytest.raises(UserError, match="does not say how bytes are normalised; expected a Backbo"):
        deployment.load(tmp_path / "saved", f"{model}:headless")


def test_a_linen_module_comes_with_its_variables(model) -> None:
    made = own_model.make(f"{model}:in_linen", DIGITS)
    assert (made.network.cut, made.network.head_name) == ("Dense_1", "Dense_0")
    assert made.spec.num_classes == 8
    assert made.network.input_mean == (0.3,)


def test_what_is_computed_tells_models_of_the_same_weights_apart(model) -> None:
    """Else outputs that are kept would be taken for those of a function that was rewritten."""
    prints = {
        name: own_model.make(f"{model}:{name}", DIGITS).fingerprint
        for name in ("encoder", "headless", "squared", "network")
    }
    assert len({*prints.values()}) == 4
    assert own_model.make(f"{model}:network", DIGITS).fingerprint == prints["network"]


def test_modules_are_found_from_here(model, monkeypatch) -> None:
    monkeypatch.chdir(Path(model).parent)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "mine" not in place])
    made = own_model.make("my_own_model:network", DIGITS, "blocks.1")
    assert made.network.cut == "blocks.1"


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("absent", r"has no function 'absent'; "),
        ("netwrk", "has no function 'netwrk'; near it are 'network'"),
        ("number", "has no function 'number'"),
        ("listed", "returned a list; expected a grood_jax.Backbone, a flax.nnx module, or a pair"),
        ("broken", r"broken\(\) raised RuntimeError: no weights here"),
        ("flat", r"flat\(\) raised TypeError: .*missing 2 required positional arguments"),
        ("in_colour", r"the model cannot run on example \(2, 8, 8, 1\)"),
    ],
)
def test_functions_that_make_no_model(model, function: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        own_model.make(f"{model}:{function}", DIGITS)


def test_cuts_of_ones_own_model(model) -> None:
    with pytest.raises(UserError, match="cut is 'x', and .*:encoder returns a Backbone, which is"):
        own_model.make(f"{model}:encoder", DIGITS, "x")
    with pytest.raises(UserError, match="cut is 'block.1'; the model calls no submodule of that n"):
        own_model.make(f"{model}:network", DIGITS, "block.1")


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("nowhere/mine.py:build", "there is no file nowhere/mine.py"),
        (
            "no_such_package.module:build",
            "there is no module 'no_such_package' here; expected pack",
        ),
        ("json.nothing:build", "there is no module 'json.nothing' here"),
    ],
)
def test_places_where_nothing_is(where: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        own_model.make(where, DIGITS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("import no_such_thing", "raised ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def build(:", "raised SyntaxError: invalid syntax"),
    ],
)
@pytest.mark.parametrize("form", ["wrong_{}.py", "wrong_{}"])
def test_files_that_cannot_be_run(text, match, form, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = form.format(len(text))
    Path(f"{name.removesuffix('.py')}.py").write_text(text)
    with pytest.raises(UserError, match=match):
        own_model.make(f"{name}:build", DIGITS)


@pytest.mark.parametrize(
    ("run", "words", "status", "match"),
    [
        (
            eval.main,
            ["--model", "resnet99"],
            2,
            "model is 'resnet99'; expected one of small, resne",
        ),
        (eval.main, ["--model", "mine.py:"], 2, "model is 'mine.py:'; expected package.module:fun"),
        (predict.main, ["a", "b", "--model", "mine"], 2, "model is 'mine'; expected package.modul"),
        (serve.main, ["a", "--model", "mine"], 2, "model is 'mine'; expected package.module:func"),
        (fit.main, ["--model", "mine.py:build"], 1, "there is no file mine.py"),
    ],
)
def test_the_command_lines_say_so(run, words, status, match, capsys) -> None:
    try:
        found = run(words)
    except SystemExit as stop:
        found = stop.code
    assert found == status
    assert match in capsys.readouterr().err


def test_what_does_not_go_together(model, tmp_path) -> None:
    with pytest.raises(UserError, match="checkpoint is somewhere, and model .* is a function, whi"):
        eval.run(eval.EvalConfig(model=f"{model}:network", checkpoint=Path("somewhere")))
    with pytest.raises(UserError, match="model .*:nine has 9 classes; benchmark digits needs 8"):
        eval.run(
            eval.EvalConfig(
                model=f"{model}:nine", output_dir=tmp_path, limit=20, detectors=("msp",)
            )
        )
