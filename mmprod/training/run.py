"""`train`: from a configuration to a finished run folder.

    data, tokenizer -> codec stage -> codes -> fusion stage -> run.json
Every step is skipped when its result is there already, so the same command goes on after an
interruption.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmprod.checkpoint import STAGES, layout
from mmprod.checkpoint.models import load_weights
from mmprod.config.schema import Config, TrainConfig
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.models.codec import build_codec
from mmprod.models.fusion_loss import CONTRAST_GROUP
from mmprod.training.backend import Backend
from mmprod.training.checkpointing import Identity, check_identity, find_step, rewind
from mmprod.training.codec_task import CodecTask
from mmprod.training.codes import Codes, CodeSource, load_or_compute
from mmprod.training.deepspeed_config import Json, read_deepspeed, resolve
from mmprod.training.distributed import World, join, only_main
from mmprod.training.events import Event, OnEvent, StageResult, TrainResult
from mmprod.training.freezing import freeze_parts
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.init_from import check_sources, record, start_from
from mmprod.training.loop import StageJob, train_stage
from mmprod.training.prepare import Prepared, all_splits, prepare
from mmprod.training.records import finish_run, finish_stage, read_stage, stage_source
from mmprod.training.stopping import StopRequest, raise_if_stopped
from mmprod.training.task import Task
from mmprod.training.torch_backend import TorchBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Order:
    """What the caller asked for."""

    deepspeed: Json | None
    resume: str
    on_event: OnEvent | None
    stop: StopRequest


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
    root = Path(run_dir)
    _check_request(stages, resume)
    raw = read_deepspeed(deepspeed) if deepspeed is not None else None
    world = join(group=raw is not None)
    if "fusion" in stages:
        check_groups(config.fusion_train, raw, world.size)
    only_main(world, lambda: check_sources(config, root, stages, resume))
    results: dict[str, StageResult] = {}
    with StopRequest() as stop:
        order = _Order(raw, resume, on_event, stop)
        prepared = prepare(config, root, world, stages)
        for stage in [name for name in STAGES if name in stages]:
            raise_if_stopped(world, stop, f"finished: {', '.join(results) or 'the data set'}")
            results[stage] = _finished(prepared, stage, order, world) or _train_one(
                prepared, stage, order, world
            )
        only_main(world, lambda: finish_run(prepared))
    return TrainResult(root, results)


def check_groups(cfg: TrainConfig, deepspeed: Json | None, world: int) -> None:
    """The contrastive loss compares samples in fixed groups, so a micro-batch must hold whole ones.

    Raises ConfigError with the numbers.
    """
    accumulation = resolve(deepspeed, cfg, world).accumulation if deepspeed is not None else 1
    parts = world * accumulation
    samples = cfg.batch // parts
    if samples % CONTRAST_GROUP and not (parts == 1 and samples < CONTRAST_GROUP):
        raise ConfigError(
            f"fusion_train.batch {cfg.batch} on {world} processes x {accumulation} micro-batches "
            f"gives {samples} samples each, and the contrastive loss needs whole groups of "
            f"{CONTRAST_GROUP}",
            hint=f"make fusion_train.batch a multiple of {CONTRAST_GROUP * parts}",
        )


def _check_request(stages: Sequence[str], resume: str) -> None:
    unknown = [name for name in stages if name not in STAGES]
    if unknown or not stages:
        raise ConfigError(
            f"unknown stages {unknown or 'none'}", hint=f"stages: {', '.join(STAGES)}"
        )
    if resume in ("auto", "never"):
        return
    owner = Path(resume).resolve().parent.parent.name
    if not Path(resume).is_dir() or owner not in STAGES:
        raise ConfigError(
            f"{resume!r} is not a step folder to resume from",
            hint="auto, never, or RUN/<stage>/checkpoints/step-NNNNNNNN (see mmprod ckpt ls)",
        )


def _finished(prepared: Prepared, stage: str, order: _Order, world: World) -> StageResult | None:
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


def _train_one(prepared: Prepared, stage: str, order: _Order, world: World) -> StageResult:
    """Everything that can be refused is built and checked before an earlier result is touched."""
    folder = prepared.root / stage
    cfg: TrainConfig = getattr(prepared.config, f"{stage}_train")
    named = _resumes(order.resume, stage)
    resume = order.resume if named or order.resume == "never" else "auto"
    start = find_step(world, folder, resume)
    task = _build_task(prepared, stage, order.stop, world)
    # A checkpoint has everything, whatever became of init_from meanwhile.
    fresh = cfg.init_from and start is None
    transfer = start_from(task, Path(cfg.init_from), cfg.freeze) if fresh else None
    freeze_parts(task, cfg)
    eval_model = copy.deepcopy(task.model).to(world.device).eval() if world.is_main else None
    backend = build_backend(task, cfg, order.deepspeed, world)
    source = only_main(world, lambda: stage_source(prepared, stage))
    identity = Identity(
        stage=stage,
        config=prepared.config_sha256,
        data=source,
        tokenizer=prepared.tokenizer_sha256,
        backend=backend.identity,
        world=world.size,
        files=task.files,
    )
    if start is not None:
        check_identity(start, identity)
    if resume == "never":
        only_main(world, lambda: _clear(folder))
    only_main(world, lambda: _unfinish(prepared.root, stage))
    if named and start is not None:
        only_main(world, lambda: rewind(folder, start))
    if transfer is not None:
        only_main(world, lambda: record(transfer, folder))
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
            stop=order.stop,
            on_event=order.on_event,
        )
    )
    only_main(world, lambda: finish_stage(prepared, result, task.files))
    return result


def _clear(folder: Path) -> None:
    """Remove what an earlier training of this stage left (files of this program only)."""
    for name in (layout.CHECKPOINTS, "tensorboard", "samples"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in (layout.METRICS, layout.WEIGHTS, layout.STAGE, layout.INIT, layout.CURVES):
        (folder / name).unlink(missing_ok=True)


def _unfinish(root: Path, stage: str) -> None:
    """A run with run.json is whole, a stage with config.json is finished: neither is true from now
    on.
    """
    (root / layout.RUN).unlink(missing_ok=True)
    (root / stage / layout.STAGE).unlink(missing_ok=True)


def _build_task(prepared: Prepared, stage: str, stop: StopRequest, world: World) -> Task:
    """The stage's task with fresh weights: a function of the seed, the same on all ranks."""
    config, splits = prepared.config, prepared.splits
    cfg: TrainConfig = getattr(config, f"{stage}_train")
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        if stage == "codec":
            return CodecTask(config, splits["train"], splits["val"], world.device)
        data = _fusion_data(prepared, stop, world)
        return FusionTask(config, prepared.dims, data, world.device)


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


def build_backend(task: Task, cfg: TrainConfig, deepspeed: Json | None, world: World) -> Backend:
    """Plain PyTorch, or DeepSpeed when a configuration for it is given.

    Raises ConfigError, EnvironmentMissing.
    """
    if deepspeed is None:
        return TorchBackend(task.model, cfg, world)
    resolved = resolve(deepspeed, cfg, world.size)
    try:
        from mmprod.training.deepspeed_backend import DeepSpeedBackend
    except ImportError as error:
        raise EnvironmentMissing(
            f"DeepSpeed cannot be imported: {error}", hint="pip install mmprod[train]"
        ) from error
    return DeepSpeedBackend(task.model, cfg, resolved, world)
