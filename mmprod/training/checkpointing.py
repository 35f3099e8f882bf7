"""Checkpoints that are whole or absent, and a resume that finds the newest whole one.

Save: rank 0 makes an empty step folder; every rank writes its part; barrier; the files are shared
out over the ranks, flushed to disk and hashed; rank 0 writes manifest.json and then the pointer
`latest`, both by rename. A process killed anywhere in between leaves a folder without manifest,
which is never read. Load: rank 0 decides which step, all follow.

A step folder holds the backend's files, ema*.safetensors, frozen.safetensors (the exact frozen
weights, if any), task.safetensors (what the task trains beside its model, if anything) and
manifest.json with the progress of the loop and the identity of the job. Random numbers and sample
order are functions of the step (see shares.py), so they need no state.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from mmprod.checkpoint import layout
from mmprod.checkpoint.steps import FORMAT, list_steps, pointer, verify_step
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import FileEntry, write_json, write_text
from mmprod.training.backend import Backend
from mmprod.training.distributed import World, barrier, gather, only_main
from mmprod.training.ema import Ema
from mmprod.training.freezing import load_frozen, save_frozen
from mmprod.training.metrics import Meter
from mmprod.training.task import Task

logger = logging.getLogger(__name__)

TASK = "task.safetensors"
WHOLE = ("deepspeed zero-0 fp32",)
"""backends of several processes whose saved state is whole: any number of processes can load it"""


@dataclass
class Progress:
    """Where the loop stands after `step` optimizer steps."""

    step: int = 0
    seconds: float = 0.0
    """training time so far, without evaluations and saves"""
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    """evaluations since the best one"""
    meter: Meter = field(default_factory=Meter)

    def state(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "meter"}
        return {**values, "meter": vars(self.meter)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        return cls(**{**state, "meter": Meter(**state["meter"])})


@dataclass(frozen=True)
class Identity:
    """What must be the same when a checkpoint is loaded."""

    stage: str
    config: str
    """SHA-256 of the resolved configuration"""
    data: str
    """what the stage learns from: hash of the data set, for fusion of the codec too"""
    tokenizer: str
    """SHA-256 of tokenizer.json"""
    backend: str
    world: int
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of other files that the stage learns with (see `Task`)"""


@dataclass(frozen=True)
class Checkpoint:
    """A step folder whose hashes and identity were checked, to go on from."""

    path: Path
    manifest: dict[str, Any]

    @property
    def progress(self) -> Progress:
        return Progress.of(self.manifest["progress"])


@dataclass(frozen=True)
class Trained:
    """What a checkpoint saves and restores, on this rank."""

    backend: Backend
    ema: Ema
    world: World
    whole: nn.Module | None = None
    """the model that rank 0 evaluates: it holds the exact frozen weights"""
    task: Task | None = None
    """whose own state is saved too"""


def save_checkpoint(
    trained: Trained, folder: Path, progress: Progress, identity: Identity, keep: int
) -> Path:
    """Save a step below the stage folder, point `latest` (and `best`) at it, drop old ones.
    Collective.
    """
    world = trained.world
    path = folder / layout.CHECKPOINTS / layout.step_name(progress.step)
    only_main(world, lambda: _empty_folder(path))
    trained.backend.save(path)
    if trained.backend.sharded or world.is_main:
        save_file(trained.ema.average, path / _ema_name(trained))
    if trained.whole is not None:
        save_frozen(trained.whole, path)
    if trained.task is not None and world.is_main and (state := trained.task.state()):
        save_file(state, path / TASK)
    barrier(world)
    entries = _hash_together(world, path)
    if world.is_main:
        manifest = {
            "kind": "checkpoint",
            "format": FORMAT,
            "identity": asdict(identity),
            "progress": progress.state(),
            "files": [entry.as_dict() for entry in entries],
        }
        write_json(path / layout.MANIFEST, manifest)
        write_text(path.parent / layout.LATEST, path.name + "\n")
        if progress.best_step == progress.step:
            write_text(path.parent / layout.BEST, path.name + "\n")
        _prune(folder, keep, path)
    barrier(world)
    return path


def find_checkpoint(
    world: World, folder: Path, identity: Identity, resume: str
) -> Checkpoint | None:
    """`find_step`, whose step must belong to this job. Raises ConfigError where it does not."""
    found = find_step(world, folder, resume)
    if found is not None:
        check_identity(found, identity)
    return found


def find_step(world: World, folder: Path, resume: str) -> Checkpoint | None:
    """The step to go on from, its hashes checked. Changes nothing. Collective.

    `resume`: "auto" (the newest whole one), "never", or the path of a step folder.

    None: there is nothing to resume. Raises IntegrityError when there are checkpoints and none is
    whole.
    """
    if resume == "never":
        return None
    return only_main(world, lambda: _find(folder, resume))


