"""The command tree: every command has help and the shared options, and the start is cheap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer import rich_utils

import mmprod as package
from mmprod.cli.main import app

from .conftest import ROOT, Mmprod, in_process_of_its_own

EARLY = {
    "torch",
    "numpy",
    "pydantic",
    "rich",
    "PIL",
    "datasets",
    "onnx",
    "onnxruntime",
    "deepspeed",
}


def commands(of: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for entry in of.registered_commands:
        assert entry.name
        yield (*path, entry.name)
    for nested in of.registered_groups:
        assert nested.name
        assert nested.typer_instance
        yield from commands(nested.typer_instance, (*path, nested.name))


COMMANDS = [" ".join(path) for path in commands(app)]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_help_json_and_verbosity(path: str, mmprod: Mmprod) -> None:
    result = mmprod(*path.split(), "-h")
    assert result.code == 0
    for option in ("--json", "--verbose", "--quiet", "--help"):
        assert option in result.out


@pytest.mark.parametrize(("path", "shown"), [("edit", "[default: 0.4]"), ("serve", "[default: 0]")])
def test_brackets_of_a_help_text_are_shown(
    path: str, shown: str, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 200)
    line = next(
        line
        for line in mmprod(path, "--help").out.splitlines()
        if "--strength" in line or "--batch-wait-ms" in line
    )
    assert shown in line


def test_tree_has_what_the_documentation_promises() -> None:
    promised = (
        "doctor", "demo", "config show", "config validate", "config schema",
        "data prepare avatars", "data prepare folder", "data prepare emoji", "data stats",
        "data verify", "plan", "train", "codec sweep", "codec rate", "ckpt ls",
        "ckpt verify", "ckpt consolidate", "ckpt convert", "eval", "export", "build", "parity run",
        "parity rerun", "parity selftest", "parity accept", "parity sabotage", "bench run",
        "bench compare", "bundle inspect", "bundle verify", "bundle keygen",
        "bundle sign", "bundle sbom", "bundle pack", "bundle unpack", "parity explain",
        "distill", "generate", "edit", "caption", "compress", "decompress", "serve",
        "deploy list", "deploy render", "deploy validate", "search index", "search query",
        "search delete", "search optimize", "search info", "search verify",
    )  # fmt: skip
    assert sorted(COMMANDS) == sorted(promised)


def test_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in COMMANDS:
        assert f"mmprod {path.split()[0]}" in readme, path


def test_version_and_module_are_the_same_program(mmprod: Mmprod) -> None:
    assert mmprod("--version").out == f"mmprod {package.__version__}\n"
    assert in_process_of_its_own("--version").out == f"mmprod {package.__version__}\n"


def test_typo_in_a_command_gets_a_suggestion(mmprod: Mmprod) -> None:
    result = mmprod("trian")
    assert result.code == 2
    assert "train" in result.err


def test_importing_the_tree_imports_nothing_else() -> None:
    code = "import sys, mmprod.cli.main; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not EARLY & set(done.stdout.split())
