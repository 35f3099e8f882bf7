"""The training loop of one stage, short enough to edit: plain functions and a few seams.

each step:  shares of the global batch -> forward, backward -> all ranks agree (finite? stop?)
            -> update -> after_step (codebook) -> average the weights
now and then:  log, evaluate, save
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mmprod.checkpoint import layout
from mmprod.config.schema import TrainConfig
from mmprod.errors import NumericsError, Preempted
from mmprod.manifest import atomic_path
from mmprod.training.backend import Backend
from mmprod.training.checkpointing import (
    Checkpoint,
    Identity,
    Progress,
    Trained,
    load_checkpoint,
    save_checkpoint,
)
from mmprod.training.distributed import World, add_over_ranks, gather, only_main
from mmprod.training.ema import Ema
from mmprod.training.events import Event, Kind, OnEvent, StageResult
from mmprod.training.metrics import MetricsLog
from mmprod.training.schedule import learning_rate
from mmprod.training.shares import Share, Shares, mixed_seed
from mmprod.training.stopping import AGAIN, StopRequest
from mmprod.training.task import Evaluation, Task

logger = logging.getLogger(__name__)

OTHER_JOB = (
    "train with a lower lr, a longer warmup or precision fp32 into another --out "
    "(a run folder keeps its configuration)"
)


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
    on_event: OnEvent | None = None


@dataclass(frozen=True)
class StepOutcome:
    """Means over the global batch of one step, equal on all ranks."""

    figures: dict[str, float]
    stop: bool


def train_stage(job: StageJob) -> StageResult:
    """Train to the end (or to `patience`); the best averaged weights are then in model.safetensors.

    Raises NumericsError at NaN or infinity, Preempted when a signal asked to stop (state is saved).
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: StageJob) -> None:
        self.job, self.cfg = job, job.cfg
        self.ema = Ema(job.backend.weights(), job.cfg.ema)
        self.trained = Trained(job.backend, self.ema, job.world, job.eval_model, job.task)
        cfg, world = job.cfg, job.world
        self.shares = Shares(cfg.seed, cfg.batch, world.rank, world.size, job.backend.accumulation)
        self.progress = Progress()

    def run(self) -> StageResult:
        job, cfg = self.job, self.cfg
        if job.start is not None:
            self.progress = load_checkpoint(self.trained, job.start)
        progress = self.progress
        self._tell("stage", {})
        log = MetricsLog(job.folder, from_step=progress.step, enabled=job.world.is_main)
        with log:
            while progress.step < cfg.steps and not self._out_of_patience():
                started = time.perf_counter()
                outcome = train_step(job, self.shares, progress.step)
                progress.step += 1
                self.ema.update(job.backend.weights(), progress.step)
                progress.meter.add(outcome.figures)
                progress.seconds += time.perf_counter() - started
                last = progress.step == cfg.steps
                if progress.step % cfg.log_every == 0 or last:
                    self._log(log)
                improved = (progress.step % cfg.eval_every == 0 or last) and self._evaluate(log)
                finished = last or self._out_of_patience()
                if progress.step % cfg.save_every == 0 or improved or finished or outcome.stop:
                    self._save()
                if outcome.stop and not finished:
                    raise Preempted(
                        f"{job.task.name}: asked to stop; saved at step {progress.step}",
                        hint=AGAIN,
                    )
        return StageResult(job.task.name, progress.step, progress.best_step, progress.best_metrics)

    def _out_of_patience(self) -> bool:
        return 0 < self.cfg.patience <= self.progress.stale

    def _log(self, log: MetricsLog) -> None:
        progress = self.progress
        samples = progress.meter.count * self.cfg.batch
        figures = progress.meter.take()
        spent = figures.pop("step_seconds") * samples / self.cfg.batch
        figures |= {"images_per_s": samples / spent, "seconds": progress.seconds}
        log.write("log", progress.step, figures)
        self._tell("log", figures)

    def _evaluate(self, log: MetricsLog) -> bool:
        """Evaluate the averaged weights on rank 0; keep them when they are the best so far.

        Returns whether they are. Raises NumericsError when a figure is not finite.
        """
        job, progress = self.job, self.progress
        whole = job.backend.gather(self.ema.average)
        metrics = only_main(job.world, lambda: self._evaluate_here(whole))
        broken = [name for name, figure in metrics.items() if not math.isfinite(figure)]
        if broken:
            raise NumericsError(
                f"{job.task.name}: {', '.join(broken)} of the evaluation at step {progress.step} "
                "is NaN or infinite",
                hint=f"{OTHER_JOB}; or resume from an older step, see mmprod ckpt ls",
            )
        value = job.task.better(metrics, progress.step)
        improved = progress.best is None or value > progress.best
        if improved:
            progress.best, progress.best_step, progress.best_metrics = value, progress.step, metrics
            progress.stale = 0
            only_main(job.world, self._write_weights)
        else:
            progress.stale += 1
        log.write("eval", progress.step, {**metrics, "seconds": progress.seconds})
        self._tell("eval", metrics)
        return improved

    def _evaluate_here(self, whole: dict[str, torch.Tensor]) -> dict[str, float]:
        job = self.job
        model = self._whole_model()
        fill(model, whole, job.task.model)
        evaluation: Evaluation = job.task.evaluate(model)
        path = layout.sample_path(job.folder, self.progress.step)
        with atomic_path(path) as temporary:
            Image.fromarray(evaluation.picture).save(temporary, format="PNG")
        return evaluation.metrics

    def _write_weights(self) -> None:
        task = self.job.task
        path = self.job.folder / layout.WEIGHTS
        write_weights(path, task.core(self._whole_model()), task.codebook)

    def _whole_model(self) -> nn.Module:
        if self.job.eval_model is None:
            raise ValueError("rank 0 needs an eval_model")
        return self.job.eval_model

    def _save(self) -> None:
        save_checkpoint(
            self.trained, self.job.folder, self.progress, self.job.identity, self.cfg.keep
        )
        self._tell("save", {})

    def _tell(self, kind: Kind, metrics: dict[str, float]) -> None:
        if self.job.on_event is not None and self.job.world.is_main:
            self.job.on_event(
                Event(self.job.task.name, self.progress.step, self.cfg.steps, metrics, kind)
            )


