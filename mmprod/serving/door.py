"""What every request passes on its way in and out: host, key, id, errors, headers, one log line.

The log tells method, route, model, status, times, sizes and the id; never a payload, a query or a
key.
"""

from __future__ import annotations

import functools
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmprod.serving.messages import to_json
from mmprod.serving.refusal import INTERNAL, Refused
from mmprod.serving.rest import ClientGone
from mmprod.serving.service import Service
from mmprod.serving.settings import is_loopback

logger = logging.getLogger(__name__)
access = logging.getLogger("mmprod.serving.access")
REQUEST_ID = "x-request-id"
OPEN = re.compile(r"/v2/health/(live|ready)|/|/web/[^/]*")
"""Answered without a key: they tell nothing but that the server is there."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Door:
    """The ASGI application around the routes."""

    def __init__(self, routes: ASGIApp, service: Service) -> None:
        self._routes, self._service = routes, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        visit = _Visit(scope, self._service)
        scope["app"] = self  # Starlette's routes then raise for what they do not know

        async def out(message: Message) -> None:
            visit.sends(message)
            await send(message)

        try:
            check_visitor(scope, self._service)
            await self._routes(scope, receive, out)
        except ClientGone:
            visit.status = 499
        except Refused as refusal:
            await visit.refuse(refusal, receive, out)
        except HTTPException as error:
            status = HTTPStatus(error.status_code)
            await visit.refuse(Refused(status, status.phrase), receive, out, error.headers)
        except Exception:
            logger.exception("request %s failed", visit.id)
            failed = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)
            await visit.refuse(failed, receive, out)
        finally:
            visit.log()


class _Visit:
    """One request on its way through."""

    def __init__(self, scope: Scope, service: Service) -> None:
        self._scope, self._service = scope, service
        self.id = request_id(Headers(scope=scope).get(REQUEST_ID, ""))
        scope.setdefault("state", {})["id"] = self.id
        self.status = 0
        self._bytes = 0
        self._started = time.monotonic()

    def sends(self, message: Message) -> None:
        """Complete the head of the answer, count its bytes."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            if self._service.draining:
                headers["Connection"] = "close"
        else:
            self._bytes += len(message.get("body", b""))

    async def refuse(
        self,
        refusal: Refused,
        receive: Receive,
        send: Send,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """The error as a document, unless an answer has begun. more: headers."""
        if self.status:
            return
        headers = dict(more or {})
        if refusal.retry_after_s:
            headers["Retry-After"] = str(refusal.retry_after_s)
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if refusal.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
            headers["Connection"] = "close"  # what is left of the body is not waited for
        body = to_json({"error": refusal.message})
        response = Response(body, refusal.status, headers, "application/json")
        await response(self._scope, receive, send)

    def log(self) -> None:
        """One line of JSON. A route is a pattern of ours, a model one of ours."""
        route = self._scope.get("route")
        line: dict[str, Any] = {
            "id": self.id,
            "method": self._scope["method"],
            "route": getattr(route, "path", ""),
            "model": self._scope.get("state", {}).get("model", ""),
            "status": self.status,
            "ms": round(1e3 * (time.monotonic() - self._started), 2),
            "bytes": self._bytes,
        }
        access.info(json.dumps(line))


def request_id(given: str) -> str:
    """The id that a client gave, or a new one for what is none."""
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def check_visitor(scope: Scope, service: Service) -> None:
    """Length of the headers, key, host and origin. Raises Refused."""
    limits = service.settings.limits
    headers = Headers(scope=scope)
    if sum(len(name) + len(value) for name, value in headers.raw) > limits.header_bytes:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too long")
    key = service.settings.key
    if key and not OPEN.fullmatch(scope["path"]):
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not same_key(given, key):
            raise Refused(HTTPStatus.UNAUTHORIZED, "this server asks for a key")
    host = headers.get("host", "")
    if not key and not _names_loopback(host):
        # A page from elsewhere may have its own name point here; then the browser is its hand.
        raise Refused(HTTPStatus.FORBIDDEN, "this server answers to loopback names only")
    origin = headers.get("origin")
    if origin is not None and _place(origin) != host:
        raise Refused(HTTPStatus.FORBIDDEN, "a page of another origin may not use this server")


@functools.lru_cache(64)
def _names_loopback(host: str) -> bool:
    """Whether a Host header names this machine as only it can be reached."""
    name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    return is_loopback(name.removeprefix("[").removesuffix("]"))


def _place(origin: str) -> str:
    """Host and port of an Origin header; of what is none, nothing that a host is called."""
    return origin.partition("://")[2] or "(none)"


def same_key(given: str, wanted: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode(), wanted.encode())
