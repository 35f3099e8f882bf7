"""What one build is asked to do and what it gives back: plain data, sent to the worker as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmprod.engines.targets import FlavourName
from mmprod.errors import IntegrityError
from mmprod.graphs.spec import Dim, GraphSpec, Tensor
from mmprod.manifest import sha256_file

OPTIONS: dict[str, Any] = {"tf32": False, "profiling_verbosity": "DETAILED"}
"""How every engine is built. TF32 stays off in half engines too: what is left in fp32 there is in
fp32 for its accuracy."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph as the builder must find it; -1 stands for a variable size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    profile: tuple[tuple[int, ...], ...] = ()
    """Smallest, typical and largest shape; empty for outputs."""

    @classmethod
    def of(cls, tensor: Tensor, *, is_input: bool) -> Port:
        shape = tuple(-1 if isinstance(d, Dim) else d for d in tensor.shape)
        profile = tuple(tensor.sizes_at(which) for which in ("min", "typical", "max"))
        return cls(tensor.name, tensor.dtype, shape, profile if is_input else ())

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Port:
        profile = tuple(tuple(shape) for shape in raw["profile"])
        return cls(raw["name"], raw["dtype"], tuple(raw["shape"]), profile)


@dataclass(frozen=True)
class BuildJob:
    """One engine to build: `onnx` is read, with the weights beside it; `plan` is written."""

    graph: str
    precision: str
    flavour: FlavourName
    target: str
    onnx: str
    plan: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: tuple[tuple[str, str], ...]
    """name and SHA-256 of all that is read, in the folder of `onnx`"""

    @classmethod
    def of(
        cls,
        spec: GraphSpec,
        *,
        onnx: Path,
        plan: Path,
        precision: str,
        target: tuple[FlavourName, str],
        files: Iterable[tuple[str, str]],
    ) -> BuildJob:
        """The job for a graph of the catalog. `target`: the flavour and its target; `files`: name
        and SHA-256 of the graph and of the weights beside it.
        """
        return cls(
            spec.name,
            precision,
            *target,
            str(onnx),
            str(plan),
            tuple(Port.of(tensor, is_input=True) for tensor in spec.inputs),
            tuple(Port.of(tensor, is_input=False) for tensor in spec.outputs),
            tuple(files),
        )

    def verify(self) -> None:
        """The files are still those that were asked for. Raises IntegrityError."""
        for name, wanted in self.files:
            path = Path(self.onnx).parent / name
            if not path.is_file() or sha256_file(path) != wanted:
                raise IntegrityError(
                    f"{self.label}: {path} changed before it was read",
                    hint="build again when nothing else writes there; mmprod bundle verify BUNDLE",
                )

    @property
    def label(self) -> str:
        """How people and messages name it, e.g. `fusion_step fp16 sm89`."""
        return f"{self.graph} {self.precision} {self.target}"

    @property
    def profile(self) -> dict[str, dict[str, list[int]]]:
        """Shapes the engine is tuned for and must accept, by input."""
        return {
            port.name: {
                which: list(shape)
                for which, shape in zip(("min", "typical", "max"), port.profile, strict=True)
            }
            for port in self.inputs
        }

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> BuildJob:
        ports = {key: tuple(Port.parse(port) for port in raw[key]) for key in ("inputs", "outputs")}
        files = tuple((name, digest) for name, digest in raw["files"])
        return cls(**{**raw, **ports, "files": files})


@dataclass(frozen=True)
class BuildResult:
    """A finished engine, as read while it was built."""

    version: str
    """of the library that built it"""
    seconds: float
    layers: dict[str, Any]
    """kernels (name, type, datatypes, ONNX nodes), how many of each type, fused attention"""
    precision: dict[str, Any]
    """`precision_check.PrecisionReport` as data"""
    memory: dict[str, int]
    """scratch, activation, weights, host and device persistent, in bytes"""
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> BuildResult:
        return cls(**{**raw, "warnings": tuple(raw["warnings"])})
