"""Strict JAX, runtime shape checks, eight fake devices, bounded memory, and the prepared data."""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# What one test has compiled need not be compiled again by others, nor by the commands they start.
# Before JAX is imported; the processes that tests are divided over inherit it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="grood-jax-compiled-")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    # Or the folder would be part of a program's name, and no other process would know it.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
else:
    # A folder each: JAX writes in place, and another process may read what is half written. What
    # is whole is taken over by `_take_compiled`.
    _own = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / os.environ["PYTEST_XDIST_WORKER"]
    _own.mkdir(parents=True, exist_ok=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_own)

import jax
import pytest
from jaxtyping import config, install_import_hook

# Of this process alone: commands that run beside each other write less.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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


@pytest.fixture(scope="session")
def openood_data() -> Path:
    """A sample of real images in OpenOOD's layout, 200 a set."""
    return _shared("data/openood")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; tests that ask for it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    names = ("chromium", "chromium-browser", "chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


local_devices = jax.local_devices
GROWTH = 400 * 2**20
"""Bytes by which a process may grow before it forgets what it has compiled."""
_kept = {"bytes": 0}
_taken = {"at": 0.0}


def _first_device(*given, **named):
    return local_devices(*given, **named)[:1]


@pytest.fixture(scope="module", autouse=True)
def _one_device(request):
    """What divides its work over all devices finds one: each program then compiles faster.

    Modules and tests with the mark ``devices`` are about that division, and have all eight.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("devices") is None:
            patch.setattr(jax, "local_devices", _first_device)
        yield


@pytest.fixture(autouse=True)
def _all_devices(request, monkeypatch):
    if request.node.get_closest_marker("devices") is not None:
        monkeypatch.setattr(jax, "local_devices", local_devices)


LONGEST = ("test_notebooks", "test_processes", "test_taken_up", "test_deployment", "test_docs")
"""Files of which one test may take a minute: where they come last, one core waits for the other."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: to look for cycles in it takes a tenth of all."""
    gc.freeze()
    gc.set_threshold(50_000)


def _resident() -> int:
    """Bytes that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def pytest_runtest_setup() -> None:
    """What another process has compiled is taken over, every few seconds."""
    now = time.time()
    if "PYTEST_XDIST_WORKER" in os.environ and now > _taken["at"] + 3:
        _taken["at"] = now
        own = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
        known = {path.name for path in own.iterdir()}
        for path in own.parent.glob("gw*/*-cache"):
            # A younger one may be half written.
            if path.name not in known and path.stat().st_mtime < now - 2:
                with contextlib.suppress(FileExistsError):
                    (own / path.name).hardlink_to(path)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Thousands of compiled programs would take gigabytes."""
    _kept["bytes"] = _kept["bytes"] or _resident()
    if _resident() > _kept["bytes"] + GROWTH:
        jax.clear_caches()
        gc.collect()
        # The C library keeps what was freed until it is asked for it.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        _kept["bytes"] = _resident()


@pytest.fixture(scope="module")
def bounded():
    """Small and narrow banks are searched by bounds, as large ones are."""
    from grood_jax.neighbors import building, searching

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "FEW_ROWS", 64)
        for module in (building, searching):
            patch.setattr(module, "FEW_NUMBERS", 64)
        patch.setattr(building, "FEW_COLUMNS", 0)
        jax.clear_caches()
        yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    """A key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the runtime type checks that the tests add: a user does not have them."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """A folder of all test processes, which the first that asks for it fills."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name, make):
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                done.write_text(json.dumps(make(folder)))
        return folder, json.loads(done.read_text())

    return made


@pytest.fixture(scope="session")
def digits(once):
    """Where the default command has run, and what it printed."""

    def run(folder):
        done = subprocess.run(
            [sys.executable, "-m", "grood_jax.eval"], cwd=folder, capture_output=True, text=True
        )
        return done.args, done.returncode, done.stdout, done.stderr

    folder, said = once("digits", run)
    done = subprocess.CompletedProcess(*said)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="session")
def digits_checkpoint(tmp_path_factory) -> Path:
    """The network that comes with the package, as a checkpoint of a finished training run."""
    from grood_jax.storage import checkpoints, included

    directory = tmp_path_factory.mktemp("checkpoints") / "digits-small-seed0"
    loaded = included.digits()
    with checkpoints.manager(directory) as manager:
        checkpoints.save(manager, loaded.step, loaded.model, loaded.spec, record=loaded.record)
    return directory
