"""Training with frozen parts, at one go and in two halves, and what became of the weights."""

from __future__ import annotations

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
def give(task: Any) -> None:
    """Weights that fresh ones can't be mistaken for, no bf16 numbers. As a file of weights gives
    them, whole parameter by parameter: a sharded build takes nothing else.
    """
    generator = torch.Generator().manual_seed(11)
    for parameter in task.core(task.model).parameters():
        drawn = 0.05 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn + torch.linspace(0.001, 0.01, drawn.numel()).view_as(drawn))


def train_frozen(folder: Path, world: Any, deepspeed: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Train; then again, stopping half-way and going on from a model that was given nothing."""
    from mmprod.training.loop import train_stage
    from tests.training.tiny import make_job

    stage, freeze = order["stage"], tuple(order["freeze"])
    config = frozen_config(stage, freeze, **order.get("train", {}))
    out: dict[str, Any] = {}
    for name in ("straight", "resumed"):
        losses: list[float] = []

        def note(event: Any, losses: list[float] = losses) -> None:
            if event.kind == "log":
                losses.append(event.metrics["loss"])

        arguments = {"stage": stage, "world": world, "deepspeed": deepspeed, "on_event": note}
        job = make_job(config, folder / name, **arguments, given=give)
        before = (
            {n: t.clone() for n, t in job.eval_model.state_dict().items()} if world.is_main else {}
        )
        if name == "resumed":
            stop_after(job, job.cfg.save_every)
            job = make_job(config, folder / name, **arguments)
        train_stage(job)
        after = job.eval_model.state_dict() if world.is_main else {}
        out[name] = report(job, losses) | {"changed": changed(job.task, before, after)}
    return out


def changed(task: Any, before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """Names of the tensors of the model that rank 0 evaluated and wrote, by whether they moved."""
    inside = "fusion." if task.name == "fusion" else ""
    names = {n.removeprefix(inside): not torch.equal(before[n], after[n]) for n in before}
    return {
        "moved": sorted(n for n, moved in names.items() if moved),
        "kept": sorted(n for n, moved in names.items() if not moved),
        "parts": sorted({part_of(task.name, n) for n, moved in names.items() if moved}),
    }
