"""A DeepSpeed file made complete and checked. Torch-free and DeepSpeed-free.

DeepSpeed leaves "auto" to its callers, ignores unknown keys, clips gradients by 1.0 unless told
otherwise, and takes an empty first Adam step with bf16 at stage 0. Here every "auto" is resolved
from the training section, an explicit value that disagrees with it is an error, every silent
default that matters is written down, and a table says what became of each key and why.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from mmprod.config.schema import TrainConfig
from mmprod.errors import ConfigError
from mmprod.training import deepspeed_rules as rules
from mmprod.training.deepspeed_fates import ZERO, tidy
from mmprod.training.deepspeed_file import AUTO, Json, check, place, read_deepspeed
from mmprod.training.deepspeed_ledger import Decision, Ledger
from mmprod.training.deepspeed_rules import Weights

__all__ = ["Decision", "Json", "Resolved", "Weights", "log_changes", "read_deepspeed", "resolve"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolved:
    """The complete configuration that DeepSpeed receives, and what the loop must know of it."""

    config: Json
    stage: int
    accumulation: int
    weights: Weights
    """what ZeRO keeps: bf16 and fp16 weights have fp32 masters; fp32 weights are autocast where
    precision is bf16
    """
    offload: bool
    table: tuple[Decision, ...]
    """every key of the file, and every default that was written out"""


def resolve(raw: Json, cfg: TrainConfig, world: int, section: str = "") -> Resolved:
    """Fill in what the training section decides, for `world` processes.

    section: name of `cfg`, which hints can then give as a command.
    Raises ConfigError where both say different things.
    """
    check(raw)
    book = Ledger(raw)
    tidy(book)
    accumulation = _batch(book, cfg, world, section)
    book.settle("gradient_clipping", cfg.clip, "clip")
    book.default("prescale_gradients", False, rules.DEFAULT)
    stage = _stage(book)
    offload = rules.offload(book, stage)
    rules.zero(book, stage)
    weights = rules.precision(book, cfg, stage)
    rules.optimizer(book, cfg, offload)
    rules.scheduler(book, cfg)
    config, table = book.finish()
    return Resolved(config, stage, accumulation, weights, offload, table)


def log_changes(resolved: Resolved, stage: str) -> None:
    """Log what the file asks for and does not get, a line each, and how many "auto" there are."""
    for line in resolved.table:
        if line.changed:
            now = "left out" if line.resolved is None else json.dumps(line.resolved)
            logger.info(
                "%s: %s = %s is %s: %s", stage, line.key, json.dumps(line.asked), now, line.why
            )
    logger.info(
        "%s: ZeRO %d, %s weights; %d values of the DeepSpeed file were auto (all of them: "
        "mmprod config show --deepspeed FILE)",
        stage, resolved.stage, resolved.weights, sum(line.asked == AUTO for line in resolved.table),
    )  # fmt: skip


def _stage(book: Ledger) -> int:
    stage = book.asked(f"{ZERO}.stage")
    hint = "use 0, 1, 2 or 3; `mmprod plan` shows what each needs"
    if stage == AUTO:
        raise book.error(f"{ZERO}.stage", "nothing else decides it", hint=hint)
    if stage not in (None, 0, 1, 2, 3):
        raise ConfigError(f"{place(book.raw, f'{ZERO}.stage')}: {ZERO}.stage is {stage}", hint=hint)
    book.default(f"{ZERO}.stage", 0, rules.DEFAULT)
    return int(stage or 0)


def _batch(book: Ledger, cfg: TrainConfig, world: int, section: str) -> int:
    """Batch = processes x micro-batch x accumulation. Returns the accumulation."""
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    micro, accumulation = (_count(book, name) for name in names)
    total = _count(book, "train_batch_size")
    product = world * (micro or 0) * (accumulation or 0)
    ranks = f"{world} {'process' if world == 1 else 'processes'}"
    if product and total and total != product:
        raise ConfigError(
            f"{place(book.raw, 'train_batch_size')}: train_batch_size {total} is not {ranks} x "
            f"micro-batch {micro} x accumulation {accumulation} = {product}",
            hint=f'write "auto" for {names[1]}, or train_batch_size {product}',
        )
    book.settle("train_batch_size", cfg.batch, "batch")
    if accumulation is None:
        accumulation = 1 if micro is None else max(1, cfg.batch // (micro * world))
    parts = world * accumulation
    if cfg.batch % parts:
        # Equal shares: the mean over ranks is then the mean over the global batch.
        raise ConfigError(
            f"batch {cfg.batch} does not divide into {ranks} x {accumulation} micro-batches",
            hint=f"choose a batch that is a multiple of {parts}"
            + (f", e.g. -o {section}.batch={max(1, cfg.batch // parts) * parts}" * bool(section)),
        )
    ours = cfg.batch // parts
    if micro not in (None, ours):
        raise ConfigError(
            f"batch {cfg.batch} is not {ranks} x micro-batch {micro} x accumulation {accumulation} "
            f"= {world * (micro or 0) * accumulation}",
            hint=f'write "auto" for {names[0]} or {names[1]}, or change batch or the number of '
            "processes",
        )
    for name, value, rest in zip(names, (ours, accumulation), reversed(names), strict=True):
        book.default(name, value, f"batch / processes / {rest}: {cfg.batch} on {ranks}")
    return accumulation


def _count(book: Ledger, name: str) -> int | None:
    value = book.asked(name)
    return None if value in (None, AUTO) else int(value)
