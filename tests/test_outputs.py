"""Features and logits in place of images: the same figures, a head that is recovered, bad input."""

import json

import numpy as np
import pytest
import tiny_network as tiny

import grood_jax as gj
from grood_jax.backbone.outputs import Outputs
from grood_jax.cli import eval, import_torch
from grood_jax.evaluation import from_outputs
from grood_jax.evaluation.from_outputs import recovered_head
from grood_jax.evaluation.setting import EvalConfig
from grood_jax.storage.outputs import OutputsFolder, read_outputs, write_outputs
from grood_jax.support.errors import UserError

NETWORK = tiny.backbone()
TRAIN = tuple(map(np.concatenate, zip(*tiny.pairs(120, 0), strict=True)))
TEST = tuple(map(np.concatenate, zip(*tiny.pairs(60, 1), strict=True)))
OOD = {"wide": tiny.images(40, 2, 3.0)}
KNOWN = ("grood", "msp", "odin", "gram", "react", "energy")
CHEAP = ["msp", "energy", "gradnorm", "residual"]


def outputs(images):
    made = NETWORK(images)
    return np.asarray(made.features), np.asarray(made.logits)


def labelled(images, labels):
    return (*outputs(images), labels)


GIVEN = {
    "train": labelled(*TRAIN),
    "test": labelled(*TEST),
    "near": {name: outputs(images) for name, images in OOD.items()},
}


def test_figures_are_those_of_images():
    found = gj.evaluate_outputs(**GIVEN, detectors=CHEAP)
    expected = gj.evaluate(NETWORK, TRAIN, TEST, {"near": OOD}, CHEAP)
    for name in CHEAP:
        for part, scores in expected.scores[name].items():
            # The head is recovered.
            np.testing.assert_allclose(found.scores[name][part], scores, rtol=1e-3, atol=1e-5)
    assert found.results["id_accuracy"] == expected.results["id_accuracy"]
    assert found.failed == {} == found.left_out


def test_auto_makes_do_without_images_and_says_what_it_chose():
    found = gj.evaluate_outputs(**GIVEN, detectors=("auto", "msp"))
    rows = found.results["detectors"]
    assert "calibrated by" in rows["auto"]["explanation"] and "explanation" not in rows["msp"]


def test_what_needs_images_is_left_out_by_default(monkeypatch):
    monkeypatch.setattr(gj.detectors, "names", lambda: KNOWN)
    # In place of GROOD with the mean of the prototypes, whose search takes long to compile.
    assert from_outputs.BESIDES == ("grood:ood_prototype=prototype-mean",)
    monkeypatch.setattr(from_outputs, "BESIDES", ("energy",))
    found = gj.evaluate_outputs(**GIVEN)
    assert list(found.scores) == ["energy", "msp", "react"]
    assert list(found.left_out) == ["grood", "odin", "gram"] and not found.failed
    assert all("needs images" in reason for reason in found.left_out.values())
    assert "odin left out: it needs images (perturbed)" in str(found)
    assert list(found.results["left_out"]) == list(found.left_out)


def test_what_was_asked_for_has_failed():
    words = ["msp", "odin", "grood:ood_prototype=validation", "grood:ood_prototype=noise"]
    found = gj.evaluate_outputs(**GIVEN, detectors=words)
    assert list(found.failed) == words[1:] and list(found.scores) == ["msp"]
    assert "held-out OOD images" in found.failed[words[2]]
    with pytest.raises(UserError, match="odin failed: it needs images"):
        gj.evaluate_outputs(**GIVEN, detectors=["odin"])


def test_the_head_is_recovered_where_it_is_determined():
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(6, 4)), rng.normal(size=4)
    features = 1e-3 * rng.normal(size=(500, 6))
    made = Outputs(np.float32(features), np.float32(features @ weights + bias))
    (found, constant), why = recovered_head(made)
    np.testing.assert_allclose(found, weights, rtol=1e-2)
    np.testing.assert_allclose(constant, bias, rtol=1e-5)
    assert why == ""
    few = Outputs(made.features[:6], made.logits[:6])
    assert recovered_head(few) == (
        None,
        "6 training samples do not determine 7 unknowns of a class",
    )
    dead = Outputs(np.float32(features * [1, 1, 0, 1, 1, 1]), made.logits)
    head, why = recovered_head(dead)
    assert head is None and "span 6 of 7 directions" in why
    bent = Outputs(made.features, np.tanh(20 * np.float32(rng.normal(size=(500, 4)))))
    head, why = recovered_head(bent)
    assert head is None and "no linear layer gives the logits" in why


