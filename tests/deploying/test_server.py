"""Rendered files speak of the programs as they are: their options, their metrics."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace

from mmprod.cli.serve import serve
from mmprod.deploying.options import Options, Serving, Training
from mmprod.deploying.server import needed_mib, serve_arguments
from mmprod.deploying.training import train_arguments
from mmprod.serving.metrics import Metrics
from tools.deploy_golden import GOLDEN, facts

L4 = Options(serving=Serving(precision="fp16", gpu="l4"))


def test_every_argument_is_one_that_serve_takes() -> None:
    known = set()
    for argument, parameter in inspect.signature(serve, eval_str=True).parameters.items():
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
    text = Metrics().page().decode()
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
    # A Jetson builds its engines from the graphs.
    orin = Options(serving=Serving(precision="fp16", gpu="jetson-orin", shadow=0))
    assert needed_mib(replace(whole, engines=()), orin) >= alone


def test_training_is_told_where_its_pictures_are() -> None:
    def given(config: str, data: str, root: str) -> list[str]:
        options = Options(training=Training(config=config, data=data))
        return [w for w in train_arguments(options, "runs", root) if w.startswith("data.path=")]

    assert given("base", "", "/runs") == ["data.path=/runs/data"]
    assert given("base", "mine", "") == ["data.path=mine"]
    assert given("base", "/data", "/runs") == ["data.path=/data"]
    # Its pictures are drawn.
    assert given("tiny", "", "/runs") == []
