"""A deployment without files: every graph of a small catalog as a NumPy function of its rows, and
ways to ask it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmprod.bundle import Bundle
from mmprod.config.schema import Dims, SamplerConfig
from mmprod.graphs.catalog import build_catalog
from mmprod.graphs.codec_facts import CodecFacts
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.serving.batcher import Batcher
from mmprod.serving.deployment import Deployment, Identity
from mmprod.serving.door import Door
from mmprod.serving.friendly import bind
from mmprod.serving.graph_model import GraphModel, ServedGraph
from mmprod.serving.kit import Hit, Kit
from mmprod.serving.metrics import Metrics
from mmprod.serving.model import Model, Step
from mmprod.serving.rest import build_routes
from mmprod.serving.service import Service
from mmprod.serving.settings import Settings
from tests.parity.answers import FakeRunner

DIMS = Dims(image_size=16, grid=4, codebook_size=16, text_length=8, vocabulary=300, embedding=6)
SAMPLER = SamplerConfig(image_steps=2, text_steps=2)
SPECS = build_catalog(DIMS, SAMPLER)
SETTINGS = Settings(Path("nowhere"))


class FakeTokenizer:
    """A letter a token."""

    def encode(self, texts: list[str], length: int) -> npt.NDArray[np.int32]:
        rows = [[ord(letter) % 290 + 2 for letter in text[:length]] for text in texts]
        return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)

    def decode(self, ids: npt.NDArray[np.int32]) -> list[str]:
        return ["tokens " + " ".join(map(str, row)) for row in ids.tolist()]


class FakeSearcher:
    """An index of three pictures, which fit everything less and less."""

    def check(self, bundle: Bundle, precisions: Mapping[str, str]) -> None: ...

    def search(self, embedding: npt.NDArray[np.float32], count: int) -> Sequence[Hit]:
        assert embedding.shape == (DIMS.embedding,)
        return [Hit(f"key {n}", 1 - n / 10, png(20, 20)) for n in range(3)][:count]


def answer(spec: GraphSpec) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """Outputs that are a function of their own row only."""

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(next(iter(inputs.values())))
        found = {}
        for tensor in spec.outputs:
            shape = tensor.sizes({"batch": rows})[1:]
            size = int(np.prod(shape))
            out = np.empty((rows, size))
            for row in range(rows):
                total = sum(float(value[row].astype(float).sum()) for value in inputs.values())
                out[row] = np.abs(np.sin(total + np.arange(1, size + 1)))
            if tensor.dtype == "float32":
                found[tensor.name] = out.reshape(rows, *shape).astype(np.float32)
            else:
                scaled = (out * (tensor.below - 1)).reshape(rows, *shape)
                found[tensor.name] = scaled.astype(tensor.dtype)
        return found

    return run


def deploy(
    settings: Settings = SETTINGS,
    metrics: Metrics | None = None,
    names: Sequence[str] = tuple(SPECS),
    runners: Mapping[str, Any] | None = None,
    digest: str = "0" * 64,
) -> Deployment:
    """These graphs and all friendly models that they allow."""
    metrics = metrics or Metrics()
    graphs = {}
    for name in names:
        runner = (runners or {}).get(name) or FakeRunner(SPECS[name], answer(SPECS[name]))
        batcher = Batcher(runner, settings.batching, metrics.observer(name))
        graphs[name] = ServedGraph(batcher, Step(name, runner.backend, "fp32", digest))
    pool = ThreadPoolExecutor(2)
    facts = CodecFacts("ab" * 32, np.ones(DIMS.codebook_size, np.float32))
    kit = Kit(DIMS, SAMPLER, graphs, FakeTokenizer(), facts, settings.limits, FakeSearcher())
    models: list[Model] = [*bind(kit, pool, 2), *map(GraphModel, graphs.values())]
    identity = Identity("fake", digest)
    return Deployment(identity, graphs, {m.name: m for m in models}, pool, None)


def serve(
    settings: Settings = SETTINGS, open_anew: Callable[[], Deployment] | None = None, **how: Any
) -> Service:
    """A service over such a deployment."""
    metrics = Metrics()
    return Service(settings, metrics, open_anew or (lambda: deploy(settings, metrics, **how)))


@dataclass(frozen=True)
class Got:
    """An answer: status, headers with lower-case names, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    service: Service,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    headers: Mapping[str, str] | None = None,
    gone: Awaitable[object] | None = None,
) -> Got:
    """One request through the door, as uvicorn would hand it over. gone: when the client leaves."""
    given = {"host": "127.0.0.1:8080", "content-length": str(len(body)), **(headers or {})}
    sent: list[dict[str, Any]] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await (gone or asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(k.lower().encode(), v.encode()) for k, v in given.items()],
    }
    await Door(build_routes(service), service)(scope, receive, send)
    if not sent:
        return Got(0, {}, b"")
    found = {key.decode().lower(): value.decode() for key, value in sent[0]["headers"]}
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return Got(sent[0]["status"], found, content)


def get(service: Service, path: str, **how: Any) -> Got:
    return asyncio.run(ask(service, "GET", path, **how))


def infer(service: Service, model: str, inputs: Sequence[Any], **how: Any) -> Got:
    """POST a JSON request with these inputs."""
    body = json.dumps({"inputs": list(inputs)}).encode()
    return asyncio.run(ask(service, "POST", f"/v2/models/{model}/infer", body, **how))


def tensor(name: str, datatype: str, data: Sequence[Any], shape: Sequence[int] = ()) -> Any:
    """An input in JSON."""
    shape = shape or [len(data)]
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": list(data)}


def text(name: str, value: str) -> Any:
    return tensor(name, "BYTES", [value])


def file(name: str, content: bytes) -> Any:
    return tensor(name, "BYTES", [base64.b64encode(content).decode()])


def png(height: int, width: int, kind: str = "png") -> bytes:
    """A picture file with something on it."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 7 % 256, x * 5 % 256, (x + y) % 256], -1).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def pixels_of(content: bytes) -> Array:
    return np.asarray(Image.open(io.BytesIO(content)))


def limited(**limits: Any) -> Settings:
    """The usual settings with other limits."""
    return replace(SETTINGS, limits=replace(SETTINGS.limits, **limits))
