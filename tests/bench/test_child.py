"""The process of `torch compile`: compiled for every batch size, and before it says it is ready."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit

from mmprod.bench import child
from mmprod.bench.child import Task
from mmprod.bundle import create_bundle
from mmprod.graphs.runner import Array, Arrays
from mmprod.runners.torch import compile_each
from tests.parity.answers import FakeRunner
from tests.parity.toy import DIMS, SAMPLER, SPECS, add_onnx, decode


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_every_batch_size_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
        made.append(1)
        return graph.forward

    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda m, **kw: original(m, backend=backend, **kw))
    module = Twice()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        compile_each([module])
        for batch in range(2, 12):
            module(torch.zeros(batch, 2))
        assert len(made) == 10
        torch._dynamo.config.recompile_limit = 10
        with pytest.raises(FailOnRecompileLimitHit):
            module(torch.zeros(12, 2))


def test_what_is_compiled_is_ready_only_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compiling happens in the first call, which so belongs to `ready_s`."""
    bundle = create_bundle(
        tmp_path / "bundle", name="toy", dims=DIMS, sampler=SAMPLER, provenance={}
    )
    add_onnx(bundle, "codec_decode", "fp32")
    bundle.save()
    seen: list[Any] = []

    def run(inputs: Arrays) -> dict[str, Array]:
        seen.append(len(inputs["codes"]))
        return decode(inputs)

    fake = FakeRunner(SPECS["codec_decode"], run)
    monkeypatch.setattr(child, "_runner", lambda task, bundle: fake)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    for kind in ("torch eager", "torch compile"):
        order: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        task = Task(str(bundle.root), kind, "codec_decode", "fp32", {}, {}, "", 1, order, batch=3)
        child._serve(task, lambda said: seen.append(sorted(said)))
    ready = ["backend", "edges", "ready_s"]
    assert seen == [ready, 3, ready]
