"""Whether the global batches divide: into processes, micro-batches and contrastive groups."""

from __future__ import annotations

from collections.abc import Sequence

from mmprod.config.schema import Config, TrainConfig
from mmprod.errors import ConfigError
from mmprod.models.contrast import CONTRAST_GROUP
from mmprod.training.deepspeed_config import Json, resolve


def check_batches(
    config: Config, stages: Sequence[str], deepspeed: Json | None, world: int
) -> None:
    """Refuse what `world` processes cannot train together, before any of them starts.

    Raises ConfigError, which names the stage's section.
    """
    for stage in stages:
        cfg: TrainConfig = getattr(config, f"{stage}_train")
        try:
            if deepspeed is not None:
                resolve(deepspeed, cfg, world, f"{stage}_train")
        except ConfigError as error:
            raise ConfigError(f"{stage}_train: {error.message}", hint=error.hint) from error
        if stage == "fusion":
            check_groups(cfg, deepspeed, world)


def check_groups(cfg: TrainConfig, deepspeed: Json | None, world: int) -> None:
    """The contrastive loss compares samples in fixed groups, so a micro-batch must hold whole ones.

    Raises ConfigError with the numbers.
    """
    accumulation = resolve(deepspeed, cfg, world).accumulation if deepspeed is not None else 1
    parts = world * accumulation
    samples = cfg.batch // parts
    if samples % CONTRAST_GROUP and not (parts == 1 and samples < CONTRAST_GROUP):
        whole = CONTRAST_GROUP * parts
        nearest = max(1, cfg.batch // whole) * whole
        raise ConfigError(
            f"fusion_train.batch {cfg.batch} on {world} processes x {accumulation} micro-batches "
            f"gives {samples} samples each, and the contrastive loss needs whole groups of "
            f"{CONTRAST_GROUP}",
            hint=f"choose a multiple of {whole}, e.g. -o fusion_train.batch={nearest}",
        )