def load_checkpoint(trained: Trained, checkpoint: Checkpoint) -> Progress:
    """Restore backend and averages from what `find_checkpoint` found. Collective."""
    trained.backend.load(checkpoint.path)
    trained.ema.load(load_file(checkpoint.path / _ema_name(trained)))
    if trained.task is not None:
        state = checkpoint.path / TASK
        trained.task.load_state(load_file(state) if state.exists() else {})
    only_main(trained.world, lambda: _load_frozen(trained, checkpoint.path))
    return checkpoint.progress


def rewind(folder: Path, checkpoint: Checkpoint) -> None:
    """Make `checkpoint` the newest step of a stage: what was trained after it is given up."""
    root, progress = folder / layout.CHECKPOINTS, checkpoint.progress
    names = {layout.LATEST: layout.step_name(progress.step)}
    names[layout.BEST] = layout.step_name(progress.best_step)
    for name, target in names.items():
        if (root / target).is_dir():
            write_text(root / name, target + "\n")
        else:
            (root / name).unlink(missing_ok=True)
    for step in reversed(list_steps(folder)):
        if step.step > progress.step:
            logger.info("dropping %s: training goes on from step %d", step.path, progress.step)
            shutil.rmtree(step.path)


def _find(folder: Path, resume: str) -> Checkpoint | None:
    if resume != "auto":
        path = Path(resume)
        return Checkpoint(path, verify_step(path))
    steps = list_steps(folder)
    latest = pointer(folder / layout.CHECKPOINTS, layout.LATEST)
    newest = next((s.step for s in steps if s.path.name == latest), None)
    candidates = [s for s in reversed(steps) if s.complete and (newest is None or s.step <= newest)]
    for candidate in candidates:
        try:
            return Checkpoint(candidate.path, verify_step(candidate.path))
        except IntegrityError as error:
            logger.warning("checkpoint is damaged, trying an older one: %s", error.message)
    if candidates:
        raise IntegrityError(
            f"every checkpoint in {folder / layout.CHECKPOINTS} is damaged",
            hint="start this stage anew with --resume never",
        )
    return None


def check_identity(checkpoint: Checkpoint, wanted: Identity) -> None:
    """Raise ConfigError when a checkpoint belongs to another job or number of processes."""
    path, now = checkpoint.path, asdict(wanted)
    saved = {"files": {}} | checkpoint.manifest["identity"]
    names = [name for name in now if saved.get(name) != now[name]]
    if "world" in names and wanted.backend not in WHOLE:
        raise ConfigError(
            f"{path} was saved by {saved.get('world')} processes; there are {now['world']} now, "
            f"and {wanted.backend} divides its state among them",
            hint=f"resume with --nproc {saved.get('world')}; or start another run from the weights "
            f"and codebook: -o {wanted.stage}_train.init_from={path.parents[1] / layout.WEIGHTS}",
        )
    names = [name for name in names if name != "world"]
    if not names:
        return
    if names == ["files"]:
        raise ConfigError(
            f"{path} was trained with other {' and '.join(_changed(saved['files'], now['files']))} "
            "weights than are given now",
            hint="give the files it was trained with, or train this stage anew with --resume never",
        )
    detail = "; ".join(f"{name}: saved {saved.get(name)!r}, now {now[name]!r}" for name in names)
    raise ConfigError(
        f"{path} belongs to another job ({detail})",
        hint="use the configuration and DeepSpeed file it was saved with, or --resume never",
    )


def _changed(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))


def _load_frozen(trained: Trained, path: Path) -> None:
    if trained.whole is not None:
        load_frozen(trained.whole, path)


def _ema_name(trained: Trained) -> str:
    return (
        f"ema-{trained.world.rank:05d}.safetensors"
        if trained.backend.sharded
        else "ema.safetensors"
    )


def _empty_folder(path: Path) -> None:
    """A fresh folder in place of what an interrupted save may have left."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def _hash_together(world: World, path: Path) -> list[FileEntry]:
    """Flush and hash all files, each by one rank; all ranks must see the same files (a shared file
    system).
    """
    files = sorted(p for p in path.rglob("*") if p.is_file())
    names = gather(world, [p.relative_to(path).as_posix() for p in files])
    if any(listing != names[0] for listing in names):
        raise IntegrityError(
            f"the processes see different files in {path}",
            hint="put the run folder on a file system that all nodes share",
        )
    mine = []
    for file in files[world.rank :: world.size]:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        mine.append(FileEntry.of(path, file))
    return sorted((e for part in gather(world, mine) for e in part), key=lambda e: e.path)


def _prune(folder: Path, keep: int, saved: Path) -> None:
    """Keep the step just saved, the newest `keep` complete steps and the best one."""
    steps = list_steps(folder)
    kept = (
        {saved}
        | {s.path for s in [s for s in steps if s.complete][-keep:]}
        | {s.path for s in steps if s.best}
    )
    for step in steps:
        if step.path not in kept:
            shutil.rmtree(step.path)
