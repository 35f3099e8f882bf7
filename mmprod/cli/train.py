"""`mmprod train`: one process, the ranks of a launcher, or `--nproc` ranks started from here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmprod.cli.command import Overrides
from mmprod.cli.launch import is_rank, launch, record_exit
from mmprod.cli.output import Output, Table, Text, megabytes, shown
from mmprod.cli.progress import progress, training_tick
from mmprod.cli.watch import watched
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    from mmprod.config.schema import Config
    from mmprod.training.events import TrainResult

Model = Literal["codec", "fusion", "all"]


def train(
    out: Output,
    model: Annotated[Model, typer.Option(help="Which model; fusion needs a codec.")] = "all",
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="NAME|PATH", help="Preset or TOML file.")
    ] = "tiny",
    override: Overrides = None,
    run: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder; runs/NAME if not given."),
    ] = None,
    deepspeed: Annotated[
        Path | None, typer.Option(metavar="ds.json", help="DeepSpeed configuration (ZeRO 0-3).")
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="auto|never|PATH", help="Which checkpoint to go on from.")
    ] = "auto",
    init_from: Annotated[
        Path | None,
        typer.Option(
            "--init-from", metavar="RUN|PATH", help="Start from these weights, where they fit."
        ),
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks to start on this machine.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how large the job is.")
    ] = False,
) -> None:
    """Train the codec, then the fusion transformer; the same command resumes where it stopped."""
    from mmprod.config.load import configs_dir, load_config

    override = [*(override or ()), *_starts(model, init_from)]
    resolved = load_config(config, override)
    if dry_run:
        _dry_run(out, resolved, nproc)
        return
    run = run or Path("runs") / resolved.name
    if deepspeed is None and (nproc > 1 or is_rank()):
        deepspeed = configs_dir() / "deepspeed" / "zero1.json"
        if os.environ.get("RANK", "0") == "0" and nproc > 1:
            out.note(f"several ranks without --deepspeed: using {shown(deepspeed)} (ZeRO 1)")
    if nproc > 1:
        command = _rank_command(out, config, override, (model, run, deepspeed, resume))
        raise typer.Exit(launch(nproc, command))
    _train_here(out, resolved, (model, run, deepspeed, resume))


def _starts(model: Model, init_from: Path | None) -> list[str]:
    """--init-from as overrides, one for each stage that trains. Raises ConfigError."""
    if init_from is None:
        return []
    if model == "all" and not (init_from / "run.json").is_file():
        raise ConfigError(
            f"--init-from {init_from} is no finished run, so it has no weights for both models",
            hint="say which model it is for: --model codec, or --model fusion",
        )
    stages = ("codec", "fusion") if model == "all" else (model,)
    return [f"{stage}_train.init_from={json.dumps(str(init_from))}" for stage in stages]


Settings = tuple[Model, Path, Path | None, str]
"""model, run folder, DeepSpeed file, resume"""


def _train_here(out: Output, config: Config, settings: Settings) -> None:
    from mmprod.training.distributed import leave
    from mmprod.training.run import train as run_training

    model, run, deepspeed, resume = settings
    stages = ("codec", "fusion") if model == "all" else (model,)
    with progress(out, training_tick) as on_event:
        result = run_training(
            config,
            run,
            stages=stages,
            deepspeed=deepspeed,
            resume=resume,
            on_event=watched(out, run, on_event),
        )
    if os.environ.get("RANK", "0") == "0":
        _show(out, result)
    if is_rank():
        record_exit(0)
        leave(0)


def _show(out: Output, result: TrainResult) -> None:
    from mmprod.checkpoint.layout import CURVES

    folder = shown(result.run)
    rows = [
        (
            stage.stage,
            "finished before" if stage.skipped else stage.steps,
            stage.best_step,
            ", ".join(f"{name} {value:.4g}" for name, value in stage.metrics.items()),
        )
        for stage in result.stages.values()
    ]
    data = {"run": str(result.run), "stages": {n: asdict(s) for n, s in result.stages.items()}}
    pages = [page for name in result.stages if (page := result.run / name / CURVES).is_file()]
    next_steps = f"run: {folder}\ncurves: {', '.join(map(shown, pages)) or 'none'}"
    next_steps += f"\nnext: mmprod export {folder} --trt"
    if "fusion" in result.stages:
        next_steps += f'\n      mmprod generate {folder} "CAPTION"'
    out.result(
        data, Table("", ("stage", "steps", "kept step", "evaluation"), rows), Text(next_steps)
    )


def _rank_command(
    out: Output, config: str, overrides: Sequence[str], settings: Settings
) -> list[str]:
    """The command line of one rank: this command, spelled out, without --nproc."""
    model, run, deepspeed, resume = settings
    command = ["train", "--model", model, "--config", config, "--out", str(run)]
    command += ["--deepspeed", str(deepspeed), "--resume", resume]
    for text in overrides:
        command += ["--override", text]
    flags = {"--json": out.as_json, "--verbose": out.verbosity > 0, "--quiet": out.verbosity < 0}
    return command + [flag for flag, given in flags.items() if given]


def _dry_run(out: Output, config: Config, nproc: int) -> None:
    from mmprod.cli.plan import WORLDS, plan, training_samples

    worlds = tuple(sorted({*WORLDS, nproc}))
    samples, source = training_samples(config)
    stages = plan(config, worlds)
    sizes = [
        (
            p.stage,
            f"{p.parameters:,}" + (f" ({p.frozen:,} frozen)" if p.frozen else ""),
            f"{p.batch} ({p.tokens:,} tokens)",
            f"{p.steps:,}",
            f"{samples / p.batch:,.1f}" if samples else "unknown",
            f"{p.steps * p.batch / samples:,.1f}" if samples else "unknown",
            megabytes(p.checkpoint_bytes),
        )
        for p in stages
    ]
    memory = [
        (p.stage, f"ZeRO {zero}", *(megabytes(size) for size in row.values()))
        for p in stages
        for zero, row in p.rank_bytes.items()
    ]
    data = {
        "config": config.name,
        "samples": samples,
        "samples_from": source,
        "stages": [asdict(p) for p in stages],
    }
    ranks = [f"{world} ranks" if world > 1 else "1 rank" for world in worlds]
    columns = (
        "stage", "parameters", "global batch", "steps", "steps per epoch", "epochs", "checkpoint",
    )  # fmt: skip
    known = f"{samples:,} training pictures, {source}" if samples else source
    out.result(
        data,
        Table(f"{config.name}: {known}", columns, sizes),
        Table(
            "Bytes per rank with AdamW, without activations and buffers", ("", "", *ranks), memory
        ),
    )
