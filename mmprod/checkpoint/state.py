"""Where each trained parameter lies in the state files of a step folder. Torch-free.

    state-00000.safetensors, state-00001.safetensors, ...   one for each rank that held state
        FIELD/PARAMETER    (n,) float32: elements [start, start + n) of the flattened parameter
        fields: weight, the optimizer's moments (exp_avg, exp_avg_sq, momentum_buffer), average
        metadata FRAGMENTS: {parameter: [start, n, shape]}

Only these positions count, not the number of ranks nor the ZeRO stage that wrote them, so any
number of ranks under any stage can read what it needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from mmprod.errors import IntegrityError

FRAGMENTS = "fragments"
WEIGHT, AVERAGE = "weight", "average"
ADAM_STEP = "adamw.step"
"""the scalar that counts AdamW's steps"""
BUFFERS, FROZEN, TASK = "buffers.safetensors", "frozen.safetensors", "task.safetensors"
HINT = "resume with --resume auto: it takes the newest checkpoint that is whole"


@dataclass(frozen=True)
class Part:
    """Elements [start, start + n) of a flattened parameter, and the file that holds them."""

    file: str
    start: int
    n: int

    @property
    def stop(self) -> int:
        return self.start + self.n


@dataclass(frozen=True)
class Whole:
    """One parameter: its shape, and parts in order that cover it without gap or overlap."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def within(self, start: int, stop: int) -> Iterator[Part]:
        """The parts that hold elements of [start, stop)."""
        return (part for part in self.parts if part.start < stop and start < part.stop)


def state_name(rank: int) -> str:
    return f"state-{rank:05d}.safetensors"


def key(field: str, name: str) -> str:
    """Name of a tensor in a state file."""
    return f"{field}/{name}"


def describe(fragments: Mapping[str, tuple[int, int, tuple[int, ...]]]) -> dict[str, str]:
    """The metadata of a state file. fragments: name -> (start, n, shape of the whole)."""
    table = {name: [start, n, list(shape)] for name, (start, n, shape) in fragments.items()}
    return {FRAGMENTS: json.dumps(table, sort_keys=True, separators=(",", ":"))}


def state_files(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the state files that a step's manifest lists."""
    names = [PurePosixPath(entry["path"]).name for entry in manifest["files"]]
    return sorted(name for name in names if re.fullmatch(r"state-\d+\.safetensors", name))


def read_index(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Whole]:
    """Every parameter of a step by name, from the files in `folder`.

    Raises IntegrityError naming the parameter that is not covered exactly once.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[Part]] = {}
    for file in state_files(manifest):
        for name, (start, n, shape) in _fragments(folder / file).items():
            if shapes.setdefault(name, shape) != shape:
                raise IntegrityError(
                    f"{folder}: {name} has shape {list(shapes[name])} in one file and "
                    f"{list(shape)} in {file}",
                    hint=HINT,
                )
            parts.setdefault(name, []).append(Part(file, start, n))
    return {
        name: _whole(folder, name, shape, parts[name]) for name, shape in sorted(shapes.items())
    }


def _fragments(path: Path) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    try:
        with safe_open(path, "numpy") as file:
            raw = json.loads((file.metadata() or {})[FRAGMENTS])
        return {
            name: (int(start), int(n), tuple(int(size) for size in shape))
            for name, (start, n, shape) in raw.items()
        }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"{path} does not say which parameters it holds: {error}", hint=HINT
        ) from error


def _whole(folder: Path, name: str, shape: tuple[int, ...], parts: list[Part]) -> Whole:
    ordered = sorted(parts, key=lambda part: part.start)
    covered = 0
    for part in ordered:
        if part.start != covered:
            what = "are missing" if part.start > covered else "are there twice"
            low, high = sorted((covered, part.start))
            raise IntegrityError(
                f"{folder}: elements {low} to {high} of {name} {what} in its state files", hint=HINT
            )
        covered = part.stop
    if covered != prod(shape):
        raise IntegrityError(
            f"{folder}: the state files hold {covered} elements of {name}, it has {prod(shape)}",
            hint=HINT,
        )
    return Whole(name, shape, tuple(ordered))
