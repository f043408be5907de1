"""A real server on a real port: hostile connections, and stopping under load."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from conftest import encode
from fake_server import SIZE

pytestmark = pytest.mark.slow

REQUEST = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n%b"
)


@pytest.fixture(scope="module")
def child(start_child):
    return start_child()


def say(child, *parts, pause=0.0, seconds=10):
    """All that the server sends back until it closes the connection."""
    with socket.create_connection(child.address, timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
        return found


def status_and_error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_what_is_no_http_is_refused_in_json(child):
    status, error = status_and_error(say(child, b"\x16\x03\x01 no HTTP\r\n\r\n"))
    assert (status, error) == (400, "Invalid HTTP request received.")


def test_a_chunk_that_breaks_the_rules(child):
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    answer = say(child, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert status_and_error(answer)[0] == 400


def test_a_body_that_never_ends_is_refused_in_time(child):
    start = time.monotonic()
    status, error = status_and_error(say(child, REQUEST[:-2] % 100 + b"x"))
    assert (status, error) == (408, "the body took longer than 1 s")
    assert 0.8 < time.monotonic() - start < 5


@pytest.mark.parametrize("start", [b"", b"POST /predict HTTP/1.1\r\nX-Slow: "])
def test_a_request_that_never_begins_is_cut_off(child, start):
    assert say(child, start, seconds=5) == b""


def test_after_a_refused_body_the_connection_goes_on_but_not_for_ever(child):
    # The rest of a refused body is read and dropped: the client hears why, and may ask again.
    head = REQUEST[:-2] % (9 * 2**20)
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = say(child, head, *[b"x" * 2**20] * 9, health)
    assert answer.startswith(b"HTTP/1.1 413") and answer.endswith(b'{"status":"ok"}')
    # Who goes silent within it is cut off, though.
    assert say(child, head, b"x", pause=0.1, seconds=5).count(b"HTTP/1.1") == 1


def test_a_client_that_does_not_read_is_cut_off(start_child):
    child = start_child("0", "0.5")
    with socket.socket() as connection:
        # More answers than the buffers between hold.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(child.address)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        time.sleep(3.5)
        found = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                found += piece.count(b"HTTP/1.1 200")
    assert found < 1900


def test_a_port_in_use(child):
    program = (
        "import sys; from fake_server import *; "
        f"run = lambda: serve.serve(FakeModel, '127.0.0.1', {child.address[1]}, serve.Limits()); "
        "sys.exit(command.status(run))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=__file__[:-13]
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"cannot listen at 127.0.0.1, port {child.address[1]}: Address already in use" in line


async def ask_until_refused(address, content, counts):
    """One client after the other's answer: counts statuses, and requests that got no answer."""
    request = REQUEST % (len(content), content)
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return
    try:
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            json.loads(await reader.readexactly(length))
            counts[int(head.split()[1])] += 1
    except asyncio.IncompleteReadError as error:
        # Half an answer would be a lost one; none is a request that was not accepted.
        counts["half" if error.partial else "closed"] += 1
    except ConnectionError:
        counts["closed"] += 1
    finally:
        writer.close()


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_stopping_under_load_loses_nothing_that_was_accepted(start_child, told):
    # A batch takes long enough that requests are on the device and in the queue at the stop.
    child = start_child("0.05", "20")
    content = encode(np.zeros((SIZE, SIZE, 3), np.uint8))
    counts = Counter()

    async def load():
        clients = [
            asyncio.create_task(ask_until_refused(child.address, content, counts))
            for _ in range(40)
        ]
        await asyncio.sleep(0.7)
        stopped = await asyncio.to_thread(child.stop, told)
        await asyncio.wait_for(asyncio.gather(*clients), 10)
        return stopped

    status, said = asyncio.run(load())
    assert status == 0, said
    assert counts[200] > 40
    assert set(counts) <= {200, "closed"}
    # The server's own count: whatever it took, its client got the answer of.
    assert f"stopped: {counts[200]} requests accepted, {counts[200]} answered" in said


def test_stopping_waits_for_a_body_that_is_on_its_way(start_child):
    child = start_child()
    content = encode(np.zeros((SIZE, SIZE, 3), np.uint8))
    request = REQUEST % (len(content), content)
    with socket.create_connection(child.address, timeout=10) as connection:
        connection.sendall(request[:-10])
        time.sleep(0.2)
        child.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(request[-10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert child.process.wait(10) == 0
