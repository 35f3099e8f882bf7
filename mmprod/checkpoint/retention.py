"""Which step folders stay, and how the others go. Torch-free.

A folder that goes is renamed first, to a name that no reader takes for a step, then deleted: a
process killed meanwhile leaves rubbish that the next one sweeps away, never half a checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from mmprod.checkpoint import layout
from mmprod.checkpoint.steps import list_steps, pointer
from mmprod.manifest import write_text

logger = logging.getLogger(__name__)

TRASH = ".trash-"
ASIDE = "damaged-"
UNFINISHED = ".unfinished-"
"""what an interrupted atomic write leaves (see mmprod.manifest)"""


def discard(path: Path) -> None:
    """Delete a step folder so that no reader ever sees a part of it."""
    number = 0
    while (trash := path.with_name(f"{TRASH}{path.name}-{number}")).exists():
        number += 1
    path.rename(trash)
    _delete(trash)


def sweep(stage_folder: Path) -> None:
    """Delete what interrupted saves and deletions left. For the only process that writes here."""
    root = stage_folder / layout.CHECKPOINTS
    if not root.is_dir():
        return
    for path in root.iterdir():
        if path.name.startswith(TRASH):
            _delete(path)
        elif path.name.startswith(UNFINISHED):
            path.unlink(missing_ok=True)
    for step in list_steps(stage_folder):
        if not step.complete:
            discard(step.path)


def prune(stage_folder: Path, saved: Path, keep: int, keep_every: int) -> None:
    """Keep the newest `keep` complete steps up to the one just saved, what the pointers name, and
    the complete ones whose number is a multiple of `keep_every` (0: none for that). Newer ones than
    the one just saved are of a training that was given up.
    """
    steps = list_steps(stage_folder)
    last = next(s.step for s in steps if s.path == saved)
    own = [s for s in steps if s.complete and s.step <= last]
    kept = {saved} | {s.path for s in own[-keep:]}
    for step in steps:
        milestone = keep_every > 0 and step in own and step.step % keep_every == 0
        if not (step.path in kept or step.best or step.latest or milestone):
            discard(step.path)


def rewind(stage_folder: Path, step: int, best_step: int, *, aside: bool = False) -> None:
    """Make `step` the newest of a stage: what was trained after it is given up; or, where a reader
    would have gone on from it, set `aside` under another name, for whoever can mend it.
    """
    root = stage_folder / layout.CHECKPOINTS
    latest = pointer(root, layout.LATEST)
    targets = {layout.LATEST: layout.step_name(step), layout.BEST: layout.step_name(best_step)}
    for name, target in targets.items():
        if (root / target).is_dir():
            write_text(root / name, target + "\n")
        else:
            (root / name).unlink(missing_ok=True)
    for folder in reversed(list_steps(stage_folder)):
        if folder.step <= step:
            continue
        if aside and folder.complete and (not latest or folder.path.name <= latest):
            kept = _set_aside(folder.path)
            logger.warning("%s, which is damaged, is now %s; delete it at will", folder.path, kept)
        else:
            logger.info("dropping %s: training goes on from step %d", folder.path, step)
            discard(folder.path)


def _set_aside(path: Path) -> Path:
    """Rename a step folder so that no reader takes it for a step."""
    number = 0
    while (kept := path.with_name(f"{ASIDE}{path.name}-{number}")).exists():
        number += 1
    return path.rename(kept)


def _delete(trash: Path) -> None:
    """What cannot be deleted (a file that a reader on another node holds open) stays for the next
    sweep.
    """
    try:
        shutil.rmtree(trash)
    except OSError as error:
        logger.warning("%s cannot be deleted yet: %s", trash, error)
