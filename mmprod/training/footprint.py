"""Bytes of the tensors that this rank keeps for training, counted by kind.

Counted are storages, each once, as they are now: no figure of the operating system shows what ZeRO
saves. Activations and what optimizers need for a moment are not among them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import Tensor

from mmprod.training.backend import Backend
from mmprod.training.task import Task

logger = logging.getLogger(__name__)

KINDS = (
    "weights",
    "masters",
    "moments",
    "gradients",
    "averages",
    "buckets",
    "buffers",
    "beside",
)
"""what the model computes with; fp32 copies of it; the optimizer's; ...; buckets of communication;
the model's buffers; networks beside the model
"""


def footprint(backend: Backend, averages: Mapping[str, Tensor], task: Task) -> dict[str, int]:
    """Bytes by kind, in the order of KINDS; a storage counts for the first kind that has it.

    Call it between two steps, or after a backward pass to see the gradients.
    """
    found: dict[str, Iterable[Tensor]] = {
        **backend.storages(),
        "averages": averages.values(),
        "buffers": task.model.buffers(),
        "beside": task.beside(),
    }
    seen: set[int] = set()
    return {kind: sum(_new(tensor, seen) for tensor in found.get(kind, ())) for kind in KINDS}


def log_footprint(name: str, sizes: Mapping[str, int]) -> None:
    """One line at the start of training."""
    parts = ", ".join(f"{kind} {size / 2**20:,.1f}" for kind, size in sizes.items() if size)
    logger.info(
        "%s: this rank holds %.1f MiB of tensors: %s", name, sum(sizes.values()) / 2**20, parts
    )


def _new(tensor: Tensor, seen: set[int]) -> int:
    """Bytes of a tensor's storage, 0 when it was seen before."""
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    if not address or address in seen:
        return 0
    seen.add(address)
    return storage.nbytes()