def test_detectors_that_need_a_head_say_why_there_is_none():
    bent = {n: (p[0], np.float32(np.exp(p[1])), *p[2:]) for n, p in GIVEN.items() if n != "near"}
    near = {"wide": (GIVEN["near"]["wide"][0], np.exp(GIVEN["near"]["wide"][1]))}
    found = gj.evaluate_outputs(**bent, near=near, detectors=["msp", "react"])
    assert "needs the class head, which is not given; no linear layer" in found.failed["react"]


def test_a_head_may_be_given_as_either_framework_has_it():
    weights = np.asarray(NETWORK.arrays["three"])
    for head in ((weights, np.zeros(4)), (weights.T, np.zeros(4)), {"weights": weights.T}):
        found = gj.evaluate_outputs(**GIVEN, head=head, detectors=["react"])
        assert list(found.scores) == ["react"]
    # Square weights fit either way; the logits say which.
    rng = np.random.default_rng(0)
    square = rng.normal(size=(4, 4))
    features = rng.normal(size=(50, 4))
    given = (features, features @ square, np.arange(50) % 4)
    for head in ((square, np.zeros(4)), (square.T, np.zeros(4))):
        gj.evaluate_outputs(given, given, far={"a": given}, head=head, detectors=["msp"])


def changed(part, **arrays):
    names = ("features", "logits", "labels")
    return GIVEN | {part: dict(zip(names, GIVEN[part], strict=True)) | arrays}


