"""Lines of JSON over a TCP connection whose other end may vanish: what lifelines speak."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

LONGEST = 1 << 20
"""bytes of a line"""
PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20000}
"""Linux's options: seconds, and the last in milliseconds."""


class Peer:
    """Lines of JSON from one connection, as they come."""

    def __init__(self) -> None:
        self.rank: int | None = None
        self.host = ""
        self.left = False
        self.closed = False
        self._rest = b""

    def lines(self, connection: socket.socket) -> list[dict[str, Any]]:
        """What has come since; waits for the first of it. Sets `closed` at the end."""
        try:
            data = connection.recv(65536)
        except OSError:  # reset, or no answer to the probes: as good as closed
            data = b""
        if not data:
            self.closed = True
        *whole, self._rest = (self._rest + data).split(b"\n")
        try:
            if len(self._rest) > LONGEST:
                raise ValueError
            return [dict(json.loads(line)) for line in whole]
        except (ValueError, TypeError):  # a stranger who knocks on the port
            self.closed = True
            return []


def send(connection: socket.socket, line: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the other end is gone already; that is noticed in reading
        connection.sendall(json.dumps(line).encode() + b"\n")


def probe(connection: socket.socket) -> None:
    """Have the kernel notice a machine that has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
