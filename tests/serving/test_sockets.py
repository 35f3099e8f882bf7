"""How a port that a library listens at is closed: nobody new, nothing lost, no waiting for ever."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from mmprod.serving.sockets import LINGER_S, hang_up, refuse_newcomers_at

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only done on Linux")


@dataclass(frozen=True)
class Pair:
    """Both ends of a connection, and what took it."""

    listener: socket.socket
    client: socket.socket
    server: socket.socket

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def fill(self) -> int:
        """Send to the client what the kernel takes. Gives the number of bytes."""
        self.server.setblocking(False)
        sent = 0
        while True:
            try:
                sent += self.server.send(bytes(65536))
            except BlockingIOError:
                return sent


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    try:
        listener = socket.create_server((request.param, 0), family=family)
    except OSError:
        pytest.skip(f"{request.param} is no address here")
    with listener, socket.create_connection(listener.getsockname()[:2], 10) as client:
        server, _ = listener.accept()
        with server:
            yield Pair(listener, client, server)


def read(client: socket.socket) -> int:
    """How many bytes come before the end."""
    count = 0
    while data := client.recv(65536):
        count += len(data)
    return count


def test_what_was_sent_arrives_before_the_end(pair: Pair) -> None:
    sent = pair.fill()
    pair.client.sendall(b"a late request")  # unread: were the socket closed, this would reset it
    closing = threading.Thread(target=lambda: asyncio.run(hang_up(pair.port, 20)))
    closing.start()
    time.sleep(0.1)
    assert closing.is_alive()
    assert read(pair.client) == sent
    with pytest.raises(BrokenPipeError):
        pair.server.send(b"more")
    pair.server.close()
    closing.join(LINGER_S / 2)
    assert not closing.is_alive()


def test_who_reads_nothing_is_waited_for_so_long(pair: Pair) -> None:
    pair.fill()
    start = time.monotonic()
    asyncio.run(hang_up(pair.port, 0.3))
    assert 0.3 <= time.monotonic() - start < 0.3 + LINGER_S
    pair.fill()  # it has not ended: that would raise


def test_who_does_not_close_is_waited_for_a_moment(pair: Pair) -> None:
    start = time.monotonic()
    asyncio.run(hang_up(pair.port, 20))
    assert LINGER_S <= time.monotonic() - start < 5
    assert pair.client.recv(1) == b""


def test_when_all_are_gone_nobody_is_waited_for(pair: Pair) -> None:
    pair.server.close()
    start = time.monotonic()
    asyncio.run(hang_up(pair.port, 20))
    assert time.monotonic() - start < LINGER_S


def test_newcomers_are_refused_at_this_port_only(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refuse_newcomers_at(pair.port)
        with pytest.raises(TimeoutError):
            socket.create_connection(pair.listener.getsockname()[:2], 0.2)
        socket.create_connection(other.getsockname(), 10).close()
    pair.client.sendall(b"known")
    assert pair.server.recv(5) == b"known"
