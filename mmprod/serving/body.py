"""The body of a request, read within limits of size and time."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

from mmprod.serving.refusal import Refused, bad, too_large
from mmprod.serving.settings import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """All of it. Raises Refused when it is too long, too slow, compressed, or breaks off."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not taken")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared[:20]) > limits.body_bytes:
        raise _over(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.receive_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _over(limits)
    except TimeoutError as error:
        seconds = limits.receive_s
        raise Refused(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {seconds:g} s"
        ) from error
    except ClientDisconnect as error:
        raise bad("the body broke off") from error
    return bytes(body)


def _over(limits: Limits) -> Refused:
    return too_large(f"a body has at most {limits.body_bytes} bytes")
