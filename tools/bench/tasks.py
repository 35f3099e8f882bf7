"""Jobs on data in memory, small enough that what a step costs beside the model shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmprod.config.load import load_config
from mmprod.config.schema import Config
from mmprod.data.tokenizer import train_tokenizer
from mmprod.training.codec_task import CodecTask
from mmprod.training.codes import Codes
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.task import Task

PICTURES = 512
LOG_EVERY = 20
"""the default"""


class InMemory:
    """A split of random pictures with a caption each, without files."""

    weights = None

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(0)
        self._pictures = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        self.size = size

    def __len__(self) -> int:
        return len(self._pictures)

    def images(self, indices: Any) -> Any:
        return self._pictures[indices]

    def captions(self, indices: Any, languages: Any, seed: int) -> list[str]:
        return [f"a picture of kind {i % 7}" for i in indices]

    def keys(self, indices: Any) -> list[str]:
        return [str(i) for i in indices]


def job_config(steps: int) -> Config:
    """Preset tiny as it is shipped, `steps` long; evaluation and saving only at the end."""
    train = {"steps": steps, "log_every": LOG_EVERY, "warmup": 1}
    train |= {"eval_every": steps, "save_every": steps, "optimizer": "adamw"}
    config = load_config("tiny")
    values = config.model_dump()
    for stage in ("codec", "fusion"):
        values[f"{stage}_train"] |= train
    return Config.model_validate(values)


def build_task(config: Config, stage: str, device: torch.device) -> Task:
    """A task of either stage on data in memory."""
    train, val = (InMemory(n, config.data.image_size) for n in (PICTURES, 16))
    torch.manual_seed(0)
    codec = CodecTask(config, train, val, device)  # type: ignore[arg-type]
    if stage == "codec":
        return codec
    words = train.captions(range(PICTURES), (), 0)
    tokenizer = train_tokenizer(words, config.data.vocabulary)
    dims = config.dims(tokenizer.vocab_size)
    rng = np.random.default_rng(1)
    codes = [
        Codes(rng.integers(0, dims.codebook_size, (n, dims.positions)).astype(np.int32), None)
        for n in (PICTURES, 16)
    ]
    model: Any = codec.model
    data = FusionData(train, val, *codes, tokenizer, model)  # type: ignore[arg-type]
    return FusionTask(config, dims, data, device)
