"""Saving a step: whole or absent, in the background if wanted, with room kept on the disk.

    save      rank 0 makes a folder; every rank writes, flushes and hashes its files
    commit    hashes of all ranks -> manifest.json -> latest, best -> old steps go

Each arrow is a rename. A process killed anywhere before the manifest leaves a folder that no reader
looks at; after it, a checkpoint that is whole. With `async_save` the writing is done by a thread
from a copy in host memory and `commit` comes steps later, when all ranks are ready.

A step that is there already (saved again because it was evaluated meanwhile) is written beside its
old files and takes their place when the manifest is renamed.
"""

from __future__ import annotations

import copy
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from mmprod.checkpoint import layout
from mmprod.checkpoint.retention import discard, prune, sweep
from mmprod.checkpoint.steps import FORMAT, list_steps, seal
from mmprod.checkpoint.tensor_file import write_tensors
from mmprod.config.schema import TrainConfig
from mmprod.errors import EnvironmentMissing
from mmprod.manifest import FileEntry, flush_folder, write_json, write_text
from mmprod.training.checkpointing import Identity, together
from mmprod.training.distributed import World, add_over_ranks
from mmprod.training.progress import Progress
from mmprod.training.snapshot import Content, Copies, Trained, contents
from mmprod.training.task import Task

logger = logging.getLogger(__name__)

AGAIN = "again-"
T = TypeVar("T")


@dataclass(frozen=True)
class _Pending:
    """A save that is not committed yet."""

    path: Path
    manifest: dict[str, Any]
    entries: Future[list[FileEntry]]
    started: float
    waited: float
    """seconds that training stood still for it"""


