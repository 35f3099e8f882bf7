"""What a server can be asked: models with named ports, and what an answer tells of itself.

A graph of the bundle is a model called `graph.NAME`, with the tensors of graphs/catalog.py. The
people-friendly models of friendly.py have plain names and take and give text and files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mmprod.graphs.runner import Array, Arrays
from mmprod.graphs.spec import Dim, GraphSpec, Tensor

Content = Literal["numbers", "text", "picture", "file"]
"""What the elements of a BYTES tensor are; in JSON, pictures and files are written in base64."""
Parameters = dict[str, str | int | float | bool]

DATATYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32"}
"""Names of the Open Inference Protocol, by NumPy's. Text and files are BYTES, in NumPy `object`."""
GRAPH_PREFIX = "graph."


@dataclass(frozen=True)
class Port:
    """One input or output. shape: -1 where any number goes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: Content = "numbers"
    optional: bool = False

    @classmethod
    def of(cls, tensor: Tensor) -> Port:
        shape = tuple(-1 if isinstance(size, Dim) else size for size in tensor.shape)
        return cls(tensor.name, DATATYPES[tensor.dtype], shape)


@dataclass(frozen=True)
class Step:
    """A graph that took part in an answer: what executed which file, and the milliseconds."""

    graph: str
    runner: str
    precision: str
    sha256: str
    queue_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Outputs by name, the graphs that gave them, and what else there is to say."""

    outputs: Mapping[str, Array]
    steps: tuple[Step, ...]
    extra: Parameters = field(default_factory=dict)

    @property
    def parameters(self) -> Parameters:
        """What ran, as parameters of the protocol: one value, or one for each graph in turn."""
        merged = merge_steps(self.steps)
        return {
            **about_steps(merged),
            "sha256": ",".join(step.sha256 for step in merged),
            "queue_ms": round(sum(step.queue_ms for step in merged), 3),
            "compute_ms": round(sum(step.compute_ms for step in merged), 3),
            **self.extra,
        }


class Model(Protocol):
    """Something that answers. `steps`: the graphs it uses, without times."""

    name: str
    summary: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    steps: tuple[Step, ...]
    extra: Parameters

    async def infer(self, inputs: Arrays) -> Answer:
        """Inputs of these ports -> all outputs. Raises Refused or ConfigError for wrong ones."""


def merge_steps(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """One step per graph, in order of first use, times added up."""
    found: dict[str, Step] = {}
    for step in steps:
        before = found.get(step.graph)
        queue_ms = step.queue_ms + (before.queue_ms if before else 0)
        compute_ms = step.compute_ms + (before.compute_ms if before else 0)
        found[step.graph] = Step(
            step.graph, step.runner, step.precision, step.sha256, queue_ms, compute_ms
        )
    return tuple(found.values())


def about_steps(steps: tuple[Step, ...]) -> Parameters:
    """Graphs, runners and precisions; a runner or precision that all share stands there once."""
    runners = dict.fromkeys(step.runner for step in steps)
    precisions = dict.fromkeys(step.precision for step in steps)
    return {
        "graph": ",".join(step.graph for step in steps),
        "runner": "; ".join(runners),
        "precision": ",".join(precisions),
    }


def ports_of(spec: GraphSpec) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of a graph."""
    return tuple(map(Port.of, spec.inputs)), tuple(map(Port.of, spec.outputs))
