"""Training with frozen parts, at one go and in two halves, and what became of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmprod.config.parts import part_of
from tests.training.ranks import report, stop_after


def frozen_config(stage: str, freeze: tuple[str, ...], **train: object) -> Any:
    """The tiny configuration with `freeze` in one stage."""
    from tests.training.tiny import tiny_config

    config = tiny_config(**train)
    section = getattr(config, f"{stage}_train").model_copy(
        update={"freeze": freeze, "init_from": "given"}
    )
    return config.model_copy(update={f"{stage}_train": section})


@torch.no_grad()
def other_weights(config: Any, stage: str = "codec") -> dict[str, torch.Tensor]:
    """Whole parameters that fresh ones can't be mistaken for, and no bf16 numbers."""
    from tests.training.tiny import codec_task, fusion_task

    fresh = codec_task(config) if stage == "codec" else fusion_task(config)
    return {
        name: parameter + torch.linspace(0.001, 0.01, parameter.numel()).view_as(parameter)
        for name, parameter in fresh.core(fresh.model).named_parameters()
    }


def weights_for(config: Any, stage: str = "codec") -> Callable[[Any], None]:
    """What gives a task those weights, whole, as a file does: all a sharded build takes."""
    whole = other_weights(config, stage)

    @torch.no_grad()
    def give(task: Any) -> None:
        for name, parameter in task.core(task.model).named_parameters():
            parameter.copy_(whole[name])

    return give


def train_frozen(folder: Path, world: Any, deepspeed: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Train; then again, stopping half-way and going on from a model that was given nothing."""
    from mmprod.training.loop import train_stage
    from tests.training.tiny import make_job

    stage, freeze = order["stage"], tuple(order["freeze"])
    config = frozen_config(stage, freeze, **order.get("train", {}))
    given, give = other_weights(config, stage), weights_for(config, stage)
    out: dict[str, Any] = {}
    for name in ("straight", "resumed"):
        losses: list[float] = []

        def note(event: Any, losses: list[float] = losses) -> None:
            if event.kind == "log":
                losses.append(event.metrics["loss"])

        arguments = {"stage": stage, "world": world, "deepspeed": deepspeed, "on_event": note}
        job = make_job(config, folder / name, **arguments, given=give)
        before = started_from(given, job.eval_model.state_dict(), job.task) if world.is_main else {}
        if name == "resumed":
            stop_after(job, job.cfg.save_every)
            job = make_job(config, folder / name, **arguments)
        train_stage(job)
        after = job.eval_model.state_dict() if world.is_main else {}
        out[name] = report(job, losses) | {"changed": changed(job.task, before, after)}
    return out


def inside(task: Any) -> str:
    """Where the trained model sits in the one that is evaluated."""
    return "fusion." if task.name == "fusion" else ""


def started_from(
    given: dict[str, torch.Tensor], state: dict[str, torch.Tensor], task: Any
) -> dict[str, torch.Tensor]:
    """What the model began with: after a sharded build its own trained weights are not yet
    filled, and hold whatever lay in that memory, even the last run's result.
    """
    return {n: given.get(n.removeprefix(inside(task)), t).clone() for n, t in state.items()}


def changed(task: Any, before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the tensors of the model that rank 0 evaluated and wrote, by whether they moved."""
    names = {n.removeprefix(inside(task)): not torch.equal(before[n], after[n]) for n in before}
    return {
        "moved": sorted(n for n, moved in names.items() if moved),
        "kept": sorted(n for n, moved in names.items() if not moved),
        "parts": sorted({part_of(task.name, n) for n, moved in names.items() if moved}),
    }
