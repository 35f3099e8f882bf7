"""The machines that a plan is for: a TOML file, or a shipped one by name (configs/clusters).

Compute and memory in the shipped files are data sheet values (dense, without sparsity), checked
against transcriptions of the sheets; `source` says what is assumed. No prices are shipped: they are
the user's.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from mmprod.config.keys import did_you_mean
from mmprod.config.load import configs_dir
from mmprod.config.section import Section
from mmprod.errors import ConfigError

GIGA = 10**9


class Cluster(Section):
    """Identical nodes of identical devices. Bandwidths: of one device, in one direction."""

    name: str = "unnamed"
    source: str = Field(default="", description="where the figures are from")
    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = 8
    memory_gb: PositiveFloat = Field(description="memory of one device, 10^9 bytes")
    host_memory_gb: float = Field(
        default=0, ge=0, description="memory of a node's host, 10^9 bytes; 0: unknown, not checked"
    )
    tflops_fp32: PositiveFloat = Field(description="peak of one device, fp32 without TF32")
    tflops_bf16: PositiveFloat = Field(description="peak of one device, dense")
    tflops_fp16: PositiveFloat = Field(description="peak of one device, dense, fp32 accumulation")
    intra_gb_s: PositiveFloat = Field(description="between devices of one node")
    inter_gb_s: PositiveFloat = Field(description="between nodes, a device's share of the network")
    host_gb_s: PositiveFloat = Field(default=32, description="between device and host")
    intra_latency_us: float = Field(default=5, ge=0, description="of one hop within a node")
    inter_latency_us: float = Field(default=15, ge=0, description="of one hop between nodes")
    mfu: float = Field(
        default=0.35, gt=0, le=1, description="share of the peak that the model's FLOPs reach"
    )
    link_share: float = Field(
        default=0.7, gt=0, le=1, description="share of a bandwidth that collectives reach"
    )
    usable: float = Field(
        default=0.9, gt=0, le=1, description="share of the memory for what the plan counts"
    )
    host_adam: PositiveFloat = Field(
        default=0.5, description="10^9 parameters per second that a node's CPU moves by AdamW"
    )
    price_per_gpu_hour: float = Field(default=0, ge=0, description="any currency; 0: no cost shown")
    fused: bool = Field(default=True, description="attention by one kernel that keeps no scores")

    @property
    def gpus(self) -> int:
        """Devices of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def memory_bytes(self) -> int:
        """What the plan may fill on one device."""
        return int(self.memory_gb * GIGA * self.usable)

    def tflops(self, precision: str) -> float:
        """Peak of one device in a training precision."""
        found: float = getattr(self, f"tflops_{precision}")
        return found

    def link(self, world: int) -> tuple[float, float]:
        """Bytes per second of the slowest link in a ring of `world` devices, seconds of a hop."""
        inside = world <= self.gpus_per_node
        speed = self.intra_gb_s if inside else min(self.intra_gb_s, self.inter_gb_s)
        hop = self.intra_latency_us if inside else self.inter_latency_us
        return speed * GIGA * self.link_share, hop / 1e6


def load_cluster(name_or_path: str, **changes: float | int | None) -> Cluster:
    """A shipped cluster by name, or a TOML file; `changes` that are not None replace its values.

    Raises ConfigError.
    """
    path = _locate(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"cluster {path} cannot be read: {error}",
            hint=f"shipped ones: {', '.join(cluster_names())}",
        ) from error
    raw |= {key: value for key, value in changes.items() if value is not None}
    for key in raw:
        if key not in Cluster.model_fields:
            known = tuple(Cluster.model_fields)
            hint = did_you_mean(key, known) or f"known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {key!r}", hint=hint)
    try:
        return Cluster.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {key}: {first['msg']}",
            hint=Cluster.model_fields[key].description or "see docs/planning.md",
        ) from error


def cluster_names() -> list[str]:
    """Names that `load_cluster` knows."""
    return sorted(path.stem for path in (configs_dir() / "clusters").glob("*.toml"))


def _locate(name_or_path: str) -> Path:
    shipped = configs_dir() / "clusters" / f"{name_or_path}.toml"
    if shipped.is_file() and "/" not in name_or_path:
        return shipped
    path = Path(name_or_path)
    if path.suffix != ".toml" and not path.exists():
        names = tuple(cluster_names())
        raise ConfigError(
            f"no cluster {name_or_path!r}",
            hint=did_you_mean(name_or_path, names) or f"shipped: {', '.join(names)}; or a file",
        )
    return path
