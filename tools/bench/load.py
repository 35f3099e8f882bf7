"""Clients that ask one server as fast as it answers, over plain HTTP/1.1 with keep-alive.

Written on bare sockets, so that the time of the client is small beside that of the server.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """What is asked: a server on this machine, a path, a body and headers beside the usual."""

    port: int
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    group: int = 0
    """The server's process group, whose processor time is counted."""

    def request(self) -> bytes:
        lines = [f"POST {self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body


@dataclass(frozen=True)
class Load:
    """What the clients saw: answers per second, milliseconds at the median and the 99th percentile;
    and the server's processor time per answer, which other programs disturb little.

    failed: answers that were not 200.
    """

    clients: int
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    failed: int


def load(target: Target, clients: int, seconds: float) -> Load:
    """So many clients for so long; the first tenth of the answers is not counted."""
    return asyncio.run(_load(target, clients, seconds))


async def _load(target: Target, clients: int, seconds: float) -> Load:
    end = time.perf_counter() + seconds
    before = group_cpu_s(target.group)
    found = await asyncio.gather(*(_client(target, end) for _ in range(clients)))
    answers = sorted(answer for per_client in found for answer in per_client)
    counted = answers[len(answers) // 10 :]
    spent = counted[-1][0] - counted[0][0] if len(counted) > 1 else seconds
    times = np.array([milliseconds for _, milliseconds, _ in counted])
    failed = sum(status != 200 for _, _, status in answers)
    p50, p99 = np.percentile(times, (50, 99))
    cpu_ms = 1e3 * (group_cpu_s(target.group) - before) / len(answers)
    return Load(clients, len(counted) / spent, float(p50), float(p99), cpu_ms, failed)


def group_cpu_s(group: int) -> float:
    """Processor seconds that the living processes of a group have used. Linux."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def _client(target: Target, end: float) -> list[tuple[float, float, int]]:
    """(when, milliseconds, status) of each answer."""
    request, found = target.request(), []
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    try:
        while (start := time.perf_counter()) < end:
            writer.write(request)
            status = await read_answer(reader)
            now = time.perf_counter()
            found.append((now, 1e3 * (now - start), status))
    finally:
        writer.close()
    return found


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whole; its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    await reader.readexactly(int(length[1]) if length else 0)
    return int(head[9:12])
