"""How processes meet, tell one another short texts, and notice that one of them has died.

JAX's distributed runtime does the work: its coordination service keeps texts, and counts
heartbeats. What is here says in one line what it finds.
"""

import atexit
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import jax

from grood_jax.passes import coordinator as service
from grood_jax.support.errors import UserError, first_line

HEARTBEAT = 15
"""Seconds without a sign of life after which a process has died."""

POLL = 1.0
"""Seconds between two looks at who is alive."""

FOR_EVER_MS = 2**31 - 1
"""Of waiting for others, who may have more to do: only death ends it."""

HOW = "--coordinator HOST:PORT, --num-processes N and --process-id I name them"

_turns = itertools.count()
_watched = threading.Event()
_asking = threading.Lock()
"""Held while `_watch` asks the service: a thread that the interpreter's end finds there aborts."""


def meet(address: str | None, count: int | None, index: int | None, seconds: int) -> None:
    """Meets the other processes, unless they have met; from then on deaths are noticed.

    Args:
      address: HOST:PORT of the first process; found by JAX on TPU pods, Slurm and Open MPI, as are
        the others.
      count: how many processes there are.
      index: this one's number, from 0.
      seconds: how long to wait for the others.

    Raises:
      UserError: they cannot be found, or the address is none or taken.
    """
    if jax.distributed.is_initialized():
        return
    options: dict[str, Any] = {}
    if address is not None:
        _require_address(address)
        if index == 0 and count is not None:
            _serve(address, count)
            # JAX has the first process serve too; nobody will come to this address.
            options["coordinator_bind_address"] = "127.0.0.1:0"
    # Only this lets the others live on, and say who has died, where JAX finds the address.
    jax.config.update("jax_enable_recoverability", address is None)
    met = threading.Event()
    threading.Thread(
        target=_give_up, args=(met, address, count, index, seconds), daemon=True
    ).start()
    try:
        # Longer than we wait ourselves: JAX would end this process with a page of its own.
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=2 * seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
            **options,
        )
    except (RuntimeError, ValueError) as error:
        line = first_line(error)
        raise UserError(f"the processes cannot be brought together: {line} ({HOW})") from error
    finally:
        met.set()
    _keep_own_programs()
    _watched.set()
    threading.Thread(target=_watch, daemon=True).start()
    atexit.register(_leave)


def own_place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    from jax._src import distributed

    state = distributed.global_state
    return state.process_id, state.num_processes


def exchange(text: str) -> list[str]:
    """What every process says, in their order, once all have said something.

    Args:
      text: what this one says; short.
    """
    client, (index, _) = _client(), own_place()
    turn = next(_turns)
    place = f"grood_jax/{turn}"
    try:
        client.key_value_set(f"{place}/{index:06d}", text)
        client.wait_at_barrier(place, FOR_EVER_MS)
        said = sorted(client.key_value_dir_get(f"{place}/"))
        if turn:
            # All are here, and have read what was said before.
            client.key_value_delete(f"grood_jax/{turn - 1}/{index:06d}")
    except jax.errors.JaxRuntimeError as error:
        await_verdict()
        raise UserError(f"another process cannot be reached: {first_line(error)}") from error
    return [own for _, own in said]


def await_verdict() -> None:
    """Where something has failed that a death may have caused: does not return if one has."""
    if _watched.is_set():
        time.sleep(HEARTBEAT + 3 * POLL)


def _keep_own_programs() -> None:
    """Has JAX write what this process compiles where it keeps programs, if it keeps any.

    JAX has only the first process write, as if all had the same programs. But their names there say
    which devices they are for, but for GPUs: the others would find none, and compile in each run.
    """
    from jax._src import compilation_cache, compiler

    written = getattr(compiler, "_cache_write", None)
    if written is None or own_place()[0] == 0:
        return

    def keep(
        key: str, seconds: float, name: str, backend: Any, program: Any, callbacks: Any
    ) -> None:
        least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
        if seconds >= least and not callbacks and backend.platform != "gpu":
            compilation_cache.put_executable_and_time(key, name, program, backend, int(seconds))

    def write(*given: Any) -> None:
        written(*given)
        try:
            keep(*given)
        except Exception as error:
            # As JAX does with the first process's: no evaluation ends for this.
            warnings.warn(f"a compiled program is not kept: {first_line(error)}", stacklevel=2)

    compiler._cache_write = write  # type: ignore[assignment]


def _client() -> Any:
    # Orbax reaches the service in the same way; JAX has no public one.
    from jax._src import distributed

    return distributed.global_state.client


def _require_address(address: str) -> None:
    found = re.fullmatch(r".+:(\d{1,5})", address)
    if found is None or not 0 < int(found[1]) < 2**16:
        raise UserError(f"coordinator is {address!r}; expected HOST:PORT")


def _serve(address: str, count: int) -> None:
    """Starts the coordination service, which outlives this process."""
    port = int(address.rpartition(":")[2])
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{port}")
    with socket.socket() as probe:
        # The service itself would share the port with that of another run.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"coordinator is {address}, and its port is taken: {error}") from error
    command = [sys.executable, str(Path(service.__file__)), bound, str(count), str(HEARTBEAT)]
    # A session of its own: what interrupts this process must not end it too.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    said = process.stdout.readline().decode().strip()
    if said != "ready":
        raise UserError(f"coordinator is {address}, and cannot be served there: {said}")
    atexit.register(process.communicate, b"goodbye")


def _give_up(
    met: threading.Event, address: str | None, count: int | None, index: int | None, seconds: int
) -> None:
    """Ends this process with a line where the others have not come in time."""
    if met.wait(seconds):
        return
    missing = f"not all of {count or 'the'} processes have come"
    if address is not None and index != 0:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError as error:
            missing = f"the coordinator {address} does not answer ({error})"
    if not met.is_set():
        _end(f"{missing} within {seconds} s ({HOW}; --start-seconds has them wait longer)")


def _watch() -> None:
    """Ends this process with a line where another one has died."""
    client, (index, count) = _client(), own_place()
    everyone = set(range(count))
    while _watched.wait():
        try:
            with _asking:
                gone = everyone - set(client.get_live_nodes(sorted(everyone)))
                left = {
                    int(key.rpartition("/")[2])
                    for key, _ in client.key_value_dir_get("grood_jax/left/")
                }
        except jax.errors.JaxRuntimeError:
            # The service is gone, and JAX ends this process.
            return
        died = sorted(gone - left - {index})
        if died and _watched.is_set():
            names = ", ".join(map(str, died))
            _end(
                f"process{'es' if len(died) > 1 else ''} {names} of {count} died or "
                f"cannot be reached; what {'they' if len(died) > 1 else 'it'} said tells why"
            )
        time.sleep(POLL)


def _end(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
    # The main thread waits in compiled code, for ever.
    os._exit(1)


def _leave() -> None:
    """Takes leave, so that no other process takes this one for dead."""
    _watched.clear()
    client, (index, count) = _client(), own_place()
    if client is None:
        return
    # Never given back: nothing is asked from here on.
    _asking.acquire(timeout=HEARTBEAT)
    try:
        client.key_value_set(f"grood_jax/left/{index}", "")
        if index == 0:
            # Whoever is still there needs the service.
            deadline = time.monotonic() + HEARTBEAT
            while len(client.get_live_nodes(list(range(count)))) > 1:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL / 20)
    except jax.errors.JaxRuntimeError:
        return
    jax.distributed.shutdown()
