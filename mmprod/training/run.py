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
from safetensors.torch import load_file

from mmprod.checkpoint import STAGES, layout
from mmprod.checkpoint.models import load_weights
from mmprod.config.schema import Config, TrainConfig
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError
from mmprod.models.codec import build_codec
from mmprod.training.backend import Backend
from mmprod.training.checkpointing import Identity
from mmprod.training.codec_task import CodecTask
from mmprod.training.codes import Codes, CodeSource, load_or_compute
from mmprod.training.deepspeed_config import Json, read_deepspeed, resolve
from mmprod.training.distributed import World, join, only_main
from mmprod.training.events import Event, OnEvent, StageResult, TrainResult
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.loop import StageJob, train_stage
from mmprod.training.prepare import Prepared, all_splits, prepare
from mmprod.training.records import finish_run, finish_stage, read_stage, stage_source
from mmprod.training.task import Task
from mmprod.training.torch_backend import TorchBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Order:
    """What the caller asked for."""

    deepspeed: Json | None
    resume: str
    on_event: OnEvent | None


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
    order = _Order(raw, resume, on_event)
    prepared = prepare(config, root, world)
    results: dict[str, StageResult] = {}
    for stage in [name for name in STAGES if name in stages]:
        results[stage] = _finished(prepared, stage, order, world) or _train_one(
            prepared, stage, order, world
        )
    only_main(world, lambda: finish_run(prepared))
    return TrainResult(root, results)


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
            f"{prepared.root / stage} was trained with another configuration, data set or codec",
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
    folder = prepared.root / stage
    if order.resume == "never":
        only_main(world, lambda: _clear(folder))
    only_main(world, lambda: _unfinish(prepared.root, stage))
    cfg: TrainConfig = getattr(prepared.config, f"{stage}_train")
    task = _build_task(prepared, stage, cfg, world)
    if cfg.init_from:
        _start_from(task, Path(cfg.init_from))
    eval_model = copy.deepcopy(task.model).to(world.device).eval() if world.is_main else None
    backend = build_backend(task, cfg, order.deepspeed, world)
    source = only_main(world, lambda: stage_source(prepared, stage))
    identity = Identity(stage, prepared.config_sha256, source, backend.identity, world.size)
    resume = (
        order.resume
        if order.resume in ("auto", "never") or _resumes(order.resume, stage)
        else "auto"
    )
    job = StageJob(task, backend, world, cfg, folder, identity, eval_model, resume, order.on_event)
    result = train_stage(job)
    only_main(world, lambda: finish_stage(prepared, result))
    return result


def _clear(folder: Path) -> None:
    """Remove what an earlier training of this stage left (files of this program only)."""
    for name in (layout.CHECKPOINTS, "tensorboard", "samples"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for name in (layout.METRICS, layout.WEIGHTS, layout.STAGE):
        (folder / name).unlink(missing_ok=True)


def _unfinish(root: Path, stage: str) -> None:
    """A run with run.json is whole, a stage with config.json is finished: neither is true from now
    on.
    """
    (root / layout.RUN).unlink(missing_ok=True)
    (root / stage / layout.STAGE).unlink(missing_ok=True)


def _build_task(prepared: Prepared, stage: str, cfg: TrainConfig, world: World) -> Task:
    """The stage's task with fresh weights: a function of the seed, the same on all ranks."""
    config, splits = prepared.config, prepared.splits
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        if stage == "codec":
            return CodecTask(config, splits["train"], splits["val"], world.device)
        data = _fusion_data(prepared, world)
        return FusionTask(config, prepared.dims, data, world.device)


def _fusion_data(prepared: Prepared, world: World) -> FusionData:
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
    codes: dict[str, Codes] = load_or_compute(prepared.root, all_splits(prepared), source, world)
    splits = prepared.splits
    return FusionData(
        splits["train"], splits["val"], codes["train"], codes["val"], prepared.tokenizer, codec
    )


def _start_from(task: Task, path: Path) -> None:
    """Load the tensors that match in name and shape; log the rest.

    Raises ConfigError when none does.
    """
    if not path.is_file():
        raise ConfigError(
            f"init_from: {path} does not exist", hint="give a model.safetensors, or leave it empty"
        )
    own, given = task.core(task.model).state_dict(), load_file(path)
    matching = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    if not matching:
        raise ConfigError(
            f"init_from: no tensor of {path} fits this model", hint="give weights of the same model"
        )
    task.core(task.model).load_state_dict(matching, strict=False)
    logger.info("init_from: %d of %d tensors taken from %s", len(matching), len(own), path)
    for what, names in (
        ("kept fresh", own.keys() - matching.keys()),
        ("not used", given.keys() - matching.keys()),
    ):
        if names:
            logger.warning("init_from: %s: %s", what, ", ".join(sorted(names)))


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
