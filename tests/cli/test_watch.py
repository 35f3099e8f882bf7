"""Beside progress: where the first weights are from, and the page of curves."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mmprod.cli.output import Output
from mmprod.cli.watch import draw_curves, show_transfer

from .conftest import Mmprod


def test_training_starts_from_a_run_and_shows_what_was_loaded(
    mmprod: Mmprod, job: Path, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ("train", "-c", job, "--out", folder, "--init-from", run, "--model", "codec")
    first = mmprod(*arguments, "-o", "codec.codebook_size=32", "-o", f"data.path={run / 'data'}")
    assert first.code == 0, first.err
    assert "tensors loaded from" in first.err
    table = [line.split() for line in first.err.splitlines()]
    assert any(words[:2] == ["encoder", "loaded"] for words in table)
    assert any(words[:2] == ["quantizer", "fresh"] for words in table)
    assert "file, [32] here" in first.err
    assert (folder / "codec" / "curves.html").is_file()
    assert "curves.html" in first.out


def test_a_whole_run_starts_both_models(
    mmprod: Mmprod, job: Path, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    result = mmprod(
        *("train", "-c", job, "--out", folder, "--init-from", run, "-q"),
        *("-o", f"data.path={run / 'data'}"),
    )
    assert result.code == 0, result.err
    assert "tensors loaded" not in result.err
    for stage in ("codec", "fusion"):
        assert (folder / stage / "init.json").is_file()
        assert (folder / stage / "curves.html").is_file()


def test_one_file_cannot_start_both_models(mmprod: Mmprod, job: Path, run: Path) -> None:
    weights = run / "codec" / "model.safetensors"
    result = mmprod("train", "-c", job, "--out", run, "--init-from", weights)
    assert result.code == 2
    assert "hint: say which model it is for: --model codec" in result.err


def test_a_dry_run_counts_frozen_parameters(mmprod: Mmprod, job: Path, run: Path) -> None:
    arguments = ("train", "-c", job, "--dry-run", "--init-from", run, "--model", "codec")
    plain = mmprod(*arguments, "--json").json()["stages"][0]
    freeze = 'codec_train.freeze=["encoder"]'
    frozen = mmprod(*arguments, "-o", freeze, "--json").json()["stages"][0]
    assert plain["frozen"] == 0
    assert 0 < frozen["frozen"] < frozen["parameters"] == plain["parameters"]
    held = [
        sum(stage["job"]["device"].values()) + sum(stage["job"]["backward"].values())
        for stage in (plain, frozen)
    ]
    assert held[0] - held[1] == 16 * frozen["frozen"]  # gradient, two moments, average
    assert f"({frozen['frozen']:,} frozen)" in mmprod(*arguments, "-o", freeze).out


def test_curves_that_cannot_be_drawn_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mmprod"), "propagate", True)
    (tmp_path / "metrics.jsonl").write_text("{broken\n", encoding="utf-8")
    draw_curves(tmp_path)
    assert "no curves.html" in caplog.text
    assert not (tmp_path / "curves.html").exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n", b"null\n", b'{"kind": "eval", "step": 1, "psnr": "high"}\n']
)
def test_damaged_metrics_are_a_warning(
    content: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("mmprod"), "propagate", True)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    draw_curves(tmp_path)
    assert "no curves.html" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"null",
        b'{"format": 1, "stage": "codec", "source": "x", "sha256": "", "tensors": null}',
        b'{"format": 1, "stage": "codec", "source": "x", "sha256": "", "tensors": [{"name": "a", '
        b'"verdict": "loaded", "reason": "", "part": "encoder", "shape": ["x"]}]}',
    ],
)
def test_a_damaged_init_is_a_warning(
    content: bytes,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("mmprod"), "propagate", True)
    (tmp_path / "init.json").write_bytes(content)
    show_transfer(Output(), tmp_path)
    assert "not shown what was loaded" in caplog.text


def test_nothing_is_shown_where_nothing_was_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_transfer(Output(), tmp_path)
    assert capsys.readouterr().err == ""
