"""What a results file says of how it was made: command, versions, devices, memory."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("grood-jax", "jax", "jaxlib", "flax", "numpy", "scikit-learn", "tensorflow-datasets")


def command_line(
    program: str,
    config: Any,
    *,
    always: Sequence[str] = (),
    never: Sequence[str] = (),
    folders: bool = True,
) -> str:
    """The command line that stands for a configuration, for results files.

    Args:
      program: what is run, such as ``python -m grood_jax.eval``.
      config: a dataclass; what has its default is left out.
      always: fields that are named at their defaults too.
      never: fields that are left out.
      folders: whether paths from the root are written whole; by their last part otherwise, for
        the folders of one machine say nothing on another.
    """

    def shown(value: Any) -> str:
        whole = folders or not isinstance(value, Path) or not value.is_absolute()
        return shlex.quote(str(value) if whole else value.name)

    words = [program]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in never or (value == field.default and field.name not in always):
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            several = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}", *map(shown, several)]
    return " ".join(words)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


def device(*, local: bool = False) -> str:
    """The devices that JAX computes on and the machine that they are in, in words.

    Args:
      local: of several processes, only those of this one.
    """
    import jax

    devices = jax.local_devices() if local else jax.devices()
    kind = f"{len(devices)} × {devices[0].platform} ({devices[0].device_kind})"
    return f"{kind}; {os.cpu_count()} {platform.machine()} cores, {platform.system()}"


def peak_memory_bytes() -> int | None:
    """The largest memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
