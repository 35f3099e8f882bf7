"""Step folders of a stage: which exist, which are complete, whether their files are what the
manifest says.

Torch-free.

A step folder without manifest.json was never finished and counts for nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.checkpoint import layout
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry, read_json, sha256_bytes, verify_files

FORMAT = 3
_KEYS = {
    "files",
    "identity",
    "progress",
    "scalars",
    "world",
    "placement",
    "model",
    "folder",
    "saved",
    "sha256",
}
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
    manifest = read_manifest(path)
    verify_files(path, step_entries(path, manifest), hint=_HINT)
    return manifest


def seal(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with `sha256`: the hash of all the rest, as sorted JSON without spaces."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    plain = json.loads(json.dumps(rest))  # as a reader gets it
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {**plain, "sha256": sha256_bytes(text.encode())}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a step folder, its own hash checked, its files not. Raises IntegrityError."""
    manifest = read_json(path / layout.MANIFEST, hint=_HINT)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise IntegrityError(f"{path / layout.MANIFEST} is not a checkpoint's manifest", hint=_HINT)
    if manifest["format"] != FORMAT:
        stage = path.absolute().parents[1]
        raise IntegrityError(
            f"{path} has checkpoint format {manifest['format']}, this version reads {FORMAT}",
            hint="go on with the version of mmprod that wrote it, or start another run from its "
            f"weights: -o {stage.name}_train.init_from={stage / layout.WEIGHTS}",
        )
    if not manifest.keys() >= _KEYS:
        lacking = ", ".join(sorted(_KEYS - manifest.keys()))
        raise IntegrityError(f"{path / layout.MANIFEST} lacks {lacking}", hint=_HINT)
    if seal(manifest)["sha256"] != manifest["sha256"]:
        raise IntegrityError(
            f"{path / layout.MANIFEST} was changed: its SHA-256 differs from what it says",
            hint=_HINT,
        )
    name = layout.step_name(int(manifest["progress"]["step"]))
    own = path.absolute().name
    if own != name and re.fullmatch(r"step-\d+", own):  # a copy may have a name of its own
        raise IntegrityError(f"{path} holds the state of {name}: it was renamed", hint=_HINT)
    return manifest


def step_entries(path: Path, manifest: dict[str, Any]) -> list[FileEntry]:
    """The files that a step's manifest lists. Raises IntegrityError."""
    return parse_entries(manifest["files"], path / layout.MANIFEST)


def parse_entries(raw: Any, where: Path) -> list[FileEntry]:
    """File entries from JSON. Raises IntegrityError."""
    try:
        return [FileEntry(**entry) for entry in raw]
    except TypeError as error:
        raise IntegrityError(f"{where} lists its files in an unknown form", hint=_HINT) from error
