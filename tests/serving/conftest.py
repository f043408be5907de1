"""The service in this process without a network, and as a process of its own."""

import asyncio
import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_server import SIZE, FakeModel
from PIL import Image

pytest.importorskip("starlette", reason="needs pip install -e '.[serve]'")
httpx = pytest.importorskip("httpx", reason="needs pip install httpx")

from grood_jax.deploying.serving.app import create_app  # noqa: E402


class Client:
    """Asks an application, on an event loop of its own."""

    def __init__(self, app):
        self.app = app
        self._runner = asyncio.Runner()
        self._lifespan = app.router.lifespan_context(app)
        self._runner.run(self._lifespan.__aenter__())
        # What the application raises is an answer of status 500 here too.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://service")

    def ask(self, method, path, **more):
        return self._runner.run(self._client.request(method, path, **more))

    def predict(self, content, kind="application/octet-stream", query=""):
        return self.ask("POST", f"/predict{query}", content=content, headers={"Content-Type": kind})

    def together(self, *requests):
        """Sends several at the same time."""

        async def gather():
            return await asyncio.gather(*(self._client.request(**one) for one in requests))

        return self._runner.run(gather())

    def close(self):
        self._runner.run(self._client.aclose())
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture
def serve_in_process():
    """Makes a client of a model; all are closed at the end."""
    with contextlib.ExitStack() as stack:

        def start(model=None, limits=None):
            client = Client(create_app(model or FakeModel(), limits))
            stack.callback(client.close)
            return client

        yield start


@dataclass
class Child:
    """A server process, ready."""

    process: subprocess.Popen
    url: str

    @property
    def address(self):
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def stop(self, signal_number):
        """Sends a signal; returns the exit status and what was said since."""
        self.process.send_signal(signal_number)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


@pytest.fixture(scope="module")
def start_child():
    """Starts server processes; all are gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(*words):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("fake_server.py")), *words],
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            for line in process.stderr:
                if line.startswith("ready at "):
                    return Child(process, line.split()[-1])
            raise RuntimeError("the server did not start")

        yield start


def encode(pixels, form="PNG", **options):
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def even():
    """An image in distribution, of class silver."""
    return np.full((SIZE, SIZE, 3), 170, np.uint8)


@pytest.fixture(scope="session")
def noisy():
    """An image out of distribution."""
    return np.random.default_rng(0).choice([0, 255], (SIZE, SIZE, 3)).astype(np.uint8)
