"""Weights to start a stage from (`init_from` of a training section)."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmprod.errors import ConfigError, IntegrityError
from mmprod.training.task import Task

logger = logging.getLogger(__name__)


def start_from(task: Task, path: Path) -> None:
    """Load the parameters that match in name and shape; log the rest.

    Buffers that the task learns (a codebook with its averages and counters) describe one state and
    are taken all or none; other buffers come from the task's own inputs and are left as they are.
    Raises ConfigError when no parameter fits, IntegrityError when the file cannot be read.
    """
    model = task.core(task.model)
    own, given = model.state_dict(), _read(path)
    matching = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    buffers = {name for name, _ in model.named_buffers()} & own.keys()
    if not (task.learns_buffers and buffers <= matching.keys()):
        matching = {k: v for k, v in matching.items() if k not in buffers}
    if not matching.keys() - buffers:
        raise ConfigError(
            f"init_from: no tensor of {path} fits this model", hint="give weights of the same model"
        )
    model.load_state_dict(matching, strict=False)
    logger.info("init_from: %d of %d tensors taken from %s", len(matching), len(own), path)
    for what, names in (
        ("kept fresh", own.keys() - matching.keys()),
        ("not used", given.keys() - matching.keys()),
    ):
        if names:
            logger.warning("init_from: %s: %s", what, ", ".join(sorted(names)))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(
            f"init_from: {path} does not exist", hint="give a model.safetensors, or leave it empty"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"init_from: {path} cannot be read: {error}",
            hint="give the model.safetensors of a finished stage, from a good copy",
        ) from error
