"""Downloads that cannot work say so at once. No test reaches beyond this machine."""

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grood_jax.data import download
from grood_jax.support.errors import UserError


@pytest.fixture(autouse=True)
def plain_surroundings(monkeypatch):
    """No proxy, TensorFlow at hand, and no patience."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(download, "_tensorflow_installed", lambda: True)
    monkeypatch.setattr(download, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 2.0)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.fixture
def web() -> Iterator[str]:
    """A server that has /there and nothing else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/there" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/there"


@pytest.fixture
def catalogue(monkeypatch) -> Callable[..., None]:
    """Stands in for tensorflow-datasets: sets by name, with the addresses of their files."""

    def install(prepare: Callable[[], None] = lambda: None, **urls: str | list[str]) -> None:
        def builder(dataset: str, data_dir: Path) -> Any:
            listed = urls[dataset]
            listed = [listed] if isinstance(listed, str) else listed
            infos = {url: SimpleNamespace(size=1_500_000) for url in listed}
            return SimpleNamespace(url_infos=infos, download_and_prepare=prepare)

        monkeypatch.setattr(download, "_builder", builder)

    return install


def test_no_obstacle(catalogue, web, tmp_path):
    catalogue(here=f"{web}/there", nowhere=[])
    assert download.obstacles(["here", "nowhere"], tmp_path) == {}


def test_a_refused_connection(catalogue, closed_port, tmp_path):
    catalogue(toy=f"http://127.0.0.1:{closed_port}/file")
    assert download.obstacles(["toy"], tmp_path) == {
        "toy": ["127.0.0.1 cannot be reached (Connection refused; check the network and the proxy)"]
    }


def test_a_missing_file(catalogue, web, tmp_path):
    catalogue(toy=f"{web}/gone")
    assert download.obstacles(["toy"], tmp_path) == {
        "toy": [f"127.0.0.1 answers HTTP 404 for {web}/gone"]
    }


