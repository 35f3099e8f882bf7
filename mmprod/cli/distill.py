"""`mmprod distill`: a run that draws in a few steps what another run draws in many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmprod.cli.command import Overrides, RunArg
from mmprod.cli.launch import is_rank
from mmprod.cli.output import Output, shown
from mmprod.cli.train import train
from mmprod.errors import ConfigError


def distill(
    out: Output,
    run: RunArg,
    target: Annotated[
        Path, typer.Option("--out", metavar="RUN2", help="Run folder of the student.")
    ],
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Denoising steps of the student's pictures.")
    ] = 4,
    override: Overrides = None,
    deepspeed: Annotated[
        Path | None,
        typer.Option(metavar="ds.json", help="DeepSpeed configuration; see mmprod train."),
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="auto|never|PATH", help="Which checkpoint to go on from.")
    ] = "auto",
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
) -> None:
    """Train a student that needs fewer steps, and no guidance; the same command resumes."""
    if is_rank():
        raise ConfigError(
            "mmprod distill prepares a folder, which the ranks of a launcher would do all at once",
            hint=f"give it --nproc; or, once {shown(target)} is there, let the launcher start "
            f"mmprod train --model fusion --config {target}/config.toml --out {target}",
        )
    from mmprod.checkpoint import open_run
    from mmprod.training.student import prepare_student, student_config

    teacher = open_run(run)
    config = student_config(teacher, steps, override or ())
    prepare_student(teacher, config, target)
    was = teacher.config.sampler
    out.note(
        f"teacher: {shown(run)}, {was.image_steps} steps with guidance {was.guidance:g}; "
        f"student: {shown(target)}, {config.sampler.image_steps} without"
    )
    train(
        out,
        model="fusion",
        config=str(target / "config.toml"),
        run=target,
        deepspeed=deepspeed,
        resume=resume,
        nproc=nproc,
    )
