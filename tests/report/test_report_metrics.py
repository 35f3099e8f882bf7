"""Curves out of metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprod.errors import IntegrityError
from mmprod.report.metrics import read_curve, read_metrics

LINES = (
    '{"kind": "log", "step": 2, "loss": 1.0, "encoder": 0.5}\n'
    '{"kind": "eval", "step": 2, "psnr": 11.0}\n'
    '{"kind": "log", "step": 4, "loss": 0.5}\n'
)


def test_curve_takes_the_asked_records_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES, encoding="utf-8")
    found = read_curve(path, "t", "log", {"loss": "total", "encoder": "encoder", "none": "none"})
    assert found.series == {"total": [(2, 1.0), (4, 0.5)], "encoder": [(2, 0.5)]}
    assert read_curve(path, "t", "eval", {"psnr": "PSNR"}).series == {"PSNR": [(2, 11.0)]}


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"kind": "log", "st', encoding="utf-8")
    assert len(read_metrics(path)) == 3


@pytest.mark.parametrize(
    "broken",
    [
        "{oops}\n",
        "[1]\n",
        "null\n",
        '{"loss": 1}\n',
        '{"step": "4"}\n',
        '{"step": true}\n',
        '{"step": 4, "loss": null}\n',
        '{"step": 4, "loss": [1]}\n',
        '{"step": 4, "loss": NaN}\n',
        '{"step": 4, "kind": 1}\n',
        f'{{"step": {"9" * 5000}}}\n',
    ],
)
def test_broken_line_is_named(broken: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + broken + LINES, encoding="utf-8")
    with pytest.raises(IntegrityError, match="jsonl:4"):
        read_metrics(path)


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(IntegrityError, match="is not text"):
        read_metrics(path)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_metrics(tmp_path / "metrics.jsonl")
    assert "mmprod train" in caught.value.hint
