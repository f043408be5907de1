"""Compiled programs are kept between runs of the command lines, and of nothing else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grood_jax.cli import compiled
from grood_jax.cli.main import COMMANDS

PROGRAM = """
import json
import grood_jax, jax
grood_jax.nearest_distances
before = jax.config.jax_compilation_cache_dir
from grood_jax.cli import command
code = command.status(lambda: jax.jit(lambda x: x + 1)(1.0).block_until_ready())
print(json.dumps([code, before, jax.config.jax_compilation_cache_dir]))
"""


def outcome(**env: str | None) -> list:
    """Exit status, and JAX's directory before and after a command."""
    given = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    given.pop("JAX_COMPILATION_CACHE_DIR", None)
    given |= {name: value for name, value in env.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=given, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.skipif(sys.platform != "linux", reason="by the convention of Linux")
def test_a_command_keeps_what_it_compiles_in_the_users_cache(tmp_path):
    code, before, after = outcome(XDG_CACHE_HOME=str(tmp_path))
    assert (code, before) == (0, None)
    assert Path(after).parent == tmp_path / "grood-jax" / "compiled"
    assert files(Path(after))


@pytest.mark.parametrize("name", ["", "elsewhere"])
def test_the_environment_decides(tmp_path, name):
    given = str(tmp_path / name) if name else ""
    code, before, after = outcome(
        XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_COMPILATION_CACHE_DIR=given
    )
    assert (code, before, after) == (0, given, given)
    assert not (tmp_path / "cache").exists()
    assert bool(files(tmp_path)) == bool(name)


def test_a_directory_that_cannot_be_made_is_no_matter(tmp_path):
    (tmp_path / "grood-jax").write_text("in the way")
    assert outcome(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path)) == [0, None, None]


def test_all_commands_go_by_the_same_way():
    folder = Path(compiled.__file__).parent
    for name in COMMANDS:
        source = (folder / f"{name.replace('-', '_')}.py").read_text()
        assert "command.status(" in source[source.index("def main(") :]


@pytest.mark.parametrize(
    ("platform", "env", "expected"),
    [
        ("linux", {}, "~/.cache"),
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches"),
        ("linux", {"XDG_CACHE_HOME": "caches"}, "~/.cache"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "~/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "/Local"}, "/Local"),
    ],
)
def test_the_users_cache_directory(monkeypatch, platform, env, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert compiled.cache_folder() == Path(expected).expanduser()


def test_what_was_used_last_stays(tmp_path):
    (tmp_path / "inner").mkdir()
    for age in range(10):
        path = tmp_path / "inner" / f"{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    compiled.shrink(tmp_path, 1000)
    assert len(files(tmp_path)) == 10
    compiled.shrink(tmp_path, 999)
    assert sorted(files(tmp_path)) == [f"{age}-cache" for age in range(4)]


def grood(*words: str) -> subprocess.CompletedProcess:
    """What the command ``grood`` does, and which of our modules it loads."""
    program = (
        "import atexit, sys; from grood_jax.cli.main import main; "
        "atexit.register(lambda: print(sorted(m for m in sys.modules if 'x.cli' in m))); "
        f"sys.exit(main({list(words)}))"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


def test_grood_lists_its_commands_and_loads_none():
    done = grood("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{text}$", done.stdout, re.MULTILINE)
    assert "['grood_jax.cli', 'grood_jax.cli.main']" in done.stdout


def test_grood_says_its_version():
    done = grood("--version")
    assert done.returncode == 0
    assert re.match(r"grood-jax \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_grood_hands_over_to_the_chosen_command(name):
    done = grood(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    module = {"import-torch": "models.import_torch", "convert": "data.convert"}.get(name, name)
    # The earlier name of the package's report is not free for a door.
    usage = f"grood {name}" if name in ("compare", "report") else f"python -m grood_jax.{module}"
    assert f"usage: {usage}" in done.stdout
    assert f"grood_jax.cli.{name.replace('-', '_')}'" in done.stdout


def test_grood_hands_on_the_status_of_bad_usage():
    assert grood("eval", "--dataset", "nothing").returncode == 2
    for words in ((), ("evaluate",)):
        done = grood(*words)
        assert done.returncode == 2
        assert "import-torch" in done.stdout + done.stderr
