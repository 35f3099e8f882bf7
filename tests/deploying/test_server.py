"""Rendered files speak of the server as it is: its options, its metrics. Skipped without one."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest

from mmprod.deploying.options import Options, Serving
from mmprod.deploying.server import needed_mib, serve_arguments
from tools.deploy_golden import GOLDEN, facts

L4 = Options(serving=Serving(precision="fp16", gpu="l4"))


def test_every_argument_is_one_that_serve_takes() -> None:
    command: Any = pytest.importorskip("mmprod.cli.serve", reason="no mmprod serve in this version")
    known = set()
    for argument, parameter in inspect.signature(command.serve, eval_str=True).parameters.items():
        for option in getattr(parameter.annotation, "__metadata__", ()):
            # Inside Annotated, Typer keeps the first name where a default would be.
            names = [str(option.default), *(option.param_decls or ())]
            declared = [name for name in names if name.startswith("--")]
            known |= set(declared) or {f"--{argument.replace('_', '-')}"}
    for options in (Options(), L4):
        given = serve_arguments(options, "/bundle", "0.0.0.0", "/key")
        assert {word for word in given if word.startswith("--")} <= known
    unit = (GOLDEN / "gpu" / "systemd" / "mmprod-serve.service").read_text(encoding="utf-8")
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert set(re.findall(r"--[a-z-]+", start)) <= known


def test_every_metric_is_one_that_the_server_has() -> None:
    metrics: Any = pytest.importorskip(
        "mmprod.serving.metrics", reason="no mmprod serve in this version"
    )
    text = metrics.Metrics().page().decode()
    has = set(re.findall(r"# TYPE (\w+) ", text))
    has |= {f"{name}_{part}" for name in has for part in ("bucket", "sum", "count", "total")}
    used = (GOLDEN / "cpu" / "monitoring" / "alerts.yml").read_text(encoding="utf-8")
    panels = json.loads((GOLDEN / "cpu" / "monitoring" / "dashboard.json").read_text("utf-8"))
    used += " ".join(t["expr"] for panel in panels["panels"] for t in panel["targets"])
    names = set(re.findall(r"\b(?:mmprod|process)_[a-z_]+\b", used))
    assert len(names) > 8 and names <= has, names - has


def test_memory_follows_what_is_loaded() -> None:
    whole = facts()
    alone = needed_mib(whole, Options(serving=Serving(shadow=0)))
    assert alone % 64 == 0 and alone >= 256 + 3 * 10 * 10_000_000 / 2**20
    assert needed_mib(whole, Options(serving=Serving(precision="fp16"))) > alone
    assert needed_mib(whole, L4) > 256
