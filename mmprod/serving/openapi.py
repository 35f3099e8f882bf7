"""The OpenAPI description of a server, made of the models it serves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmprod.serving.messages import InferRequest
from mmprod.serving.model import Model, Port

JSON = "application/json"


def describe_api(models: Iterable[Model], version: str) -> dict[str, Any]:
    """OpenAPI 3.1: one path per model, so that each has the tensors it takes and gives."""
    request = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = request.pop("$defs", {})
    schemas["InferRequest"] = request
    schemas["Error"] = _object({"error": {"type": "string"}}, ("error",))
    listed = list(models)
    paths: dict[str, Any] = {
        "/v2": {"get": _get("name, version and extensions of the server", _named("name"))},
        "/v2/health/live": {"get": _get("whether the server runs", _named("live", "boolean"))},
        "/v2/health/ready": {
            "get": _get("whether it takes requests", _named("ready", "boolean"), "503")
        },
        "/v2/models": {
            "get": _get("names of the models", _object({"models": _names()}, ("models",)))
        },
        "/metrics": {"get": _plain("what Prometheus reads", "text/plain")},
        "/openapi.json": {"get": _get("this page", {"type": "object"})},
    }
    for model in listed:
        place = f"/v2/models/{model.name}"
        paths[place] = {"get": _get(f"the tensors of {model.name}", _named("name"))}
        paths[f"{place}/ready"] = {
            "get": _get(f"whether {model.name} answers", _named("ready", "boolean"), "503")
        }
        paths[f"{place}/infer"] = {"post": _infer(model)}
    info = {"title": "mmprod", "version": version, "license": {"name": "Apache-2.0"}}
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _infer(model: Model) -> dict[str, Any]:
    given, made = (", ".join(map(_words, ports)) for ports in (model.inputs, model.outputs))
    tensors = f"inputs: {given}; outputs: {made}"
    body = {JSON: {"schema": {"$ref": "#/components/schemas/InferRequest"}}}
    answer = _object(
        {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": {"type": "object"}},
        },
        ("model_name", "outputs"),
    )
    operation = _get(model.summary, answer, "400", "408", "413", "415", "429", "503", "504")
    return operation | {
        "description": tensors,
        "requestBody": {"required": True, "content": body},
    }


def _words(port: Port) -> str:
    what = "" if port.content == "numbers" else f" {port.content}"
    return f"{port.name}{'?' if port.optional else ''} {port.datatype}{list(port.shape)}{what}"


def _get(summary: str, schema: dict[str, Any], *errors: str) -> dict[str, Any]:
    found = {"200": {"description": "OK", "content": {JSON: {"schema": schema}}}}
    for status in ("401", "403", *errors):
        content = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
        found[status] = {"description": "see error", "content": content}
    return {"summary": summary, "responses": found}


def _plain(summary: str, kind: str) -> dict[str, Any]:
    operation = _get(summary, {})
    operation["responses"]["200"]["content"] = {kind: {"schema": {"type": "string"}}}
    return operation


def _object(properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def _named(name: str, kind: str = "string") -> dict[str, Any]:
    return _object({name: {"type": kind}}, (name,))


def _names() -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}}
