"""uvicorn's HTTP connection with what it lacks: limits on the length of a request's head, on the
time it may take, and on the number of connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mmprod.serving.settings import Limits

LINGER_S = 1.0
"""How long a connection without a request stays open when the server stops."""


class BoundedConnection(HttpToolsProtocol):
    """Closes what sends a head that is too long or too slow. A head that comes in one read is
    measured at the door.
    """

    def __init__(self, limits: Limits, **others: Any) -> None:
        super().__init__(**others)
        self._limits = limits
        self._asked = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self.send_400_response("Too many connections.")
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_complete()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops. Who has just connected may still ask; the answer closes."""
        if not self._asked:
            self.loop.call_later(LINGER_S, self._close_if_unused)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        began_before = self._head_timer is not None
        super().data_received(data)
        if began_before and self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.header_bytes:
                self._head_complete()
                self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_complete()
        self._asked = True
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self._limits.receive_s, self._too_slow)

    def _head_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_unused(self) -> None:
        if not self._asked:
            self.transport.close()

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
