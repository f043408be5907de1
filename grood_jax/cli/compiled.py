"""Compiled programs, kept between runs of the command lines.

They lie in ``grood-jax/compiled`` of the user's cache directory: ``$XDG_CACHE_HOME`` or
``~/.cache``, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows. JAX's own
``JAX_COMPILATION_CACHE_DIR`` names another place, or none where it is empty.
"""

import contextlib
import os
import platform
import sys
import zlib
from pathlib import Path

LIMIT = 2**29
"""Bytes that are kept; where there are more, what was used last stays, up to half as many."""

SECONDS = 0.1
"""Of compiling: what takes less is compiled again."""


def keep_compiled() -> None:
    """Lets JAX keep what it compiles, and find it, unless the environment says otherwise.

    Where the directory cannot be made or written, nothing is kept and nothing is said.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "grood-jax" / "compiled" / _processor()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return
        shrink(folder, LIMIT)
    except (OSError, RuntimeError):
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)


def cache_folder() -> Path:
    """The user's cache directory, by the conventions of the platform.

    Raises:
      RuntimeError: the user has no home.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    name = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    given = Path(os.environ.get(name, ""))
    # The convention: a relative path is ignored.
    return given if given.is_absolute() else Path.home() / ".cache"


def shrink(folder: Path, limit: int) -> None:
    """Removes files until half of ``limit`` bytes are left, if there are more than ``limit``.

    JAX would count them each time it adds one, and need the package filelock for that.

    Args:
      folder: searched with all its subfolders.
      limit: bytes.
    """
    files = []
    for path in folder.rglob("*"):
        # Another command may be at it too.
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if path.is_file():
                files.append((max(about.st_atime, about.st_mtime), about.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= limit // 2:
            break
        path.unlink(missing_ok=True)
        total -= size


def _processor() -> str:
    """Kinds of processor do not share programs: hosts of several kinds may share a home."""
    features = ""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            features = next((s for s in lines if s.startswith(("flags", "Features"))), "")
    return f"{platform.machine() or 'any'}-{zlib.crc32(features.encode()):08x}"
