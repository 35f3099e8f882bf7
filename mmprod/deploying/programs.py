"""Validators that are programs: each takes a rendered file and returns its complaints, "" for none.

They come from PyPI (extra `deploy`) or Debian; one that is not there raises `Missing`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprod.deploying.verdicts import Missing
from mmprod.deploying.yaml_text import to_yaml

EXTRA = "pip install 'mmprod[deploy]'"
SOURCES = {
    "hadolint": EXTRA,
    "shellcheck": EXTRA,
    "check-jsonschema": EXTRA,
    "promtool": "apt install prometheus",
    "systemd-analyze": "apt install systemd",
}
TIMEOUT_S = 120
TARGETS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")
"""Units of the system that ours refers to."""
MOST_EXPOSED = 30
"""Ten times the exposure level that `systemd-analyze security` may find; 0 is best, 100 worst."""


def hadolint(path: Path) -> str:
    return _complaints("hadolint", ["--no-color", str(path)])


def shellcheck(path: Path) -> str:
    return _complaints("shellcheck", ["--color=never", "--format=gcc", str(path)])


def compose_schema(path: Path) -> str:
    return _complaints(
        "check-jsonschema", ["--builtin-schema", "vendor.compose-spec", str(path)], quiet=True
    )


def prometheus_rules(path: Path) -> str:
    return _complaints("promtool", ["check", "rules", str(path)], quiet=True)


def prometheus_config(path: Path) -> str:
    return _complaints("promtool", ["check", "config", "--syntax-only", str(path)], quiet=True)


def prometheus_expressions(expressions: Sequence[str]) -> str:
    """Queries of a dashboard, as rules that record them."""
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(expressions)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panels.yml"
        path.write_text(to_yaml([{"groups": [{"name": "panels", "rules": rules}]}]), "utf-8")
        return prometheus_rules(path)


def systemd_unit(path: Path) -> str:
    """In a root of its own, where the programs that it starts and the units it names exist."""
    program = _found("systemd-analyze")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        units, own = root / "usr/lib/systemd/system", root / "etc/systemd/system"
        units.mkdir(parents=True)
        own.mkdir(parents=True)
        for name in TARGETS:
            (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n", "utf-8")
        for started in ("bin/sh", "opt/mmprod/bin/mmprod"):
            (root / started).parent.mkdir(parents=True, exist_ok=True)
            (root / started).write_text("#!/bin/sh\n", "utf-8")
            (root / started).chmod(0o755)
        shutil.copyfile(path, own / path.name)
        command = [program, "verify", "--man=no", f"--root={root}", path.name]
        done = _run(command)
        # Unknown keys are complained about and ignored: any word is one too many.
        return (done.stdout + done.stderr).replace(f"{own}/", "").strip()


def systemd_exposure(path: Path) -> str:
    options = ["security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(path)]
    done = _run([_found("systemd-analyze"), *options])
    if done.returncode == 0:
        return ""
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[-1] if lines else f"systemd-analyze ended with {done.returncode}"


def _complaints(program: str, arguments: Sequence[str], *, quiet: bool = False) -> str:
    """What a program writes. quiet: one that speaks of success, too, counts by its exit code."""
    done = _run([_found(program), *arguments])
    words = (done.stdout + done.stderr).strip()
    if done.returncode == 0 and quiet:
        return ""
    return words or (f"{program} ended with {done.returncode}" if done.returncode else "")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"capture_output": True, "text": True, "env": _environment()}
    try:
        return subprocess.run(command, timeout=TIMEOUT_S, check=False, **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {TIMEOUT_S} s")


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "SYSTEMD_COLORS": "0"}


def _found(program: str) -> str:
    """Its path: beside this Python, or on the path. Raises Missing."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(program, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise Missing(program, SOURCES[program])
    return found
