"""Processes that tests start beside each other."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import grood_jax


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment():
    """That of this process, where the same package is found."""
    root = str(Path(grood_jax.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def run_both(program, folder, seconds):
    """Exit statuses of ``PROGRAM NUMBER PORT FOLDER`` for 0 and 1; ``NUMBER.log`` has the rest."""
    port, started = free_port(), []
    command = [sys.executable, Path(__file__).with_name(program)]
    try:
        for number in (0, 1):
            words = [*command, str(number), str(port), folder]
            with (folder / f"{number}.log").open("w") as log:
                started.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment()))
        return [process.wait(timeout=seconds) for process in started]
    finally:
        for number, process in enumerate(started):
            process.kill()
            process.wait()
            # Seen only where the test fails.
            print((folder / f"{number}.log").read_text())


def figures(folder):
    """What is in results.json, without what every run has anew."""
    found = json.loads((folder / "results.json").read_text())
    for detector in found["detectors"].values():
        del detector["fit_seconds"], detector["score_seconds_per_image"]
    for name in ("command", "device", "peak_memory_bytes"):
        del found[name]
    return found
