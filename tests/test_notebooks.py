"""Notebooks agree with their text, hold no outputs, and run from top to bottom."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="pip install 'grood-jax[notebooks]'")

FOLDER = Path(__file__).parent.parent / "experiments" / "notebooks"
NAMES = ("quickstart", "your_own_model", "tpu_cifar10", "anatomy_of_grood")
PATHS = re.compile(r"(?<![\w.:])/(work|tmp|home|root|mnt|opt|usr|var)\b|\bshared/|GROOD_SHARED")
BADGE = re.compile(
    r"\]\(https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/main/(.+?)\)"
)


def test_these_are_the_notebooks():
    found = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb"))
    assert found == sorted(name + end for name in NAMES for end in (".py", ".ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_without_outputs(name):
    notebook, text = (jupytext.read(FOLDER / f"{name}{end}") for end in (".ipynb", ".py"))
    pairs = [[(cell.cell_type, cell.source) for cell in both.cells] for both in (notebook, text)]
    assert pairs[0] == pairs[1], "jupytext --to ipynb --update experiments/notebooks/*.py"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"lines_to_next_cell"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert PATHS.search((FOLDER / f"{name}.ipynb").read_text()) is None


def test_badges_and_installs_name_one_repository():
    repositories = set()
    for name in NAMES:
        first, install = jupytext.read(FOLDER / f"{name}.py").cells[:2]
        repository, path = BADGE.search(first.source).groups()
        assert path == f"experiments/notebooks/{name}.ipynb"
        (installed,) = re.findall(r"git\+https://github\.com/([^\"]+)\"", install.source)
        assert 'if "google.colab" in sys.modules:' in install.source
        repositories |= {repository, installed}
        assert f"[![Colab]({BADGE_IMAGE})]" in first.source
    listed = BADGE.findall((FOLDER.parent.parent / "docs" / "notebooks.md").read_text())
    assert [path for _, path in listed] == [f"experiments/notebooks/{name}.ipynb" for name in NAMES]
    assert len(repositories | {repository for repository, _ in listed}) == 1


BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"

# In a process of its own: the kernel's packages warn, and warnings are errors here.
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
print("".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"))
print("pictures:", sum("image/png" in o.get("data", {}) for o in outputs))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, request, tmp_path, record_property):
    pytest.importorskip("nbclient")
    settings = {
        "GROOD_SMALL": "1",
        "JAX_PLATFORMS": "cpu",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    if name == "tpu_cifar10":
        settings["TFDS_DATA_DIR"] = str(request.getfixturevalue("tfds_data"))
        settings["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(FOLDER / f"{name}.ipynb")],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    record_property("seconds", round(seconds, 1))
    print(f"{name}: {seconds:.1f} s\n{done.stdout}")
    assert done.returncode == 0, done.stderr
    assert int(re.findall(r"^pictures: (\d+)$", done.stdout, re.MULTILINE)[0]) >= 1
    if name == "tpu_cifar10":
        assert done.stdout.startswith("8 devices:")
