"""Running the command line inside the test process, and one small trained run for tests of use."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx

    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.checkpoint.models import Models
    from mmprod.export.onnx_export import Part

ROOT = Path(__file__).resolve().parents[2]

TINY_JOB = """
name = "mini"
[data]
count = 40
image_size = 16
vocabulary = 300
text_length = 96
[codec]
patch = 2
channels = 8
multipliers = [1, 2]
codebook_size = 16
code_dim = 4
[codec_train]
steps = 3
batch = 4
warmup = 1
log_every = 1
eval_every = 2
save_every = 2
precision = "fp32"
[fusion]
width = 16
heads = 2
image_encoder = 1
text_encoder = 1
joint = 1
shared = 1
registers = 1
embedding = 8
[fusion_train]
steps = 3
batch = 4
warmup = 1
log_every = 1
eval_every = 2
save_every = 2
precision = "fp32"
[sampler]
image_steps = 2
text_steps = 2
"""


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as its one JSON document."""
        return json.loads(self.out)


Mmprod = Callable[..., Result]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands set up logging for their process; tests share one."""
    logger = logging.getLogger("mmprod")
    state = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = state


@pytest.fixture
def mmprod(capfd: pytest.CaptureFixture[str]) -> Mmprod:
    """`mmprod("config", "show")` in this process."""
    from mmprod.cli.main import main

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        code = caught.value.code
        captured = capfd.readouterr()
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def in_process_of_its_own(*arguments: str, cwd: Path = ROOT, **environment: str) -> Result:
    """`python -m mmprod ARGUMENTS` in a subprocess."""
    done = subprocess.run(
        [sys.executable, "-m", "mmprod", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration that trains in a second or two."""
    path = tmp_path_factory.mktemp("job") / "mini.toml"
    path.write_text(TINY_JOB, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of both stages, too short to have learnt anything."""
    from mmprod.config.load import load_config
    from mmprod.training.run import train

    folder = tmp_path_factory.mktemp("runs") / "mini"
    train(load_config(str(job)), folder)
    return folder


_traced: dict[tuple[Path, str], onnx.ModelProto] = {}
"""Tracing takes most of an export: each part of a run is traced once a session."""


def traced(run: Path, part: Part) -> onnx.ModelProto:
    """The fp32 graph of a part of this run, one's own to change."""
    from mmprod.export.onnx_export import export_part

    key = (run, part.name)
    if key not in _traced:
        _traced[key] = export_part(part)
    return copy.deepcopy(_traced[key])


def export_graphs(run: Path, root: Path, names: Sequence[str]) -> tuple[Bundle, Run, Models]:
    """A bundle at `root`, not yet saved, of these graphs of a run in fp32, and its sources."""
    from mmprod.bundle import create_bundle
    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.models import load_models
    from mmprod.export.graph import assemble, parts_of
    from mmprod.export.graph_file import save_graph
    from mmprod.graphs.modules import build_module

    opened = open_run(run)
    models, sampler = load_models(opened), opened.config.sampler
    made = create_bundle(
        root, name="mini", dims=opened.dims, sampler=sampler, provenance=opened.provenance()
    )
    for name in names:
        spec = made.specs[name]
        module = build_module(
            name, codec=models.codec, fusion=models.fusion, dims=opened.dims, sampler=sampler
        )
        exported = {part.name: traced(run, part) for part in parts_of(spec, module)}
        graph = assemble(spec, module, exported, "fp32")
        for path in save_graph(graph, made.root / "onnx" / f"{name}.fp32.onnx"):
            made.add(path, role="onnx", graph=name, precision="fp32")
    return made, opened, models
