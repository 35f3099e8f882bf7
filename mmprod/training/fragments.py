"""The parts of the trained parameters that one rank holds: fp32 weights and optimizer moments.

A fragment is a contiguous range of one flattened parameter. Without ZeRO every rank holds every
parameter whole; from ZeRO 1 on each rank holds the ranges that its optimizer updates. Checkpoints
and averages are made of fragments, so they need not know how a backend divides its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmprod.checkpoint.state import ADAM_STEP as ADAM_STEP
from mmprod.training.distributed import World

GATHERED = 2**26
"""elements that rank 0 receives in one collective, from all ranks together (256 MiB)"""


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one parameter: elements [start, start + numel) of the flattened whole.

    fields: flat fp32 (numel,) live storage by name: `weight`, and the optimizer's moments (adamw:
    `exp_avg`, `exp_avg_sq`; muon: `momentum_buffer`). Write into them in place.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    fields: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return self.fields["weight"].numel()


def whole_fragments(
    parameters: Mapping[str, nn.Parameter], optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, Fragment]:
    """Fragments that are whole parameters, of plain optimizers whose state is made if need be."""
    moments: dict[int, dict[str, Tensor]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                state = make_state(optimizer, group, p)
                moments[id(p)] = {
                    key: value.view(-1) for key, value in state.items() if is_moment(value, p)
                }
    return {
        name: Fragment(
            name, tuple(p.shape), 0, {"weight": p.detach().view(-1), **moments.get(id(p), {})}
        )
        for name, p in parameters.items()
    }


def make_state(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> Any:
    """The optimizer's state of `p`, made as its first step would make it when there is none."""
    state = optimizer.state[p]
    if not state and isinstance(optimizer, torch.optim.Muon):
        state["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
    elif not state:
        # torch counts in a tensor beside the weights (fused) or on the CPU; DeepSpeed's in an int.
        fused = group.get("fused") or group.get("capturable")
        device = p.device if fused else torch.device("cpu")
        counts = isinstance(optimizer, torch.optim.Adam)
        state["step"] = torch.zeros((), dtype=torch.float32, device=device) if counts else 0
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros_like(p, dtype=torch.float32, requires_grad=False)
    return state


def is_moment(value: Any, p: Tensor) -> bool:
    """Whether an entry of an optimizer's state has one number per weight."""
    return isinstance(value, Tensor) and value.shape == p.shape


def adam_steps(states: Iterable[Any]) -> dict[str, float]:
    """AdamW's step count as a scalar; nothing where no state counts steps."""
    steps = [float(state["step"]) for state in states if "step" in state]
    return {ADAM_STEP: max(steps)} if steps else {}


def set_adam_steps(states: Iterable[Any], scalars: Mapping[str, float]) -> None:
    """Write the step count of `adam_steps`."""
    for state in states:
        if "step" in state:
            step = scalars[ADAM_STEP]
            if isinstance(state["step"], Tensor):
                state["step"].fill_(step)
            else:
                state["step"] = int(step)


class Layout:
    """Where every rank's fragments lie: what rank 0 needs to put whole tensors together.

    Collective.
    """

    def __init__(self, fragments: Mapping[str, Fragment], world: World) -> None:
        self._world = world
        mine = [(f.name, f.shape, f.start, f.numel) for f in fragments.values()]
        self._ranks: list[list[tuple[str, tuple[int, ...], int, int]]] = [mine]
        if world.size > 1:
            self._ranks = [mine] * world.size
            dist.all_gather_object(self._ranks, mine)

    @torch.no_grad()
    def gather(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One flat tensor per fragment -> whole fp32 tensors on the CPU of rank 0; empty elsewhere.

        Few large collectives: rank 0 never holds more than GATHERED elements beside the result.
        """
        names = [name for name, *_ in self._ranks[self._world.rank]]
        mine = [parts[name].detach().reshape(-1) for name in names]
        whole = self._empty() if self._world.is_main else {}
        targets = [_Stream(self._places(rank, whole)) for rank in range(len(self._ranks))]
        longest = max(sum(numel for *_, numel in rank) for rank in self._ranks)
        piece = min(longest, max(1, GATHERED // self._world.size))
        stream = _Stream(mine)
        for start in range(0, longest, max(1, piece)):
            for rank, received in enumerate(self._exchange(stream, start, piece)):
                targets[rank].write(start, received)
        return whole

    def _exchange(self, stream: _Stream, start: int, piece: int) -> list[Tensor]:
        """Every rank's elements from `start` on, at most `piece`, on rank 0. Padded at the end."""
        device = self._world.device
        sent = torch.zeros(piece, device=device)
        stream.read(start, sent)
        if self._world.size == 1:
            return [sent.cpu()]
        box = None
        if self._world.is_main:
            box = [torch.empty(piece, device=device) for _ in range(self._world.size)]
        dist.gather(sent, box, dst=0)
        return [tensor.cpu() for tensor in box or []]

    def _empty(self) -> dict[str, Tensor]:
        return {name: torch.empty(shape) for rank in self._ranks for name, shape, *_ in rank}

    def _places(self, rank: int, whole: Mapping[str, Tensor]) -> list[Tensor]:
        """The parts of the whole tensors that a rank fills."""
        if not whole:
            return []
        return [
            whole[name].view(-1)[start : start + numel]
            for name, _, start, numel in self._ranks[rank]
        ]


class _Stream:
    """Flat tensors read and written as if they lay end to end."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors

    def read(self, start: int, out: Tensor) -> None:
        for tensor, here, there in self._overlaps(start, len(out)):
            out[there].copy_(tensor[here])

    def write(self, start: int, values: Tensor) -> None:
        for tensor, here, there in self._overlaps(start, len(values)):
            tensor[here].copy_(values[there])

    def _overlaps(self, start: int, count: int) -> Iterator[tuple[Tensor, slice, slice]]:
        """Tensors that meet [start, start + count): which part of them, which part of the range."""
        begin = 0
        for tensor in self._tensors:
            first, last = max(start, begin), min(start + count, begin + len(tensor))
            if first < last:
                here = slice(first - begin, last - begin)
                yield tensor, here, slice(first - start, last - start)
            begin += len(tensor)


def storages_of(fragments: Mapping[str, Fragment]) -> dict[str, list[Tensor]]:
    """The fp32 weights and the moments of fragments, for `Backend.storages`."""
    masters = [fragment.fields["weight"] for fragment in fragments.values()]
    moments = [
        tensor
        for fragment in fragments.values()
        for key, tensor in fragment.fields.items()
        if key != "weight"
    ]
    return {"masters": masters, "moments": moments}
