"""Task metrics in a parity report: figures per backend, in JSON, table and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle
from mmprod.checkpoint import open_run
from mmprod.cli import scores, source
from mmprod.cli.output import Output
from mmprod.cli.tasks import task_figures
from mmprod.parity import candidates
from mmprod.parity.report import Task
from mmprod.parity.run import PAGE, REPORT, Comparison
from tests.parity.conftest import bundle as bundle

from .conftest import Mmprod

METRICS = [
    "PSNR of reconstructions",
    "attributes right in captions",
    "attributes right in drawn pictures",
]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, run: Path) -> list[str]:
    """No exported graphs: PyTorch stands for them. Returns the precisions that were opened."""
    opened: list[str] = []
    real = source.open_source

    def of_run(path: Path, backend: Any, precision: str = "fp32") -> source.Source:
        opened.append(f"{backend} {precision}")
        return real(run, "torch")

    monkeypatch.setattr(source, "open_source", of_run)
    monkeypatch.setattr(scores, "JUDGE_STEPS", 2)
    monkeypatch.setattr(candidates, "exported_precisions", lambda bundle: ("fp32", "fp16"))
    return opened


def test_every_backend_gets_every_metric(quick: list[str], run: Path, bundle: Bundle) -> None:
    found = task_figures(Output(verbosity=-1), bundle, open_run(run), 2)
    assert quick == ["torch fp32", "ort fp32", "ort fp16"]
    assert [(t.backend, t.metric) for t in found] == [
        (backend, metric) for backend in ("PyTorch", "fp32", "fp16") for metric in METRICS
    ]
    assert all(t.samples == 2 for t in found)
    for metric in METRICS:  # the same model three times
        assert len({t.value for t in found if t.metric == metric}) == 1
    assert all(0 <= t.value <= 1 for t in found if t.unit == "share")


def test_pictures_without_attributes_have_a_psnr(
    quick: list[str], run: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores.Sample, "scorable", property(lambda held: False))
    found = task_figures(Output(verbosity=-1), bundle, open_run(run), 2)
    assert {t.metric for t in found} == {METRICS[0]}


def test_the_report_tells_them_in_all_its_forms(bundle: Bundle) -> None:
    tasks = [Task(METRICS[0], "dB", "fp16", 25.957, 100)]
    report = Comparison(bundle, page=_page, tasks=lambda: tasks).run()
    assert report.tasks == tuple(tasks)
    written = json.loads((bundle.root / REPORT).read_text())
    assert written["tasks"][0]["value"] == 25.957
    assert "25.957 dB" in (bundle.root / REPORT).with_suffix(".md").read_text()
    html = (bundle.root / PAGE).read_text()
    assert "What a use sees" in html
    assert METRICS[0] in html


def _page(data: Any, maps: Any) -> str:
    from mmprod.cli.parity_page import parity_page

    return parity_page(data, maps)


def test_they_need_the_run(bundle: Bundle, mmprod: Mmprod) -> None:
    result = mmprod("parity", "run", bundle.root, "--tasks", 5)
    assert result.code == 2
    assert "--against RUN" in result.err