def train_step(job: StageJob, shares: Shares, step: int) -> StepOutcome:
    """One optimizer step on the `step`-th global batch.

    The state after it is a function of the state before and `step`.
    """
    cfg, task, backend = job.cfg, job.task, job.backend
    started = time.perf_counter()
    torch.manual_seed(mixed_seed(cfg.seed, step, "torch"))  # the same on all ranks; nothing to save
    parts = shares.of(step, task.size, task.weights)
    sums: dict[str, torch.Tensor] = {}
    for share in parts:
        batch = task.batch(share)
        losses = task.losses(backend.forward(*batch), batch, step)
        backend.backward(losses["loss"])
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach().double() / len(parts)
    values = torch.stack(list(sums.values())).tolist()
    sick = not all(math.isfinite(value) for value in values)
    *totals, sick_ranks, stopping = add_over_ranks(
        job.world, [*values, float(sick), float(bool(job.stop.received))]
    )
    if sick_ranks:
        _raise_numerics(job, step, parts if sick else [], "loss")
    rate = learning_rate(cfg, step)
    norm = backend.step(rate)
    if not math.isfinite(norm):
        _raise_numerics(job, step, parts, "gradient norm")
    figures = {name: total / job.world.size for name, total in zip(sums, totals, strict=True)}
    figures |= {**task.after_step(), "lr": rate, "grad_norm": norm}
    return StepOutcome({**figures, "step_seconds": time.perf_counter() - started}, stopping > 0)


def _raise_numerics(job: StageJob, step: int, parts: list[Share], what: str) -> NoReturn:
    """Name the step and the samples of every rank concerned. No weight was updated."""
    mine = [key for share in parts for key in job.task.keys(share.indices)]
    keys = [key for part in gather(job.world, mine) for key in part]
    shown = ", ".join(keys[:16]) + (f" and {len(keys) - 16} more" if len(keys) > 16 else "")
    raise NumericsError(
        f"{job.task.name}: the {what} is NaN or infinite at step {step + 1}; samples: {shown}",
        hint=f"look at these samples; or {OTHER_JOB}",
    )


@torch.no_grad()
def fill(model: nn.Module, weights: dict[str, torch.Tensor], live: nn.Module) -> None:
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