NAN = np.where(np.arange(120)[:, None] == 5, np.nan, GIVEN["train"][0])
WEIGHTS = np.asarray(NETWORK.arrays["three"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (
            changed("train", logits=GIVEN["train"][1][:-1]),
            UserError,
            "120 features and 119",
        ),
        (
            changed("train", labels=TRAIN[1][:-1]),
            UserError,
            r"has labels .*\(119,\), and 120",
        ),
        (changed("train", labels=TRAIN[1] + 9), UserError, "labels of train: label"),
        (changed("test", labels=None), UserError, "test has no labels"),
        (changed("train", labels=np.eye(4)[TRAIN[1]]), UserError, "expected integers"),
        (changed("train", features=NAN), UserError, "train: features holds NaN .* the first 5"),
        (changed("train", features=TRAIN[0]), UserError, r"\(120, 4, 4, 1\).*flatten"),
        (changed("train", features=TRAIN[1]), TypeError, "train: features has dtype int"),
        (changed("train", features=None), TypeError, "train: features is None"),
        (changed("test", features=np.ones((60, 9))), UserError, "of 9 and logits of 4 .* 6 and 4"),
        (GIVEN | {"test": [a[:1] for a in GIVEN["test"]]}, UserError, "test has 1 samples"),
        (
            GIVEN | {"train": "folder"},
            TypeError,
            "train is a str; expected .features, logits",
        ),
        (GIVEN | {"near": {}}, UserError, "ood is empty"),
        (GIVEN | {"near": {"test": GIVEN["test"]}}, UserError, "a set called 'test'"),
        (GIVEN | {"head": (WEIGHTS[:5], np.zeros(4))}, UserError, r"\(5, 4\) .*expected \(6, 4\)"),
        (GIVEN | {"head": (WEIGHTS + 1, np.zeros(4))}, UserError, "head does not give the logits"),
        (GIVEN | {"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused(given, error, said):
    with pytest.raises(error, match=said):
        gj.evaluate_outputs(detectors=["msp"], **given)


def named(part):
    return dict(zip(("features", "logits", "labels"), part, strict=False))


@pytest.fixture
def folder(tmp_path):
    held = OutputsFolder(
        named(GIVEN["train"]),
        named(GIVEN["test"]),
        {n: named(p) for n, p in GIVEN["near"].items()},
        {},
    )
    write_outputs(tmp_path / "outs", held)
    return tmp_path / "outs"


def as_safetensors(arrays):
    header, data = {}, b""
    kinds = {"float32": "F32", "int64": "I64", "int32": "I32"}
    for name, array in arrays.items():
        content = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_folder_holds_files_of_three_forms(folder):
    before = read_outputs(folder)
    (folder / "train.npz").unlink()
    (folder / "train").mkdir()
    for name, array in before.train.items():
        np.save(folder / "train" / f"{name}.npy", array)
    (folder / "far" / "more.safetensors").write_bytes(as_safetensors(before.near["wide"]))
    np.savez(folder / "head.npz", weights=WEIGHTS)
    np.savez(folder / "id_validation.npz", **before.test)
    (folder / "far" / "README.txt").write_text("no set")
    found = read_outputs(folder)
    for name, array in before.train.items():
        np.testing.assert_array_equal(found.train[name], array)
    assert list(found.far) == ["more"] and set(found.head) == {"weights"}
    np.testing.assert_array_equal(found.far["more"]["logits"], before.near["wide"]["logits"])
    made = gj.evaluate_outputs(
        found.train,
        found.test,
        found.near,
        found.far,
        head=found.head,
        id_validation=found.id_validation,
        detectors=["temperature_scaling"],
    )
    assert list(made.scores["temperature_scaling"]) == ["test", "wide", "more"]


def test_folders_that_are_none_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="outputs is .*nowhere; expected a folder with train"):
        read_outputs(tmp_path / "nowhere")
    (folder / "test").mkdir()
    with pytest.raises(UserError, match="has test.npz and test; expected one of them"):
        read_outputs(folder)
    (folder / "test").rmdir()
    (folder / "test.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="test.npz cannot be read: it is no .npz file"):
        read_outputs(folder)
    np.savez(folder / "test.npz", features=np.ones((2, 2)))
    with pytest.raises(UserError, match="test.npz has arrays features; expected features, logits"):
        read_outputs(folder)
    (folder / "near" / "wide.npz").unlink()
    with pytest.raises(UserError, match="has no OOD sets"):
        read_outputs(folder)
    (folder / "test.npz").unlink()
    with pytest.raises(UserError, match="has no test; expected test.npz, test.safetensors or"):
        read_outputs(folder)
    with pytest.raises(UserError, match="the set 'a/b' cannot be a file"):
        write_outputs(folder, OutputsFolder({}, {}, {"a/b": {}}, {}))


def test_the_command_line_reads_what_it_wrote(digits_checkpoint, tmp_path, capsys):
    words = ["--detectors", "msp", "gradnorm", "--no-report", "--output-dir"]
    images = ["--checkpoint", str(digits_checkpoint), "--limit", "200"]
    outs = tmp_path / "outs"
    assert eval.main([*words, str(tmp_path / "a"), *images, "--save-outputs", str(outs)]) == 0
    assert eval.main([*words, str(tmp_path / "b"), "--outputs", str(outs)]) == 0
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("a", "b")
    )
    for name, own in first["detectors"].items():
        theirs = second["detectors"][name]["datasets"]
        assert {n: row["auroc"] for n, row in own["datasets"].items()} == {
            n: row["auroc"] for n, row in theirs.items()
        }
    assert second["benchmark"] == "outs" and second["id_accuracy"] == first["id_accuracy"]
    assert second["command"].startswith("python -m grood_jax.eval --detectors msp gradnorm")
    assert "outputs in " in capsys.readouterr().err


def test_a_report_of_outputs(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    config = EvalConfig(outputs=folder, detectors=("msp",), output_dir=tmp_path, save_scores=True)
    record = eval.run(config, say=print)
    assert record["command"] == (
        f"python -m grood_jax.eval --detectors msp --output-dir {tmp_path} --save-scores "
        f"--outputs {folder}"
    )
    assert "there are outputs alone" in (tmp_path / "report.html").read_text("utf-8")
    with np.load(tmp_path / "scores.npz") as scores:
        assert set(scores) == {"msp/test", "msp/wide"}
    assert f"report in {tmp_path / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outputs": "x", "limit": 3}, "limit is given with outputs; expected only detectors"),
        ({"outputs": "x", "search": True}, "search is given with outputs"),
        ({"save_outputs": "x", "full_spectrum": True}, "no place for shifted sets"),
    ],
)
def test_options_that_make_no_sense_of_outputs_are_refused(tmp_path, options, said):
    given = {name: tmp_path if value == "x" else value for name, value in options.items()}
    with pytest.raises(ValueError, match=said):
        EvalConfig(**given)


@pytest.mark.parametrize("word", [["--model", "vgg16"], ["--model=vgg16"]])
def test_an_unknown_architecture_has_a_way(capsys, word):
    with pytest.raises(SystemExit) as stop:
        import_torch.main(["weights.pt", *word, "--output", "out"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model is 'vgg16'; expected one of ")
    assert "--outputs: see docs/how-to/outputs.md" in line
