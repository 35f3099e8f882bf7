"""Broken and hostile requests against a server, while good ones must be answered.

    python -m tools.hostile BUNDLE --count 20000 --seed 0

Starts `mmprod serve` on the bundle, sends requests made from the seed, asks a good one all the
while and compares its answer, and watches the memory. Exit 1: a 5xx other than 503, a server that
died, a good request that failed or answered otherwise, or memory that grew by more than GROWTH
after the first quarter of the run.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmprod.bundle import open_bundle
from mmprod.graphs.runner import example_inputs
from tools.bench.serving import free_port, json_body

ROOT = Path(__file__).resolve().parents[1]
GROWTH = 0.05
CLIENTS = 12
TIMEOUT_S = 30.0
BODY_MB = 1
GRAPH = "embed_text"


@dataclass(frozen=True)
class Attack:
    """Bytes to send in pieces, with a pause between them; leave: hang up instead of listening."""

    kind: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    leave: bool = False


@dataclass
class Outcome:
    """What came of it all."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    good: int = 0
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Of the memory, after the first quarter of the run, which warms the server up."""
        level = self.memory[(len(self.memory) - 1) // 4]
        return max(self.memory[-1] - level, 0) / level


def attack(rng: random.Random) -> Attack:
    """One request, a function of the generator's state."""
    kind = rng.choice(list(KINDS))
    return KINDS[kind](kind, rng)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.hostile", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    outcome = run(options.bundle, options.count, options.seed)
    for line, number in sorted(outcome.statuses.items()):
        print(f"{number:7} {line}")
    quarters = [outcome.memory[(len(outcome.memory) - 1) * n // 4] / 2**20 for n in range(5)]
    print(
        f"{options.count} hostile requests in {outcome.seconds:.0f} s, {outcome.good} good ones "
        f"answered; memory after each quarter: {', '.join(f'{m:.0f}' for m in quarters)} MiB; "
        f"{outcome.growth:+.1%} after the first"
    )
    wrong = outcome.wrong + ([f"memory grew by {outcome.growth:.1%}"] * (outcome.growth > GROWTH))
    for text in wrong[:20]:
        print(f"wrong: {text}")
    return 1 if wrong else 0


def run(bundle: Path, count: int, seed: int) -> Outcome:
    """Serve the bundle, attack it, stop it."""
    port = free_port()
    command = [sys.executable, "-m", "mmprod", "serve", str(bundle), "--port", str(port)]
    command += ["--threads", "1", "--quiet", "--serve-unproven", "--max-body-mb", str(BODY_MB)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        outcome = asyncio.run(_run(bundle, port, process, random.Random(seed), count))
    finally:
        process.terminate()
        if code := process.wait(60):
            raise SystemExit(f"the server ended with {code}")
    return outcome


async def _run(
    bundle: Path, port: int, process: subprocess.Popen[bytes], rng: random.Random, count: int
) -> Outcome:
    opened = open_bundle(bundle, verify=False)
    good = _post(f"graph.{GRAPH}", json_body(example_inputs(opened.specs[GRAPH], 1, 0)))
    await _until_ready(port)
    outcome, start = Outcome(), time.monotonic()
    (_, wanted) = await _ask(port, Attack("good", (good,)))
    attacks = asyncio.Queue[Attack](CLIENTS)
    stop = asyncio.Event()
    watching = asyncio.create_task(_watch(port, good, wanted, process.pid, outcome, stop))
    workers = [asyncio.create_task(_work(port, attacks, outcome)) for _ in range(CLIENTS)]
    for _ in range(count):
        await attacks.put(attack(rng))
        if process.poll() is not None:
            outcome.wrong.append(f"the server died with {process.returncode}")
            break
    await attacks.join()
    for worker in workers:
        worker.cancel()
    stop.set()
    await watching
    outcome.seconds = time.monotonic() - start
    return outcome


async def _work(port: int, attacks: asyncio.Queue[Attack], outcome: Outcome) -> None:
    while True:
        sent = await attacks.get()
        try:
            status, body = await _ask(port, sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            status, body = f"({type(error).__name__})", b""
            if isinstance(error, TimeoutError):
                outcome.wrong.append(f"{sent.kind}: no answer within {TIMEOUT_S:g} s")
        outcome.statuses[f"{sent.kind}: {status}"] += 1
        if status.startswith("5") and status != "503":
            outcome.wrong.append(f"{sent.kind}: {status} {body[-200:]!r}")
        attacks.task_done()


async def _watch(
    port: int, good: bytes, wanted: bytes, pid: int, outcome: Outcome, stop: asyncio.Event
) -> None:
    """Ask a good request again and again; note the memory."""
    while not stop.is_set():
        try:
            status, body = await _ask(port, Attack("good", (good,)))
        except Exception as error:  # noqa: BLE001 - as above
            status, body = repr(error), b""
        if status != "200" or _values(body) != _values(wanted):
            outcome.wrong.append(f"a good request: {status} {body[-200:]!r}")
        outcome.good += 1
        outcome.memory.append(resident(pid))
        await asyncio.sleep(0.05)


def _values(answer: bytes) -> Any:
    """The tensors of an answer, to 5 digits: batches of other sizes move the last bits."""
    if not answer:
        return None
    (output,) = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"]
    return [round(value, 5) for value in output["data"]]


async def _ask(port: int, sent: Attack) -> tuple[str, bytes]:
    """Status ("" where there was none) and all that came back."""
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        found = b""
        try:
            with suppress(ConnectionError):
                for piece in sent.pieces:
                    writer.write(piece)
                    await writer.drain()
                    if sent.pause_s:
                        await asyncio.sleep(sent.pause_s)
                if not sent.leave:
                    found = await reader.read()
        finally:
            writer.close()
    return found[9:12].decode("ascii", "replace"), found


async def _until_ready(port: int) -> None:
    for _ in range(600):
        with suppress(OSError):
            status, _ = await _ask(port, Attack("ready", (_get("/v2/health/ready"),)))
            if status == "200":
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not become ready")


def resident(pid: int) -> int:
    """Bytes of memory of a process now. Linux."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# What is sent. Every request asks for the connection to be closed, so that an answer has an end.


def _head(method: str, path: str, length: int | None, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def _get(path: str, *more: str) -> bytes:
    return _head("GET", path, None, *more)


def _post(model: str, body: bytes, *more: str) -> bytes:
    return _head("POST", f"/v2/models/{model}/infer", len(body), *more) + body


def _file(model: str, name: str, content: bytes, **more: Any) -> bytes:
    data = [base64.b64encode(content).decode()]
    one = {"name": name, "datatype": "BYTES", "shape": [1], "data": data}
    return _post(model, json.dumps({"inputs": [one | more]}).encode())


def _picture(rng: random.Random, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3))
    stream = io.BytesIO()
    kind = rng.choice(["png", "jpeg", "webp"])
    Image.fromarray(pixels.astype(np.uint8)).save(stream, kind)
    return stream.getvalue()


def _picture_model(rng: random.Random) -> tuple[str, str]:
    return rng.choice(["image_to_text", "compress", "embed", "edit"]), "picture"


def oversize(kind: str, rng: random.Random) -> Attack:
    """A body over the limit: announced, or chunk by chunk."""
    path = "/v2/models/embed/infer"
    if rng.random() < 0.7:
        length = rng.choice([BODY_MB * 2**20 + 1, 10**12, 2**64])
        return Attack(kind, (_head("POST", path, length) + b"{" * 100,))
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = _head("POST", path, None, "Transfer-Encoding: chunked")
    return Attack(kind, (head, *[chunk] * (16 * BODY_MB + 2)))


def small_picture(kind: str, rng: random.Random) -> Attack:
    size = rng.choice([(1, 1), (1, 5000), (7, 7), (2000, 3)])
    return Attack(kind, (_file(*_picture_model(rng), _picture(rng, *size)),))


def bomb(kind: str, rng: random.Random) -> Attack:
    """A PNG that says it is very large, and a PNG whose text chunk unpacks to a lot."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    side = rng.choice([3000, 50_000, 2**31 - 1])
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    if rng.random() < 0.5:
        parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))]
        parts += [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22)))] * 3
    parts += [chunk(b"IDAT", zlib.compress(bytes(2**16))), chunk(b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return Attack(kind, (_file(*_picture_model(rng), content),))


def many_scans(kind: str, rng: random.Random) -> Attack:
    """A progressive JPEG that goes over its pixels again and again."""
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "jpeg", progressive=True)
    content = stream.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    content = content[:-2] + last * rng.choice([100, 20_000]) + content[-2:]
    return Attack(kind, (_file(*_picture_model(rng), content),))


def damaged_picture(kind: str, rng: random.Random) -> Attack:
    content = bytearray(_picture(rng, 40, 40))
    if rng.random() < 0.5:
        content = content[: rng.randrange(len(content))]
    for _ in range(rng.randrange(1, 20)):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return Attack(kind, (_file(*_picture_model(rng), bytes(content)),))


def damaged_file(kind: str, rng: random.Random) -> Attack:
    return Attack(kind, (_file("decompress", "file", rng.randbytes(rng.randrange(300))),))


def wrong_tensor(kind: str, rng: random.Random) -> Attack:
    """Types, shapes, counts and ranges that no graph takes."""
    graph = rng.choice([GRAPH, "fusion_step", "text_to_image", "codec_decode"])
    shape = [rng.choice([0, 1, 2, 17, 2**31 - 1, -1]) for _ in range(rng.randrange(4))]
    one = {
        "name": rng.choice(["tokens", "codes", "noise", "x" * 300, ""]),
        "datatype": rng.choice(["INT32", "FP32", "FP16", "BYTES", "UINT8", "?", 3]),
        "shape": shape,
        "data": rng.choice([[], [1] * 24, [10**30], [1.5, "a"], [[1], 2], [None], {}, [-1] * 64]),
    }
    return Attack(kind, (_post(f"graph.{graph}", json.dumps({"inputs": [one]}).encode()),))


def wrong_numbers(kind: str, rng: random.Random) -> Attack:
    """Options out of range, texts that are too long or no text."""
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [rng.choice(TEXTS)]},
        {"name": "count", "datatype": "INT32", "shape": [1], "data": [rng.choice(NUMBERS)]},
    ]
    return Attack(kind, (_post("text_to_image", json.dumps({"inputs": inputs}).encode()),))


