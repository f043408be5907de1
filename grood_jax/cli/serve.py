"""The command line of the HTTP service: ``python -m grood_jax.serve``."""

import gc
import importlib.util
import math
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from grood_jax.cli import command
from grood_jax.deploying.serving.limits import Limits
from grood_jax.support import checks, missing
from grood_jax.support.errors import UserError
from grood_jax.support.progress import tell

if TYPE_CHECKING:
    from grood_jax.deploying.serving.servable import Servable

DESCRIPTION = """Serves a classifier over HTTP: POST an image or an array to /predict, or drop an
image on the page at /. SIGTERM and SIGINT stop it when all that was accepted is answered. The
directory is one of python -m grood_jax.fit."""

PACKAGES = ("starlette", "uvicorn", "prometheus_client", "python_multipart")


@dataclass(frozen=True)
class ServeConfig:
    """What is served, and where.

    Attributes:
      directory: the directory of a classifier, as python -m grood_jax.fit writes it.
      host: the address to listen at; 0.0.0.0 is all of this machine's.
      port: the port to listen at; 0 takes a free one.
      model: the function that makes the network, if the directory was fitted on one of your own:
        package.module:function, or path/to/file.py:function.
      limits: what is taken from strangers.
    """

    directory: tyro.conf.Positional[Path] = tyro.MISSING
    host: str = "127.0.0.1"
    port: int = 8000
    model: str | None = None
    limits: tyro.conf.OmitArgPrefixes[Limits] = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Checks the port.

        Raises:
          TypeError: the port is no integer.
          ValueError: there is no such port.
        """
        checks.function("model", self.model)
        if checks.at_least("port", self.port, 0) > 65535:
            raise ValueError(f"port is {self.port}; expected at most 65535")


def run(config: ServeConfig) -> None:
    """Loads the classifier and serves it until a signal comes.

    Raises:
      UserError: what a user can mend: a port in use, no deployed classifier, missing packages.
    """
    from grood_jax.deploying import deployment

    serve(
        lambda: deployment.load(config.directory, config.model),
        config.host,
        config.port,
        config.limits,
    )


def serve(load: Callable[[], "Servable"], host: str, port: int, limits: Limits) -> None:
    """Serves a model until a signal comes and all that was accepted is answered.

    Args:
      load: makes the model; called when the port is known to be free.
      host: the address to listen at.
      port: the port to listen at.
      model: the function that makes the network, if the directory was fitted on one of your own:
        package.module:function, or path/to/file.py:function.
      limits: what is taken from strangers.

    Raises:
      UserError: the port is in use, the host unknown, or packages are missing.
    """
    absent = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if absent:
        raise UserError(f"serving needs packages that are missing: {missing.command(*absent)}")
    import uvicorn

    from grood_jax.deploying.serving.app import create_app
    from grood_jax.deploying.serving.connections import Connection

    with _bind(host, port) as listener:
        app = create_app(load(), limits)
        where, number = listener.getsockname()[:2]
        address = f"http://[{where}]:{number}" if ":" in where else f"http://{where}:{number}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                tell("compiling")
                await super().startup(sockets)
                # What JAX has made is here to stay. Looked through for garbage again and again,
                # it would hold up everybody for a fifth of a second each time.
                gc.collect()
                gc.freeze()
                tell(f"ready at {address}")

        class Timed(Connection):
            begin_seconds = limits.body_timeout
            end_seconds = 2 * limits.body_timeout + limits.timeout

        server = Server(
            uvicorn.Config(
                app,
                http=Timed,
                ws="none",
                lifespan="on",
                log_config=None,
                # Strangers could fill the log with warnings of what they send.
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # Longer than anything accepted can take; a client that never reads does not count.
                timeout_graceful_shutdown=math.ceil(limits.body_timeout + limits.timeout) + 1,
            )
        )
        # uvicorn handles the signals itself, and raises them again when it is done: stopping as
        # told is no failure.
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, lambda *_: setattr(server, "should_exit", True))
        server.run([listener])
    batcher = app.state.batcher
    tell(f"stopped: {batcher.accepted} requests accepted, {batcher.answered} answered")


def _bind(host: str, port: int) -> socket.socket:
    """Takes a port before anything slow is done."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # Else the port would stay taken for a minute after the service has stopped.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # At once, for two that are bound and do not listen yet would share the port; connections
        # wait until everything is compiled.
        listener.listen()
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
    return listener


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    config = command.parse(ServeConfig(), "grood_jax.serve", DESCRIPTION, argv)
    return command.status(lambda: run(config))
