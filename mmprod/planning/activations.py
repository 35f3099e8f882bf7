"""Memory that a micro-batch takes beside weights, gradients and optimizer: estimated, not guessed.

The stage's own forward and backward pass runs on tensors without content, and every storage is
noted from its birth to its end: what autograd keeps, and what an operator needs for a moment. The
same counter runs on real tensors, which is how the estimate is checked.

    bytes(micro-batch b) = fixed + per_sample * b
The fixed part is mostly the bf16 copies of fp32 weights that autocast makes. Gradients of weights
leave the count as soon as they are whole: they belong to another row of the plan. Workspaces inside
kernels and fragmentation of an allocator are not seen.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmprod.config.schema import Config
from mmprod.models.contrast import CONTRAST_GROUP
from mmprod.models.example import Example, fused_attention
from mmprod.models.processor import as_elsewhere
from mmprod.planning.sizes import train_section

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Activations:
    """Bytes of a micro-batch: `fixed` once, `per_sample` for each sample of it."""

    fixed: int
    per_sample: int

    def of(self, micro_batch: int) -> int:
        """Bytes at the peak of a pass."""
        return self.fixed + self.per_sample * micro_batch


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operators create while it is entered: `now` and `peak`."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: tensors that exist already and do not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        for storage in self._known:
            self._seen[storage._cdata] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def ended(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, ended)


def measure_pass(example: Example, precision: str) -> int:
    """Peak bytes of one forward and backward pass on `example`, fake or real."""
    handles = [
        parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
        for parameter in example.model.parameters()
        if parameter.requires_grad
    ]
    live = LiveBytes(example.tensors())
    dtype = AUTOCAST.get(precision, torch.bfloat16)
    try:
        with live:
            with torch.autocast("cpu", dtype, enabled=precision in AUTOCAST):
                loss = example.forward()
            torch.autograd.backward(loss)
    finally:
        for handle in handles:
            handle.remove()
    return live.peak


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


@lru_cache(maxsize=64)
def activations(
    config: Config,
    stage: str,
    *,
    weights: str = "fp32",
    checkpointing: bool = False,
    fused: bool = True,
    processor: bool = False,
) -> Activations:
    """Estimate of one stage. weights: type of the parameters ("fp32": autocast where the stage's
    precision says so); checkpointing: activations of blocks are computed anew in backward; fused:
    attention by one kernel that keeps no scores, as on a GPU; processor: as training runs on a CPU
    (see models/processor.py), whatever `fused` says.
    """
    cfg = train_section(config, stage).model_copy(
        update={"activation_checkpointing": checkpointing}
    )
    changed = config.model_copy(update={f"{stage}_train": cfg})
    small, large = CONTRAST_GROUP, 2 * CONTRAST_GROUP
    with contextlib.ExitStack() as device:
        if not processor:
            device.enter_context(as_elsewhere())
            if fused:
                device.enter_context(fused_attention())
        first, second = (_peak(changed, stage, batch, weights) for batch in (small, large))
    per_sample = (second - first) // (large - small)
    return Activations(max(0, first - per_sample * small), per_sample)


def _peak(config: Config, stage: str, batch: int, weights: str) -> int:
    precision: str = train_section(config, stage).precision
    with FakeTensorMode():
        return measure_pass(Example.of(config, stage, batch, weights=weights), precision)


@torch.no_grad()
def fill(tensor: Tensor) -> None:
    """Small values: nothing may overflow, and ids must be valid."""
    if tensor.is_floating_point():
        tensor.uniform_(0.0, 0.1)
    else:
        tensor.zero_()
