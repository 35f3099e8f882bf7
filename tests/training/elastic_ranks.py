"""What each rank of the elastic tests does: the first or the second half of several jobs.

Started as a program: `elastic_ranks.py ORDER.json` (see ranks.launch). Rank r writes
<folder>/rank-r.json: by leg the losses, the indices of the samples by step, and a hash of the
codebook; rank 0 leaves the last codebook as buffers.safetensors in the leg's folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH = {"codec": 12, "fusion": 96}


def train_leg(world: Any, leg: dict[str, Any]) -> dict[str, Any]:
    """One half (or `all`) of a job. leg: stage, folder, deepspeed (a file, or empty: torch), part,
    train.
    """
    from safetensors.torch import save_file

    from mmprod.training.deepspeed_config import read_deepspeed
    from mmprod.training.loop import train_stage
    from tests.training.ranks import digest, stop_after
    from tests.training.tiny import make_job, tiny_config

    losses: list[float] = []

    def note(event: Any) -> None:
        if event.kind == "log":
            losses.append(event.metrics["loss"])

    stage, folder = leg["stage"], Path(leg["folder"])
    config = tiny_config(batch=BATCH[stage], **leg.get("train", {}))
    raw = read_deepspeed(Path(leg["deepspeed"])) if leg["deepspeed"] else None
    job = make_job(config, folder, stage=stage, world=world, deepspeed=raw, on_event=note)
    consumed: dict[str, list[int]] = {}
    with Recorded(consumed):
        if leg["part"] == "first":
            stop_after(job, 4)
        elif leg["part"] == "again":
            save_again(job)
        elif leg["part"] == "full":
            return {"error": disk_full_on_rank_1(job)}
        else:
            train_stage(job)
    buffers = {name: t.clone() for name, t in job.task.model.named_buffers()}
    if world.is_main:
        save_file(buffers, folder / "buffers.safetensors")
    return {"losses": losses, "consumed": consumed, "buffers": digest(buffers)}


def save_again(job: Any) -> None:
    """Read a checkpoint and write it, without a step in between."""
    from mmprod.training.checkpointing import load_checkpoint
    from mmprod.training.ema import Ema
    from mmprod.training.saving import Saver
    from mmprod.training.snapshot import Trained

    average = Ema(job.backend.weights(), 0.9)
    trained = Trained(job.backend, average, job.world, job.task, job.eval_model)
    progress = load_checkpoint(trained, job.start)
    Saver(trained, job.folder, job.identity, job.cfg).save(progress)


def disk_full_on_rank_1(job: Any) -> str:
    """Train with a disk that is full for one rank. What was raised here."""
    import errno

    from mmprod.training import saving
    from mmprod.training.loop import train_stage

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if job.world.rank == 1:
        saving.write_tensors = full  # type: ignore[assignment]
    try:
        train_stage(job)
    except OSError as error:
        return str(error)
    return "no error"


class Recorded:
    """Notes the samples that training takes, not those that are made ready ahead of it."""

    def __init__(self, consumed: dict[str, list[int]]) -> None:
        self.consumed = consumed

    def __enter__(self) -> None:
        from mmprod.training.loading import Loader

        self.loader, self.real = Loader, Loader.step
        real, consumed = self.real, self.consumed

        def step(loader: Any, number: int) -> Iterator[Any]:
            for loaded in real(loader, number):
                consumed.setdefault(str(number), []).extend(loaded.share.indices.tolist())
                yield loaded

        Loader.step = step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.loader.step = self.real  # type: ignore[method-assign]


def main(order_path: Path) -> None:
    from mmprod.training.distributed import join, leave

    order = json.loads(order_path.read_text())
    world = join(group=True)
    results = {name: train_leg(world, leg) for name, leg in order["legs"].items()}
    (order_path.parent / f"rank-{world.rank}.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
