"""The guide and the rendered files name commands and options that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mmprod.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = (
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    ROOT / "docs" / "deploy.md",
    *sorted((ROOT / "mmprod" / "deploying" / "templates").glob("*")),
)


def _commands(text: str) -> Iterator[list[str]]:
    """The words after `mmprod` of every command line, up to what ends it."""
    for line in text.replace("\\\n", " ").splitlines():
        for found in re.finditer(r"\bmmprod ((?:[a-z]+ ?)[^`|#&;()]*)", line):
            yield found.group(1).split()


def test_commands_and_options_exist() -> None:
    root: Any = typer.main.get_command(app)
    seen = 0
    for page in PAGES:
        for words in _commands(page.read_text(encoding="utf-8")):
            command = root
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
            given = {word.split("=")[0].rstrip("`,.:\"'") for word in words if word[:2] == "--"}
            if command is not root:
                assert given <= options, (page.name, command.name, given - options)
                seen += len(given)
    assert seen > 30
