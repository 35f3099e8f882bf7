"""What each rank of test_fragments.py does. Started by `ranks.launch` with this file as program."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

STEPS = 3


def train(job: Any, first: int, *, skip: tuple[int, ...] = ()) -> list[float]:
    """STEPS bare steps from step `first` on; returns this rank's losses and gradient norms."""
    from mmprod.training.shares import Shares

    cfg, world = job.cfg, job.world
    shares = Shares(cfg.seed, cfg.batch, world.rank, world.size, job.backend.accumulation)
    figures = []
    for step in range(first, first + STEPS):
        for share in shares.of(step, job.task.size, job.task.weights):
            batch = job.task.batch(share)
            losses = job.task.losses(job.backend.forward(*batch), batch, step)
            job.backend.backward(losses["loss"])
            figures.append(float(losses["loss"].detach()))
        if step in skip:
            job.backend.skip()
        else:
            figures.append(job.backend.step(cfg.lr))
        job.task.after_step()
    return figures


def fields_of(backend: Any) -> dict[str, Any]:
    return {
        f"{name}.{key}": tensor
        for name, fragment in backend.fragments().items()
        for key, tensor in fragment.fields.items()
    }


def copied(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def take_over(folder: Path, world: Any, raw: Any, order: dict[str, Any]) -> dict[str, Any]:
    """One job trains on; another is given its state and trains the same steps."""
    from tests.training.ranks import digest
    from tests.training.tiny import make_job

    kind = {"stage": order.get("stage", "codec"), "world": world, "deepspeed": raw}
    one = make_job(config_of(order), folder / "one", **kind)
    fresh = digest(fields_of(one.backend))
    start = digest(one.backend.gather(one.backend.weights()))
    first = train(one, 0)
    state, scalars = copied(fields_of(one.backend)), one.backend.scalars()
    buffers = copied(dict(one.task.model.named_buffers()))
    going_on = train(one, STEPS)
    other = make_job(config_of(order, seed=1), folder / "other", **kind)
    for name, tensor in fields_of(other.backend).items():
        tensor.copy_(state[name])
    for name, buffer in other.task.model.named_buffers():
        buffer.copy_(buffers[name])
    other.backend.restored(scalars)
    return {
        "fresh": fresh,
        "start": start,
        "first": first,
        "going_on": going_on,
        "taken_over": train(one_config(other, one), STEPS),
        "state": digest(fields_of(one.backend)),
        "state_taken_over": digest(fields_of(other.backend)),
        "scalars": scalars,
        "skipped": skipped(one),
        **places(one, world),
        "smallest": overflow_at_the_smallest_scale(one) if one.backend.scaled else "",
    }


def config_of(order: dict[str, Any], **train: Any) -> Any:
    from tests.training.tiny import tiny_config

    config = tiny_config(**order["train"], **train)
    width = order.get("width", config.fusion.width)
    return config.model_copy(update={"fusion": config.fusion.model_copy(update={"width": width})})


def one_config(other: Any, one: Any) -> Any:
    """`other` on the samples of `one`."""
    from dataclasses import replace

    return replace(other, cfg=one.cfg)


def skipped(job: Any) -> dict[str, Any]:
    """What `skip` changes (nothing), and that training goes on."""
    from tests.training.ranks import digest

    steps = range(2 * STEPS, 3 * STEPS)
    before, scalars = digest(fields_of(job.backend)), job.backend.scalars()
    losses = train(job, steps.start, skip=tuple(steps))
    same = before == digest(fields_of(job.backend)) and scalars == job.backend.scalars()
    train(job, steps.stop)
    return {"losses": losses, "same": same, "moves": before != digest(fields_of(job.backend))}


def overflow_at_the_smallest_scale(job: Any) -> str:
    """The error of a step whose gradients cannot be kept with any loss scale."""
    import torch

    from mmprod.errors import NumericsError

    job.backend.restored(job.backend.scalars() | {"scale.value": 1.0, "scale.hysteresis": 1.0})
    job.task.model.register_forward_hook(
        lambda module, inputs, losses: {**losses, "loss": losses["loss"] * torch.inf}
    )
    try:
        train(job, 3 * STEPS)
    except NumericsError as error:
        return error.message
    return "no error"


def places(job: Any, world: Any) -> dict[str, Any]:
    """Where this rank's fragments lie, and the whole weights put together on rank 0."""
    from tests.training.ranks import digest

    fragments = job.backend.fragments()
    whole = job.backend.gather(job.backend.weights())
    return {
        "places": [(f.name, list(f.shape), f.start, f.numel) for f in fragments.values()],
        "whole": digest(whole),
        "shapes": {name: list(tensor.shape) for name, tensor in whole.items()},
    }


def main(order_path: Path) -> None:
    from deepspeed.accelerator import get_accelerator

    import mmprod.training.fragments as fragments
    from mmprod.training.deepspeed_config import read_deepspeed
    from mmprod.training.distributed import join, leave

    order = json.loads(order_path.read_text())
    fragments.GATHERED = order["gathered"]
    # fp16 computes everywhere; DeepSpeed refuses it where the processor is slow at it.
    vars(get_accelerator())["is_fp16_supported"] = lambda: True
    world = join(group=True)
    results = {
        name: take_over(Path(order["folder"]) / name, world, read_deepspeed(Path(path)), order)
        for name, path in order["files"].items()
    }
    (order_path.parent / f"rank-{world.rank}.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
