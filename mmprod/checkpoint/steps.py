"""Step folders of a stage: which exist, which are complete, whether their files are what the
manifest says.

Torch-free.

A step folder without manifest.json was never finished and counts for nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.checkpoint import layout
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry, read_json, verify_files

FORMAT = 2
_HINT = "resume with --resume auto: it takes the newest checkpoint that is whole"


@dataclass(frozen=True)
class StepFolder:
    """One saved step. `complete`: its manifest is there (contents are checked by `verify_step`)."""

    step: int
    path: Path
    complete: bool
    latest: bool
    best: bool


def list_steps(stage_folder: Path) -> list[StepFolder]:
    """The step folders of a stage, oldest first; empty when there are none."""
    root = stage_folder / layout.CHECKPOINTS
    if not root.is_dir():
        return []
    latest, best = pointer(root, layout.LATEST), pointer(root, layout.BEST)
    found = [
        StepFolder(
            step=int(match[1]),
            path=path,
            complete=(path / layout.MANIFEST).is_file(),
            latest=path.name == latest,
            best=path.name == best,
        )
        for path in root.iterdir()
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda folder: folder.step)


def pointer(checkpoints: Path, name: str) -> str:
    """The step folder named by `latest` or `best`; empty when there is no such file."""
    path = checkpoints / name
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def verify_step(path: Path) -> dict[str, Any]:
    """Check every file of a step folder. Returns its manifest. Raises IntegrityError."""
    manifest = read_json(path / layout.MANIFEST, hint=_HINT)
    if not isinstance(manifest, dict) or not {"format", "files", "identity", "progress"} <= set(
        manifest
    ):
        raise IntegrityError(f"{path / layout.MANIFEST} is not a checkpoint's manifest", hint=_HINT)
    if manifest["format"] != FORMAT:
        raise IntegrityError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}",
            hint="use the version of mmprod that wrote it",
        )
    verify_files(path, parse_entries(manifest["files"], path / layout.MANIFEST), hint=_HINT)
    return manifest


def parse_entries(raw: Any, where: Path) -> list[FileEntry]:
    """File entries from JSON. Raises IntegrityError."""
    try:
        return [FileEntry(**entry) for entry in raw]
    except TypeError as error:
        raise IntegrityError(f"{where} lists its files in an unknown form", hint=_HINT) from error
