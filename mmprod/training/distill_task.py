"""The fusion stage of a student: as the fusion stage, but text -> image is learned from a teacher.

The teacher is a network beside the model: each rank has all of it, and it works in the thread that
makes the batches, ahead of the step.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mmprod.checkpoint.models import load_weights
from mmprod.checkpoint.run import Run, open_run
from mmprod.config.keys import flatten
from mmprod.config.schema import Config, Dims, SamplerConfig
from mmprod.errors import ConfigError
from mmprod.manifest import sha256_file
from mmprod.models.distill import DistillObjective, Teacher, draw_teaching_noise
from mmprod.models.fusion import Fusion, build_fusion
from mmprod.models.fusion_loss import FusionObjective
from mmprod.training.distributed import World, neighbours, only_main
from mmprod.training.fusion_task import FusionData, FusionTask
from mmprod.training.prepare import Prepared
from mmprod.training.sharded_build import Build

TEACHER = "teacher"
"""what the record of a student calls the hash of its teacher's weights"""
SHARED = ("data.image_size", "data.text_length")
"""what a student has of its teacher, beside the codec"""


class DistillTask(FusionTask):
    """Trains a student on cached codes and what the teacher makes of them (see `Task`)."""

    def __init__(
        self,
        config: Config,
        dims: Dims,
        data: FusionData,
        device: torch.device,
        teacher: Run,
        build: Build | None = None,
    ) -> None:
        super().__init__(config, dims, data, device, build)
        path = teacher.weights_path("fusion")
        with torch.random.fork_rng():
            fusion = load_weights(build_fusion(teacher.config.fusion, dims), path)
        steps = config.sampler.image_steps
        self._teacher = Teacher(fusion, dims, teacher.config.sampler, steps).to(device)
        self._steps = teacher.config.sampler.image_steps, steps
        self.files = {TEACHER: sha256_file(path)}

    def objective(self, fusion: Fusion) -> FusionObjective:
        cfg = self._config
        return DistillObjective(fusion, cfg.fusion, self._dims, cfg.sampler.image_steps)

    def lessons(
        self, generator: torch.Generator, whole: int, rows: slice, given: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """The teacher's lessons: states (B, N) and targets (B, N, K)."""
        noise = draw_teaching_noise(generator, whole, self._dims, self._steps)[rows]
        bf16 = self._config.fusion_train.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            lesson = self._teacher(*given, noise.to(self._device))
        return lesson.state, lesson.target

    def beside(self) -> list[Tensor]:
        return [*super().beside(), *self._teacher.state_dict().values()]


def build_fusion_task(
    prepared: Prepared, data: FusionData, world: World, build: Build
) -> FusionTask:
    """The task of the fusion stage, with a teacher where the configuration names one.

    Collective.
    """
    config, dims = prepared.config, prepared.dims
    if config.distill.teacher:
        teacher = only_main(world, lambda: _open_teacher(prepared))
        task: FusionTask = DistillTask(config, dims, data, world.device, teacher, build)
    else:
        task = FusionTask(config, dims, data, world.device, build)
    task.join(neighbours(world))
    return task


def _open_teacher(prepared: Prepared) -> Run:
    """The run that `distill.teacher` names. Raises ConfigError where it cannot teach this one."""
    config = prepared.config
    teacher = open_run(Path(config.distill.teacher))
    check_student(teacher, config)
    own = {"codec": prepared.root / "codec", "tokenizer": prepared.root}
    theirs = {"codec": teacher.weights_path("codec"), "tokenizer": teacher.tokenizer_path}
    for name, folder in own.items():
        if sha256_file(folder / theirs[name].name) != sha256_file(theirs[name]):
            raise ConfigError(
                f"distill.teacher: {teacher.root} has another {name}, so its ids mean other things",
                hint=f"mmprod distill {teacher.root} --out RUN takes over what has to be the same",
            )
    return teacher


def check_student(teacher: Run, config: Config) -> None:
    """Whether a student can have this configuration. Raises ConfigError."""
    _check_sampler(teacher, config.sampler)
    theirs, own = (dict(flatten(c)) for c in (teacher.config, config))
    changed = [
        f"{key} {own[key]!r} (its teacher: {theirs[key]!r})"
        for key in own
        if own[key] != theirs[key] and (key.startswith("codec.") or key in SHARED)
    ]
    if changed:
        raise ConfigError(
            f"a student sees codes and tokens as its teacher does, not with {', '.join(changed)}",
            hint=f"leave these as they are in {teacher.config_path}",
        )


def _check_sampler(teacher: Run, student: SamplerConfig) -> None:
    own, steps = teacher.config.sampler.image_steps, student.image_steps
    if student.guidance:
        raise ConfigError(
            f"sampler.guidance is {student.guidance:g}, and a student learns to do without",
            hint="leave it at 0 while it is trained; mmprod generate --guidance may add some",
        )
    if steps >= own or own % steps:
        fitting = ", ".join(str(n) for n in range(1, own) if own % n == 0)
        raise ConfigError(
            f"a student of {steps} steps cannot learn from {own} steps of {teacher.root}",
            hint=f"as many steps of the teacher for each of the student: {fitting or 'none'}",
        )
