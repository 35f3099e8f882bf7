"""`mmprod train --dry-run`: the size of a job, from its configuration alone.

Nothing is trained or allocated: the models are built without storage. The memory figures count
what ZeRO shards (weights, gradients, AdamW's two moments, the averaged weights) and the networks
beside the codec, which every rank holds whole (the discriminator with its AdamW, VGG16). They leave
out activations, communication buckets, the copy that rank 0 evaluates, and the framework itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmprod.config.schema import CodecConfig, Config, TrainConfig

FP32 = 4
WORLDS = (1, 2, 8, 64)
STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class StagePlan:
    """One training stage: sizes of model and step, and bytes per rank by ZeRO stage and world size.

    `frozen`: how many of `parameters` do not train; `tokens`: codes (codec), or codes and text
    tokens (fusion), of one global batch.
    """

    stage: str
    parameters: int
    frozen: int
    steps: int
    batch: int
    tokens: int
    checkpoint_bytes: int
    rank_bytes: dict[int, dict[int, int]]


def plan(config: Config, worlds: tuple[int, ...] = WORLDS) -> list[StagePlan]:
    """The plan of both stages, with memory for each number of ranks in `worlds`.

    The tokenizer may turn out smaller than `data.vocabulary`; the plan takes that upper limit.
    """
    import torch

    from mmprod.config.parts import part_of
    from mmprod.models.codec import build_codec
    from mmprod.models.fusion import build_fusion

    dims = config.dims(config.data.vocabulary)
    beside = {"codec": beside_codec(config.codec), "fusion": Beside(0, 0)}
    with torch.device("meta"):
        models = {
            "codec": build_codec(config.codec),
            "fusion": build_fusion(config.fusion, dims),
        }
    trains = {"codec": config.codec_train, "fusion": config.fusion_train}
    lengths = {"codec": dims.positions, "fusion": dims.positions + dims.text_length}
    stages = []
    for name, model in models.items():
        counts = {True: 0, False: 0}
        for parameter, tensor in model.named_parameters():
            counts[part_of(name, parameter) in trains[name].freeze] += tensor.numel()
        sizes = counts[False], counts[True]
        found = _stage(name, sizes, trains[name], lengths[name], worlds)
        stages.append(_with(found, beside[name]))
    return stages


@dataclass(frozen=True)
class Beside:
    """Bytes of networks outside the model: on every rank, and in a checkpoint."""

    rank: int
    checkpoint: int


def beside_codec(cfg: CodecConfig) -> Beside:
    """The discriminator (weights, gradients, two moments) and VGG16 (weights), where configured."""
    import torch

    from mmprod.models.discriminator import Discriminator
    from mmprod.models.perceptual import Perceptual

    with torch.device("meta"):
        judge = sum(p.numel() for p in Discriminator().parameters()) if cfg.gan_weight else 0
        vgg = sum(p.numel() for p in Perceptual().parameters()) if cfg.perceptual else 0
    return Beside(FP32 * (4 * judge + vgg), FP32 * 3 * judge)


def _with(found: StagePlan, beside: Beside) -> StagePlan:
    ranks = {
        zero: {world: size + beside.rank for world, size in sizes.items()}
        for zero, sizes in found.rank_bytes.items()
    }
    total = found.checkpoint_bytes + beside.checkpoint
    return replace(found, rank_bytes=ranks, checkpoint_bytes=total)


def training_samples(config: Config) -> tuple[int | None, str]:
    """Pictures in the train split, None where nobody can know yet; and where the number is from."""
    from mmprod.data.store import MANIFEST, read_manifest

    root = Path(config.data.path)
    if config.data.path and (root / MANIFEST).is_file():
        return int(read_manifest(root)["splits"]["train"]["count"]), f"counted in {root}"
    if config.data.source == "avatars":
        return config.data.count - 2 * (config.data.count // 20), "to be drawn"
    return None, "number of pictures unknown until `mmprod data prepare`"


def rank_bytes(parameters: int, zero: int, world: int, frozen: int = 0) -> int:
    """Bytes of weights, gradients, AdamW moments and averaged weights on one rank, all fp32;
    `frozen` parameters beside them have weights only.

    ZeRO shards the moments from stage 1, the gradients from 2, the weights and averages from 3
    (Rajbhandari et al. 2020, section 5).
    """
    weights, kept = FP32 * parameters, FP32 * frozen
    gradients = averages = weights
    moments = 2 * FP32 * parameters
    moments = moments // world if zero >= 1 else moments
    gradients = gradients // world if zero >= 2 else gradients
    if zero >= 3:
        weights, averages, kept = (size // world for size in (weights, averages, kept))
    return weights + gradients + moments + averages + kept


def _stage(
    name: str, sizes: tuple[int, int], train: TrainConfig, length: int, worlds: tuple[int, ...]
) -> StagePlan:
    """`sizes`: parameters that train, and frozen ones (a checkpoint has those twice)."""
    trained, frozen = sizes
    return StagePlan(
        stage=name,
        parameters=trained + frozen,
        frozen=frozen,
        steps=train.steps,
        batch=train.batch,
        tokens=train.batch * length,
        checkpoint_bytes=FP32 * (4 * trained + 2 * frozen),
        rank_bytes={
            zero: {world: rank_bytes(trained, zero, world, frozen) for world in worlds}
            for zero in STAGES
        },
    )
