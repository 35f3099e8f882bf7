"""Resuming: which step to go on from, whether it belongs to this job, and reading it.

Rank 0 names the newest step; all ranks check its hashes, each a share of the files; where one
differs all go back to the step before. What is read does not depend on how many ranks wrote it, nor
under which ZeRO stage: see mmprod.checkpoint.state. Random numbers and the order of samples are
functions of the step (see shares.py), so they need no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmprod.checkpoint import layout, retention
from mmprod.checkpoint.consolidate import consolidate, open_step
from mmprod.checkpoint.state import read_index
from mmprod.checkpoint.steps import list_steps, pointer, read_manifest, step_entries
from mmprod.errors import ConfigError, IntegrityError, MmprodError
from mmprod.manifest import verify_files
from mmprod.training.distributed import World, gather, only_main
from mmprod.training.progress import Progress as Progress
from mmprod.training.snapshot import Trained as Trained
from mmprod.training.snapshot import restore

logger = logging.getLogger(__name__)

T = TypeVar("T")
_HINT = "resume with --resume auto: it takes the newest checkpoint that is whole"


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
    """optimizer and kind of weights (see `Backend`)"""
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

    @property
    def files(self) -> Path:
        """The folder of its tensors."""
        return self.path / str(self.manifest["folder"])


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
    if resume != "auto":
        return _verified(world, Path(resume))
    candidates = only_main(world, lambda: _candidates(folder))
    for candidate in candidates:
        try:
            return _verified(world, candidate)
        except IntegrityError as error:
            if world.is_main:
                logger.warning("checkpoint is damaged, trying an older one: %s", error.message)
            failure = error
    if not candidates:
        return None
    raise IntegrityError(
        f"every checkpoint in {folder / layout.CHECKPOINTS} is damaged or unreadable; the oldest: "
        f"{failure.message}",
        hint="if the disk is sound, start this stage anew with --resume never",
    )


def load_checkpoint(trained: Trained, checkpoint: Checkpoint) -> Progress:
    """Restore everything but the frozen weights, which the model has from the start (see
    `freezing.load_frozen`). Collective.
    """
    files, manifest = checkpoint.files, checkpoint.manifest
    together(trained.world, lambda: restore(trained, files, read_index(files, manifest)))
    trained.backend.restored(manifest["scalars"])
    saved = manifest["world"], manifest["placement"]
    now = trained.world.size, trained.backend.placement
    if trained.world.is_main and saved != now:
        logger.info("%s was saved by %d ranks (%s), now %d (%s)", checkpoint.path, *saved, *now)
    return checkpoint.progress


def together(world: World, action: Callable[[], T]) -> list[T]:
    """What `action` gives on every rank, or the first rank's failure, raised on all. Collective.

    A bug keeps its traceback on its own rank.
    """
    result: tuple[T | None, Exception | None]
    try:
        result = action(), None
    except (MmprodError, OSError) as error:
        result = None, error
    except BaseException:
        gather(world, (None, MmprodError(f"rank {world.rank} failed; see its output")))
        raise
    results = gather(world, result)
    for _, failure in results:
        if failure is not None:
            raise failure
    return [value for value, _ in results]  # type: ignore[misc]  # None: the action's own


def rewind(folder: Path, checkpoint: Checkpoint, *, aside: bool = False) -> None:
    """Make `checkpoint` the newest step of a stage: what was trained after it is given up, or set
    `aside`; model.safetensors is again the best one of what is left.
    """
    if all(step.path.name <= checkpoint.path.name for step in list_steps(folder)):
        return
    progress = checkpoint.progress
    _restore_best(folder, progress.best_step)
    retention.rewind(folder, progress.step, progress.best_step, aside=aside)


def _restore_best(folder: Path, best_step: int) -> None:
    """Weights and figures of the same step: model.safetensors from the checkpoint of `best_step`,
    or none, and then the next evaluation writes it.
    """
    weights, step = folder / layout.WEIGHTS, layout.step_name(best_step)
    if not best_step:
        weights.unlink(missing_ok=True)
        return
    try:
        consolidate(open_step(folder / layout.CHECKPOINTS / step), weights, "ema")
    except IntegrityError as error:
        logger.warning("%s of step %d is lost: %s", weights, best_step, error.message)
        weights.unlink(missing_ok=True)


def _candidates(folder: Path) -> list[Path]:
    """The complete steps, newest first; none newer than the pointer says."""
    steps = list_steps(folder)
    latest = pointer(folder / layout.CHECKPOINTS, layout.LATEST)
    newest = next((s.step for s in steps if s.path.name == latest), None)
    return [s.path for s in reversed(steps) if s.complete and (newest is None or s.step <= newest)]


def _verified(world: World, path: Path) -> Checkpoint:
    """The files are shared out, largest first. Raises IntegrityError on all ranks."""
    manifest = only_main(world, lambda: read_manifest(path))

    def check() -> None:
        entries = sorted(step_entries(path, manifest), key=lambda e: (-e.bytes, e.path))
        try:
            verify_files(path, entries[world.rank :: world.size], hint=_HINT)
        except OSError as error:  # a bad block, a lost server, a missing right
            raise IntegrityError(f"{path} cannot be read: {error}", hint=_HINT) from error

    together(world, check)
    return Checkpoint(path, manifest)


def check_identity(checkpoint: Checkpoint, wanted: Identity) -> None:
    """Raise ConfigError when a checkpoint belongs to another job."""
    path, now = checkpoint.path, asdict(wanted)
    saved = {"files": {}} | checkpoint.manifest["identity"]
    names = [name for name in now if saved.get(name) != now[name]]
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
        hint="use the configuration and DeepSpeed file it was saved with, or --resume never; or "
        "start another run from its weights: "
        f"-o {wanted.stage}_train.init_from={path.parents[1] / layout.WEIGHTS}",
    )


def _changed(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(name for name in saved.keys() | now.keys() if saved.get(name) != now.get(name))
