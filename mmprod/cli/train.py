"""`mmprod train`: one process, the ranks of a launcher, or `--nproc` ranks started from here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from mmprod.cli.command import Overrides
from mmprod.cli.deepspeed_view import all_ranks_hear, check_before_launch
from mmprod.cli.early import nothing_to_save
from mmprod.cli.launch import (
    TIMEOUT,
    TIMEOUT_S,
    Start,
    adopted,
    is_rank,
    launch,
    record_exit,
)
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.progress import TrainingTicks, progress
from mmprod.cli.watch import watched
from mmprod.errors import ConfigError
from mmprod.log import own_rank

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
        Path | None,
        typer.Option(
            metavar="ds.json",
            help="DeepSpeed configuration (ZeRO 0-3); several ranks without one: zero1.json.",
        ),
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
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; run this on each.")] = 1,
    node_rank: Annotated[
        int | None, typer.Option(min=0, help="Which of them this is, from 0; with --master only.")
    ] = None,
    master: Annotated[
        str, typer.Option(metavar="ADDR:PORT", help="Machine 0, where all ranks meet; or --rdzv.")
    ] = "",
    rdzv: Annotated[
        str,
        typer.Option(
            metavar="ADDR:PORT",
            help="Instead of --master and --node-rank: ranks are dealt out (c10d).",
        ),
    ] = "",
    rendezvous_timeout: Annotated[
        int, typer.Option(min=1, envvar=TIMEOUT, help="Seconds until missing ranks are given up.")
    ] = TIMEOUT_S,
    chaos: Annotated[
        str,
        typer.Option(
            metavar="kills=N,seed=S",
            help="Kill this job N times by plan, resume it, compare with a run left alone.",
        ),
    ] = "",
    driven: Annotated[bool, typer.Option("--driven", hidden=True)] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Train nothing; say what the job takes: memory by kind, network, each key of the "
            "DeepSpeed file.",
        ),
    ] = False,
) -> None:
    """Train the codec, then the fusion transformer; the same command resumes where it stopped."""
    from mmprod.config.load import configs_dir, load_config

    start = Start(nproc, nnodes, node_rank, master, rdzv)
    with all_ranks_hear(starts=start.wanted):
        override = [*(override or ()), *_starts(model, init_from)]
        resolved = load_config(config, override)
    if dry_run:
        _dry_run(out, resolved, model, (start.size, deepspeed))
        return
    os.environ[TIMEOUT] = str(rendezvous_timeout)
    if not start.wanted:
        adopted(out.verbosity)
    run = run or Path("runs") / resolved.name
    if deepspeed is None and (start.wanted or is_rank()):
        deepspeed = configs_dir() / "deepspeed" / "zero1.json"
        if own_rank() == 0:
            out.note(f"several ranks without --deepspeed: using {shown(deepspeed)} (ZeRO 1)")
    if start.wanted:
        stages = ("codec", "fusion") if model == "all" else (model,)
        check_before_launch(resolved, deepspeed, stages, nproc * nnodes)
    settings = (model, run, deepspeed, resume)
    command = _rank_command(out, config, override, settings)
    if chaos:
        _under_chaos(out, resolved, settings, _Chaos(chaos, driven, start, command))
    if start.wanted:
        raise typer.Exit(launch(start, command))
    _train_here(out, resolved, settings)


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


@dataclass(frozen=True)
class _Chaos:
    """What --chaos needs to know. `driven`: another process of this program starts it again."""

    text: str
    driven: bool
    start: Start
    command: list[str]


def _under_chaos(out: Output, config: Config, settings: Settings, chaos: _Chaos) -> NoReturn:
    """Drive the job, start its ranks, or be one of them. Does not return."""
    from mmprod.cli.chaos import drive, train_under_chaos
    from mmprod.training.chaos import ChaosPlan

    model, run, deepspeed, resume = settings
    plan, start = ChaosPlan.parse(chaos.text), chaos.start
    if resume != "auto" or start.nnodes > 1:
        raise ConfigError(
            "--chaos goes with --resume auto, and starts ranks of one machine",
            hint="for several machines let a scheduler start the ranks, again after each end",
        )
    command = [*chaos.command, "--chaos", chaos.text]
    if not chaos.driven and not is_rank():
        again = [*command, "--driven", "--nproc", str(start.nproc)]
        raise typer.Exit(drive(out, plan, run, again))
    if start.wanted:
        raise typer.Exit(launch(start, command))
    stages = ("codec", "fusion") if model == "all" else (model,)
    train_under_chaos(out, config, run, plan, (stages, deepspeed))
    raise typer.Exit(0)


def _train_here(out: Output, config: Config, settings: Settings) -> None:
    with nothing_to_save():
        from mmprod.training.distributed import leave
        from mmprod.training.run import train as run_training

    model, run, deepspeed, resume = settings
    stages = ("codec", "fusion") if model == "all" else (model,)
    with progress(out, TrainingTicks()) as on_event:
        result = run_training(
            config,
            run,
            stages=stages,
            deepspeed=deepspeed,
            resume=resume,
            on_event=watched(out, run, on_event),
        )
    if own_rank() == 0:
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
    command += ["--deepspeed", str(deepspeed)] if deepspeed is not None else []
    command += ["--resume", resume]
    for text in overrides:
        command += ["--override", text]
    flags = {"--json": out.as_json, "--verbose": out.verbosity > 0, "--quiet": out.verbosity < 0}
    return command + [flag for flag, given in flags.items() if given]


def _dry_run(out: Output, config: Config, model: Model, job: tuple[int, Path | None]) -> None:
    """`job`: ranks, DeepSpeed file."""
    from mmprod.cli.dry_run import Job, show_dry_run

    stages = ("codec", "fusion") if model == "all" else (model,)
    show_dry_run(out, config, stages, Job(*job))
