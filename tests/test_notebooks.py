"""Notebooks agree with their text, hold no outputs, and run from top to bottom."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs pip install -e '.[notebooks]'")

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

# One process for several, so that JAX is imported once and programs that several run are compiled
# once. Each has a namespace and a folder of its own; they share what modules remember.
EXECUTE = """
import json
import os
import sys
import time

import matplotlib.pyplot as plt
import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

shell = InteractiveShell.instance()
for path in sys.argv[1:]:
    start, printed, warned, pictures = time.perf_counter(), "", "", 0
    name = os.path.splitext(os.path.basename(path))[0]
    os.mkdir(name)
    os.chdir(name)
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            with capture_output() as captured:
                ran = shell.run_cell(cell.source)
            printed, warned = printed + captured.stdout, warned + captured.stderr
            pictures += sum("image/png" in output.data for output in captured.outputs)
            if not ran.success:
                sys.exit(f"{name}:\\n{cell.source}\\n\\n{captured.stdout}{captured.stderr}")
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps([name, seconds, pictures, printed, warned]))
    os.chdir("..")
    plt.close("all")
    shell.reset()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "devices"),
    [(("quickstart", "your_own_model", "anatomy_of_grood"), 1), (("tpu_cifar10",), 8)],
)
def test_notebooks_run(names, devices, request, tmp_path, record_property):
    pytest.importorskip("IPython")
    settings = {
        "GROOD_SMALL": "1",
        "JAX_PLATFORMS": "cpu",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if "tpu_cifar10" in names:
        settings["TFDS_DATA_DIR"] = str(request.getfixturevalue("tfds_data"))
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, *(str(FOLDER / f"{name}.ipynb") for name in names)],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for line, expected in zip(done.stdout.splitlines(), names, strict=True):
        name, seconds, pictures, printed, warned = json.loads(line)
        record_property(f"seconds of {name}", seconds)
        print(f"{name}: {seconds} s, {pictures} pictures\n{printed}{warned}")
        assert name == expected
        assert pictures >= 1
        if name == "tpu_cifar10":
            assert printed.startswith("8 devices:")
        else:
            assert "Warning" not in warned
