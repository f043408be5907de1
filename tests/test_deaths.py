"""Processes that work together where one of them dies, is missing, or is not like the others."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from companions import environment, free_port

from grood_jax.passes import processes, runtime
from grood_jax.support.errors import UserError

PROGRAM = Path(__file__).with_name("mortal_process.py")


class Company:
    """Processes of `mortal_process`, what they write, and how they end."""

    def __init__(self, folder, numbers, count, stage):
        self.folder, port = folder, free_port()
        self.running = {}
        for number in numbers:
            words = [sys.executable, PROGRAM, number, f"127.0.0.1:{port}", folder, count, stage]
            with (folder / f"{number}.log").open("w") as log:
                self.running[number] = subprocess.Popen(
                    list(map(str, words)), stdout=log, stderr=log, env=environment()
                )

    def kill(self, number):
        while not (self.folder / "there").exists():
            assert self.running[number].poll() is None, self.said(number)
            time.sleep(0.05)
        victim = self.running.pop(number)
        victim.kill()
        victim.wait()

    def ended(self):
        """Exit statuses, and each process's lines of errors."""
        codes = {number: own.wait(timeout=120) for number, own in self.running.items()}
        return codes, {number: self.said(number) for number in codes}

    def said(self, number):
        # Gloo says on stdout who is connected.
        lines = (self.folder / f"{number}.log").read_text().splitlines()
        return [line for line in lines if not line.startswith("[Gloo]")]


@pytest.fixture
def company(tmp_path):
    started = []

    def start(*numbers, count, stage):
        started.append(Company(tmp_path, numbers, count, stage))
        return started[-1]

    yield start
    for own in started:
        for process in own.running.values():
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, victim", [("start", 2), ("pass", 2), ("search", 2), ("fit", 2), ("save", 0)]
)
def test_the_others_say_in_one_line_who_died(company, stage, victim):
    three = company(0, 1, 2, count=3, stage=stage)
    three.kill(victim)
    line = f"error: process {victim} of 3 died or cannot be reached; what it said tells why"
    others = {0, 1, 2} - {victim}
    assert three.ended() == (dict.fromkeys(others, 1), dict.fromkeys(others, [line]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, what",
    [
        ("versions", "version of jax '0.0.1', and process 0 has '"),
        ("devices", "number of devices 2, and process 0 has 1"),
    ],
)
def test_processes_that_differ_are_refused_by_all(company, stage, what):
    codes, said = company(0, 1, count=2, stage=stage).ended()
    assert codes == {0: 1, 1: 1}
    for lines in said.values():
        assert len(lines) == 1 and lines[0].startswith("error: process 1 has the " + what)
        assert lines[0].endswith("give all processes the same command, checkpoint and data")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, what",
    [
        (0, "not all of 2 processes have come"),
        (1, "does not answer ([Errno 111] Connection refused"),
    ],
)
def test_nobody_waits_for_ever_for_who_does_not_come(company, number, what):
    codes, said = company(number, count=2, stage="absent").ended()
    assert codes == {number: 1} and len(said[number]) == 1
    assert what in said[number][0] and "within 2 s (--coordinator HOST:PORT" in said[number][0]


APART = "unshare --user --map-root-user --net --mount --pid --fork --kill-child".split()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["none", "pass"])
def test_two_hosts_and_the_cable_between_them(tmp_path, stage):
    if not (shutil.which("unshare") and shutil.which("ip") and sys.platform == "linux"):
        pytest.skip("needs unshare and ip, to make networks of its own")
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user make networks of its own")
    script = PROGRAM.with_name("two_hosts.sh")
    command = [*APART, "bash", script, sys.executable, PROGRAM, tmp_path, stage]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / f"{number}.log").read_text() for number in (0, 1)]
    codes = [int((tmp_path / f"{number}.code").read_text()) for number in (0, 1)]
    if stage == "none":
        assert codes == [0, 0], logs
        return
    assert codes[0] == 1 and "error: process 1 of 2 died or cannot be reached" in logs[0]
    # Without the coordinator JAX ends it, in words of its own.
    assert codes[1] not in (0, 1) and "JAX distributed service" in logs[1]


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:http", "a:70000", ":1"])
def test_an_address_that_is_none(address):
    with pytest.raises(UserError, match=f"coordinator is '{address}'; expected HOST:PORT"):
        processes.start(address, 2, 0)


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"is 127.0.0.1:{port}, and its port is taken: "):
            runtime.meet(f"127.0.0.1:{port}", 2, 0, 1)
