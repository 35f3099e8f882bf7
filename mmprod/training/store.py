"""The process group's key-value store, for words between ranks that are no collective."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from mmprod.training.distributed import World


def connect(world: World) -> Any:
    """A connection of one's own (set, get, check); None for one process.

    A thread must not use the group's own connection: a wait on it would hold the others up.
    """
    if world.size == 1 or not dist.is_initialized():
        return None
    store: Any = dist.distributed_c10d._get_default_store()
    return store.clone()
