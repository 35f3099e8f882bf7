"""REST: the routes of the Open Inference Protocol v2, metrics, the OpenAPI page, the web page."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mmprod.serving.deployment import VERSION
from mmprod.serving.messages import infer_body, metadata, parse_infer, to_json
from mmprod.serving.metrics import CONTENT_TYPE
from mmprod.serving.openapi import describe_api
from mmprod.serving.refusal import bad, unavailable, unknown
from mmprod.serving.service import LARGE, NAME, Ask, Service

JSON_LENGTH = "Inference-Header-Content-Length"
TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""of the files of the web page, whatever this machine's lists say"""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the web page: its own files, pictures it made, its own server."""


class Json(Response):
    """A JSON document."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


def build_routes(service: Service) -> Router:
    """The routes over a service; door.py guards them and turns errors into answers."""
    endpoints = _Endpoints(service)
    model = "/v2/models/{model}"
    routes = [
        Route(model + "/infer", endpoints.infer, methods=["POST"]),
        Route(model + "/versions/{version}/infer", endpoints.infer, methods=["POST"]),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        Route("/v2", endpoints.server),
        Route("/v2/models", endpoints.models),
        Route(model, endpoints.model),
        Route(model + "/versions/{version}", endpoints.model),
        Route(model + "/ready", endpoints.model_ready),
        Route(model + "/versions/{version}/ready", endpoints.model_ready),
        Route("/metrics", endpoints.metrics),
        Route("/openapi.json", endpoints.openapi),
        Route("/", endpoints.page),
        Route("/web/{name}", endpoints.page),
    ]
    return Router(routes, redirect_slashes=False)


class _Endpoints:
    """One method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def infer(self, request: Request) -> Response:
        length = _json_length(request)
        async with self._service.bodies.read(request) as body:
            if len(body) > LARGE:
                asked, sent = await run_in_threadpool(parse_infer, body, length)
            else:
                asked, sent = parse_infer(body, length)
            names = [output.name for output in asked.outputs]
            model, version = request.path_params["model"], request.path_params.get("version", "")
            if model in self._service.current.models:
                request.state.model = model  # for the log
            ask = Ask(model, version, sent, names, "rest", request.state.id, len(body))
            reply = await unless_gone(request, self._service.infer(ask))
        data, json_bytes = infer_body(asked, reply, request.state.id)
        if json_bytes is None:
            return Response(data, media_type="application/json")
        headers = {JSON_LENGTH: str(json_bytes)}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def live(self, request: Request) -> Response:
        return Json({"live": True})

    async def ready(self, request: Request) -> Response:
        if self._service.draining:
            raise unavailable("the server stops")
        return Json({"ready": True})

    async def server(self, request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        about = {"name": NAME, "version": self._service.version, "extensions": extensions}
        return Json(about)

    async def models(self, request: Request) -> Response:
        return Json({"models": list(self._service.current.models)})

    async def model(self, request: Request) -> Response:
        return Json(metadata(self._model(request), VERSION))

    async def model_ready(self, request: Request) -> Response:
        found = self._model(request)
        if self._service.draining:
            raise unavailable("the server stops")
        return Json({"name": found.name, "ready": True})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.page(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return Json(describe_api(self._service.current.models.values(), self._service.version))

    async def page(self, request: Request) -> Response:
        """A file of the web page, by its plain name."""
        name = request.path_params.get("name", "index.html")
        folder = resources.files("mmprod.serving") / "web"
        if name not in {entry.name for entry in folder.iterdir() if entry.is_file()}:
            raise unknown("there is no such file")
        kind = TYPES.get(Path(name).suffix, "application/octet-stream")
        headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
        return Response((folder / name).read_bytes(), media_type=kind, headers=headers)

    def _model(self, request: Request) -> Any:
        version = request.path_params.get("version", "")
        return self._service.current.model(request.path_params["model"], version)


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client hangs up: then ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


class ClientGone(Exception):
    """Nobody is there to be answered."""


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _json_length(request: Request) -> int | None:
    text = request.headers.get(JSON_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise bad(f"{JSON_LENGTH} is no number of bytes")
    return int(text)
