"""`mmprod ckpt`: the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmprod.cli.command import command, group
from mmprod.cli.output import Output, Table, megabytes, shown
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.checkpoint import StepFolder

app = group("List and check the checkpoints of a run.")

FolderArg = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")]


@command(app, "ls")
def ls(out: Output, run: FolderArg) -> None:
    """Every saved step of both stages, its size, and which one is latest or best."""
    found = _steps(run)
    data = [
        {
            "stage": stage,
            "step": folder.step,
            "path": folder.path,
            "complete": folder.complete,
            "latest": folder.latest,
            "best": folder.best,
            "bytes": _size(folder.path),
        }
        for stage, folder in found
    ]
    rows = [
        (
            stage,
            folder.step,
            "complete" if folder.complete else "unfinished",
            ", ".join(name for name in ("latest", "best") if getattr(folder, name)),
            megabytes(_size(folder.path)),
        )
        for stage, folder in found
    ]
    columns = ("stage", "step", "state", "marks", "size")
    out.result({"run": run, "checkpoints": data}, Table("", columns, rows))


@command(app, "verify")
def verify(out: Output, run: FolderArg) -> None:
    """Check every file of every complete checkpoint; exit 4 names the first that differs."""
    from mmprod.checkpoint import verify_step

    complete = [(stage, folder) for stage, folder in _steps(run) if folder.complete]
    for _, folder in complete:
        verify_step(folder.path)
    rows = [(stage, folder.step, "ok") for stage, folder in complete]
    data = {"run": run, "verified": [{"stage": s, "step": f.step} for s, f in complete]}
    out.result(data, Table("", ("stage", "step", "state"), rows))


def _steps(run: Path) -> list[tuple[str, StepFolder]]:
    """All step folders with their stage. Raises ConfigError when there are none."""
    from mmprod.checkpoint import STAGES, list_steps

    found = [(stage, folder) for stage in STAGES for folder in list_steps(run / stage)]
    if not found:
        raise ConfigError(
            f"{shown(run)} holds no checkpoints", hint=f"mmprod train --out {shown(run)}"
        )
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
