"""What training says while it runs: words beside a bar, one JSON line off a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprod.cli.progress import TrainingTicks, _Bars, _bars
from mmprod.training.events import Event

from .conftest import Mmprod

LOG = {
    "loss": 0.12345, "psnr_term": 1.0, "images_per_s": 1234.5, "mfu": 0.414, "memory_bytes": 2.5e9,
    "eta_s": 3725.0,
}  # fmt: skip


def event(kind: str, step: int, metrics: dict[str, float], stage: str = "codec") -> Event:
    return Event(stage, step, 100, metrics, kind)  # type: ignore[arg-type]


def test_a_bar_has_the_newest_speed_and_the_last_quality() -> None:
    ticks = TrainingTicks()
    assert ticks(event("stage", 0, {})).text == ""
    first = ticks(event("log", 10, LOG))
    assert first.text == "loss 0.1235  1,234 img/s  MFU 41%  2.5 GB"
    assert first.left_s == 3725.0
    assert ticks(event("eval", 10, {"psnr": 24.126, "loss": 0.2})).text.startswith("24.13 dB  loss")
    assert ticks(event("save", 10, {})).text.startswith("24.13 dB  loss 0.1235")
    later = ticks(event("log", 20, {"loss": 0.1, "images_per_s": 3.14}))
    assert later.text == "24.13 dB  loss 0.1000  3.1 img/s"


def test_stages_keep_their_own_words() -> None:
    ticks = TrainingTicks()
    ticks(event("eval", 10, {"psnr": 24.0}))
    found = ticks(event("eval", 10, {"loss": 0.8, "encoder": 0.1}, stage="fusion"))
    assert found.text == "val 0.8000"
    assert (found.bar, found.done, found.total) == ("fusion", 10, 100)


@pytest.mark.parametrize("columns", [80, 140])
def test_the_bar_keeps_its_words_on_narrow_and_wide_terminals(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    drawn, ticks = _bars(), TrainingTicks()
    shown = _Bars(drawn)
    shown.draw(ticks(event("eval", 10, {"psnr": 24.126})))
    shown.draw(ticks(event("log", 10, LOG)))
    with drawn.console.capture() as captured:
        drawn.console.print(drawn.get_renderable())
    (line,) = captured.get().splitlines()
    assert len(line) <= columns
    for words in ("codec", "10/100", "left 1:02:05", "24.13 dB  loss 0.1235  1,234 img/s"):
        assert words in line
    assert ("2.5 GB" in line) == (columns == 140)


def test_off_a_terminal_there_is_one_json_line_per_log_step(
    mmprod: Mmprod, job: Path, tmp_path: Path
) -> None:
    done = mmprod("train", "-c", job, "--out", tmp_path / "run", "--json")
    lines = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    logs = [(x["stage"], x["step"]) for x in lines if x["event"] == "log"]
    assert logs == [(stage, step) for stage in ("codec", "fusion") for step in (1, 2, 3)]
    keys = {"loss", "lr", "images_per_s", "tokens_per_s", "tflops", "mfu", "peak_tflops"}
    keys |= {"step_seconds", "data_wait", "memory_bytes", "eta_s", "seconds", "steps"}
    assert all(keys <= set(line) for line in lines if line["event"] == "log")
    assert set(json.loads(done.out)["stages"]) == {"codec", "fusion"}


def test_the_documentation_names_every_key(mmprod: Mmprod, job: Path, tmp_path: Path) -> None:
    done = mmprod("train", "-c", job, "--out", tmp_path / "run", "--model", "codec")
    page = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text()
    logs = [json.loads(line) for line in done.err.splitlines() if '"event": "log"' in line]
    losses = {"loss", "encoder", "reconstruction", "l2", "ms_ssim", "gradient", "l1"}
    named = {key for line in logs for key in line} - losses
    assert {key for key in named if f"`{key}`" not in page} == set()
