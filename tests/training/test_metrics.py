"""metrics.jsonl: what is written is read back; a resumed run drops what it will write again."""

from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmprod.errors import IntegrityError
from mmprod.training.metrics import Meter, MetricsLog, read_metrics


def write(folder, steps, from_step=0):
    with MetricsLog(folder, from_step=from_step, enabled=True) as log:
        for step in steps:
            log.write("log", step, {"loss": step / 10})


def test_lines_and_tensorboard_hold_the_same_figures(tmp_path):
    write(tmp_path, [1, 2, 3])
    lines = read_metrics(tmp_path)
    assert lines[1] == {"kind": "log", "step": 2, "loss": 0.2}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("log/loss")
    assert [(e.step, round(e.value, 6)) for e in events] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_resumed_run_drops_later_lines_and_a_torn_last_one(tmp_path):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "log", "st')
    write(tmp_path, [3, 4], from_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_an_evaluation_that_is_made_again_is_not_there_twice(tmp_path):
    """Step 2 was saved before its evaluation, which came in the next life and was not saved."""
    write(tmp_path, [1, 2])
    with MetricsLog(tmp_path, from_step=2, enabled=True, evaluated=0) as log:
        log.write("eval", 2, {"psnr": 1.0})
    with MetricsLog(tmp_path, from_step=2, enabled=True, evaluated=0) as log:
        log.write("eval", 2, {"psnr": 1.0})
    kinds = [(line["kind"], line["step"]) for line in read_metrics(tmp_path)]
    assert kinds == [("log", 1), ("log", 2), ("eval", 2)]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(IntegrityError, match="not JSON"):
        read_metrics(tmp_path)


def test_nan_is_never_written(tmp_path):
    with MetricsLog(tmp_path, from_step=0, enabled=True) as log, pytest.raises(ValueError):
        log.write("log", 1, {"loss": float("nan")})
    assert read_metrics(tmp_path) == []


def test_other_ranks_write_nothing(tmp_path):
    with MetricsLog(tmp_path / "stage", from_step=0, enabled=False) as log:
        log.write("log", 1, {"loss": 1.0})
    assert not (tmp_path / "stage").exists()


def test_a_restored_meter_gives_the_same_mean():
    whole, half = Meter(), Meter()
    for value in (0.1, 0.7):
        whole.add({"a": value})
        half.add({"a": value})
    resumed = Meter(half.sums, half.count)
    for meter in (whole, resumed):
        meter.add({"a": 0.3})
    assert whole.take() == resumed.take()
    assert whole.count == 0