TEXTS = ["", " \n", "x" * 5000, "\ud800", "\0"]
NUMBERS = [0, -1, 17, 2**31, 2**63, 1.5, "1", None]


def bad_json(kind: str, rng: random.Random) -> Attack:
    """A request with bytes changed, dropped or repeated; or JSON that is deep."""
    if rng.random() < 0.2:
        depth = rng.choice([100, 10_000])
        body = b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"
        return Attack(kind, (_post(f"graph.{GRAPH}", body),))
    data = [rng.randrange(20) for _ in range(8)]
    one = {"name": "tokens", "datatype": "INT32", "shape": [1, 8], "data": data}
    body = bytearray(json.dumps({"inputs": [one]}).encode())
    for _ in range(rng.randrange(1, 6)):
        place = rng.randrange(len(body))
        body[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return Attack(kind, (_post(f"graph.{GRAPH}", bytes(body)),))


def bad_bytes(kind: str, rng: random.Random) -> Attack:
    """Binary tensors whose lengths do not add up."""
    size = rng.choice([-1, 0, 3, 96, 2**40])
    one = {"name": "tokens", "datatype": "INT32", "shape": [1, 24]}
    head = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": size}}]}).encode()
    length = rng.choice([len(head), 0, len(head) + 1000, 10**8])
    body = head + rng.randbytes(rng.choice([0, 95, 97, 4]))
    header = f"Inference-Header-Content-Length: {rng.choice([length, 'x', -5])}"
    return Attack(kind, (_post(f"graph.{GRAPH}", body, header),))


def no_such_place(kind: str, rng: random.Random) -> Attack:
    path = rng.choice(
        ["/v2/models/nothing", "/web/../pyproject.toml", "/web/%2e%2e/rest.py",
         "/v2/models/embed/versions/9",
         "/" + "a" * 3000, "/v2/models/" + "%ff" * 20 + "/infer", "/\0", "*", "http://evil.example/"]
    )  # fmt: skip
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "BREW"])
    return Attack(kind, (_head(method, path, 0),))


