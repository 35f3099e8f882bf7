"""`mmprod config`: what a job is made of, where each value comes from, what may be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mmprod.cli.command import Overrides, command, group
from mmprod.cli.deepspeed_view import deepspeed_view
from mmprod.cli.output import Output, Table, Text

app = group("Show, check and describe configurations.")

ConfigArg = Annotated[
    str, typer.Argument(metavar="NAME|PATH", help="A preset's name or a TOML file.")
]


@command(app, "show")
def show(
    out: Output,
    config: ConfigArg = "tiny",
    override: Overrides = None,
    toml: Annotated[bool, typer.Option("--toml", help="As a TOML file, ready to edit.")] = False,
    deepspeed: Annotated[
        Path | None,
        typer.Option(metavar="ds.json", help="Also what becomes of each key of this file."),
    ] = None,
    nproc: Annotated[int, typer.Option(min=1, help="For that: ranks of the whole job.")] = 1,
) -> None:
    """Every resolved value and where it comes from: default, file and line, or override."""
    from mmprod.config.load import load_config, preset_names, resolve_with_origin, to_toml

    resolved = load_config(config, override or ())
    origins = resolve_with_origin(config, override or ())
    data = {
        "config": resolved.model_dump(mode="json"),
        "origins": {entry.key: entry.origin for entry in origins},
        "presets": preset_names(),
    }
    tables: list[Table] = []
    if deepspeed is not None:
        data["deepspeed"], tables = deepspeed_view(resolved, deepspeed, nproc)
    if toml:
        out.result(data, Text(to_toml(resolved).rstrip("\n")))
        return
    rows = [(entry.key, _plain(entry.value), entry.origin) for entry in origins]
    out.result(data, Table("", ("key", "value", "from"), rows), *tables)
    out.note(f"presets: {', '.join(preset_names())}")


@command(app, "validate")
def validate(
    out: Output,
    config: Annotated[
        list[str], typer.Argument(metavar="NAME|PATH...", help="Presets or TOML files.")
    ],
    override: Overrides = None,
) -> None:
    """Check configurations without running anything; exit 2 names the first mistake."""
    from mmprod.config.load import load_config

    checked = {name: load_config(name, override or ()).name for name in config}
    rows = [(name, "ok") for name in checked]
    out.result({"valid": list(checked)}, Table("", ("configuration", "state"), rows))


@command(app, "schema")
def schema(out: Output) -> None:
    """The JSON Schema of a configuration file, for editors and other tools."""
    from mmprod.config.load import json_schema

    data = json_schema()
    out.result(data, Text(json.dumps(data, indent=2, ensure_ascii=False)))


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
