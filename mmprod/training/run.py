"""`train`: from a configuration to a finished run folder.

    data, tokenizer -> codec stage -> codes -> fusion stage -> run.json
Every step is skipped when its result is there already, so the same command goes on after an
interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmprod.checkpoint import STAGES, layout
from mmprod.checkpoint.models import load_weights
from mmprod.config.schema import Config, TrainConfig
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.models.codec import build_codec
from mmprod.training.backend import Backend
from mmprod.training.batches import check_batches
from mmprod.training.chaos import Chaos, ChaosPlan, open_chaos
from mmprod.training.checkpointing import Identity, check_identity, find_step, rewind
from mmprod.training.codec_task import CodecTask
from mmprod.training.codes import Codes, CodeSource, load_or_compute
from mmprod.training.deepspeed_config import Json, log_changes, read_deepspeed, resolve
from mmprod.training.distill_task import build_fusion_task
from mmprod.training.distributed import World, join, only_main
from mmprod.training.events import Event, OnEvent, StageResult, TrainResult
from mmprod.training.freezing import freeze_parts, load_frozen
from mmprod.training.fusion_task import FusionData
from mmprod.training.handshake import shake_hands
from mmprod.training.init_from import check_sources, record, start_from
from mmprod.training.loop import StageJob, train_stage
from mmprod.training.prepare import Prepared, all_splits, prepare
from mmprod.training.records import (
    clear_stage,
    finish_run,
    finish_stage,
    read_stage,
    stage_source,
    unfinish_stage,
)
from mmprod.training.run_lock import lock_run
from mmprod.training.sharded_build import Build, build_for, whole_copy
from mmprod.training.sinks import check_sinks
from mmprod.training.stopping import StopRequest, raise_if_stopped
from mmprod.training.task import Task
from mmprod.training.telemetry import monitoring_of
from mmprod.training.torch_backend import TorchBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What the caller asks for (see `train`). `chaos`: kills by plan, to prove that the job
    survives them; their records lie beside the run folder.
    """

    stages: Sequence[str] = STAGES
    deepspeed: Path | None = None
    resume: str = "auto"
    on_event: OnEvent | None = None
    chaos: ChaosPlan | None = None


@dataclass(frozen=True)
class _Live:
    """An order that is being carried out."""

    order: Order
    deepspeed: Json | None
    stop: StopRequest
    chaos: Chaos | None


def train(
    config: Config,
    run_dir: Path | str,
    *,
    stages: Sequence[str] = STAGES,
    deepspeed: Path | None = None,
    resume: str = "auto",
    on_event: OnEvent | None = None,
) -> TrainResult:
    """Train the given stages into `run_dir`. Call it on every rank of a launcher, or alone.

    resume: "auto" goes on from the newest whole checkpoint and skips finished stages; "never"
    trains the given stages anew; a path names the step folder to go on from. Raises ConfigError,
    IntegrityError, NumericsError, Preempted.
    """
    return train_order(config, Path(run_dir), Order(stages, deepspeed, resume, on_event))


def train_order(config: Config, root: Path, order: Order) -> TrainResult:
    """As `train`."""
    stages = order.stages
    results: dict[str, StageResult] = {}
    with StopRequest() as stop:
        with stop.giving_up("nothing was begun"):
            world = join(group=order.deepspeed is not None)
        stop.share(world)
        asked = {"--model": list(stages), "--resume": order.resume}
        raw = shake_hands(world, config, asked, lambda: _check(config, root, order, world))
        only_main(world, lambda: check_sources(config, root, stages, order.resume))
        chaos = open_chaos(order.chaos, config, root, stages, world)
        live = _Live(order, raw, stop, chaos)
        if chaos is not None:
            chaos.enter("start", 0)
        prepared = prepare(config, root, world, stages, stop)
        with lock_run(root, world, stop):
            for stage in [name for name in STAGES if name in stages]:
                raise_if_stopped(world, stop, f"finished: {', '.join(results) or 'the data set'}")
                results[stage] = _finished(prepared, stage, order, world) or _train_one(
                    prepared, stage, live, world
                )
            only_main(world, lambda: finish_run(prepared))
    return TrainResult(root, results)


def _check(config: Config, root: Path, order: Order, world: World) -> Json | None:
    """What this rank can refuse by itself. Returns the DeepSpeed file."""
    _check_request(root, order.stages, order.resume)
    raw = read_deepspeed(order.deepspeed) if order.deepspeed is not None else None
    check_batches(config, order.stages, raw, world.size)
    if world.is_main:
        check_sinks(config.log.to)
    return raw


def _check_request(root: Path, stages: Sequence[str], resume: str) -> None:
    unknown = [name for name in stages if name not in STAGES]
    if unknown or not stages:
        raise ConfigError(
            f"unknown stages {unknown or 'none'}", hint=f"stages: {', '.join(STAGES)}"
        )
    if resume in ("auto", "never"):
        return
    owner = Path(resume).resolve().parent.parent
    if not Path(resume).is_dir() or owner.name not in STAGES:
        raise ConfigError(
            f"{resume!r} is not a step folder to resume from",
            hint="auto, never, or RUN/<stage>/checkpoints/step-NNNNNNNN (see mmprod ckpt ls)",
        )
    if owner != (root / owner.name).resolve():
        raise ConfigError(
            f"{resume} is a step of another run than {root}, whose newer steps would be given up",
            hint=f"start from its weights: -o {owner.name}_train.init_from={owner}; or copy the "
            "whole run and resume in the copy",
        )


