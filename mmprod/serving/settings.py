"""What a server is told when it starts, and the limits that hold before anything is decoded."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmprod.data.pictures import Bounds
from mmprod.errors import ConfigError

Backend = Literal["ort", "trt"]
FORMATS = ("PNG", "JPEG", "WEBP")
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may take. `_s`: seconds."""

    body_bytes: int = 16 * MIB
    all_bodies_bytes: int = 256 * MIB
    header_bytes: int = 16 * 1024
    pixels: int = 4_194_304
    shortest_side: int = 8
    longest_side: int = 8192
    text_characters: int = 2000
    requests: int = 256
    connections: int = 1024
    friendly_threads: int = 8
    receive_s: float = 10.0
    idle_s: float = 30.0
    answer_s: float = 60.0

    @property
    def pictures(self) -> Bounds:
        return Bounds(FORMATS, self.pixels, self.shortest_side, self.longest_side)


@dataclass(frozen=True)
class Batching:
    """How requests of one graph become a batch: wait up to `wait_s` for company after the first
    one came; at most `queue` requests wait. `waits`: another time to wait, by graph. Not
    `together`: each runs alone, so that no bit of an answer depends on who else asked.
    """

    together: bool = True
    wait_s: float = 0.0
    queue: int = 64
    waits: Mapping[str, float] = field(default_factory=dict)

    def wait_of(self, graph: str) -> float:
        return self.waits.get(graph, self.wait_s)


@dataclass(frozen=True)
class Settings:
    """All that `mmprod serve` decides. grpc_port None: no gRPC. key "": nobody is asked for one."""

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    backend: Backend = "ort"
    precision: str = "fp32"
    unproven: bool = False
    threads: int = 0
    shadow: float = 0.0
    drain_s: float = 30.0
    key: str = field(default="", repr=False)
    batching: Batching = Batching()
    limits: Limits = Limits()

    def check(self) -> None:
        """Raises ConfigError for what cannot work or is not safe."""
        if not is_loopback(self.host) and not self.key:
            raise ConfigError(
                f"{self.host} can be reached from other machines, and no key is asked for",
                hint="--key-file FILE, or MMPROD_SERVE_KEY, or leave --host out",
            )
        if not 0 <= self.shadow <= 1:
            raise ConfigError(f"--shadow {self.shadow} is no share", hint="--shadow 0.01")
        if self.grpc_port == self.port and self.port:
            raise ConfigError(
                f"port {self.port} is asked for twice", hint="give --grpc-port another"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address; of names, only `localhost` is known to."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
