"""The command line of the service."""

import importlib.util

import pytest

from grood_jax.cli import command, serve
from grood_jax.deploying.serving.limits import Limits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing from python -m grood_jax.serve: PATH"),
        (["here", "--port", "65536"], "port is 65536; expected at most 65535"),
        (["here", "--max-batch", "0"], "max_batch is 0; expected at least 1"),
        (["here", "--max-queue", "63"], "max_queue is 63; expected at least 64"),
        (["here", "--timeout", "0"], "timeout is 0.0"),
        (["here", "--body-timeout", "nan"], "body_timeout is nan"),
        (["here", "--workers", "2"], "workers"),
    ],
)
def test_bad_usage(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        serve.main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_help_names_the_limits(capsys):
    with pytest.raises(SystemExit) as stop:
        serve.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--host", "--port", "--max-body", "--max-pixels", "--max-queue", "(413)"):
        assert word in shown


def attempt(capsys, host="127.0.0.1"):
    """The line with which serving fails; no model is loaded for that."""

    def load():
        raise AssertionError("loaded")

    assert command.status(lambda: serve.serve(load, host, 0, Limits())) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_missing_packages(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    line = attempt(capsys)
    assert line == "error: serving needs packages that are missing: pip install uvicorn"


def test_an_unknown_host(capsys):
    assert "cannot listen at no.such.host.invalid" in attempt(capsys, "no.such.host.invalid")
