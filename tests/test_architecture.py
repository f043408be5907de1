"""Imports point downwards, and importing does nothing.

The sources are parsed, not imported. A new module needs a room, and a third-party
package that is new to the library a line in THIRD_PARTY: that is a decision, so it fails here
until it has been made.
"""

import ast
import graphlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

# Lowest first: a module may import from its own room and from those below it.
ROOMS = (
    "support",
    "maths",
    "neighbors",
    "conformal",
    "backbone",
    "models",
    "data",
    "benchmarks",
    "detectors",
    "passes",
    "storage",
    "training",
    "evaluation",
    "deploying",
    "cli",
)
# What `python -m grood_jax.…` names; nothing but other doors may import them.
DOORS = ("eval", "fit", "predict", "serve", "train", "models.import_torch", "data.convert")

ANYWHERE = {"jax", "jaxtyping", "numpy"}
# Where else a package may be imported: rooms or modules.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "PIL": ("data", "cli.predict", "evaluation.report", "deploying.serving"),
    "jaxlib": ("passes.coordinator",),
    "h11": ("deploying.serving",),
    "flax": ("backbone", "models", "storage", "training", "cli"),
    "matplotlib": ("evaluation.report",),
    "optax": ("training",),
    "orbax": ("storage",),
    "prometheus_client": ("deploying.serving",),
    "python_multipart": ("deploying.serving",),
    "requests": ("data.download",),
    "scipy": ("data.builtin", "maths.intervals"),
    "sklearn": ("maths.metrics", "data.builtin", "evaluation.heads", "evaluation.report"),
    "starlette": ("deploying.serving",),
    "tensorflow_datasets": ("data.tfds",),
    "tqdm": ("support.progress",),
    "tyro": ("cli",),
    "umap": ("evaluation.report",),
    "uvicorn": ("deploying.serving", "cli.serve"),
}

# What `import grood_jax` alone must not load: slow, optional, or some detectors' business.
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "sklearn",
    "torch",
    "flax",
    "orbax",
    "PIL",
    "tyro",
    "matplotlib",
)


def package_folder() -> Path:
    spec = importlib.util.find_spec("grood_jax")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def read_sources() -> dict[str, str]:
    """Source by module name without the leading ``grood_jax.``; the package itself is "" ."""
    folder = package_folder()
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path.read_text()
    return found


SOURCES = read_sources()
EMPTY = dict.fromkeys(SOURCES, "")
"""All modules, importing nothing: what the rules are tried on."""


def place(module: str) -> tuple[int, str] | None:
    """The height and name of a module's room; doors stand above all rooms."""
    if module in DOORS:
        return len(ROOMS), "doors"
    room = module.partition(".")[0]
    return (ROOMS.index(room), room) if room in ROOMS else None


