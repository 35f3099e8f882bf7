"""The JSON beside each plan, and the record of an engine that reports and tables are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmprod.engines.job import OPTIONS, BuildJob, BuildResult
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry
from mmprod.runners.trt import FORMAT

SAME = ("graph", "precision", "flavour", "version", "target", "onnx", "options", "profile")
"""What must be equal for an engine on disk to be taken again."""


@dataclass(frozen=True)
class EngineRecord:
    """One engine of a bundle. `state` says what is known of it: built, and whether it ever ran."""

    graph: str
    precision: str
    flavour: str
    version: str
    target: str
    path: str
    """of the plan, below the bundle's root"""
    sha256: str
    bytes: int
    seconds: float
    """that its build took"""
    kernels: int
    fused_attention: int
    share: float | None
    """of heavy operators computed in the asked precision"""
    memory: Mapping[str, int]
    state: str
    cached: bool = False
    """taken as it was, because nothing it depends on had changed"""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": dict(self.memory)}

    @classmethod
    def of(cls, info: Mapping[str, Any], *, cached: bool) -> EngineRecord:
        """The record of an engine from its JSON. Raises IntegrityError for an unknown format."""
        check_format(info)
        return cls(
            **{key: info[key] for key in ("graph", "precision", "flavour", "version", "target")},
            **info["plan"],
            seconds=info["seconds"],
            kernels=info["layers"]["kernels"],
            fused_attention=info["layers"]["fused_attention"],
            share=info["precision_check"]["share"],
            memory=info["memory"],
            state=info["state"],
            cached=cached,
        )


def identity(job: BuildJob, version: str, onnx: list[FileEntry]) -> dict[str, Any]:
    """All that an engine depends on, as its JSON holds it. `onnx`: graph, then weight files."""
    return {
        "graph": job.graph,
        "precision": job.precision,
        "flavour": job.flavour,
        "version": version,
        "target": job.target,
        "onnx": [entry.as_dict() for entry in onnx],
        "options": OPTIONS,
        "profile": job.profile,
    }


def engine_info(
    known: Mapping[str, Any], job: BuildJob, result: BuildResult, plan: FileEntry, device: str
) -> dict[str, Any]:
    """The JSON beside a plan. `known`: its `identity`; `device`: this machine's target, or ""."""
    ports = {"inputs": job.inputs, "outputs": job.outputs}
    return {
        "format": FORMAT,
        **known,
        "plan": plan.as_dict(),
        "state": "built, not run yet" if device else "built, not run: no CUDA device",
        "seconds": result.seconds,
        **{
            key: [{"name": p.name, "dtype": p.dtype, "shape": list(p.shape)} for p in value]
            for key, value in ports.items()
        },
        "precision_check": result.precision,
        "memory": result.memory,
        "warnings": list(result.warnings),
        "layers": result.layers,
    }


def check_format(info: Mapping[str, Any]) -> None:
    if info.get("format") != FORMAT:
        raise IntegrityError(
            f"an engine's JSON has format {info.get('format')!r}; this mmprod reads {FORMAT}",
            hint="use the version of mmprod that built it, or build it again",
        )