class Saver:
    """Saves the steps of one stage. Build it, and call everything but `ready`, on all ranks."""

    def __init__(
        self,
        trained: Trained,
        folder: Path,
        identity: Identity,
        cfg: TrainConfig,
        start: Path | None = None,
    ) -> None:
        """`start`: the step that training goes on from."""
        self._trained, self._folder, self._identity, self._cfg = trained, folder, identity, cfg
        self._world: World = trained.world
        self._root = folder / layout.CHECKPOINTS
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._copies = Copies()
        self._pending: _Pending | None = None
        self._bytes = self._needed(contents(trained))
        self._on_main(self._tidy)
        self.last_good: Path | None = start
        """the newest checkpoint that this process has checked or committed"""

    @property
    def pending(self) -> bool:
        """Whether a save waits for its commit; equal on all ranks."""
        return self._pending is not None

    @property
    def ready(self) -> bool:
        """Whether this rank has written its part of what is pending, or failed to."""
        return self._pending is not None and self._pending.entries.done()

    def save(self, progress: Progress) -> None:
        """Save the present state. Without `async_save` it is complete at return.

        Raises EnvironmentMissing when the disk has no room, OSError when it refuses: the same on
        all ranks. What was saved before stays.
        """
        self.finish()
        started = time.perf_counter()
        path = self._root / layout.step_name(progress.step)
        files = contents(self._trained)
        self._bytes = self._needed(files)
        beside = self._on_main(lambda: self._make_room(path))
        if self._cfg.async_save:
            files = self._copies.of(files)
        writing = self._thread.submit(_write, path, beside, files)
        if not self._cfg.async_save:
            writing.exception()  # waits; raised by the commit
        waited = time.perf_counter() - started
        manifest = self._manifest(progress, beside)
        self._pending = _Pending(path, manifest, writing, started, waited)
        if not self._cfg.async_save:
            self.commit()

    def commit(self) -> None:
        """Make what is pending the newest checkpoint, when all ranks have written. Raises what went
        wrong on any rank, on all of them.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            parts = together(self._world, pending.entries.result)
        except BaseException:
            if self._world.is_main:
                _drop(pending.path, pending.manifest["folder"])
            raise
        entries = sorted((e for part in parts for e in part), key=lambda e: e.path)
        self._on_main(lambda: self._publish(pending, entries))
        self.last_good = pending.path
        logger.info(
            "saved step %d: %.0f MB in %.1f s, for which training waited %.1f s",
            pending.manifest["progress"]["step"],
            sum(entry.bytes for entry in entries) / 1e6,
            time.perf_counter() - pending.started,
            pending.waited,
        )

    def finish(self) -> None:
        """Wait for what is pending, and commit it."""
        self.commit()

    def _needed(self, files: list[Content]) -> int:
        """Bytes of a checkpoint, all ranks together."""
        (total,) = add_over_ranks(self._world, [float(sum(file.bytes for file in files))])
        return int(total)

    def _on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on rank 0; its failure is raised on all ranks."""
        first = together(self._world, lambda: action() if self._world.is_main else None)[0]
        return first  # type: ignore[return-value]  # None only where the action's own result is

    def _tidy(self) -> None:
        """Sweep, and say early when the disk cannot hold what is asked to be kept."""
        sweep(self._folder)
        self._root.mkdir(parents=True, exist_ok=True)
        there = sum(_size(step.path) for step in list_steps(self._folder))
        room = shutil.disk_usage(self._root).free + there
        most = self._cfg.keep + 2
        if room < most * self._bytes:
            logger.warning(
                "%s has room for %d checkpoints of %.0f MB; keep = %d needs %d with the best one "
                "and the one being written",
                *(self._root, room // self._bytes, self._bytes / 1e6, self._cfg.keep, most),
            )

    def _make_room(self, path: Path) -> str:
        """A folder for new files. Returns its name below `path`: empty, or beside older files."""
        free = shutil.disk_usage(self._root).free
        if free < self._bytes:
            last = self.last_good or "none"
            raise EnvironmentMissing(
                f"{self._root}: a checkpoint takes {self._bytes / 1e6:.0f} MB, the disk has "
                f"{free / 1e6:.0f} MB left (last checkpoint: {last})",
                hint="make room and start the same command again: it goes on from there",
            )
        if not (path / layout.MANIFEST).is_file():
            if path.exists():
                discard(path)
            path.mkdir()
            return ""
        number = 1
        while (path / f"{AGAIN}{number}").exists():
            number += 1
        (path / f"{AGAIN}{number}").mkdir()
        return f"{AGAIN}{number}"

    def _manifest(self, progress: Progress, beside: str) -> dict[str, Any]:
        trained = self._trained
        return {
            "kind": "checkpoint",
            "format": FORMAT,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
            "identity": asdict(self._identity),
            "progress": copy.deepcopy(progress.state()),
            "scalars": dict(trained.backend.scalars()),
            "world": self._world.size,
            "placement": trained.backend.placement,
            "model": _about(trained.task),
            "folder": beside,
        }

    def _publish(self, pending: _Pending, entries: list[FileEntry]) -> None:
        path, progress = pending.path, pending.manifest["progress"]
        beside = pending.manifest["folder"]
        files = [entry.as_dict() for entry in entries]
        manifest = seal({**pending.manifest, "files": files})
        try:
            flush_folder(path / beside)
            write_json(path / layout.MANIFEST, manifest)
        except BaseException:
            if not _says(path / layout.MANIFEST, manifest["sha256"]):
                _drop(path, beside)
            raise
        write_text(self._root / layout.LATEST, path.name + "\n")
        if progress["best_step"] == progress["step"]:
            write_text(self._root / layout.BEST, path.name + "\n")
        if beside:
            _drop_others(path, beside)
        prune(self._folder, path, self._cfg.keep, self._cfg.keep_every)


def _write(path: Path, beside: str, files: list[Content]) -> list[FileEntry]:
    """Write the files of this rank. Runs in a thread: touches nothing but `files`."""
    entries = []
    for file in files:
        target = path / beside / file.name
        try:
            written = write_tensors(target, file.sources(), file.metadata)
        except OSError as error:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(target)) from error
        relative = target.relative_to(path).as_posix()
        entries.append(FileEntry(relative, written.sha256, written.bytes))
    return entries


def _about(task: Task) -> dict[str, Any]:
    """What turns the tensors into a file of weights: which part of the model that is, what its
    codebook means, the order of its parameters, and other names of tensors that occur twice in it.
    """
    core = task.core(task.model)
    prefix = next(name for name, module in task.model.named_modules() if module is core)
    return {
        "prefix": f"{prefix}." if prefix else "",
        "codebook": task.codebook,
        "aliases": _aliases(task.model),
        "trained": [name for name, p in task.model.named_parameters() if p.requires_grad],
    }


def _aliases(model: nn.Module) -> dict[str, str]:
    """Second names of shared weights -> the names that they are saved under."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    saved = model.state_dict().keys()
    every = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in every:
        known = first.setdefault(id(tensor), name)
        if known != name and name in saved:
            found[name] = known
    return found


def _says(path: Path, sha256: str) -> bool:
    """Whether the manifest with this hash was renamed into place."""
    try:
        return sha256 in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def _drop(path: Path, beside: str) -> None:
    """Remove what a failed save has written, as far as the disk lets us: nobody reads it."""
    try:
        if beside:
            shutil.rmtree(path / beside)
        elif path.exists():
            discard(path)
    except OSError as error:
        logger.warning("%s is unfinished and cannot be deleted: %s", path / beside, error)


def _drop_others(path: Path, beside: str) -> None:
    """Remove the files that a step had before it was saved again."""
    for child in path.iterdir():
        if child.name in (layout.MANIFEST, beside):
            continue
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
