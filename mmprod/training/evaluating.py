"""Evaluating the averaged weights on rank 0, and writing them when they are the best so far.

The other ranks wait in one exchange meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mmprod.checkpoint import layout
from mmprod.errors import Preempted
from mmprod.manifest import atomic_path
from mmprod.training.distributed import World, only_main
from mmprod.training.sharded_build import visiting
from mmprod.training.stopping import StopRequest
from mmprod.training.task import Evaluation, Task


def evaluate_weights(
    task: Task, model: nn.Module | None, weights: Mapping[str, Tensor], path: Path
) -> dict[str, float]:
    """Figures of whole `weights` in `model` (a whole copy of the task's); its picture goes to
    `path`. On rank 0.
    """
    model = whole(model)
    fill(model, weights, task.model)
    with visiting(model, task.model):
        evaluation: Evaluation = task.evaluate(model)
    with atomic_path(path) as temporary:
        Image.fromarray(evaluation.picture).save(temporary, format="PNG")
    return evaluation.metrics


def evaluate_or_give_up(
    world: World, stop: StopRequest, evaluate: Callable[[], dict[str, float]]
) -> dict[str, float] | None:
    """`evaluate()` on rank 0, its figures on all ranks; None when some rank was asked to stop
    meanwhile. Collective.
    """

    def here() -> dict[str, float] | None:
        try:
            with stop.giving_up("the evaluation was given up"):
                return evaluate()
        except Preempted:
            return None

    return only_main(world, here)


def whole(model: nn.Module | None) -> nn.Module:
    """The copy that rank 0 evaluates."""
    if model is None:
        raise ValueError("rank 0 needs an eval_model")
    return model


@torch.no_grad()
def fill(model: nn.Module, weights: Mapping[str, Tensor], live: nn.Module) -> None:
    """Give `model` the whole `weights` and the buffers of `live`; frozen parameters stay as they
    are. It ends in eval mode.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(weights[name])
    buffers = dict(live.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.eval()


def write_weights(path: Path, model: nn.Module, codebook: Mapping[str, Any]) -> None:
    """Parameters and buffers as safetensors, atomically. `codebook`: see `Task`; its metadata (one
    entry: safetensors keeps no order of several, and equal weights shall have equal hashes).
    """
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    with atomic_path(path) as temporary:
        about = {layout.CODEBOOK: json.dumps(codebook, sort_keys=True)} if codebook else None
        save_file(tensors, temporary, metadata=about)
