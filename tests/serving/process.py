"""A server in a process of its own, on the toy bundle, and plain ways to talk to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 60
TOKENS = {"name": "tokens", "datatype": "INT32", "shape": [1, 3], "data": [1, 2, 3]}
PATH = "/v2/models/graph.embed_text/infer"
BODY = json.dumps({"inputs": [TOKENS]}).encode()


@dataclass(frozen=True)
class Served:
    """The process and what it said when it was ready."""

    process: subprocess.Popen[str]
    about: dict[str, Any]
    log: Path

    @property
    def port(self) -> int:
        return int(self.about["rest"].rpartition(":")[2])

    @property
    def grpc(self) -> str:
        return str(self.about["grpc"])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def request(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, bytes]:
        """Status and body."""
        connection = self.connect()
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content

    def raw(self, data: bytes, timeout: float = 5) -> bytes:
        """What comes back for these very bytes, until the server closes or says nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as stream:
            found = b""
            try:
                stream.sendall(data)
                while chunk := stream.recv(65536):
                    found += chunk
            except (TimeoutError, ConnectionError):
                pass
            return found

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.request("GET", "/metrics")[1].decode().splitlines()
        found = [line for line in lines if line.partition("{")[0].partition(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line]

    def resident(self) -> int:
        """Bytes of memory now."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(bundle: Path, log: Path, *options: str, **environment: str) -> Iterator[Served]:
    """`mmprod serve` on free ports; killed in the end if it still runs."""
    command = [sys.executable, "-m", "mmprod", "serve", str(bundle), "--port", "0", "--json"]
    command += ["--grpc-port", "0", "--serve-unproven", "--threads", "1", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield Served(process, _document(process, log), log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


def _document(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Read stdout up to the end of its first JSON document."""
    assert process.stdout
    text, end = "", time.monotonic() + START_S
    while time.monotonic() < end:
        line = process.stdout.readline()
        if not line:
            break
        text += line
        if line == "}\n":
            found: dict[str, Any] = json.loads(text)
            return found
    raise AssertionError(f"no server: {text}{log.read_text()}")


def wait_until(condition: Any, seconds: float = 20) -> None:
    """Poll; fails when it never holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
