"""uvicorn's HTTP connection with what it lacks: limits on the length of a request's head and
trailers, on the time they may take and that an answer may lie unread, and on the number of
connections.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mmprod.serving.settings import Limits

LINGER_S = 1.0
"""How long a connection without a request stays open when the server stops."""


class BoundedConnection(HttpToolsProtocol):
    """Closes what sends a head that is too long or too slow, what goes on sending slowly after its
    answer, and what does not take its answer. A head that comes in one read is measured at the
    door.
    """

    def __init__(self, limits: Limits, **others: Any) -> None:
        super().__init__(**others)
        self._limits = limits
        self._asked = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._led_on = False
        self._idle_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self.send_400_response("Too many connections.")
            return
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_complete()
        self._taken()
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
        self._led_on = False
        super().data_received(data)
        self._idle_bytes = 0 if self._led_on else self._idle_bytes + len(data)
        if self.transport.is_closing():
            return
        if self._idle_bytes > self._limits.header_bytes:
            self._head_complete()
            self.send_400_response("The head of the request is too long.")
        elif self._head_timer is None and self.cycle is not None and self.cycle.response_complete:
            # Empty lines, or what is left of a body that nobody reads: no other clock runs.
            self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_complete()
        self._asked = self._led_on = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._led_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._led_on = True
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            wait_s = self._limits.answer_s
            self._unread_timer = self.loop.call_later(wait_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _expect_head(self) -> None:
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
