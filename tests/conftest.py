"""Strict JAX, runtime shape checks, eight fake devices, and the prepared data if any."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jaxtyping import config, install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
_hook = install_import_hook("grood_jax", "beartype.beartype")

SHARED = Path(os.environ.get("GROOD_SHARED", "../shared"))


def _shared(part: str) -> Path:
    folder = SHARED / part
    if not folder.is_dir():
        pytest.skip(f"no prepared data at {folder} (GROOD_SHARED says where they lie)")
    return folder.resolve()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Weights and numbers made by other programs."""
    return _shared("golden")


@pytest.fixture(scope="session")
def tfds_data() -> Path:
    """Real images, prepared for tensorflow-datasets."""
    return _shared("data/tfds")


@pytest.fixture
def key() -> jax.Array:
    """A key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the runtime type checks that the tests add: a user does not have them."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A folder in which the default command has run, and what it printed."""
    folder = tmp_path_factory.mktemp("digits")
    done = subprocess.run(
        [sys.executable, "-m", "grood_jax.eval"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, done
