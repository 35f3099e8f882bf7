"""gRPC: the service of the Open Inference Protocol v2. The only file that imports grpc.

Messages and the service are those of tritonclient: a process can load this protocol once only, and
who writes clients or Triton repositories has them loaded already.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as protocol
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from mmprod.errors import EnvironmentMissing
from mmprod.serving.deployment import VERSION
from mmprod.serving.door import REQUEST_ID, access, request_id, same_key
from mmprod.serving.messages import LONGEST_NAME, MOST_AXES, MOST_TENSORS, metadata
from mmprod.serving.refusal import INTERNAL, Refused, bad, unavailable
from mmprod.serving.service import NAME, Ask, Reply, Service
from mmprod.serving.settings import Settings
from mmprod.serving.sockets import LINGER_S, hang_up, refuse_newcomers_at
from mmprod.serving.tensors import BYTES, Sent, raw_bytes

logger = logging.getLogger(__name__)
CONTENTS = {"UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"}
CONTENTS |= {"FP32": "fp32_contents", BYTES: "bytes_contents"}
"""Field of a tensor's typed content, by datatype."""
OPEN = ("ServerLive", "ServerReady")
"""Calls that need no key."""
CUT_S = 1.0
"""for the library to give up what is not done in time"""
CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.REQUEST_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class GrpcServer:
    """A server that answers at `port`."""

    def __init__(self, server: grpc.aio.Server, gate: _Gate, port: int) -> None:
        self._server, self._gate, self.port = server, gate, port

    async def stop(self, seconds: float) -> None:
        """Within so many seconds the calls that have begun are answered; others are UNAVAILABLE.

        The library's own stop ends what arrives just then with CANCELLED, which no client repeats
        (github.com/grpc/grpc/issues/41785), so it comes when every connection was told the end: a
        call that does not finish leaves the last second, or half of a shorter time, to the others.
        The library waits 20 s for a client that reads nothing; we give it CUT_S beyond the time.
        """
        end = time.monotonic() + seconds
        try:
            refuse_newcomers_at(self.port)
            await self._gate.close(seconds - min(LINGER_S, seconds / 2))
            await hang_up(self.port, end - time.monotonic())
        finally:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._server.stop(None), CUT_S)


async def start_grpc(service: Service, host: str, port: int) -> GrpcServer:
    """A server that answers. Raises EnvironmentMissing when the port is taken."""
    limits = service.settings.limits
    options = [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", limits.requests),
        ("grpc.so_reuseport", 0),
    ]
    gate = _Gate(service.settings)
    server = grpc.aio.server(
        interceptors=[gate],
        options=options,
        maximum_concurrent_rpcs=limits.requests,
    )
    add_GRPCInferenceServiceServicer_to_server(_Servicer(service), server)
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(place)
    except RuntimeError as error:
        raise EnvironmentMissing(
            f"gRPC cannot listen on {place}", hint="give another --grpc-port"
        ) from error
    await server.start()
    return GrpcServer(server, gate, bound)


class _Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Before a message is read: the key, and whether the server stops. While it comes: the time
    that a body over REST has.
    """

    def __init__(self, settings: Settings) -> None:
        self._key, self._receive_s = settings.key, settings.limits.receive_s
        self._closed = False
        self._begun = 0
        self._idle = asyncio.Event()

    async def close(self, seconds: float) -> None:
        """Let no call begin any more, and wait so long for those that have."""
        self._closed = True
        if self._begun:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The same call in the form that reads its message itself; on the wire they are alike."""
        handler = await continuation(details)
        if handler is None:
            return None
        given = str(dict(details.invocation_metadata or ()).get("authorization", ""))
        known = same_key(given.removeprefix("Bearer "), self._key) if self._key else True

        async def answer(messages: Any, context: Any) -> Any:
            if self._closed:
                await _abort(context, unavailable("this server is stopping"))
            self._begun += 1
            context.add_done_callback(self._ended)
            if not known and details.method.rpartition("/")[2] not in OPEN:
                refused = Refused(HTTPStatus.UNAUTHORIZED, "this server asks for a key")
                await _abort(context, refused)
            try:
                async with asyncio.timeout(self._receive_s):
                    message = await anext(aiter(messages))
            except TimeoutError:
                what = f"the message did not come within {self._receive_s:g} s"
                await _abort(context, Refused(HTTPStatus.REQUEST_TIMEOUT, what))
            except StopAsyncIteration:
                await _abort(context, bad("there is no message"))
            return await handler.unary_unary(message, context)

        return grpc.stream_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    def _ended(self, context: Any) -> None:
        """The answer is with the kernel, or the call was given up."""
        self._begun -= 1
        if self._closed and not self._begun:
            self._idle.set()