def _finished(prepared: Prepared, stage: str, order: Order, world: World) -> StageResult | None:
    """The result of a stage that needs no training, or None."""
    record = only_main(world, lambda: read_stage(prepared.root / stage))
    wanted_anew = order.resume == "never" or _resumes(order.resume, stage)
    if record is None or wanted_anew:
        return None
    source = only_main(world, lambda: stage_source(prepared, stage))
    if record["config_sha256"] != prepared.config_sha256 or record["source"] != source:
        raise IntegrityError(
            f"{prepared.root / stage} was trained with another configuration, data set, tokenizer "
            "or codec",
            hint=f"restore what changed, or train it anew: --model {stage} --resume never",
        )
    result = StageResult(
        stage, record["steps"], record["best_step"], record["metrics"], skipped=True
    )
    if order.on_event is not None and world.is_main:
        order.on_event(Event(stage, result.steps, result.steps, result.metrics, "stage"))
    return result


def _resumes(resume: str, stage: str) -> bool:
    """Whether `resume` is the path of a step folder of `stage`."""
    return resume not in ("auto", "never") and Path(resume).resolve().parent.parent.name == stage


def _train_one(prepared: Prepared, stage: str, live: _Live, world: World) -> StageResult:
    """Everything that can be refused is built and checked before an earlier result is touched."""
    folder, order = prepared.root / stage, live.order
    cfg: TrainConfig = getattr(prepared.config, f"{stage}_train")
    named = _resumes(order.resume, stage)
    resume = order.resume if named or order.resume == "never" else "auto"
    start = find_step(world, folder, resume)
    build = build_for(live.deepspeed, world)
    task = _build_task(prepared, stage, live.stop, world, build)
    # A checkpoint has everything, whatever became of init_from meanwhile.
    fresh = cfg.init_from and start is None
    with build:
        given = (cfg.freeze, prepared.tokenizer_sha256)
        transfer = start_from(task, Path(cfg.init_from), *given) if fresh else None
        freeze_parts(task, cfg)
        if start is not None:
            load_frozen(task.model, start.files)
    eval_model = whole_copy(task.model, build, world)
    backend = build_backend(task, cfg, live.deepspeed, world, build)
    monitoring = monitoring_of(prepared.config, stage, prepared.root, world)
    source = only_main(world, lambda: stage_source(prepared, stage))
    identity = Identity(
        stage=stage,
        config=prepared.config_sha256,
        data=source,
        tokenizer=prepared.tokenizer_sha256,
        backend=backend.identity,
        files=task.files,
    )
    if start is not None:
        check_identity(start, identity)
    if resume == "never":
        only_main(world, lambda: clear_stage(folder))
    only_main(world, lambda: unfinish_stage(prepared.root, stage))
    if start is not None:
        only_main(world, lambda: rewind(folder, start, aside=not named))
    if transfer is not None:
        only_main(world, lambda: record(transfer, folder))
    raise_if_stopped(world, live.stop, f"{stage} was not begun")
    if live.chaos is not None:
        live.chaos.begin_stage(stage)
    result = train_stage(
        StageJob(
            task=task,
            backend=backend,
            world=world,
            cfg=cfg,
            folder=folder,
            identity=identity,
            eval_model=eval_model,
            start=start,
            stop=live.stop,
            chaos=live.chaos,
            monitoring=monitoring,
            on_event=order.on_event,
        )
    )
    only_main(world, lambda: finish_stage(prepared, result, task.files))
    return result


def _build_task(
    prepared: Prepared, stage: str, stop: StopRequest, world: World, build: Build
) -> Task:
    """The stage's task with fresh weights: a function of the seed, the same on all ranks."""
    config, splits = prepared.config, prepared.splits
    cfg: TrainConfig = getattr(config, f"{stage}_train")
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        if stage == "codec":
            return CodecTask(config, splits["train"], splits["val"], world.device, build)
        data = _fusion_data(prepared, stop, world)
        return build_fusion_task(prepared, data, world, build)


def _fusion_data(prepared: Prepared, stop: StopRequest, world: World) -> FusionData:
    record = only_main(world, lambda: read_stage(prepared.root / "codec"))
    if record is None:
        raise ConfigError(
            f"{prepared.root} holds no trained codec, which the fusion stage needs",
            hint="train it first: --model codec, or --model all",
        )
    path = prepared.root / "codec" / layout.WEIGHTS
    with torch.random.fork_rng():
        codec = load_weights(build_codec(prepared.config.codec), path).to(world.device)
    source = CodeSource(
        codec, record["weights"]["sha256"], prepared.fingerprint, prepared.config.data.flip
    )
    codes: dict[str, Codes] = load_or_compute(
        prepared.root, all_splits(prepared), source, world, stop
    )
    splits = prepared.splits
    return FusionData(
        splits["train"], splits["val"], codes["train"], codes["val"], prepared.tokenizer, codec
    )


def build_backend(
    task: Task,
    cfg: TrainConfig,
    deepspeed: Json | None,
    world: World,
    build: Build | None = None,
) -> Backend:
    """Plain PyTorch, or DeepSpeed when a configuration for it is given.

    Raises ConfigError, EnvironmentMissing.
    """
    if deepspeed is None:
        return TorchBackend(task.model, cfg, world)
    resolved = resolve(deepspeed, cfg, world.size)
    log_changes(resolved, task.name)
    try:
        from mmprod.training.deepspeed_backend import DeepSpeedBackend
    except ImportError as error:
        raise EnvironmentMissing(
            f"DeepSpeed cannot be imported: {error}", hint="pip install mmprod[train]"
        ) from error
    return DeepSpeedBackend(task.model, cfg, resolved, world, build)
