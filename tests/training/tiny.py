"""A real codec and a real fusion model, tiny, on made-up data that needs no files."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch

from mmprod.config.schema import CodecConfig, Config, DataConfig, FusionConfig, TrainConfig
from mmprod.data.tokenizer import train_tokenizer
from mmprod.training.checkpointing import Identity, check_identity, find_step
from mmprod.training.codec_task import CodecTask
from mmprod.training.codes import Codes
from mmprod.training.distributed import World
from mmprod.training.freezing import freeze_parts, load_frozen
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.loop import StageJob
from mmprod.training.run import build_backend
from mmprod.training.sharded_build import Build, build_for, whole_copy

ALONE = World(0, 1, torch.device("cpu"))


def tiny_config(**train: object) -> Config:
    """16 px pictures, 4x4 codes, 8 steps of batch 16, fp32; `train` changes both stages."""
    values: dict[str, object] = {
        "steps": 8,
        "batch": 16,
        "lr": 3e-3,
        "warmup": 2,
        "precision": "fp32",
        "ema": 0.9,
        "log_every": 1,
        "eval_every": 4,
        "save_every": 4,
    }
    section = TrainConfig(**(values | train))
    return Config(
        data=DataConfig(image_size=16, text_length=8, vocabulary=270),
        codec=CodecConfig(channels=8, multipliers=(1, 2, 2), codebook_size=32, code_dim=4),
        codec_train=section,
        fusion=FusionConfig(
            width=16,
            heads=2,
            image_encoder=1,
            text_encoder=1,
            joint=1,
            shared=1,
            embedding=8,
            registers=1,
        ),
        fusion_train=section,
    )


def with_codec(config: Config, **changes: object) -> Config:
    """The same job with changes in the codec's section, checked."""
    codec = CodecConfig.model_validate({**config.codec.model_dump(), **changes})
    return config.model_copy(update={"codec": codec})


class MadeUp:
    """A split without files: smooth colourful pictures, one of four captions each."""

    weights = None

    def __init__(self, count: int, size: int = 16, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
        self._pictures = coarse.repeat(size // 4, 1).repeat(size // 4, 2)
        self._captions = [f"face {i % 4}" for i in range(count)]
        self.size = size

    def __len__(self) -> int:
        return len(self._pictures)

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self._pictures[indices]

    def captions(self, indices: np.ndarray, languages: tuple[str, ...], seed: int) -> list[str]:
        return [self._captions[i] for i in indices]

    def keys(self, indices: np.ndarray) -> list[str]:
        return [f"made-up-{i}" for i in indices]


def codec_task(config: Config, build: Build | None = None) -> CodecTask:
    """The codec task with weights that are a function of the seed."""
    torch.manual_seed(config.codec_train.seed)
    return CodecTask(config, MadeUp(64), MadeUp(10, seed=1), ALONE.device, build)


def fusion_task(config: Config, build: Build | None = None) -> FusionTask:
    """The fusion task on random codes."""
    codec = codec_task(config).model
    codec.eval().requires_grad_(False)
    train, val = MadeUp(64), MadeUp(16, seed=1)
    tokenizer = train_tokenizer(train._captions, config.data.vocabulary)
    rng = np.random.default_rng(2)
    codes = [
        Codes(rng.integers(0, config.codec.codebook_size, (len(s), 16)).astype(np.int32), None)
        for s in (train, val)
    ]
    data = FusionData(train, val, *codes, tokenizer, codec)
    torch.manual_seed(config.fusion_train.seed)
    return FusionTask(config, config.dims(tokenizer.vocab_size), data, ALONE.device, build)


def make_job(
    config: Config,
    folder: Path,
    *,
    stage: str = "codec",
    world: World = ALONE,
    deepspeed: dict | None = None,
    resume: str = "auto",
    on_event=None,
    given=None,
) -> StageJob:
    """A job of either stage, as `run.py` puts it together. given(task): what `init_from` does."""
    build = build_for(deepspeed, world)
    task = codec_task(config, build) if stage == "codec" else fusion_task(config, build)
    cfg = config.codec_train if stage == "codec" else config.fusion_train
    start = find_step(world, folder, resume)
    with build:
        if given is not None:
            given(task)
        freeze_parts(task, cfg)
        if start is not None:
            load_frozen(task.model, start.files)
    eval_model = whole_copy(task.model, build, world)
    backend = build_backend(task, cfg, copy.deepcopy(deepspeed), world, build)
    identity = Identity(stage, "config", "data", "tokenizer", backend.identity)
    if start is not None:
        check_identity(start, identity)
    return StageJob(
        task, backend, world, cfg, folder, identity, eval_model, start=start, on_event=on_event
    )