def foreign(kind: str, rng: random.Random) -> Attack:
    """Another host, another origin, an upgrade, a compressed body."""
    more = rng.choice(
        ["Origin: http://evil.example", "Origin: null", "Upgrade: websocket\r\nConnection: Upgrade",
         "Content-Encoding: gzip", "Expect: 100-continue", "X-Request-Id: \x7f\x80"]
    )  # fmt: skip
    return Attack(kind, (_post("embed", b"{}", more),))


def header_flood(kind: str, rng: random.Random) -> Attack:
    """Many headers, or long ones, whole or without an end."""
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"y" * rng.choice([1, 900])) for n in range(400))
    head = b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" + lines
    return Attack(kind, (head + b"\r\n" if rng.random() < 0.5 else head * 40,))


def trailers(kind: str, rng: random.Random) -> Attack:
    """Headers without end after a body, to a model or to nothing."""
    path = rng.choice(["/v2/models/embed/infer", "/nothing"])
    lines = (b"X: " + b"y" * rng.choice([1, 900]) + b"\r\n") * 1000
    head = _head("POST", path, None, "Transfer-Encoding: chunked")
    return Attack(kind, (head + b"0\r\n", *[lines] * 20))


def no_http(kind: str, rng: random.Random) -> Attack:
    return Attack(kind, (rng.randbytes(rng.randrange(1, 200)) + b"\r\n\r\n",))


def disconnect(kind: str, rng: random.Random) -> Attack:
    """Gone in the middle of a body, or before the answer."""
    one = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a face"]}
    request = _post("text_to_image", json.dumps({"inputs": [one]}).encode())
    end = len(request) if rng.random() < 0.3 else rng.randrange(len(request))
    return Attack(kind, (request[:end],), leave=True)


def slow_drip(kind: str, rng: random.Random) -> Attack:
    """A body that comes byte by byte and never ends; the client gives up after a while."""
    head = _head("POST", "/v2/models/embed/infer", 1000)
    return Attack(kind, (head, *[b"{"] * rng.randrange(2, 8)), pause_s=0.03, leave=True)


KINDS: dict[str, Callable[[str, random.Random], Attack]] = {
    "oversize": oversize,
    "small picture": small_picture,
    "bomb": bomb,
    "many scans": many_scans,
    "damaged picture": damaged_picture,
    "damaged file": damaged_file,
    "wrong tensor": wrong_tensor,
    "wrong numbers": wrong_numbers,
    "bad JSON": bad_json,
    "bad bytes": bad_bytes,
    "no such place": no_such_place,
    "foreign": foreign,
    "header flood": header_flood,
    "trailers": trailers,
    "no HTTP": no_http,
    "disconnect": disconnect,
    "slow drip": slow_drip,
}

if __name__ == "__main__":
    sys.exit(main())
