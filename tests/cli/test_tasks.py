"""Task metrics in a parity report: figures per backend, in JSON, table and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmprod.bundle import Bundle
from mmprod.checkpoint import Run, open_run
from mmprod.cli import scores, source
from mmprod.cli.output import Output, Table
from mmprod.cli.tasks import Tasks
from mmprod.cli.verdicts import parity_data, parity_views
from mmprod.errors import ConfigError
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
    found = Tasks.of(bundle, open_run(run), 2).figures(Output(verbosity=-1))
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
    found = Tasks.of(bundle, open_run(run), 2).figures(Output(verbosity=-1))
    assert {t.metric for t in found} == {METRICS[0]}


def test_what_a_backend_cannot_do_is_left_out_and_said(
    quick: list[str],
    run: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a bundle of `--precision auto`, say, which has each graph in one precision only: the
    verdicts, minutes of work, are not lost for that.
    """
    real = scores.draw

    def draw(chosen: source.Source, captions: Any, seed: int) -> Any:
        if len(quick) == 3:
            raise ConfigError("no text_to_image in fp16", hint="export it")
        return real(chosen, captions, seed)

    monkeypatch.setattr(scores, "draw", draw)
    found = Tasks.of(bundle, open_run(run), 2).figures(Output())
    assert [t.metric for t in found if t.backend == "fp32"] == METRICS
    assert [t.metric for t in found if t.backend == "fp16"] == METRICS[:2]
    assert "drawn pictures, fp16: not measured: no text_to_image in fp16" in capsys.readouterr().err


def test_missing_data_end_the_command_before_the_comparison(
    run: Path, bundle: Bundle, mmprod: Mmprod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Comparison, "run", lambda self: pytest.fail("compared"))
    monkeypatch.setattr(Run, "data_root", bundle.root / "nowhere")
    result = mmprod("parity", "run", bundle.root, "--against", run, "--tasks", 5)
    assert result.code in (2, 3, 4), result.err
    assert "nowhere" in result.err


def test_the_terminal_shows_them_too(bundle: Bundle) -> None:
    tasks = [Task(METRICS[0], "dB", "fp16", 25.957, 100)]
    report = Comparison(bundle, tasks=lambda: tasks).run()
    table = next(v for v in parity_views(report) if isinstance(v, Table) and "use" in v.title)
    assert table.rows == [(METRICS[0], "fp16", "25.957", "dB", 100)]
    assert parity_data(report)["tasks"][0]["value"] == 25.957


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