def test_a_host_that_never_answers(catalogue, mute, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.1)
    catalogue(toy=mute)
    before = set(threading.enumerate())
    (reason,) = download.obstacles(["toy"], tmp_path)["toy"]
    assert reason.startswith("127.0.0.1 cannot be reached (no answer in ")
    # The connection is given up, and not only left behind.
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_an_unknown_host(catalogue, tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    catalogue(toy="https://data.example/file")
    (reason,) = download.obstacles(["toy"], tmp_path)["toy"]
    assert reason.startswith("data.example cannot be reached (its name cannot be resolved; ")


def test_a_name_look_up_that_never_ends(catalogue, tmp_path, monkeypatch):
    """No timeout reaches the look-up: it is left behind."""
    over = threading.Event()
    patience = []

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            patience.append(timeout)
            super().join(timeout)

    def hang(*_: Any, **__: Any) -> Any:
        over.wait()
        raise socket.gaierror(-2, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(download.threading, "Thread", Thread)
    before = set(threading.enumerate())
    catalogue(one="https://one.example/file", two="https://two.example/file")
    try:
        found = download.obstacles(["one", "two"], tmp_path)
    finally:
        over.set()
    assert [reason for (reason,) in found.values()] == [
        f"{host}.example cannot be reached (no answer in 0.05 s; check the network and the proxy)"
        for host in ("one", "two")
    ]
    assert len(patience) == 2
    assert all(seconds <= 0.05 for seconds in patience)
    for thread in set(threading.enumerate()) - before:
        assert thread.daemon
        thread.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy(catalogue, closed_port, tmp_path, monkeypatch, scheme):
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:secret@127.0.0.1:{closed_port}")
    catalogue(toy=f"{scheme}://data.example/file")
    (reason,) = download.obstacles(["toy"], tmp_path)["toy"]
    assert reason == (
        "data.example cannot be reached (the proxy that the environment names fails: Connection "
        "refused; check the network and the proxy)"
    )


def test_a_proxy_that_works(catalogue, web, tmp_path, monkeypatch):
    """It is asked, and not the host, which this machine may not be able to reach itself."""
    monkeypatch.setenv("HTTP_PROXY", web)
    catalogue(toy="http://data.example/file")
    (reason,) = download.obstacles(["toy"], tmp_path)["toy"]
    # The stand-in knows no such page; what counts is who answered.
    assert reason == "data.example answers HTTP 404 for http://data.example/file"


def test_each_host_is_asked_once(catalogue, web, closed_port, tmp_path, monkeypatch):
    asked = []
    ask = download._wrong
    monkeypatch.setattr(download, "_wrong", lambda host, url: asked.append(url) or ask(host, url))
    dead = f"http://localhost:{closed_port}"
    catalogue(one=[f"{web}/there", f"{dead}/a", f"{dead}/b"], two=f"{web}/there")
    found = download.obstacles(["one", "two", "one"], tmp_path)
    assert sorted(asked) == sorted([f"{web}/there", f"{dead}/b"])
    assert list(found) == ["one"]


def test_an_unknown_set(tmp_path):
    found = download.obstacles(["no_such_set"], tmp_path)
    assert found == {
        "no_such_set": ["tensorflow-datasets cannot prepare it: Dataset no_such_set not found"]
    }


def test_missing_tensorflow_is_said_before_anything_is_downloaded(
    catalogue, web, tmp_path, monkeypatch
):
    prepared = []
    catalogue(lambda: prepared.append("toy"), toy=f"{web}/there")
    monkeypatch.setattr(download, "_tensorflow_installed", lambda: False)
    with pytest.raises(UserError, match="toy cannot be downloaded: .*pip install tensorflow"):
        download.prepare("toy", tmp_path)
    assert prepared == []


@pytest.mark.parametrize("there", [True, False])
def test_how_tensorflow_is_looked_for(monkeypatch, there):
    monkeypatch.undo()
    monkeypatch.setattr(
        download.importlib.util, "find_spec", {"tensorflow": object() if there else None}.get
    )
    assert download._tensorflow_installed() is there


def test_one_line_names_the_set_the_host_and_what_to_do(catalogue, closed_port, tmp_path):
    catalogue(toy=f"http://localhost:{closed_port}/file")
    with pytest.raises(UserError) as error:
        download.prepare("toy", tmp_path)
    assert str(error.value) == (
        "toy cannot be downloaded: localhost cannot be reached (Connection refused; check the "
        f"network and the proxy); or copy a prepared toy to {tmp_path / 'toy'}"
    )


def test_preparation_prints_to_stderr(catalogue, web, tmp_path, capsys):
    catalogue(lambda: print("Downloading and preparing"), toy=f"{web}/there")
    download.prepare("toy", tmp_path)
    assert capsys.readouterr() == ("", "Downloading and preparing\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError("Not enough disk space\nNeeded: 3 GB"), "Not enough disk space"),
        (ImportError("No module named 'scipy'"), "No module named 'scipy'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_failure_of_tensorflow_datasets_is_one_line(catalogue, web, tmp_path, raised, said):
    def fail() -> None:
        raise raised

    catalogue(fail, toy=f"{web}/there")
    with pytest.raises(UserError) as error:
        download.prepare("toy", tmp_path)
    assert str(error.value) == f"toy could not be prepared: {said}"
    assert error.value.__cause__ is raised


@pytest.mark.parametrize(
    ("tensorflow", "expected"),
    [
        (True, "run again with --download, which fetches one (2 MB), two (3.0 GB)"),
        (
            False,
            "pip install tensorflow and run again with --download, which fetches one (2 MB), "
            "two (3.0 GB)",
        ),
    ],
)
def test_how_to_download(catalogue, tmp_path, monkeypatch, tensorflow, expected):
    monkeypatch.setattr(download, "_tensorflow_installed", lambda: tensorflow)
    catalogue(one="http://a.example/1", two=[f"http://a.example/{i}" for i in range(2000)])
    assert download.how_to_download(["one", "two", "one"], tmp_path) == expected
