"""`mmprod ckpt`: the checkpoints of a run."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import command, group
from mmprod.cli.output import Fields, Output, Table, megabytes, shown
from mmprod.cli.paths import check_file_target, check_folder_target
from mmprod.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    from mmprod.checkpoint import StepFolder

app = group(
    "List and check the checkpoints of a run; take weights or state out of them.\n\n"
    "A checkpoint goes on at any number of processes and under any ZeRO stage: `mmprod train` with "
    "the same configuration needs no conversion."
)

PathArg = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|STEP",
        help="Folder of a run (finished or not), of a stage, or of one step: "
        "RUN/codec/checkpoints/step-00000500.",
    ),
]
Model = Annotated[
    str, typer.Option("--model", help="codec or fusion, where a run has checkpoints of both.")
]
Which = Annotated[
    str,
    typer.Option("--step", help="latest, best, or the number of a step.", show_default="latest"),
]


GONE = "{} was deleted meanwhile: the run goes on"


@command(app, "ls")
def ls(out: Output, run: PathArg) -> None:
    """Every saved step: whether it is complete, latest or best, its size, who wrote it, its age."""
    found = []
    for stage, folder in _steps(run):
        about, size = _about(folder), _size(folder.path)
        if folder.path.exists():
            found.append((stage, folder, about, size))
        else:
            out.note(GONE.format(folder.path))
    data = [
        {
            "stage": stage,
            "step": folder.step,
            "path": folder.path,
            "complete": folder.complete,
            "latest": folder.latest,
            "best": folder.best,
            "bytes": size,
            **about,
        }
        for stage, folder, about, size in found
    ]
    rows = [
        (
            stage,
            folder.step,
            "complete" if folder.complete else "unfinished",
            ", ".join(name for name in ("latest", "best") if getattr(folder, name)),
            megabytes(size),
            f"{about['world']} x {about['placement']}" if about else "",
            _age(about["saved"]) if about else "",
        )
        for stage, folder, about, size in found
    ]
    columns = ("stage", "step", "state", "marks", "size", "written by", "age")
    out.result({"run": run, "checkpoints": data}, Table("", columns, rows))


@command(app, "verify")
def verify(out: Output, run: PathArg) -> None:
    """Hash every file of every complete checkpoint (or of one step).

    Exit 4 when one differs, when `latest` or `best` names a step that is not complete, and when
    nothing is complete; all are looked at first, and the table says which are whole.
    """
    from mmprod.checkpoint.consolidate import open_step

    failures = _loose_pointers(run)
    rows: list[tuple[str, int, str]] = []
    for stage, folder in [(stage, folder) for stage, folder in _steps(run) if folder.complete]:
        try:
            open_step(folder.path)
            rows.append((stage, folder.step, "ok"))
        except (IntegrityError, OSError) as error:
            if not folder.path.exists():
                out.note(GONE.format(folder.path))
                continue
            if isinstance(error, OSError):
                raise
            failures.append(error)
            rows.append((stage, folder.step, "fail"))
    if not rows:
        failures.append(
            IntegrityError(
                f"{shown(run)}: no checkpoint is complete, so none was verified",
                hint="a folder without manifest.json was never finished (see mmprod ckpt ls)",
            )
        )
    if failures:
        out.note("\n".join(f"{stage} {step}: {state}" for stage, step, state in rows))
        raise failures[0]
    data = {"run": run, "verified": [{"stage": stage, "step": step} for stage, step, _ in rows]}
    out.result(data, Table("", ("stage", "step", "state"), rows))


@command(app, "consolidate")
def consolidate(
    out: Output,
    path: PathArg,
    to: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")],
    weights: Annotated[
        Literal["ema", "raw"],
        typer.Option("--weights", help="ema: the averages that are evaluated; raw: as trained."),
    ] = "ema",
    model: Model = "",
    step: Which = "",
) -> None:
    """Whole weights of a checkpoint as one safetensors file.

    Works for steps written by any number of processes, on any machine, without torch; memory stays
    small. The file is what training leaves as model.safetensors: a run starts from it with
    -o codec_train.init_from=FILE.
    """
    from mmprod.checkpoint.choose import choose_step
    from mmprod.checkpoint.consolidate import consolidate, open_step

    source = choose_step(path, model, step)
    check_file_target(to)
    written = consolidate(open_step(source), to, weights)
    data = {"step": source, "file": to, "weights": weights, "bytes": written.bytes}
    out.result(
        {**data, "sha256": written.sha256},
        Fields(
            "",
            {
                "from": shown(source),
                "weights": weights,
                "file": shown(to),
                "size": megabytes(written.bytes),
            },
        ),
    )


@command(app, "convert")
def convert(
    out: Output,
    path: PathArg,
    to: Annotated[
        Literal["deepspeed-universal", "pytorch"],
        typer.Option("--to", help="The form: DeepSpeed's universal checkpoint, or one .pt file."),
    ],
    target: Annotated[Path, typer.Option("--out", help="The new folder to write.")],
    model: Model = "",
    step: Which = "",
) -> None:
    """Weights and optimizer state for programs other than mmprod.

    deepspeed-universal: load_checkpoint(OUT) of an engine with {"checkpoint": {"load_universal":
    true}}, any ZeRO stage from 1 on and any number of processes; buffers and frozen weights are in
    the file mp_rank_00_model_states.pt, which DeepSpeed leaves to you. pytorch: OUT/model.pt with
    model, averaged and optimizers as state dicts; torch.load(..., weights_only=True).
    To go on with mmprod itself, none of this is needed.
    """
    from mmprod.checkpoint.choose import choose_step
    from mmprod.checkpoint.consolidate import open_step
    from mmprod.checkpoint.convert import convert

    source = choose_step(path, model, step)
    check_folder_target(target.parent)
    files = convert(open_step(source), target, to)
    data = {"step": source, "to": to, "out": target, "files": files}
    names = ", ".join(shown(file) for file in files)
    out.result(data, Fields("", {"from": shown(source), "form": to, "written": names}))


def _steps(path: Path) -> list[tuple[str, StepFolder]]:
    """Step folders with their stage. Raises ConfigError when there are none."""
    from mmprod.checkpoint import list_steps
    from mmprod.checkpoint.choose import is_step, stages_in

    if is_step(path):
        stage = path.absolute().parents[1]
        found = [(stage.name, s) for s in list_steps(stage) if s.path.name == path.name]
    else:
        found = [(name, step) for name, folder in stages_in(path) for step in list_steps(folder)]
    if not found:
        raise ConfigError(
            f"{shown(path)} holds no checkpoints", hint=f"mmprod train --out {shown(path)}"
        )
    return found


def _loose_pointers(path: Path) -> list[IntegrityError]:
    """What `latest` and `best` name without it being complete, in a stage or run."""
    from mmprod.checkpoint import layout, list_steps
    from mmprod.checkpoint.choose import is_step, stages_in
    from mmprod.checkpoint.steps import pointer

    found = []
    for _, folder in [] if is_step(path) else stages_in(path):
        root = folder / layout.CHECKPOINTS
        named = {mark: pointer(root, mark) for mark in (layout.LATEST, layout.BEST)}
        complete = {step.path.name for step in list_steps(folder) if step.complete}
        found += [
            IntegrityError(
                f"{shown(root / mark)} names {name}, which is not complete",
                hint="resume with --resume auto: it takes the newest checkpoint that is whole",
            )
            for mark, name in named.items()
            if name and name not in complete and name == pointer(root, mark)
        ]
    return found


def _about(folder: StepFolder) -> dict[str, Any]:
    """Who wrote a step and when; empty where its manifest does not say."""
    from mmprod.checkpoint.steps import read_manifest

    if not folder.complete:
        return {}
    try:
        manifest = read_manifest(folder.path)
    except IntegrityError:
        return {}
    return {name: manifest[name] for name in ("world", "placement", "saved")}


def _age(saved: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(saved)).total_seconds()
    for unit, length in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(folder: Path) -> int:
    """Bytes of its files; without those that a running job deletes meanwhile."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
    return total
