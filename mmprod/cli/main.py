"""The command tree. Importing it imports no stage: a command fetches what it needs when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import mmprod
from mmprod.cli import (
    bench,
    bundle,
    ckpt,
    codec,
    compress,
    config,
    data,
    demo,
    deploy,
    distill,
    doctor,
    edit,
    evaluate,
    parity,
    plan,
    search,
    serve,
    ship,
    train,
    use,
)
from mmprod.cli.command import MAKE, SHIP, START, USE, command, group

app = group(
    "Train vector-quantized image codecs and masked image-text models, export them, and ship "
    "TensorRT engines checked against the model they came from."
)
command(app, "demo", panel=START)(demo.demo)
command(app, "doctor", panel=START)(doctor.doctor)
app.add_typer(config.app, name="config", rich_help_panel=START)
app.add_typer(data.app, name="data", rich_help_panel=MAKE)
command(app, "plan", panel=MAKE)(plan.plan)
command(app, "train", panel=MAKE)(train.train)
command(app, "distill", panel=MAKE)(distill.distill)
app.add_typer(codec.app, name="codec", rich_help_panel=MAKE)
app.add_typer(ckpt.app, name="ckpt", rich_help_panel=MAKE)
command(app, "export", panel=SHIP)(ship.export)
command(app, "build", panel=SHIP)(ship.build_command)
app.add_typer(parity.app, name="parity", rich_help_panel=SHIP)
app.add_typer(bench.app, name="bench", rich_help_panel=SHIP)
app.add_typer(bundle.app, name="bundle", rich_help_panel=SHIP)
app.add_typer(deploy.app, name="deploy", rich_help_panel=SHIP)
command(app, "generate", panel=USE)(use.generate)
command(app, "caption", panel=USE)(use.caption)
command(app, "edit", panel=USE)(edit.edit)
app.add_typer(search.app, name="search", rich_help_panel=USE)
command(app, "compress", panel=USE)(compress.compress)
command(app, "decompress", panel=USE)(compress.decompress)
command(app, "serve", panel=USE)(serve.serve)
command(app, "eval", panel=USE)(evaluate.evaluate)


def _version(asked: bool) -> None:
    if asked:
        print(f"mmprod {mmprod.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
    local_rank: Annotated[
        int | None,
        # The deepspeed launcher puts it before everything else; LOCAL_RANK says the same.
        typer.Option("--local_rank", "--local-rank", hidden=True),
    ] = None,
) -> None:
    """Options that stand before a command."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (`sys.argv` when no arguments are given) and exit with its code."""
    app(args=None if arguments is None else list(arguments), prog_name="mmprod")
    raise SystemExit(0)
