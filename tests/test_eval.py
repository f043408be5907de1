"""The command line of evaluation, run as a user runs it."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from grood_jax import benchmarks, detectors, models
from grood_jax.cli import command, eval, train
from grood_jax.data import Preprocessing, batches
from grood_jax.eval import EvalConfig
from grood_jax.evaluation import classifier
from grood_jax.maths.metrics import ood_metrics
from grood_jax.passes import forward, training_pass
from grood_jax.storage import checkpoints, included
from grood_jax.storage.checkpoints import ModelSpec
from grood_jax.training.loop import recipe
from grood_jax.training.runs import default_directory

SETS = {"digits_8_9": ("near", 354), "photographs": ("far", 1664), "uniform_noise": ("far", 1000)}


@pytest.fixture
def in_digits(digits, monkeypatch):
    monkeypatch.chdir(digits[0])
    return digits[0]


def evaluate(tmp_path, *words):
    """Runs the command line in this process, without a report; returns its results."""
    assert eval.main([*words, "--output-dir", str(tmp_path), "--no-report"]) == 0
    return json.loads((tmp_path / "results.json").read_text())


def test_the_default_command(digits):
    folder, done = digits
    found = json.loads((folder / "results" / "digits" / "results.json").read_text())
    assert found["benchmark"] == "digits"
    assert found["model"] == "small"
    assert found["command"] == "python -m grood_jax.eval"
    assert found["id_accuracy"] > 0.95
    assert found["data"]["train"]["n"] == 1010
    assert list(found["detectors"]) == ["grood", "msp"]
    for detector in found["detectors"].values():
        assert {n: (d["group"], d["n"]) for n, d in detector["datasets"].items()} == SETS
        for group in ("near", "far"):
            members = [d for d in detector["datasets"].values() if d["group"] == group]
            for metric in ("auroc", "fpr95", "aupr_in", "aupr_out"):
                mean = np.mean([d[metric] for d in members])
                np.testing.assert_allclose(detector[group][metric], mean)
                assert 0 <= detector[group][metric] <= 1
        assert detector["fit_seconds"] >= 0
        assert detector["score_seconds_per_image"] > 0
    # Better than chance by far on every set: the sign of the scores is right.
    aurocs = [d["auroc"] for d in found["detectors"]["grood"]["datasets"].values()]
    assert min(aurocs) > 0.8
    source = "trained by grood_jax on digits, seed 0; comes with the package"
    assert done.stderr.startswith(f"classifier: small ({source})\n")
    assert found["checkpoint"]["source"] == source
    assert found["checkpoint"]["directory"] == "grood_jax/models/weights/digits_small.npz"
    assert "epoch" not in done.stderr and [path.name for path in folder.iterdir()] == ["results"]
    row = found["detectors"]["grood"]["datasets"]["digits_8_9"]
    assert f"{row['auroc']:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("words", "step", "expected"),
    [
        ([], None, "comes with the package"),
        # What was trained goes first, and what was begun goes on.
        ([], 20, "checkpoints/digits-small-seed0"),
        ([], 3, "training"),
        (["--seed", "1"], None, "training"),
        (["--model", "resnet20", "--cut", "layer2"], None, "training"),
        (["--dataset", "fashion_mnist"], None, "training"),
    ],
)
def test_which_network_is_taken(tmp_path, monkeypatch, words, step, expected):
    monkeypatch.chdir(tmp_path)
    loaded = included.digits()
    if step is not None:
        with checkpoints.manager(default_directory("digits", "small", 0)) as manager:
            checkpoints.save(manager, step, loaded.model, loaded.spec, record=loaded.record)
    config = command.parse(EvalConfig(), "test", "", words)
    said = []

    def trained(benchmark, options, *, model, **given):
        said.append("training")
        spec = replace(loaded.spec, model=model, num_classes=benchmark.num_classes)
        return replace(loaded, spec=spec)

    monkeypatch.setattr(classifier, "train_on", trained)
    benchmark = benchmarks.get(config.dataset)
    place = classifier.look(config, benchmark)
    classifier.find_classifier(config, benchmark, place, said.append, False)
    assert expected in " ".join(said)
    assert ("training" in said) == (expected == "training")


@pytest.mark.slow
def test_a_network_trained_on_the_spot_is_read_the_next_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "recipe", lambda name: replace(recipe(name), epochs=1))
    words = ("--seed", "1", "--detectors", "msp", "--limit", "64")
    first = evaluate(tmp_path / "first", *words)
    said = capsys.readouterr().err
    assert "training small on all training images of digits" in said and "epoch 1 of 1" in said
    second = evaluate(tmp_path / "second", *words)
    said = capsys.readouterr().err
    assert "small from checkpoints/digits-small-seed1" in said and "epoch" not in said
    assert first["checkpoint"] == second["checkpoint"]
    assert first["checkpoint"]["source"] == "trained by grood_jax on digits, seed 1"
    assert first["detectors"]["msp"]["datasets"] == second["detectors"]["msp"]["datasets"]


@pytest.mark.slow
def test_a_second_run_gives_the_same(in_digits, tmp_path):
    words = ["--output-dir", str(tmp_path), "--no-report"]
    done = subprocess.run(
        [sys.executable, "-m", "grood_jax.eval", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    first = json.loads((in_digits / "results" / "digits" / "results.json").read_text())
    assert found["checkpoint"] == first["checkpoint"]
    for name in ("grood", "msp"):
        assert found["detectors"][name]["datasets"] == first["detectors"][name]["datasets"]


@pytest.mark.devices
def test_msp_against_its_definition(in_digits, tmp_path):
    found = evaluate(tmp_path, "--detectors", "msp")
    model = included.digits()
    data = benchmarks.open_benchmark(benchmarks.get("digits"))
    network = nnx.view(model.model, use_running_average=True)

    def scores(images):
        parts = [
            np.asarray(network(b.images), np.float64)[b.valid]
            for b in batches(images, model.spec.preprocessing, batch_size=500)
        ]
        logits = np.concatenate(parts)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return 1 - powers.max(axis=1) / powers.sum(axis=1)

    expected = ood_metrics(scores(data.test), scores(data.ood["photographs"][1]))
    for metric, value in expected.items():
        row = found["detectors"]["msp"]["datasets"]["photographs"]
        np.testing.assert_allclose(row[metric], value, atol=1e-4)


OPTIONS = [
    "k=10",
    "ood_prototype=noise",
    "ood_prototype=validation",
    "ood_prototype=prototype-mean",
    "mixup_weight=0.9",
    "mixup_samples=50",
    "farthest_fifth=true",
    "sampling_ratio=0.1",
    "interpolate=true",
]
INTERPOLATED = [
    "interpolate=true,interpolate_weight=0.3",
    "interpolate=true,interpolate_classes=1",
]


@pytest.fixture(scope="module")
def base(digits, tmp_path_factory):
    """The figures of GROOD as it is, and with each option, on few images."""
    words = ["grood", *(f"grood:{option}" for option in OPTIONS + INTERPOLATED)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits[0])
        folder = tmp_path_factory.mktemp("base")
        return evaluate(folder, "--detectors", *words, "--limit", "64")["detectors"]


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_reaches_the_figures(base, option):
    after = base[f"grood:{option}"]
    assert after["datasets"] != base["grood"]["datasets"]
    assert after["far"]["auroc"] > 0.5


@pytest.mark.slow
def test_the_cut_reaches_the_figures(in_digits, base, tmp_path):
    found = evaluate(tmp_path, "--cut", "layer2", "--detectors", "grood", "--limit", "64")
    (after,) = found["detectors"].values()
    assert after["datasets"] != base["grood"]["datasets"]
    assert after["far"]["auroc"] > 0.5


@pytest.mark.parametrize("options", INTERPOLATED)
def test_interpolation_options_reach_the_figures(base, options):
    plain = base["grood:interpolate=true"]["datasets"]
    assert base[f"grood:{options}"]["datasets"] != plain


@pytest.mark.slow
def test_the_seed_decides_what_is_drawn(digits_checkpoint, tmp_path):
    folder = str(digits_checkpoint)
    words = ("--detectors", "grood:mixup_samples=50", "--limit", "300", "--checkpoint", folder)
    first, other, again = (
        next(iter(evaluate(tmp_path / name, *words, "--seed", seed)["detectors"].values()))
        for name, seed in (("first", "1"), ("other", "2"), ("again", "1"))
    )
    assert first["datasets"] != other["datasets"]
    assert first["datasets"] == again["datasets"]


def test_batch_size_changes_nothing(in_digits, base, tmp_path):
    words = ("--detectors", "grood", "--limit", "64", "--batch-size", "17")
    other = evaluate(tmp_path, *words)
    for name, figures in base["grood"]["datasets"].items():
        row = other["detectors"]["grood"]["datasets"][name]
        np.testing.assert_allclose(row["auroc"], figures["auroc"], atol=1e-3)


@pytest.mark.slow
def test_all_detectors(in_digits, tmp_path):
    # With an option that costs no second compilation of a search.
    word = "energy:temperature=2.5"
    found = evaluate(tmp_path, "--detectors", "all", word, "--limit", "100")
    # The network gives no features of places.
    able = [name for name in detectors.names() if name != "gl_mcm"]
    assert list(found["detectors"]) == [*able, word]
    assert found["failed"] == {}
    assert found["detectors"][word]["options"]["temperature"] == 2.5
    assert found["data"]["photographs"]["n"] == 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "cifar11"], "cifar11"),
        (["--detectors", "groud"], "'groud'.*did you mean 'grood'"),
        (["--detectors", "grood:kk=3"], "no option 'kk'.*did you mean 'k'"),
        (["--detectors", "grood:k=0"], "k is 0; expected at least 1"),
        (["--detectors", "grood:k=many"], "k is 'many'; expected an integer"),
        (["--detectors", "grood:mixup_weight=half"], "mixup_weight is 'half'"),
        (["--detectors", "grood:interpolate=3"], "interpolate is 3; expected"),
        (["--detectors", "grood:ood_prototype=nois"], "did you mean 'noise'"),
        (["--detectors"], "detectors"),
        (["--format", "html"], "format"),
        (["--limit", "0"], "limit is 0; expected at least 1"),
        (["--batch-size", "0"], "batch_size is 0; expected at least 1"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_usage(unchecked, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    try:
        status = eval.main(words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert list(tmp_path.iterdir()) == []


def lines_of_failure(capsys, words):
    assert eval.main(words) == 1
    return capsys.readouterr().err.strip().splitlines()


def test_missing_sets_are_all_named_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    (line,) = lines_of_failure(capsys, ["--dataset", "cifar10", "--data-dir", str(empty)])
    names = ["cifar10", "cifar100", "tiny_imagenet", "mnist", "svhn", "textures", "places365"]
    for name in names:
        assert name in line
    assert str(empty) in line and "--download" in line


def test_a_missing_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (line,) = lines_of_failure(capsys, ["--checkpoint", "nowhere"])
    assert "no checkpoint in nowhere" in line
    assert "python -m grood_jax.train --dataset digits" in line
    assert line.endswith("--seed 0 --output-dir nowhere")


@pytest.mark.parametrize(
    ("classes", "channels", "size", "message"),
    [
        (10, 1, 8, "has 10 classes; benchmark digits needs 8"),
        (8, 3, 8, "has 3 channels; benchmark digits needs 1"),
        (8, 1, 16, "has 16 pixels a side; benchmark digits needs 8"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, capsys, classes, channels, size, message):
    model = models.create("small", num_classes=classes, channels=channels, rngs=nnx.Rngs(0))
    preprocessing = Preprocessing(size, channels, (0.5,) * channels, (0.5,) * channels)
    spec = ModelSpec(model="small", num_classes=classes, preprocessing=preprocessing, source="test")
    checkpoints.save_model(tmp_path / "saved", model, spec)
    lines = lines_of_failure(capsys, ["--checkpoint", str(tmp_path / "saved")])
    assert message in lines[-1]


def test_another_model_than_asked_for(digits_checkpoint, capsys):
    folder = str(digits_checkpoint)
    lines = lines_of_failure(capsys, ["--checkpoint", folder, "--model", "resnet20"])
    assert lines == [f"error: the checkpoint in {folder} is of model small; expected resnet20"]


def test_an_unknown_cut(in_digits, capsys):
    lines = lines_of_failure(capsys, ["--cut", "layer9"])
    assert lines[-1] == "error: cut is 'layer9'; expected a stage of small: layer1, layer2, layer3"


def test_too_few_images_for_a_class(in_digits, tmp_path, capsys):
    lines = lines_of_failure(capsys, ["--limit", "3", "--output-dir", str(tmp_path)])
    assert "of class" in lines[-1] and "expected at least one" in lines[-1]
    assert "--limit 3 leaves few images" in lines[-1]


@pytest.mark.parametrize("module", [eval, train])
def test_an_output_directory_that_cannot_be(in_digits, capsys, tmp_path, module):
    (tmp_path / "file").write_text("")
    assert module.main(["--output-dir", str(tmp_path / "file")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == [f"error: output_dir is {tmp_path / 'file'}; it cannot be made: File exists"]


def test_an_unknown_cut_is_found_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (line,) = lines_of_failure(capsys, ["--cut", "layer9"])
    assert "expected a stage of small" in line


@pytest.fixture
def interruptible():
    """What a shell runs in the background ignores SIGINT, and so would processes started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interrupt_ends_with_one_line_and_status_1(tmp_path, interruptible):
    with subprocess.Popen(
        [sys.executable, "-m", "grood_jax.train", "--epochs", "500"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training small"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 1
    assert rest.strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in rest


def test_tables_for_other_programs(in_digits, tmp_path, capsys):
    evaluate(tmp_path, "--detectors", "msp", "energy", "--limit", "60", "--format", "csv")
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [row["detector"] for row in rows] == ["msp", "energy"]
    assert "ID accuracy" in said.err


def test_run_is_a_function_of_its_configuration(in_digits, tmp_path):
    config = EvalConfig(detectors=("msp",), limit=50, output_dir=tmp_path)
    found = eval.run(config)
    written = json.loads((tmp_path / "results.json").read_text())
    assert found == written
    words = f"--dataset digits --limit 50 --detectors msp --output-dir {tmp_path}"
    assert found["command"] == f"python -m grood_jax.eval {words}"
    again = eval.main(found["command"].split()[3:])
    assert again == 0
    for name, row in json.loads((tmp_path / "results.json").read_text())["detectors"].items():
        assert row["datasets"] == found["detectors"][name]["datasets"]


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_prepared_data(tfds_data, tmp_path, dataset):
    """An untrained network on a few real images: the whole path, not its figures."""
    benchmark = benchmarks.get(dataset)
    model = models.create(
        "small", num_classes=10, channels=benchmark.preprocessing.channels, rngs=nnx.Rngs(0)
    )
    spec = ModelSpec(
        model="small", num_classes=10, preprocessing=benchmark.preprocessing, source="untrained"
    )
    checkpoints.save_model(tmp_path / "saved", model, spec)
    config = EvalConfig(
        dataset=dataset,
        detectors=("msp",),
        data_dir=tfds_data,
        checkpoint=tmp_path / "saved",
        output_dir=tmp_path,
        limit=64,
    )
    found = eval.run(config)
    rows = found["detectors"]["msp"]["datasets"]
    near = [name for name, row in rows.items() if row["group"] == "near"]
    far = [name for name, row in rows.items() if row["group"] == "far"]
    if dataset == "cifar10":
        assert near == ["cifar100", "tiny_imagenet"]
        assert far == ["mnist", "svhn", "textures", "places365"]
    else:
        assert (near, far) == ([], ["mnist", "emnist_letters"])
        assert found["detectors"]["msp"]["near"] == {}
    assert {row["n"] for row in rows.values()} == {64}


@pytest.mark.slow
def test_options_are_searched_on_validation_images(in_digits, tmp_path, capsys):
    words = ("--detectors", "knn", "knn:k=20", "scale", "msp", "--search")
    found = evaluate(tmp_path, *words)
    said = capsys.readouterr().err
    assert "options of knn: 5 combinations" in said and "chosen for scale: percentile=" in said
    assert "chosen for knn:k=20" not in said and "chosen for msp" not in said
    assert found["data"]["test"]["n"] == 433 - 44
    assert found["validation"]["id"]["n"] == 44 and found["validation"]["ood"]["n"] > 0
    rows = found["detectors"]
    knn = rows["knn"]["search"]
    assert knn["chosen"]["k"] == rows["knn"]["options"]["k"] and 0 <= knn["validation_auroc"] <= 1
    assert knn["tried"] + len(knn["failed"]) == 5
    assert rows["scale"]["search"]["tried"] == 7
    # Nothing to search: options that are given, and none at all.
    assert "search" not in rows["knn:k=20"] and rows["knn:k=20"]["options"]["k"] == 20
    assert "search" not in rows["msp"]


def test_a_benchmark_without_a_validation_set_says_so(tfds_data, tmp_path, capsys):
    words = ["--dataset", "fashion_mnist", "--data-dir", str(tfds_data), "--search"]
    lines = lines_of_failure(capsys, words)
    assert "benchmark fashion_mnist has no validation set" in lines[-1]


@pytest.mark.slow
def test_a_second_evaluation_runs_no_network(in_digits, tmp_path, monkeypatch):
    words = ("--detectors", "grood", "gram", "odin", "--limit", "200")
    plain = evaluate(tmp_path / "plain", *words)
    cached = (*words, "--cache-dir", str(tmp_path / "cache"))
    first = evaluate(tmp_path / "first", *cached)
    calls = []
    passes = [(forward, "network_outputs"), (training_pass, "network_outputs")]
    passes += [(training_pass, name) for name in ("_forward_and_sum", "_forward_mixed")]
    for module, name in passes:
        monkeypatch.setattr(module, name, lambda *args, name=name: calls.append(name))
    second = evaluate(tmp_path / "second", *cached)
    assert calls == []
    for found in (first, second):
        assert found["id_accuracy"] == plain["id_accuracy"]
        for name, row in plain["detectors"].items():
            assert found["detectors"][name]["datasets"] == row["datasets"]
    # Fewer detectors need less of what is there.
    evaluate(tmp_path / "third", "--detectors", "msp", *cached[-4:])
    assert calls == []


@pytest.mark.slow
def test_detectors_combined_on_the_command_line(in_digits, tmp_path):
    word = "energy:temperature=2.5+knn:k=5"
    found = evaluate(tmp_path, "--detectors", word)
    row = found["detectors"][word]
    assert [member["name"] for member in row["options"]["members"]] == ["energy", "knn"]
    assert row["far"]["auroc"] > 0.7
