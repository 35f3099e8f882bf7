"""The JSON messages of the Open Inference Protocol v2, and bodies that carry tensors as bytes.

An infer body is JSON, or, with the header `Inference-Header-Content-Length: N`, N bytes of JSON
followed by the bytes of the tensors that have `binary_data_size`, in their order.
"""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmprod.serving.model import Answer, Model, Port
from mmprod.serving.refusal import bad
from mmprod.serving.service import Reply
from mmprod.serving.tensors import Sent, json_data, raw_bytes

Scalars = dict[str, str | int | float | bool | None]
LONGEST_NAME, MOST_TENSORS, MOST_AXES = 256, 32, 8
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Size = Annotated[int, Field(ge=0, lt=2**31)]
_STRICT = ConfigDict(strict=True, extra="ignore")
BINARY = "binary_data"


class InputTensor(BaseModel):
    """An input: `data`, or the parameter `binary_data_size`."""

    model_config = _STRICT
    name: Name
    shape: list[Size] = Field(max_length=MOST_AXES)
    datatype: Name
    parameters: Scalars = Field(default_factory=dict)
    data: list[Any] | None = None


class OutputWanted(BaseModel):
    """An output to send; with the parameter `binary_data` true as bytes."""

    model_config = _STRICT
    name: Name
    parameters: Scalars = Field(default_factory=dict)


class InferRequest(BaseModel):
    """The body of POST /v2/models/NAME/infer."""

    model_config = _STRICT
    id: Name = ""
    parameters: Scalars = Field(default_factory=dict)
    inputs: list[InputTensor] = Field(max_length=MOST_TENSORS)
    outputs: list[OutputWanted] = Field(default_factory=list, max_length=MOST_TENSORS)

    def wants_bytes(self, name: str) -> bool:
        """Whether an output is to be sent as bytes."""
        for output in self.outputs:
            if output.name == name and BINARY in output.parameters:
                return output.parameters[BINARY] is True
        return self.parameters.get("binary_data_output") is True


def parse_infer(body: bytes, json_bytes: int | None) -> tuple[InferRequest, list[Sent]]:
    """A body -> the request and its inputs. Raises Refused for what is not of this form."""
    length = len(body) if json_bytes is None else json_bytes
    if not 0 <= length <= len(body):
        raise bad("Inference-Header-Content-Length is larger than the body")
    try:
        request = InferRequest.model_validate_json(body[:length])
    except ValidationError as error:
        raise bad(f"the JSON is no inference request: {_where(error)}") from error
    rest, sent = memoryview(body)[length:], []
    for tensor in request.inputs:
        raw = None
        size = tensor.parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest):
                raise bad("binary_data_size goes beyond the body")
            raw, rest = rest[:size], rest[size:]
        sent.append(Sent(tensor.name, tensor.datatype, tuple(tensor.shape), tensor.data, raw))
    if len(rest):
        raise bad(f"{len(rest)} bytes after the tensors belong to none of them")
    return request, sent


def infer_body(request: InferRequest, reply: Reply, request_id: str) -> tuple[bytes, int | None]:
    """The answer as a body, and the length of its JSON where bytes follow."""
    ports = {port.name: port for port in reply.model.outputs}
    outputs, blobs = [], []
    for name in reply.names:
        port, value = ports[name], reply.answer.outputs[name]
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": port.datatype,
            "shape": list(value.shape),
        }
        if request.wants_bytes(name):
            blobs.append(raw_bytes(value))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            tensor["data"] = json_data(port, value)
            if encoding := _encoding(port):
                tensor["parameters"] = {"content_type": encoding}
        outputs.append(tensor)
    message = {
        "model_name": reply.model.name,
        "model_version": "1",
        "id": request.id or request_id,
        "parameters": reply.answer.parameters,
        "outputs": outputs,
    }
    text = to_json(message)
    return (text + b"".join(blobs), len(text)) if blobs else (text, None)


def metadata(model: Model, version: str) -> dict[str, Any]:
    """What GET /v2/models/NAME tells."""
    described = Answer({}, model.steps, model.extra).parameters
    timeless = {key: value for key, value in described.items() if not key.endswith("_ms")}
    return {
        "name": model.name,
        "versions": [version],
        "platform": "mmprod",
        "inputs": [_port(port) for port in model.inputs],
        "outputs": [_port(port) for port in model.outputs],
        "parameters": {"summary": model.summary, **timeless},
    }


def to_json(value: Any) -> bytes:
    """JSON of plain data and NumPy arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _port(port: Port) -> dict[str, Any]:
    about: dict[str, Any] = {"name": port.name, "datatype": port.datatype}
    about["shape"] = list(port.shape)
    content = "" if port.content == "numbers" else port.content
    found = {"optional": port.optional, "content": content, "content_type": _encoding(port)}
    if parameters := {key: value for key, value in found.items() if value}:
        about["parameters"] = parameters
    return about


def _encoding(port: Port) -> str:
    """How the elements of a BYTES tensor are written in JSON, "" for as they are."""
    return "base64" if port.content in ("picture", "file") else ""


def _where(error: ValidationError) -> str:
    """The first thing that is wrong, without a word of what was sent."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part)[:32] for part in first["loc"]) or "body"
    return f"{place}: {first['type']}"
