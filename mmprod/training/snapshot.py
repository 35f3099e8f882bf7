"""What one rank writes into a step folder, as files of named tensors; the other way round, how a
rank reads what it holds.

Every rank writes the fragments of the parameters that it holds. Where all ranks hold the same whole
ones, each writes a share of them. Rank 0 adds the buffers (codebook), the exact frozen weights and
what the task trains beside its model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mmprod.checkpoint.state import (
    AVERAGE,
    BUFFERS,
    FROZEN,
    HINT,
    TASK,
    WEIGHT,
    Whole,
    describe,
    key,
    state_name,
)
from mmprod.checkpoint.tensor_file import TensorSource
from mmprod.errors import IntegrityError
from mmprod.training.backend import Backend
from mmprod.training.distributed import World
from mmprod.training.ema import Ema
from mmprod.training.fragments import Fragment
from mmprod.training.freezing import frozen_weights
from mmprod.training.task import Task

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
BLOCK = 1 << 24
"""bytes copied from a device at a time"""


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves and restores, on this rank."""

    backend: Backend
    ema: Ema
    world: World
    task: Task
    whole: nn.Module | None = None
    """the model that rank 0 evaluates: it holds the exact frozen weights"""


@dataclass(frozen=True)
class Content:
    """One file to write. `tensors`: live storage until `Copies.of` has copied it."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def sources(self) -> list[TensorSource]:
        return [_source(name, tensor.detach()) for name, tensor in self.tensors.items()]


class Copies:
    """Copies of contents in host memory, which is used again by the next ones."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Tensor] = {}

    def of(self, contents: list[Content]) -> list[Content]:
        """The same contents as they are now, whatever becomes of the live ones. Frozen weights
        never change and are not copied.
        """
        return [
            content
            if content.name == FROZEN
            else replace(
                content,
                tensors={
                    name: self._copy((content.name, name), tensor.detach())
                    for name, tensor in content.tensors.items()
                },
            )
            for content in contents
        ]

    def _copy(self, place: tuple[str, str], tensor: Tensor) -> Tensor:
        kept = self._kept.get(place)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._kept[place] = kept
        return kept.copy_(tensor)


def contents(trained: Trained) -> list[Content]:
    """The files of this rank."""
    world = trained.world
    fragments = _own(trained.backend.fragments(), trained.backend.sharded, world)
    tensors = {
        key(field, name): tensor
        for name, fragment in fragments.items()
        for field, tensor in _fields(trained, fragment).items()
    }
    places = {name: (f.start, _length(f), f.shape) for name, f in fragments.items()}
    found = [Content(state_name(world.rank), tensors, describe(places))]
    if world.is_main:
        frozen = frozen_weights(trained.whole) if trained.whole is not None else {}
        found += [
            Content(BUFFERS, _buffers(trained.task.model), {}),
            Content(FROZEN, frozen, {}),
            Content(TASK, trained.task.state(), {}),
        ]
    return [content for content in found if content.tensors]


@torch.no_grad()
def restore(trained: Trained, files: Path, index: Mapping[str, Whole]) -> None:
    """Read fragments, averages, buffers and the task's state in place. Raises IntegrityError."""
    expected = {n for n, p in trained.task.model.named_parameters() if p.requires_grad}
    if odd := sorted(expected ^ index.keys()):
        raise IntegrityError(
            f"{files} holds other parameters than are trained now: {', '.join(odd[:5])}", hint=HINT
        )
    for file, pieces in _pieces(trained, files, index).items():
        try:
            with safe_open(files / file, "pt") as stored:
                for name, low, high, into in pieces:
                    into.copy_(stored.get_slice(name)[low:high])
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{files / file} cannot be read: {error}", hint=HINT) from error
    _restore_buffers(trained.task.model, _load(files / BUFFERS), files)
    trained.task.load_state(_load(files / TASK))


Piece = tuple[str, int, int, Tensor]
"""name of a stored tensor, the elements [low, high) of it, where they go"""


def _pieces(trained: Trained, files: Path, index: Mapping[str, Whole]) -> dict[str, list[Piece]]:
    """What this rank reads, by file."""
    found: dict[str, list[Piece]] = {}
    for name, fragment in trained.backend.fragments().items():
        whole, first, last = index[name], fragment.start, fragment.start + _length(fragment)
        if whole.shape != tuple(fragment.shape):
            raise IntegrityError(
                f"{files}: {name} has shape {list(whole.shape)}, here {list(fragment.shape)}",
                hint=HINT,
            )
        for part in whole.within(first, last):
            low, high = max(first, part.start), min(last, part.stop)
            for field, tensor in _fields(trained, fragment).items():
                into = tensor[low - first : high - first]
                place = key(field, name), low - part.start, high - part.start, into
                found.setdefault(part.file, []).append(place)
    return found


def _fields(trained: Trained, fragment: Fragment) -> dict[str, Tensor]:
    """Flat views of everything that is kept for a fragment."""
    return {**fragment.fields, AVERAGE: trained.ema.average[fragment.name].view(-1)}


def _length(fragment: Fragment) -> int:
    return fragment.fields[WEIGHT].numel()


def _own(fragments: dict[str, Fragment], sharded: bool, world: World) -> dict[str, Fragment]:
    """The fragments that this rank writes."""
    if sharded:
        return fragments
    return {name: fragments[name] for name in sorted(fragments)[world.rank :: world.size]}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state_dict has; others are derived from the configuration."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def _restore_buffers(model: nn.Module, saved: Mapping[str, Tensor], files: Path) -> None:
    live = _buffers(model)
    for name in sorted(live.keys() | saved.keys()):
        if name not in live or name not in saved or live[name].shape != saved[name].shape:
            raise IntegrityError(f"{files / BUFFERS}: {name} is not what is needed", hint=HINT)
        live[name].copy_(saved[name])


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; none where there is no file, which had nothing to hold."""
    try:
        return dict(load_file(path)) if path.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", hint=HINT) from error


def _source(name: str, tensor: Tensor) -> TensorSource:
    return TensorSource(name, TYPES[tensor.dtype], tuple(tensor.shape), lambda: _blocks(tensor))


def _blocks(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.contiguous().view(-1)
    length = BLOCK // flat.element_size()
    for start in range(0, flat.numel(), length):
        block = flat[start : start + length].cpu()
        yield block.view(torch.uint8).numpy().data
