"""An evaluation that was killed goes on: its figures are those of one that was not."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from companions import environment, figures, free_port

from grood_jax.cli import eval, fit
from grood_jax.deploying import deployment
from grood_jax.passes import parts
from grood_jax.storage.parts import PartsFolder

PROGRAM = Path(__file__).with_name("killed_process.py")
WORDS = ["--limit", "200", "--batch-size", "32", "--no-report"]
WORDS += ["--detectors", "grood:interpolate=true,interpolate_classes=1", "react"]


def start(folder, kill, count):
    """Exit statuses of all processes, and what they said."""
    words = [*WORDS, "--output-dir", folder / "killed", "--cache-dir", folder / "cache"]
    port, running = free_port(), []
    for index in range(count):
        together = ["--distributed", "--coordinator", f"127.0.0.1:{port}"]
        together += ["--num-processes", count, "--process-id", index]
        command = [sys.executable, PROGRAM, kill, *words, *(together if count > 1 else [])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        running.append(subprocess.Popen(list(map(str, command)), env=environment(), **pipes))
    try:
        said = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [process.returncode for process in running], "".join(said)


def taken_up(said):
    return re.findall(r"^(.+): taken up at row (\d+) of 200$", said, re.MULTILINE)


@pytest.mark.slow
def test_an_evaluation_killed_while_it_writes_parts_goes_on(tmp_path):
    assert eval.main([*WORDS, "--output-dir", str(tmp_path)]) == 0
    killed = -9
    # Parts have 64 rows; the first has been written when its sums are to be.
    steps = [
        (2, 1, []),
        (3, 1, []),
        (2, 2, [("training set", "64")]),
        (0, 1, None),
    ]
    for kill, count, expected in steps:
        codes, said = start(tmp_path, kill, count)
        assert codes == [killed if kill else 0] * count, said
        if expected is not None:
            assert taken_up(said) == expected, said
    # Parts and sums of two processes, of which neither had written its second.
    assert [name for name, _ in taken_up(said)] == ["training set"]
    assert figures(tmp_path / "killed") == figures(tmp_path)
    assert all(path.suffix == ".npz" for path in (tmp_path / "cache").iterdir())


class Killed(BaseException):
    """What ends a fit where a process would have been killed."""


@pytest.mark.slow
def test_a_fit_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "PART_ROWS", 64)
    monkeypatch.setattr(parts, "SUMS_SHARE", 1e9)
    write, left = PartsFolder.write, iter(range(100))

    def killing(self, name, facts, arrays):
        if next(left) == 4:
            raise Killed
        write(self, name, facts, arrays)

    words = ["--limit", "200", "--batch-size", "32"]
    words += ["--detector", "grood:interpolate=true,interpolate_classes=1"]
    assert fit.main([*words, "--output-dir", str(tmp_path / "undisturbed")]) == 0
    cached = [*words, "--cache-dir", str(tmp_path / "cache"), "--output-dir", str(tmp_path / "own")]
    monkeypatch.setattr(PartsFolder, "write", killing)
    with pytest.raises(Killed):
        fit.main(cached)
    capsys.readouterr()
    assert fit.main(cached) == 0
    said = capsys.readouterr().err
    assert taken_up(said) == [("training set", "128")] and "mix-up" in said
    # A third one runs no network over training images, of which it reads a batch for their shape.
    assert fit.main(cached) == 0
    assert "mix-up" not in capsys.readouterr().err
    made, expected = (
        deployment.load(tmp_path / name).classifier.take_apart()[0]
        for name in ("own", "undisturbed")
    )
    assert made.keys() == expected.keys()
    for name, array in made.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
