"""NaN, infinity and losses that stay too high: found before the update, with the batch by name.

All ranks raise the same NumericsError; rank 0 also writes RUN/<stage>/bad-batch.json:
{"step", "what", "samples": keys, "last_good": folder of the newest whole checkpoint or null}.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from mmprod.errors import MmprodError, NumericsError
from mmprod.manifest import write_json
from mmprod.training.distributed import World, gather, only_main
from mmprod.training.shares import Share
from mmprod.training.task import Task

logger = logging.getLogger(__name__)

FILE = "bad-batch.json"
SHOWN = 16
OTHER_JOB = (
    "train with a lower lr, a longer warmup or precision fp32 into another --out "
    "(a run folder keeps its configuration)"
)


class BadBatch(Exception):
    """What is wrong with the batch of `step` (from 0). `parts`: this rank's shares of it, if they
    are concerned; `hint`: what helps beside another batch. The loop turns it into `bad_batch` when
    it has saved what is good.
    """

    def __init__(self, step: int, what: str, parts: Sequence[Share], *, hint: str = "") -> None:
        super().__init__(what)
        self.step, self.what, self.parts = step, what, parts
        self.hint = hint or OTHER_JOB


def bad_batch(
    world: World, task: Task, folder: Path, bad: BadBatch, good: Path | None
) -> NumericsError:
    """The error that names the step, the samples of every rank concerned and `good`, the last good
    checkpoint; bad-batch.json is written if the disk takes it. Collective.
    """
    keys = batch_keys(world, task, bad.parts)
    record = {
        "step": bad.step + 1,
        "what": bad.what,
        "samples": keys,
        "last_good": str(good) if good else None,
    }
    try:
        only_main(world, lambda: write_json(folder / FILE, record))
    except (MmprodError, OSError) as error:
        logger.error("%s cannot be written: %s", folder / FILE, error)
    return NumericsError(
        f"{task.name}: {bad.what} at step {bad.step + 1}; samples: {shown(keys)}; "
        f"last good checkpoint: {good or 'none yet'}",
        hint=f"look at these samples (all are in {folder / FILE}); or {bad.hint}",
    )


def bad_evaluation(task: str, step: int, broken: Sequence[str], good: Path | None) -> NumericsError:
    """The error for figures of an evaluation that are not finite. `good`: as above."""
    return NumericsError(
        f"{task}: {', '.join(broken)} of the evaluation at step {step} is NaN or infinite; "
        f"last good checkpoint: {good or 'none yet'}",
        hint=f"{OTHER_JOB}; or resume from an older step, see mmprod ckpt ls",
    )


def batch_keys(world: World, task: Task, parts: Sequence[Share]) -> list[str]:
    """The samples of all ranks' `parts` by name. Collective."""
    mine = [key for share in parts for key in task.keys(share.indices)]
    return [key for part in gather(world, mine) for key in part]


def shown(keys: Sequence[str]) -> str:
    """The first few."""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more
