"""Preparing sets that tensorflow-datasets knows, and saying at once where that cannot work."""

import contextlib
import importlib.util
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grood_jax.data.tfds import quiet_tfds
from grood_jax.support.errors import UserError, first_line

CONNECT_SECONDS = 4.0
"""How long a host, or a proxy before it, has to accept a connection."""
ANSWER_SECONDS = 8.0
"""How long all hosts together have to answer, name look-ups included."""


def obstacles(datasets: Iterable[str], data_dir: Path) -> dict[str, list[str]]:
    """Why sets cannot be downloaded and prepared, as far as it can be known beforehand.

    Their hosts are asked at once, through the proxy that the environment names, if any:
    tensorflow-datasets would try a dead one for minutes, and find out that TensorFlow is missing
    only after the download.

    Args:
      datasets: names in tensorflow-datasets' catalogue.
      data_dir: the folder of all prepared sets.

    Returns:
      For each set that cannot be prepared the reasons, each with what to do about it.
    """
    hosts: dict[str, dict[str, str]] = {}
    listed: dict[str, list[str]] = {}
    for dataset in dict.fromkeys(datasets):
        try:
            urls = _builder(dataset, data_dir).url_infos or {}
        except Exception as error:
            # An unknown set, or one whose code needs a package that is not there.
            listed[dataset] = [
                f"tensorflow-datasets cannot prepare it: {first_line(error).rstrip('.')}"
            ]
        else:
            hosts[dataset] = {urllib.parse.urlsplit(url).hostname or url: url for url in urls}
    silent = _silent({host: url for urls in hosts.values() for host, url in urls.items()})
    for dataset, urls in hosts.items():
        reasons = [silent[host] for host in urls if host in silent]
        if not _tensorflow_installed():
            reasons.append(
                "TensorFlow, which prepares it, is not installed (pip install tensorflow)"
            )
        if reasons:
            listed[dataset] = reasons
    return listed


def how_to_download(datasets: Iterable[str], data_dir: Path) -> str:
    """What a user does to have sets of tensorflow-datasets' catalogue downloaded, in one line."""
    first = "" if _tensorflow_installed() else "pip install tensorflow and "
    listed = ", ".join(f"{name} ({_size(name, data_dir)})" for name in dict.fromkeys(datasets))
    return f"{first}run again with --download, which fetches {listed}"


def prepare(dataset: str, data_dir: Path) -> None:
    """Downloads and prepares a set of the catalogue, as ArrayRecord; progress goes to stderr.

    Args:
      dataset: its name in tensorflow-datasets' catalogue.
      data_dir: the folder of all prepared sets.

    Raises:
      UserError: there is an obstacle, or tensorflow-datasets fails.
    """
    reasons = obstacles([dataset], data_dir).get(dataset)
    if reasons is not None:
        raise UserError(
            f"{dataset} cannot be downloaded: {'; '.join(reasons)}; or copy a prepared {dataset} "
            f"to {data_dir / dataset}"
        )
    # tensorflow-datasets prints to stdout, which belongs to the results.
    with quiet_tfds(), contextlib.redirect_stdout(sys.stderr):
        try:
            _builder(dataset, data_dir).download_and_prepare()
        except Exception as error:
            # It raises whatever its many download back ends raise.
            raise UserError(f"{dataset} could not be prepared: {first_line(error)}") from error


def _builder(dataset: str, data_dir: Path) -> Any:
    with quiet_tfds() as tfds:
        return tfds.builder(dataset, data_dir=str(data_dir), file_format="array_record")


def _tensorflow_installed() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _size(dataset: str, data_dir: Path) -> str:
    """How much is downloaded for a set."""
    size = sum(info.size for info in (_builder(dataset, data_dir).url_infos or {}).values())
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _silent(urls: Mapping[str, str]) -> dict[str, str]:
    """The hosts that cannot be used, of an address each, with what is wrong."""
    reasons = {host: _unreachable(host, f"no answer in {ANSWER_SECONDS:g} s") for host in urls}

    def ask(host: str, url: str) -> None:
        reason = _wrong(host, url)
        if reason is None:
            reasons.pop(host)
        else:
            reasons[host] = reason

    # A name look-up knows no timeout: threads that nobody has to wait for.
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in urls.items()]
    deadline = time.monotonic() + ANSWER_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(reasons)


def _wrong(host: str, url: str) -> str | None:
    """Why an address cannot be read, or None if it can."""
    # As tensorflow-datasets does it, so that proxies and certificates are the same.
    import requests

    if not url.startswith("http"):
        return None
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, ANSWER_SECONDS)) as answer:
            return None if answer.ok else f"{host} answers HTTP {answer.status_code} for {url}"
    except requests.exceptions.ProxyError as error:
        return _unreachable(host, f"the proxy that the environment names fails: {_cause(error)}")
    except requests.exceptions.Timeout:
        return _unreachable(host, f"no answer in {CONNECT_SECONDS:g} s")
    except (requests.RequestException, OSError) as error:
        return _unreachable(host, _cause(error))


def _unreachable(host: str, why: str) -> str:
    return f"{host} cannot be reached ({why}; check the network and the proxy)"


def _cause(error: BaseException) -> str:
    """The innermost error's own words: requests wraps a refused connection five times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
