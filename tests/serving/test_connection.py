"""What becomes of connections that keep on sending, or take nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmprod.serving.connection import BoundedConnection
from mmprod.serving.settings import Limits
from mmprod.serving.sockets import listen, refuse_newcomers

LIMITS = Limits(receive_s=0.2, answer_s=0.2)
LARGE = 64 * 2**20
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """Whatever is asked, without a look at the body; /large is large."""
    await Response(bytes(LARGE if scope["path"] == "/large" else 1))(scope, receive, send)


def served(talk: Callable[[uvicorn.Server, Streams], Awaitable[None]]) -> None:
    async def both() -> None:
        with listen("127.0.0.1", 0) as listener:
            http = cast(Any, partial(BoundedConnection, LIMITS))
            config = uvicorn.Config(answers, http=http, ws="none", lifespan="off", log_config=None)
            server = uvicorn.Server(config)
            running = asyncio.create_task(server.serve(sockets=[listener]))
            streams = await asyncio.open_connection(*listener.getsockname(), limit=2**16)
            await talk(server, streams)
            streams[1].close()
            server.should_exit = True
            await running

    asyncio.run(both())


async def drip(streams: Streams, first: bytes, more: bytes) -> None:
    """Send on and on until the server closes; fails when it does not."""
    reader, writer = streams
    writer.write(first)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")

    async def go_on() -> None:
        while True:
            writer.write(more)
            await asyncio.sleep(0.02)

    going = asyncio.create_task(go_on())
    try:
        async with asyncio.timeout(10):
            await reader.read(-1)
    except ConnectionError:
        pass
    finally:
        going.cancel()


def test_empty_lines_keep_no_connection_open() -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    served(lambda server, streams: drip(streams, head, b"\r\n"))


def test_a_body_that_nobody_reads_keeps_no_connection_open() -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    served(lambda server, streams: drip(streams, head, b"x"))


def test_an_answer_that_nobody_takes_is_given_up() -> None:
    async def talk(server: uvicorn.Server, streams: Streams) -> None:
        streams[1].write(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(10):
            while not server.server_state.total_requests:
                await asyncio.sleep(0.01)
            while server.server_state.connections:
                await asyncio.sleep(0.01)

    served(talk)


def test_where_the_kernel_takes_no_filter_the_server_stops_all_the_same() -> None:
    class Sandboxed:
        def setsockopt(self, *_: object) -> None:
            raise OSError(92, "Protocol not available")

    refuse_newcomers(cast(Any, Sandboxed()))
