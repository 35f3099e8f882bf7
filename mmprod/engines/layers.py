"""Reading what an engine consists of, without running it.

TensorRT for RTX cannot open its own plan where there is no GPU, but at VERBOSE it logs one message
that starts with `Layers:` and lists every kernel; TensorRT on a device gives the same facts as JSON
through its engine inspector. Both become `Kernel`s here. Each kernel names the ONNX nodes it came
from, which is what ties an engine back to its graph. A kernel that cannot be read is an error: it
might be the one in the wrong precision. A log without kernels gives none, and the precision check
then refuses the engine.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mmprod.errors import PrecisionMismatch

LAYERS = "Layers:"

_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]+), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\],.*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_MEMORY = {
    "scratch": re.compile(r"^Max Scratch Memory: (\d+) bytes"),
    "activation": re.compile(r"^Total Activation Memory: (\d+) bytes"),
    "weights": re.compile(r"^Total Weights Memory: (\d+) bytes"),
    "host_persistent": re.compile(r"^Total Host Persistent Memory: (\d+) bytes"),
    "device_persistent": re.compile(r"^Total Device Persistent Memory: (\d+) bytes"),
}
_NAMES = (
    ("BFloat16", r"bfloat16|bf16"),
    ("Half", r"half|fp16"),
    ("FP8", r"fp8"),
    ("Float", r"float|fp32"),
    ("Int8", r"(?<!u)int8"),
)
"""How the inspector may write datatypes, e.g. "Row major linear FP16 format"; first match wins."""


@dataclass(frozen=True)
class Kernel:
    """One step of an engine. Datatypes in TensorRT's words: Float, Half, BFloat16, Int8, FP8 ..."""

    name: str
    type: str
    tactic: str
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    """datatypes of its constants that are matrices or filters, not scalars or vectors"""
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    """ONNX nodes it computes, in whole or in part"""

    def as_dict(self) -> dict[str, Any]:
        joined = {key: " ".join(getattr(self, key)) for key in ("inputs", "weights", "outputs")}
        return {**vars(self), **joined, "nodes": list(self.nodes)}


def keep(message: str) -> bool:
    """Whether a message of the build log is read here."""
    return message.startswith(LAYERS) or any(p.match(message) for p in _MEMORY.values())


def parse_log(messages: Iterable[str]) -> list[Kernel]:
    """Kernels from the `Layers:` message of a build log, whose list ends at the first empty line.

    Raises PrecisionMismatch for a line that cannot be read.
    """
    found: list[Kernel] = []
    for message in messages:
        if not message.startswith(LAYERS):
            continue
        lines = message.removeprefix(LAYERS).lstrip().splitlines()
        for line in itertools.takewhile(str.strip, lines):
            match = _LINE.match(line)
            if match is None:
                raise _unreadable(line)
            found.append(_from_match(match))
    return found


def _unreadable(layer: object) -> PrecisionMismatch:
    return PrecisionMismatch(
        f"a layer of the engine cannot be read, so its precision is not proved: {str(layer)[:200]}",
        hint="use a tested version of TensorRT: mmprod doctor",
    )


def _from_match(match: re.Match[str]) -> Kernel:
    constants = [(_sizes(dims), kind) for dims, kind in _TENSOR.findall(match["constants"] or "")]
    return Kernel(
        name=match["name"],
        type=match["type"],
        tactic=match["tactic"],
        inputs=tuple(kind for _, kind in _TENSOR.findall(match["inputs"])),
        weights=_weights(constants),
        outputs=tuple(kind for _, kind in _TENSOR.findall(match["outputs"])),
        nodes=tuple(_NODE.findall(match["metadata"])),
    )


def parse_inspector(text: str) -> list[Kernel]:
    """Kernels from the JSON of an engine inspector (written from its documentation).

    Raises PrecisionMismatch for a layer of which only the name is known (built without detail).
    """
    found = []
    for layer in json.loads(text).get("Layers", []):
        if not isinstance(layer, dict):
            raise _unreadable(layer)
        weights = layer.get("Weights")
        constants = [(tuple(c["Dimensions"]), _datatype(c)) for c in layer.get("Constants", [])]
        found.append(
            Kernel(
                name=layer["Name"],
                type=layer.get("LayerType", ""),
                tactic=layer.get("TacticName", ""),
                inputs=tuple(_datatype(tensor) for tensor in layer.get("Inputs", [])),
                weights=(_named(weights["Type"]),) if weights else _weights(constants),
                outputs=tuple(_datatype(tensor) for tensor in layer.get("Outputs", [])),
                nodes=tuple(_NODE.findall(layer.get("Metadata", ""))),
            )
        )
    return found


def parse_memory(messages: Iterable[str]) -> dict[str, int]:
    """Memory figures of a build log, in bytes; a figure that was not logged is absent."""
    found: dict[str, int] = {}
    for message in messages:
        for name, pattern in _MEMORY.items():
            if match := pattern.match(message):
                found[name] = int(match[1])
    return found


def summarize(kernels: Sequence[Kernel]) -> dict[str, Any]:
    """The kernels as data; how many there are of each type and how many are fused attention."""
    return {
        "kernels": len(kernels),
        "types": dict(Counter(kernel.type for kernel in kernels).most_common()),
        "fused_attention": sum(is_attention(kernel) for kernel in kernels),
        "list": [kernel.as_dict() for kernel in kernels],
    }


def is_attention(kernel: Kernel) -> bool:
    """Softmax(QK)V in one kernel."""
    return re.search(r"mha|fmha|flash", kernel.name.lower()) is not None


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _weights(constants: Iterable[tuple[tuple[int, ...], str]]) -> tuple[str, ...]:
    return tuple(kind for sizes, kind in constants if sum(n > 1 for n in sizes) >= 2)


def _datatype(tensor: dict[str, Any]) -> str:
    return _named(tensor.get("Datatype") or tensor.get("Format/Datatype") or "")


def _named(text: str) -> str:
    """The datatype in TensorRT's short words; the text itself where it names none of `_NAMES`."""
    found = (name for name, pattern in _NAMES if re.search(pattern, text.lower()))
    return next(found, text)
