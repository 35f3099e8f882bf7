"""Bodies of requests, read within limits of size and time, each and all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

from mmprod.serving.refusal import Refused, bad, too_large, unavailable
from mmprod.serving.settings import Limits


class Bodies:
    """The bodies that a server holds at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts as held within the block. Raises Refused when it is too
        long, too slow, compressed, or breaks off, and when too much is held already.
        """
        check_head(request, self._limits)
        body = bytearray()
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._held -= len(body)

    @contextmanager
    def hold(self, length: int) -> Iterator[None]:
        """Count a message that another protocol has read. Raises Refused as `read` does."""
        self._held += length
        try:
            self._check(length)
            yield
        finally:
            self._held -= length

    async def _fill(self, body: bytearray, request: Request) -> None:
        seconds = self._limits.receive_s
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    self._check(len(body))
        except TimeoutError as error:
            what = f"the body did not come within {seconds:g} s"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, what) from error
        except ClientDisconnect as error:
            raise bad("the body broke off") from error

    def _check(self, length: int) -> None:
        if length > self._limits.body_bytes:
            raise _over(self._limits)
        if self._held > self._limits.all_bodies_bytes:
            raise unavailable("too many bytes of other requests are held")


def check_head(request: Request, limits: Limits) -> None:
    """What the headers say of the body. Raises Refused."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limits.body_bytes:
        raise _over(limits)


def _over(limits: Limits) -> Refused:
    return too_large(f"a body has at most {limits.body_bytes} bytes")
