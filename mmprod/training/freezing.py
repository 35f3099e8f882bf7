"""Frozen parts: weights that training leaves alone.

A frozen weight takes no gradient, so it has no optimizer state, no weight decay and no average of
its own. Backends may round it (bf16 under ZeRO); the exact fp32 tensor lives in the copy of the
model that rank 0 evaluates, from where it goes into checkpoints and model.safetensors. A frozen
quantizer keeps its codebook: no moving averages, no restarts, but its readouts go on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmprod.checkpoint.state import FROZEN
from mmprod.config.parts import PARTS, part_of
from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError, IntegrityError
from mmprod.models.quantizers.book import Book
from mmprod.training.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model, counted."""

    trained: int
    frozen: int


def freeze_parts(task: Task, cfg: TrainConfig) -> Sizes:
    """Take the gradients of `cfg.freeze` away. Raises ConfigError when none would be left."""
    core = task.core(task.model)
    for name, parameter in core.named_parameters():
        if part_of(task.name, name) in cfg.freeze:
            parameter.requires_grad_(False)
    if "quantizer" in cfg.freeze:
        hold_codebook(core)
    sizes = count(task.model)
    if not sizes.trained:
        others = [part for part in PARTS[task.name] if part not in cfg.freeze]
        raise ConfigError(
            f"{task.name}_train.freeze leaves nothing to train: {', '.join(others)} has no "
            "weights that gradients move",
            hint=f"freeze less: {task.name}_train.freeze is {', '.join(cfg.freeze)}",
        )
    if cfg.freeze:
        names = ", ".join(cfg.freeze)
        logger.info(
            "%s: %s parameters train, %s are frozen (%s)",
            *(task.name, f"{sizes.trained:,}", f"{sizes.frozen:,}", names),
        )
    else:
        logger.info("%s: %s parameters train", task.name, f"{sizes.trained:,}")
    return sizes


def hold_codebook(model: nn.Module) -> None:
    """Make codebooks that move by averages stay where they are; the counters go on."""
    for module in model.modules():
        if isinstance(module, Book):
            module.frozen = True


def count(model: nn.Module) -> Sizes:
    """Trained and frozen parameters of a model."""
    total = {True: 0, False: 0}
    for parameter in model.parameters():
        total[parameter.requires_grad] += parameter.numel()
    return Sizes(trained=total[True], frozen=total[False])


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """The frozen parameters of a whole model by name, on the CPU."""
    return {n: p.detach().cpu() for n, p in model.named_parameters() if not p.requires_grad}


@torch.no_grad()
def load_frozen(model: nn.Module, folder: Path) -> None:
    """Read the frozen weights of a checkpoint from `folder`, before a backend takes the model over.

    Raises IntegrityError when they belong to another model.
    """
    live = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    saved = load_file(folder / FROZEN) if (folder / FROZEN).is_file() else {}
    _check_names(live.keys(), saved.keys(), folder)
    for name, parameter in live.items():
        parameter.copy_(saved[name])


def _check_names(live: Collection[str], saved: Collection[str], folder: Path) -> None:
    if set(live) != set(saved):
        odd = sorted(set(live) ^ set(saved))
        raise IntegrityError(
            f"{folder / FROZEN} holds other weights than are frozen now: {', '.join(odd[:5])}",
            hint="resume from another checkpoint, or start anew with --resume never",
        )