class _Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The calls of the protocol; names as there."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return protocol.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return protocol.ServerReadyResponse(ready=not self._service.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        found = request.name in self._service.current.models and request.version in ("", VERSION)
        ready = found and not self._service.draining
        return protocol.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return protocol.ServerMetadataResponse(name=NAME, version=self._service.version)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        try:
            model = self._service.current.model(request.name, request.version)
        except Refused as refusal:
            await _abort(context, refusal)
        about = metadata(model, VERSION)
        tensor = protocol.ModelMetadataResponse.TensorMetadata
        kept = ("name", "datatype", "shape")
        return protocol.ModelMetadataResponse(
            name=model.name,
            versions=about["versions"],
            platform=about["platform"],
            inputs=[tensor(**{key: port[key] for key in kept}) for port in about["inputs"]],
            outputs=[tensor(**{key: port[key] for key in kept}) for port in about["outputs"]],
        )

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        given = dict(context.invocation_metadata() or ())
        own_id = request_id(str(given.get(REQUEST_ID, "")))
        context.set_trailing_metadata(((REQUEST_ID, own_id),))
        known = request.model_name in self._service.current.models
        line = {"id": own_id, "method": "gRPC", "route": "ModelInfer", "status": 499}
        line["model"] = request.model_name if known else ""
        started = time.monotonic()
        try:
            reply = await self._reply(request, own_id)
            line["status"] = HTTPStatus.OK.value
        except Refused as refusal:
            line["status"] = refusal.status.value
            await _abort(context, refusal, (REQUEST_ID, own_id))
        except Exception:
            line["status"] = HTTPStatus.INTERNAL_SERVER_ERROR.value
            logger.exception("request %s failed", own_id)
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
        finally:
            line["ms"] = round(1e3 * (time.monotonic() - started), 2)
            access.info(json.dumps(line))
        return _response(reply, request.id or own_id)

    async def _reply(self, request: Any, given_id: str) -> Reply:
        size = request.ByteSize()
        with self._service.bodies.hold(size):
            check_counts(request)
            names = [output.name for output in request.outputs]
            asked = request.model_name, request.model_version
            ask = Ask(*asked, read_request(request), names, "grpc", given_id, size)
            return await self._service.infer(ask)


def _response(reply: Reply, given_id: str) -> Any:
    response = protocol.ModelInferResponse(
        model_name=reply.model.name, model_version=VERSION, id=given_id
    )
    _set(response.parameters, reply.answer.parameters)
    ports = {port.name: port for port in reply.model.outputs}
    for name in reply.names:
        value = reply.answer.outputs[name]
        response.outputs.add(name=name, datatype=ports[name].datatype, shape=value.shape)
        response.raw_output_contents.append(raw_bytes(value))
    return response


def check_counts(request: Any) -> None:
    """The limits that the JSON messages have. Raises Refused."""
    if max(len(request.inputs), len(request.outputs)) > MOST_TENSORS:
        raise bad(f"more than {MOST_TENSORS} inputs or outputs")
    if any(len(tensor.shape) > MOST_AXES for tensor in request.inputs):
        raise bad(f"a shape of more than {MOST_AXES} axes")
    if len(request.id) > LONGEST_NAME:
        raise bad(f"an id of more than {LONGEST_NAME} characters")


def read_request(request: Any) -> list[Sent]:
    """The inputs of a ModelInferRequest, raw or typed. Raises Refused for a mixture."""
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad(f"{len(request.inputs)} inputs, but {len(raw)} raw contents")
    found = []
    for place, tensor in enumerate(request.inputs):
        shape = tuple(tensor.shape)
        if raw:
            found.append(Sent(tensor.name, tensor.datatype, shape, raw=raw[place]))
            continue
        field = CONTENTS.get(tensor.datatype)
        if field is None:
            raise bad(f"no tensor here has the datatype {tensor.datatype[:16]}")
        data = getattr(tensor.contents, field)
        found.append(Sent(tensor.name, tensor.datatype, shape, data=data))
    return found


def _set(target: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Parameters as the protocol's one-of."""
    for name, value in parameters.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(target[name], f"{kind}_param", value)


async def _abort(context: Any, refusal: Refused, *more: tuple[str, str]) -> None:
    """End the call. more: trailing metadata beside when to try again."""
    if refusal.retry_after_s:
        more += (("retry-after", str(refusal.retry_after_s)),)
    context.set_trailing_metadata(more)
    await context.abort(CODES.get(refusal.status, grpc.StatusCode.INTERNAL), refusal.message)
