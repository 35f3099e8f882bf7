"""One optimizer step of a stage on this rank.

shares of the global batch -> forward, backward -> all ranks agree (finite? stop?) -> no spike?
-> update -> after_step (codebook, discriminator)
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from mmprod.config.schema import TrainConfig
from mmprod.errors import NumericsError
from mmprod.training.backend import Backend
from mmprod.training.chaos import Chaos
from mmprod.training.checkpointing import Checkpoint, Identity
from mmprod.training.distributed import World, add_over_ranks
from mmprod.training.events import OnEvent
from mmprod.training.guard import IN_ROW, is_spike, remember
from mmprod.training.loading import Loader
from mmprod.training.numerics import BadBatch, batch_keys, shown
from mmprod.training.progress import Progress
from mmprod.training.schedule import learning_rate
from mmprod.training.shares import Share, mixed_seed
from mmprod.training.stopping import StopRequest
from mmprod.training.task import Task
from mmprod.training.telemetry import Monitoring

logger = logging.getLogger(__name__)

COUNTS = ("spikes", "skipped")
"""figures that are logged as numbers of steps, not as means"""


@dataclass(frozen=True)
class StageJob:
    """One stage on this rank.

    `eval_model`: a whole copy of the task's model on rank 0, None elsewhere; `start`: the
    checkpoint to go on from; `stop`: entered by whoever wants the signals to be heard.
    """

    task: Task
    backend: Backend
    world: World
    cfg: TrainConfig
    folder: Path
    identity: Identity
    eval_model: nn.Module | None = None
    start: Checkpoint | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    chaos: Chaos | None = None
    monitoring: Monitoring = field(default_factory=Monitoring)
    on_event: OnEvent | None = None


@dataclass(frozen=True)
class StepOutcome:
    """Means over the global batch of one step, equal on all ranks. `asked`: see
    `StopRequest.flags`; `updated`: whether the weights changed; `written`: whether all ranks have
    written the checkpoint that is pending.
    """

    figures: dict[str, float]
    asked: list[float]
    updated: bool
    written: bool = False


def train_step(
    job: StageJob, loader: Loader, progress: Progress, *, written: bool = False
) -> StepOutcome:
    """One optimizer step on the global batch of `progress.step`, unless its loss is a spike.

    `written`: this rank has written its part of a pending checkpoint. The state after the step is a
    function of the state before and the step. Raises BadBatch, on all ranks alike.
    """
    cfg, task, backend, step = job.cfg, job.task, job.backend, progress.step
    _seed(mixed_seed(cfg.seed, step, "torch"), job.world)  # the same on all ranks; nothing to save
    parts: list[Share] = []
    sums: dict[str, torch.Tensor] = {}
    for loaded in loader.step(step):
        parts.append(loaded.share)
        losses = task.losses(backend.forward(*loaded.batch), loaded.batch, step)
        backend.backward(losses["loss"])
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double() / backend.accumulation
    values = torch.stack(list(sums.values())).tolist()
    sick = not all(math.isfinite(value) for value in values)
    *totals, sick_ranks, ready, scheduler, keyboard = add_over_ranks(
        job.world, [*values, float(sick), float(written), *job.stop.flags]
    )
    if sick_ranks:
        raise BadBatch(step, "the loss is NaN or infinite", parts if sick else [])
    figures = {name: total / job.world.size for name, total in zip(sums, totals, strict=True)}
    updated = _accept(job, progress, figures, parts) and _update(job, step, figures, parts)
    with _named(step, parts):
        readouts = task.after_step(learn=updated)
    figures |= {**readouts, "lr": learning_rate(cfg, step)}
    return StepOutcome(figures, [scheduler, keyboard], updated, ready == job.world.size)


def _seed(seed: int, world: World) -> None:
    """Like torch.manual_seed, for the devices in use: that one walks through all that there could
    be, which takes longer than everything else here.
    """
    torch.default_generator.manual_seed(seed)
    if world.device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _accept(
    job: StageJob, progress: Progress, figures: dict[str, float], parts: list[Share]
) -> bool:
    """Whether to learn from the batch: its loss is no spike. Notes `spikes` (0 or 1)."""
    if not job.cfg.spike:
        return True
    terms = sorted(figures)
    if terms != progress.terms:  # a discriminator began: the loss means something else from now on
        progress.terms, progress.recent = terms, []
    loss = figures["loss"]
    spike = is_spike(progress.recent, loss, job.cfg.spike)
    figures["spikes"] = float(spike)
    if not spike:
        progress.in_row = 0
        remember(progress.recent, loss)
        return True
    progress.in_row += 1
    if progress.in_row == IN_ROW:
        what = f"the loss ({loss:.4g}) is a spike for the {IN_ROW}th batch in a row"
        raise BadBatch(progress.step, what, parts)
    keys = batch_keys(job.world, job.task, parts)
    logger.warning(
        "%s: not learned from step %d, its loss %.4g is a spike; samples: %s",
        job.task.name, progress.step + 1, loss, shown(keys),
    )  # fmt: skip
    job.backend.skip()
    return False


@contextlib.contextmanager
def _named(step: int, parts: list[Share]) -> Iterator[None]:
    """A NumericsError within, on all ranks alike, is one of this batch."""
    try:
        yield
    except NumericsError as error:
        raise BadBatch(step, error.message, parts, hint=error.hint) from error


def _update(job: StageJob, step: int, figures: dict[str, float], parts: list[Share]) -> bool:
    """Whether the weights were updated. Notes `grad_norm`, and `skipped` (0 or 1) under fp16, where
    an overflow only lowers the loss scale.
    """
    with _named(step, parts):
        norm = job.backend.step(learning_rate(job.cfg, step))
    finite, scaled = math.isfinite(norm), job.backend.scaled
    if finite:
        figures["grad_norm"] = norm
    elif not scaled:
        raise BadBatch(step, "the gradient norm is NaN or infinite", parts)
    if scaled:
        figures["skipped"] = float(not finite)
    return finite
