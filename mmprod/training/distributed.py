"""Ranks: how a process finds its place, and the exchanges training needs beside the backend's.

Every helper works the same with one process and no process group. All ranks must call them
together.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmprod.errors import ConfigError, MmprodError
from mmprod.models.contrast import Neighbours
from mmprod.training.allocator import keep_freed_memory
from mmprod.training.environment import adopt
from mmprod.training.lifeline import say_goodbye
from mmprod.training.rendezvous import meet

T = TypeVar("T")

WAIT = timedelta(hours=4)
"""longest wait for another rank: rank 0 may draw or evaluate meanwhile"""


@dataclass(frozen=True)
class World:
    """This process among all: rank in [0, size), its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join(*, group: bool) -> World:
    """Find this process's place (see `environment`) and join the process group where one is needed.
    On a processor freed memory is kept from here on.

    `group`: make a process group even for a single process. Raises ConfigError for several
    processes without it, EnvironmentMissing when the ranks do not meet.
    """
    place = adopt()
    cuda = torch.cuda.is_available()
    if not cuda:
        keep_freed_memory()
    if place.size > 1 and not group:
        raise ConfigError(
            f"{place.size} processes were started without a DeepSpeed configuration",
            hint="add --deepspeed configs/deepspeed/zero1.json, or start one process",
        )
    if cuda:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    if group and not dist.is_initialized():
        if not cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns, on stdout
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if place.size > 1:
            meet(place, backend, WAIT)
        else:
            _complete_environment()
            dist.init_process_group(backend, rank=0, world_size=1, timeout=WAIT)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return World(place.rank, place.size, device)


def _complete_environment() -> None:
    """A single process without launcher: the variables that torch and DeepSpeed look for."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    defaults = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_SIZE": 1}
    for name, value in {**defaults, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        os.environ.setdefault(name, str(value))


def barrier(world: World) -> None:
    """Wait for all ranks."""
    if world.size > 1:
        dist.barrier()


def add_over_ranks(world: World, values: list[float]) -> list[float]:
    """Element-wise sum over ranks, in float64. One collective."""
    if world.size == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(v) for v in total]


def broadcast(world: World, value: T) -> T:
    """Rank 0's (picklable) value on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(world: World, value: T) -> list[T]:
    """Every rank's (picklable) value, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    box: list[T] = [value] * world.size
    dist.all_gather_object(box, value)
    return box


def neighbours(world: World) -> Neighbours:
    """The ring of all ranks: what one passes on, the next one gets."""
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size

    def pass_on(tensor: Tensor) -> Tensor:
        if world.size == 1:
            return tensor
        sent, got = tensor.contiguous(), torch.empty_like(tensor)
        both = dist.P2POp(dist.isend, sent, after), dist.P2POp(dist.irecv, got, before)
        for request in dist.batch_isend_irecv(list(both)):
            request.wait()
        return got

    return Neighbours(world.rank, world.size, pass_on)


def broadcast_tensors(world: World, tensors: list[Tensor]) -> None:
    """Overwrite `tensors` on every rank by rank 0's."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def only_main(world: World, action: Callable[[], T]) -> T:
    """Run `action` on rank 0; every rank returns its result, or raises the same MmprodError or
    OSError.
    """
    if world.size == 1:
        return action()
    result: tuple[T | None, MmprodError | OSError | None] = (None, None)
    if world.is_main:
        try:
            result = (action(), None)
        except (MmprodError, OSError) as error:
            result = (None, error)
        except BaseException:
            broadcast(world, (None, MmprodError("rank 0 failed; see its output")))
            raise
    value, failure = broadcast(world, result)
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]  # None only where the action's own result is None


def leave(code: int, said: str = "") -> NoReturn:
    """End this process with `code`. Call it last in the command line.

    With several ranks the others are told (`said`: why, for a code that is not 0), and the
    interpreter is left at once: gloo sometimes aborts in its teardown and would turn a finished
    job into a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if code == 0:
            dist.barrier()
        say_goodbye(code, said)
        os._exit(code)
    say_goodbye(code, said)
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)
