"""Which step folder a command line means: a step itself, or one of a stage or run. Torch-free."""

from __future__ import annotations

from pathlib import Path

from mmprod.checkpoint import layout
from mmprod.checkpoint.run import STAGES
from mmprod.checkpoint.steps import StepFolder, list_steps
from mmprod.errors import ConfigError


def stages_in(path: Path) -> list[tuple[str, Path]]:
    """The stages of a run that hold checkpoints, or the one whose folder `path` is."""
    folders = [path / stage for stage in STAGES]
    if (path / layout.CHECKPOINTS).is_dir():
        folders = [path]
    return [(folder.absolute().name, folder) for folder in folders if list_steps(folder)]


def is_step(path: Path) -> bool:
    """Whether `path` is a step folder, finished or not."""
    return path.is_dir() and path.name.startswith("step-")


def choose_step(path: Path, stage: str, which: str) -> Path:
    """The step folder that is meant. `stage`: needed where a run has checkpoints of both; `which`:
    latest, best, a number, or empty: the step that `path` is, else latest. Raises ConfigError.
    """
    if is_step(path):
        _check_agrees(path, stage, which)
        return path
    which = which or layout.LATEST
    found = [(name, folder) for name, folder in stages_in(path) if stage in ("", name)]
    if not found:
        wanted = f" of the {stage} stage" if stage else ""
        raise ConfigError(
            f"{path} holds no checkpoints{wanted}",
            hint="give a run, a stage folder, or a step folder (see mmprod ckpt ls)",
        )
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise ConfigError(
            f"{path} holds checkpoints of {names}", hint=f"add --model {found[-1][0]}"
        )
    _, folder = found[0]
    complete = [step for step in list_steps(folder) if step.complete]
    chosen = [step for step in complete if _is(step, which)]
    if not chosen:
        numbers = ", ".join(str(step.step) for step in complete) or "none"
        raise ConfigError(
            f"{folder} has no complete checkpoint {which!r}",
            hint=f"--step latest, best, or one of: {numbers}",
        )
    return chosen[-1].path


def _check_agrees(path: Path, stage: str, which: str) -> None:
    """A step folder says by itself which step of which stage it is."""
    folder = path.absolute().parents[1]
    here = [step for step in list_steps(folder) if step.path.name == path.absolute().name]
    if stage not in ("", folder.name):
        raise ConfigError(
            f"{path} is no step of {stage}", hint="give the run, or leave out --model"
        )
    if which and not any(_is(step, which) for step in here):
        raise ConfigError(f"{path} is not step {which!r}", hint="give the run, or leave out --step")


def _is(step: StepFolder, which: str) -> bool:
    if which in (layout.LATEST, layout.BEST):
        return step.latest if which == layout.LATEST else step.best
    return which.isdigit() and step.step == int(which)
