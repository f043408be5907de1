"""What had another name before the package had rooms is known by it still."""

import importlib
import subprocess
import sys

import pytest

from grood_jax.support.moved import MOVED, current_name


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module_of_today(old):
    new = importlib.import_module(f"grood_jax.{MOVED[old]}")
    spec = new.__spec__
    sys.modules.pop(f"grood_jax.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"grood_jax.{old} has moved to grood_jax."):
        assert importlib.import_module(f"grood_jax.{old}") is new
    assert new.__spec__ is spec


def test_names_of_today_stay_as_they_are():
    for name in ("grood_jax.maths.metrics", "grood_jax.benchmarks.files", "numpy.linalg", "files"):
        assert current_name(name) == name
    assert current_name("grood_jax.report.page") == "grood_jax.evaluation.report.page"


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="grood_jax.nothing"):
        importlib.import_module("grood_jax.nothing")


def test_a_script_of_before_runs():
    program = (
        "from grood_jax import harness, checkpoints; from grood_jax.outputs import Outputs; "
        "from grood_jax.report.curves import roc; print(harness.__name__)"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "grood_jax.evaluation.fitting"), (
        done.stderr
    )
