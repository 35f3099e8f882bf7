"""`mmprod serve`: a bundle behind REST and gRPC."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmprod.cli.command import BundleArg
from mmprod.cli.output import Fields, Output, Table
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.serving.server import Listening

KEY = "MMPROD_SERVE_KEY"


def serve(
    out: Output,
    bundle: BundleArg,
    host: Annotated[
        str, typer.Option(help="Address; one that others can reach needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="REST; 0: any free one.")] = 8080,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="gRPC, too, on this port.", show_default=False),
    ] = None,
    backend: Annotated[
        Literal["ort", "trt"], typer.Option(help="ONNX Runtime, or the bundle's engines.")
    ] = "ort",
    precision: Annotated[str, typer.Option(help="fp32, fp16 ... or auto.")] = "fp32",
    threads: Annotated[
        int, typer.Option(min=0, help="Of ONNX Runtime in each graph; 0: as many as cores.")
    ] = 0,
    waits: Annotated[
        list[str] | None,
        typer.Option(
            "--batch-wait-ms",
            metavar="MS|GRAPH=MS",
            help="How long a request waits for company in its batch; repeatable [default: 0]",
            show_default=False,
        ),
    ] = None,
    together: Annotated[
        bool,
        typer.Option("--batching/--no-batching", help="Requests that wait share a batch."),
    ] = True,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait, per graph.")] = 64,
    most: Annotated[
        int, typer.Option("--max-requests", min=1, help="Requests at work at once.")
    ] = 256,
    body: Annotated[int, typer.Option("--max-body-mb", min=1, help="Largest request.")] = 16,
    pixels: Annotated[
        int, typer.Option("--max-pixels", min=64, help="Of a picture, before it is decoded.")
    ] = 4_194_304,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Key that clients must send; or {KEY}."),
    ] = None,
    shadow: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests repeated on fp32 ONNX Runtime.")
    ] = 0.0,
    index: Annotated[
        str,
        typer.Option(
            metavar="INDEX", help="Of `mmprod search`, made by this bundle: its pictures are found."
        ),
    ] = "",
    unproven: Annotated[
        bool,
        typer.Option("--serve-unproven", help="Serve files without a parity pass, too."),
    ] = False,
    drain: Annotated[
        int, typer.Option("--drain-s", min=1, help="What is at work may take so long at the end.")
    ] = 30,
) -> None:
    """Serve a bundle: Open Inference Protocol v2 over REST and gRPC, until SIGTERM.

    SIGHUP takes the bundle anew without losing a request. Metrics at /metrics, the API at
    /openapi.json; see docs/serve.md.
    """
    from mmprod.serving.server import run_server
    from mmprod.serving.settings import MIB, Batching, Limits, Settings

    started = time.monotonic()
    every, each = _waits(waits or [])
    settings = Settings(
        bundle=bundle,
        host=host,
        port=port,
        grpc_port=grpc_port,
        backend=backend,
        precision=precision,
        unproven=unproven,
        threads=threads,
        shadow=shadow,
        drain_s=drain,
        key=_key(key_file),
        batching=Batching(together, every, queue, each),
        limits=Limits(body_bytes=body * MIB, pixels=pixels, requests=most),
    )
    settings.check()
    _log_as_json()
    searcher = None
    if index:
        from mmprod.serving.index import open_index

        searcher = open_index(index)
    run_server(settings, lambda ready: _tell(out, ready, time.monotonic() - started), searcher)


def _tell(out: Output, ready: Listening, seconds: float) -> None:
    """Where the server is and what it serves."""
    from mmprod.serving.model import about_steps

    settings, deployment = ready.service.settings, ready.service.current
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    rest, grpc = f"http://{host}:{ready.port}", f"{host}:{ready.grpc_port}"
    about = {name: about_steps(model.steps) for name, model in deployment.models.items()}
    data = {
        "rest": rest,
        "grpc": grpc if ready.grpc_port else None,
        "bundle": deployment.identity.name,
        "sha256": deployment.identity.sha256,
        "models": about,
        "ready_s": round(seconds, 3),
        "pid": os.getpid(),
    }
    rows = [(name, info["precision"], info["runner"]) for name, info in about.items()]
    fields = {"REST": rest, "gRPC": data["grpc"] or "off (--grpc-port)", "stop": "Ctrl-C"}
    title = f"ready after {seconds:.1f} s"
    out.result(data, Table("", ("model", "precision", "runner"), rows), Fields(title, fields))


def _waits(given: list[str]) -> tuple[float, dict[str, float]]:
    """`["2", "embed_text=5"]` -> seconds for all, and by graph. Raises ConfigError."""
    every, each = 0.0, {}
    for text in given:
        graph, _, number = text.rpartition("=")
        try:
            seconds = float(number) / 1e3
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= 10:
            raise ConfigError(
                f"--batch-wait-ms {text!r} is no time up to 10000 ms",
                hint="--batch-wait-ms 2, or --batch-wait-ms embed_text=5",
            )
        if graph:
            each[graph] = seconds
        else:
            every = seconds
    return every, each


def _key(path: Path | None) -> str:
    """The key of the file or the environment, "" for none. Raises ConfigError for a blank file and
    for a key that no header can carry.
    """
    found = os.environ.get(KEY, "").encode() if path is None else path.read_bytes()
    key, where = found.strip(), path or KEY
    hint = "head -c 32 /dev/urandom | base64 > FILE"
    if path and not key:
        raise ConfigError(f"{path} is empty", hint=hint)
    if any(not 0x20 < byte < 0x7F for byte in key):
        raise ConfigError(f"the key in {where} has more than plain ASCII characters", hint=hint)
    return key.decode("ascii")


def _log_as_json() -> None:
    """One JSON document per log line, of the server library's, too."""
    handlers = logging.getLogger("mmprod").handlers
    for handler in handlers:
        handler.setFormatter(_JsonLines())
    library = logging.getLogger("uvicorn")
    library.handlers[:] = handlers
    library.setLevel(logging.ERROR)
    library.propagate = False


class _JsonLines(logging.Formatter):
    """A record as JSON: time, level, logger, and its message, or the fields of an access line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{stamp}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        if record.name.endswith(".access"):
            return json.dumps({**line, **json.loads(record.getMessage())})
        line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
