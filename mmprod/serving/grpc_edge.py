"""gRPC: the service of the Open Inference Protocol v2. The only file that imports grpc.

Messages and the service come from the protocol's own package, open-inference-grpc.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import grpc
from open_inference.grpc import protocol
from open_inference.grpc.service import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from mmprod.errors import EnvironmentMissing
from mmprod.serving.deployment import VERSION
from mmprod.serving.door import REQUEST_ID, same_key
from mmprod.serving.messages import metadata
from mmprod.serving.refusal import INTERNAL, Refused, bad
from mmprod.serving.service import NAME, Ask, Service
from mmprod.serving.tensors import BYTES, Sent, raw_bytes

logger = logging.getLogger(__name__)
CONTENTS = {"UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"}
CONTENTS |= {"FP32": "fp32_contents", BYTES: "bytes_contents"}
"""Field of a tensor's typed content, by datatype."""
CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.RESOURCE_EXHAUSTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def start_grpc(service: Service, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """A server that answers, and its port. Raises EnvironmentMissing when the port is taken."""
    limits = service.settings.limits
    options = [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.max_concurrent_streams", limits.requests),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.requests)
    add_GRPCInferenceServiceServicer_to_server(_Servicer(service), server)  # type: ignore[no-untyped-call]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(place)
    except RuntimeError as error:
        raise EnvironmentMissing(
            f"gRPC cannot listen on {place}", hint="give another --grpc-port"
        ) from error
    await server.start()
    return server, bound


class _Servicer(GRPCInferenceServiceServicer):
    """The calls of the protocol; names as there."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return protocol.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return protocol.ServerReadyResponse(ready=not self._service.draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
        found = request.name in self._service.current.models and request.version in ("", VERSION)
        ready = found and not self._service.draining
        return protocol.ModelReadyResponse(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
        return protocol.ServerMetadataResponse(name=NAME, version=self._service.version)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
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
            properties={key: str(value) for key, value in about["parameters"].items()},
        )

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        await self._check_key(context)
        given = dict(context.invocation_metadata() or ())
        request_id = str(given.get(REQUEST_ID, "") or uuid.uuid4().hex)[:64]
        context.set_trailing_metadata(((REQUEST_ID, request_id),))
        try:
            names = [output.name for output in request.outputs]
            sent = read_request(request)
            ask = Ask(request.model_name, request.model_version, sent, names, "grpc")
            reply = await self._service.infer(ask)
        except Refused as refusal:
            await _abort(context, refusal)
        except Exception:
            logger.exception("gRPC request %s failed", request_id)
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
        response = protocol.ModelInferResponse(
            model_name=reply.model.name, model_version=VERSION, id=request.id or request_id
        )
        _set(response.parameters, reply.answer.parameters)
        ports = {port.name: port for port in reply.model.outputs}
        for name in reply.names:
            value = reply.answer.outputs[name]
            response.outputs.add(name=name, datatype=ports[name].datatype, shape=value.shape)
            response.raw_output_contents.append(raw_bytes(value))
        return response

    async def _check_key(self, context: Any) -> None:
        key = self._service.settings.key
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if key and not same_key(str(given).removeprefix("Bearer "), key):
            refusal = Refused(HTTPStatus.UNAUTHORIZED, "this server asks for a key")
            await _abort(context, refusal)


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
        data = list(getattr(tensor.contents, field))
        found.append(Sent(tensor.name, tensor.datatype, shape, data=data))
    return found


def _set(target: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Parameters as the protocol's one-of."""
    for name, value in parameters.items():
        kind = {bool: "bool", int: "int64", str: "string", float: "double"}[type(value)]
        setattr(target[name], f"{kind}_param", value)


async def _abort(context: Any, refusal: Refused) -> None:
    if refusal.retry_after_s:
        context.set_trailing_metadata((("retry-after", str(refusal.retry_after_s)),))
    await context.abort(CODES.get(refusal.status, grpc.StatusCode.INTERNAL), refusal.message)
