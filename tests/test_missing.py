"""With jax, jaxtyping and numpy alone the mathematics works; what needs more says what."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grood_jax.support import missing

OTHERS = (
    *("PIL", "array_record", "flax", "matplotlib", "optax", "orbax", "requests", "sklearn"),
    *("tensorflow_datasets", "tqdm", "tyro"),
)
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OTHERS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""

MATHEMATICS = """
import json
import jax, numpy as np
import grood_jax as gj

rng = np.random.default_rng(0)
labels = np.arange(60) % 3
features = (rng.normal(size=(60, 6)) + 4 * np.eye(3, 6)[labels]).astype(np.float32)
prototypes = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
made = gj.class_prototypes(features, labels, 3)
made = made[0] if isinstance(made, tuple) else made
outputs = gj.Outputs(features, -np.square(features[:, None] - prototypes).sum(axis=2))
training = gj.detectors.Training(outputs, labels)
scores = {}
for name, options in (("grood", {"ood_prototype": "prototype-mean"}), ("knn", {}), ("vim", {})):
    detector = gj.detectors.create(name, **options)
    if detector.head is None or not detector.head:
        state = detector.fit(training, jax.random.key(0))
        scores[name] = np.asarray(detector.score(state, outputs)).shape
bank = gj.build_bank(rng.normal(size=(4000, 96)).astype(np.float32) * 0.5 ** np.arange(96))
found = [
    np.allclose(made, prototypes, atol=1e-5),
    gj.ood_gradients(features, prototypes, prototypes.mean(axis=0)).shape == (60, 6),
    float(np.abs(gj.nearest_distances(features, features)).max()) == 0,
    gj.mix_with_prototypes(features, prototypes, labels, 0.5).shape == (60, 6),
    scores["grood"] == scores["knn"] == (60,),
    float(np.abs(gj.nearest_distances(gj.bank_rows(bank)[:3], bank)).max()) < 1e-4,
]
print(json.dumps([bool(one) for one in found]))
"""


def alone(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + program], capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_the_mathematics_needs_jax_jaxtyping_and_numpy():
    done = alone(MATHEMATICS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True] * 6


def test_what_needs_more_says_what():
    done = alone("import grood_jax\ngrood_jax.OODClassifier")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: grood_jax.OODClassifier: the package ")
    assert "is missing; install it with pip install " in last


def test_metrics_name_the_package_that_they_need():
    done = alone("import grood_jax\ngrood_jax.ood_metrics([0.0], [1.0])")
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: ood_metrics: the package scikit-learn is missing; install it with "
        "pip install scikit-learn"
    )


def test_a_command_says_it_in_one_line():
    done = alone("from grood_jax.cli.main import main\nsys.exit(main(['serve', '.']))")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the package tyro is missing; install it with pip install tyro\n"


def test_pip_has_other_names():
    error = ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics")
    assert "pip install scikit-learn" in missing.sentence(error)
    both = missing.command("uvicorn", "python_multipart")
    assert both == "pip install uvicorn python-multipart"


def test_no_reader_is_sent_to_an_index_for_this_package():
    root = Path(__file__).parent.parent
    texts = [path for path in root.glob("*.*") if path.suffix in (".md", ".toml", ".yml")]
    for folder in ("grood_jax", "docs", "experiments", "tests"):
        texts += [p for p in (root / folder).rglob("*.*") if p.suffix in (".py", ".md", ".ipynb")]
    asking = re.compile(r"pip install (?:-\S+ )*[\s\"']*grood[-_]jax")
    assert [str(p) for p in texts if asking.search(p.read_text("utf-8"))] == []


def test_our_own_mistakes_are_no_missing_package():
    error = ModuleNotFoundError("No module named 'grood_jax.x'", name="grood_jax.x")
    with pytest.raises(ModuleNotFoundError, match="grood_jax.x"):
        missing.sentence(error)


HELP = """
import contextlib, importlib, io, json, sys
module = importlib.import_module(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()) as said:
    try:
        module.main(["--help"])
    except SystemExit as stop:
        assert not stop.code
print(json.dumps([said.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""
SLOW = {"jax", "flax", "orbax", "optax", "sklearn", "scipy", "matplotlib", "tensorflow_datasets"}
DOORS = ("eval", "fit", "predict", "serve", "train", "models.import_torch", "data.convert")


@pytest.mark.parametrize("door", DOORS)
def test_help_waits_for_nothing_slow(door):
    done = subprocess.run(
        [sys.executable, "-c", HELP, f"grood_jax.{door}"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(missing.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    said, loaded = json.loads(done.stdout)
    assert f"python -m grood_jax.{door}" in said
    assert SLOW & set(loaded) == set()


def test_help_lists_detectors_in_lines_and_each_default_once(capsys):
    from grood_jax.cli import eval

    with pytest.raises(SystemExit) as stop:
        eval.main(["--help"])
    assert not stop.value.code
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert re.search(r"^  knn +k=50, sampling_ratio=1.0$", said, re.MULTILINE)
    assert max(map(len, lines[lines.index("Detectors and their options, with defaults:") :])) <= 80
    assert "default: None" not in said and "default: all" in said and "(default: 256)" in said


def test_the_listed_detectors_are_those_of_the_registry():
    from grood_jax import detectors
    from grood_jax.cli import listing

    options = listing._from_sources()
    assert options is not None
    assert list(options.items()) == [(name, detectors.options(name)) for name in detectors.names()]