def imports(source: str, modules: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """What a source imports, at its top or within functions, and whether that is our own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            top, _, rest = base.partition(".")
            if top != "grood_jax":
                yield top, False
                continue
            inner = f"{rest}.{name}".strip(".")
            yield (inner if inner in modules and name else rest), True


def wrong_directions(modules: Mapping[str, str]) -> list[str]:
    """The imports that do not point downwards."""
    found = []
    for module, source in modules.items():
        own = place(module)
        if not module or own is None:
            continue
        for target, ours in imports(source, modules):
            other = place(target) if target else None
            if not ours or (other is None and target):
                continue
            if other is None:
                found.append(f"{module} imports the package itself; name the module instead")
            elif other != own and other[0] >= own[0]:
                found.append(f"{module} ({own[1]}) imports {target} ({other[1]})")
    return found


def misplaced_packages(modules: Mapping[str, str]) -> list[str]:
    """Third-party imports where they do not belong."""
    complaints = []
    for module, source in modules.items():
        for package, ours in imports(source, modules):
            if ours or package in sys.stdlib_module_names or package in ANYWHERE:
                continue
            if package not in THIRD_PARTY:
                complaints.append(f"{module} imports {package}: give it a line in THIRD_PARTY")
            elif not any(f"{module}.".startswith(f"{home}.") for home in THIRD_PARTY[package]):
                complaints.append(f"{module} imports {package}; only {THIRD_PARTY[package]} may")
    return complaints


def unplaced(modules: Mapping[str, str]) -> list[str]:
    return [
        f"{module}: give it a room, or a line in DOORS"
        for module in modules
        if module and place(module) is None
    ]


def cycles(modules: Mapping[str, str]) -> list[str]:
    graph = {
        module: {target for target, ours in imports(source, modules) if ours and target != module}
        for module, source in modules.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def test_every_module_has_a_place():
    assert len(SOURCES) > 20
    assert unplaced(SOURCES) == []


def test_imports_point_downwards():
    assert wrong_directions(SOURCES) == []


def test_no_module_stands_outside_a_room():
    loose = {m for m in SOURCES if m and "." not in m} - set(ROOMS)
    assert loose == {door for door in DOORS if "." not in door}
    assert len(ROOMS) <= 15


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_a_few_lines(door):
    assert SOURCES[door].count("\n") <= 12


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_no_function_is_longer_than_sixty_lines():
    functions = [
        (lines_of(node), module, node.name)
        for module, source in SOURCES.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 500
    assert [function for function in functions if function[0] > 60] == []


def test_nothing_imports_itself_in_a_circle():
    assert cycles(SOURCES) == []


def test_packages_are_imported_where_they_belong():
    assert misplaced_packages(SOURCES) == []


def test_the_package_itself_imports_no_command_line():
    targets = {target for target, ours in imports(SOURCES[""], SOURCES) if ours}
    assert targets
    assert [t for t in targets if (found := place(t)) and found[1] in ("cli", "doors")] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        (
            "neighbors.searching",
            "from grood_jax.evaluation.fitting import score",
            r"searching \(neighbors\) imports evaluation.fitting \(evaluation\)",
        ),
        (
            "neighbors.bank",
            "from grood_jax.evaluation import fitting",
            "imports evaluation.fitting",
        ),
        (
            "maths.mixup",
            "import grood_jax.evaluation.fitting",
            "mixup .* imports evaluation.fitting",
        ),
        ("storage.cache", "def f():\n    from grood_jax.maths.mixup import other_classes\n", None),
        ("maths.mixup", "from grood_jax.backbone.outputs import Mix", "imports backbone.outputs"),
        ("support.errors", "from grood_jax import UserError", "imports the package itself"),
        ("models.small", "from grood_jax.data import Batch", r"small \(models\) imports data"),
        ("models.small", "from grood_jax.models import staged", None),
        ("data.sets", "from grood_jax.detectors.grood import grood", r"\(data\) imports detectors"),
        (
            "passes.forward",
            "from grood_jax.storage import cache",
            r"forward .* imports storage.cache",
        ),
        ("training.loop", "from grood_jax.eval import run", r"imports eval \(doors\)"),
        ("models.resnet", "import grood_jax.models.import_torch", r"imports models.import_torch"),
        ("cli.eval", "from grood_jax.train import run", r"imports train \(doors\)"),
        ("cli.eval", "from grood_jax.cli.train import run", None),
        ("eval", "from grood_jax.cli.eval import run", None),
    ],
)
def test_wrong_directions_are_seen(module, source, complaint):
    found = wrong_directions(EMPTY | {module: source})
    if complaint is None:
        assert found == []
    else:
        (line,) = found
        assert re.search(complaint, line)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("neighbors.searching", "import flax.nnx", "neighbors.searching imports flax; only"),
        ("maths.gradients", "def f():\n    import tensorflow_datasets as tfds\n", "datasets"),
        ("maths.prototypes", "from PIL import Image", "prototypes imports PIL; only"),
        ("maths.mixup", "import orbax.checkpoint", "mixup imports orbax; only"),
        ("detectors.grood", "from flax import nnx", "detectors.grood imports flax; only"),
        ("data.tfds", "import tensorflow", "tensorflow: give it a line in THIRD_PARTY"),
        ("data.sets", "from PIL import Image\nimport os, jax", None),
        ("maths.metrics", "from sklearn.metrics import auc", None),
    ],
)
def test_misplaced_packages_are_seen(module, source, complaint):
    found = misplaced_packages(EMPTY | {module: source})
    if complaint is None:
        assert found == []
    else:
        (line,) = found
        assert complaint in line


def test_a_new_module_must_be_placed():
    assert unplaced({"brand_new": ""}) == ["brand_new: give it a room, or a line in DOORS"]
    assert unplaced({"detectors.brand_new": ""}) == []


def test_circles_are_seen():
    circle = {
        "detectors.a": "from grood_jax.detectors import b",
        "detectors.b": "def f():\n    from grood_jax.detectors.a import x\n",
    }
    (found,) = cycles(EMPTY | circle)
    assert "detectors.a" in found


PATHS = re.compile(r"(?<![\w.:])/(work|tmp|home|root|mnt|opt|usr|var)\b|\bshared/|GROOD_SHARED")


@pytest.mark.parametrize("module", SOURCES)
def test_no_source_names_a_machines_folders(module):
    assert PATHS.search(SOURCES[module]) is None


@pytest.mark.parametrize("line", ['"/tmp/data"', "# see ../shared/data", "'GROOD_SHARED'"])
def test_a_machines_folders_are_seen(line):
    assert PATHS.search(line)


def in_a_fresh_process(program: str, folder: Path) -> list[str]:
    """Runs a program that prints one JSON list."""
    path = os.pathsep.join([str(package_folder().parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


NO_BACKEND = """
from jax._src import xla_bridge
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(loaded + ["backend " + name for name in xla_bridge._backends]))
"""


def test_importing_the_package_loads_little_and_starts_no_device(tmp_path):
    late = (
        "Evaluated",
        "OODClassifier",
        "Prediction",
        "Preprocessing",
        "datasets",
        "evaluate",
        "evaluate_outputs",
        "fit_head",
    )
    program = (
        "import json, sys, grood_jax as gj\nassert 'jax' not in sys.modules\n"
        f"for name in sorted({{*gj.__all__}} - {{*{late}}}): getattr(gj, name)"
    )
    found = in_a_fresh_process(program + NO_BACKEND, tmp_path)
    assert "jax" in found
    assert set(found) & set(HEAVY) == set()
    assert [name for name in found if name.startswith("backend")] == []


def test_importing_every_module_and_making_every_detector_starts_no_device(tmp_path):
    names = [f"grood_jax.{module}".strip(".") for module in SOURCES]
    program = (
        f"import importlib, json, sys\nfor name in {names}: importlib.import_module(name)\n"
        "from grood_jax import detectors\n"
        "for name in detectors.names(): detectors.create(name)"
    )
    found = in_a_fresh_process(program + NO_BACKEND, tmp_path)
    assert "flax" in found
    late = {"tensorflow", "tensorflow_datasets", "sklearn", "torch", "matplotlib", "umap"}
    assert set(found) & late == set()
    assert [name for name in found if name.startswith("backend")] == []


def test_a_started_device_is_seen(tmp_path):
    start = "import json, os, sys; os.environ['JAX_PLATFORMS'] = 'cpu'; import jax; "
    program = start + "jax.numpy.zeros(1)" + NO_BACKEND
    assert "backend cpu" in in_a_fresh_process(program, tmp_path)


def test_no_two_files_of_the_tests_share_a_name():
    """Each folder of tests is on the path, so that the second of a name could be imported."""
    files = Path(__file__).parent.rglob("*.py")
    names = [path.name for path in files if path.name != "conftest.py"]
    assert len(names) == len(set(names))
