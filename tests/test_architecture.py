"""Imports point downwards, and importing does nothing.

The sources are parsed, not imported. A new module needs a place in LAYERS, and a third-party
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
from fnmatch import fnmatch
from pathlib import Path

import pytest

# Lowest first. A module may import from the rows below its own and from its own group; groups of
# one row know nothing of each other. A module belongs to the last group that names it.
LAYERS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"basics": ("errors", "checks", "files", "progress", "structures")},
    {"outputs": ("outputs",)},
    {"exporting": ("exporting",)},
    {
        "mathematics": (
            "prototypes",
            "mixup",
            "perturbation",
            "grams",
            "gradients",
            "bank",
            "bank_building",
            "sharding",
            "neighbors",
            "metrics",
            "calibration",
            "drift",
        )
    },
    {
        "backbone": ("backbone",),
        "models": ("models", "models.*"),
        "detectors": ("detectors", "detectors.*"),
        "data": ("data", "data.*"),
    },
    {"devices": ("devices",), "processes": ("processes",)},
    {"forward passes": ("forward",)},
    {
        "benchmarks": ("benchmarks", "benchmarks.*"),
        "harness": ("harness",),
        "checkpoints": ("checkpoints",),
        "results": ("results",),
    },
    {
        "training": ("training",),
        "bank files": ("bank_files",),
        "cache": ("cache",),
        "search": ("search",),
        "reading": ("reading",),
        "saving": ("saving",),
    },
    {"classifier": ("ood_classifier",)},
    {"deployment": ("deployment",)},
    {"serving": ("serving", "serving.*"), "report": ("report", "report.*")},
    {"command helpers": ("command",)},
    {
        "command lines": (
            "eval",
            "train",
            "fit",
            "predict",
            "serve",
            "models.import_torch",
            "data.convert",
        )
    },
)

ANYWHERE = {"jax", "jaxtyping", "numpy"}
# Where else a package may be imported: groups or modules.
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "PIL": ("data", "predict", "report", "serving"),
    "h11": ("serving",),
    "flax": ("backbone", "models", "checkpoints", "training", "command lines"),
    "matplotlib": ("report",),
    "optax": ("training",),
    "orbax": ("checkpoints", "bank files", "saving"),
    "prometheus_client": ("serving",),
    "requests": ("data.download",),
    "scipy": ("data.builtin",),
    "sklearn": ("metrics", "bank_building", "data.builtin", "report"),
    "starlette": ("serving",),
    "tensorflow_datasets": ("data.sources",),
    "tqdm": ("progress",),
    "tyro": ("command helpers", "command lines"),
    "umap": ("report",),
    "uvicorn": ("serving", "serve"),
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
    """The row and group of a module."""
    found = None
    for row, groups in enumerate(LAYERS):
        for group, patterns in groups.items():
            if any(fnmatch(module, pattern) for pattern in patterns):
                found = row, group
    return found


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
    found = []
    for module, source in modules.items():
        own = place(module)
        homes = {module, own[1] if own else ""}
        for package, ours in imports(source, modules):
            if ours or package in sys.stdlib_module_names or package in ANYWHERE:
                continue
            if package not in THIRD_PARTY:
                found.append(f"{module} imports {package}: give it a line in THIRD_PARTY")
            elif not homes & set(THIRD_PARTY[package]):
                found.append(f"{module} imports {package}; only {THIRD_PARTY[package]} may")
    return found


def unplaced(modules: Mapping[str, str]) -> list[str]:
    return [
        f"{module}: give it a place in LAYERS"
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


def test_nothing_imports_itself_in_a_circle():
    assert cycles(SOURCES) == []


def test_packages_are_imported_where_they_belong():
    assert misplaced_packages(SOURCES) == []


def test_the_package_itself_imports_no_command_line():
    targets = {target for target, ours in imports(SOURCES[""], SOURCES) if ours}
    assert targets
    assert [t for t in targets if (found := place(t)) and found[1] == "command lines"] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("neighbors", "from grood_jax.harness import score", "neighbors .* imports harness"),
        ("neighbors", "from grood_jax import harness", "neighbors .* imports harness"),
        ("neighbors", "import grood_jax.harness", "neighbors .* imports harness"),
        ("mixup", "def f():\n    from grood_jax.outputs import Mix, UserError\n", None),
        ("outputs", "from grood_jax.mixup import other_classes", r"outputs .* imports mixup"),
        ("errors", "from grood_jax import UserError", "imports the package itself"),
        ("models.small", "from grood_jax.data import Batch", r"small \(models\) imports data"),
        ("models.small", "from grood_jax.models import staged", None),
        ("data.sets", "from grood_jax.detectors.grood import grood", r"\(data\) imports detectors"),
        ("harness", "from grood_jax import benchmarks", r"harness .* imports benchmarks"),
        ("training", "from grood_jax.eval import run", r"imports eval \(command lines\)"),
        ("models.resnet", "import grood_jax.models.import_torch", r"imports models.import_torch"),
        ("eval", "from grood_jax.train import run", None),
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
        ("neighbors", "import flax.nnx", "neighbors imports flax; only"),
        ("gradients", "def f():\n    import tensorflow_datasets as tfds\n", "tensorflow_datasets"),
        ("prototypes", "from PIL import Image", "prototypes imports PIL; only"),
        ("mixup", "import orbax.checkpoint", "mixup imports orbax; only"),
        ("detectors.grood", "from flax import nnx", "detectors.grood imports flax; only"),
        ("data.sources", "import tensorflow", "tensorflow: give it a line in THIRD_PARTY"),
        ("data.sets", "from PIL import Image\nimport os, jax", None),
        ("metrics", "from sklearn.metrics import auc", None),
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
    assert unplaced({"brand_new": ""}) == ["brand_new: give it a place in LAYERS"]
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
    found = in_a_fresh_process("import json, sys, grood_jax" + NO_BACKEND, tmp_path)
    assert "jax" in found
    assert set(found) & set(HEAVY) == set()
    assert [name for name in found if name.startswith("backend")] == []


def test_importing_every_module_starts_no_device(tmp_path):
    names = [f"grood_jax.{module}".strip(".") for module in SOURCES]
    program = f"import importlib, json, sys\nfor name in {names}: importlib.import_module(name)"
    found = in_a_fresh_process(program + NO_BACKEND, tmp_path)
    assert "flax" in found
    late = {"tensorflow", "tensorflow_datasets", "sklearn", "torch", "matplotlib", "umap"}
    assert set(found) & late == set()
    assert [name for name in found if name.startswith("backend")] == []


def test_a_started_device_is_seen(tmp_path):
    start = "import json, os, sys; os.environ['JAX_PLATFORMS'] = 'cpu'; import jax; "
    program = start + "jax.numpy.zeros(1)" + NO_BACKEND
    assert "backend cpu" in in_a_fresh_process(program, tmp_path)
