"""What an error leaves: the pending save, its own message, weights that fit the figures."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmprod.checkpoint import list_steps
from mmprod.errors import NumericsError
from mmprod.training import numerics, saving
from mmprod.training.checkpointing import rewind
from mmprod.training.loop import train_stage
from mmprod.training.loss_scale import overflow_error
from tests.training.faults import flip
from tests.training.test_loop import Judged, Poisoned
from tests.training.tiny import make_job, tiny_config


class Slow:
    """Writing in the background takes until somebody waits for it."""

    def __init__(self, monkeypatch):
        self.write = saving.write_tensors
        monkeypatch.setattr(saving, "write_tensors", self)

    def __call__(self, *arguments):
        time.sleep(0.5)
        return self.write(*arguments)


def broken_evaluation(job):
    return replace(job, task=Judged(job.task, [math.nan]))


def refused_evaluation(job):
    job.task.evaluate = lambda model: (_ for _ in ()).throw(OSError(5, "broken", "x"))
    return job


def overflow(job):
    def step(lr):
        if len(calls := job.task.__dict__.setdefault("calls", [])) == 3:
            raise overflow_error(1.0)
        calls.append(lr)
        return real(lr)

    real, job.backend.step = job.backend.step, step
    return job


@pytest.mark.parametrize("broken", [broken_evaluation, refused_evaluation, overflow])
def test_an_error_does_not_cost_the_save_that_is_pending(tmp_path, monkeypatch, broken):
    Slow(monkeypatch)
    job = make_job(tiny_config(save_every=3, async_save=True), tmp_path)
    with pytest.raises((NumericsError, OSError)) as caught:
        train_stage(broken(job))
    assert [s.step for s in list_steps(tmp_path) if s.complete] == [3]
    if broken is not refused_evaluation:
        assert caught.value.message.endswith("step-00000003")
    if broken is overflow:
        assert "smallest loss scale, 1 at step 4; samples: made-up-" in caught.value.message
        assert "bf16" in caught.value.hint


def test_a_full_disk_does_not_hide_the_bad_batch(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(numerics, "write_json", full)
    monkeypatch.setattr(saving, "write_tensors", full)
    job = make_job(tiny_config(save_every=5, eval_every=8, async_save=True), tmp_path)
    job = replace(job, task=Poisoned(job.task, 5, "loss"))
    with pytest.raises(NumericsError, match="last good checkpoint: none yet"):
        train_stage(job)
    assert "the pending checkpoint was lost" in caplog.text
    assert "bad-batch.json cannot be written" in caplog.text


@pytest.mark.parametrize("whole", [True, False])
def test_after_going_back_weights_and_figures_are_of_the_same_step(tmp_path, whole):
    """The newest step is damaged; of the best one left there is a checkpoint, or nothing."""
    config = tiny_config(keep=9, eval_every=2, save_every=1)
    kept = {}

    def note(event):
        if event.kind == "eval":
            kept[event.step] = load_file(tmp_path / "model.safetensors")

    job = make_job(config, tmp_path)
    train_stage(replace(job, task=Judged(job.task, [1.0, 0.0, 2.0, 3.0]), on_event=note))
    for step in (6, 7, 8) if whole else (2, 6, 7, 8):
        flip(tmp_path / "checkpoints" / f"step-{step:08d}" / "state-00000.safetensors")
    job = make_job(config, tmp_path)
    rewind(tmp_path, job.start, aside=True)
    assert [s.step for s in list_steps(tmp_path)] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "checkpoints").glob("damaged-step-*"))) == 3
    if whole:
        now = load_file(tmp_path / "model.safetensors")
        assert now.keys() == kept[2].keys()
        assert all(torch.equal(now[name], kept[2][name]) for name in now)
    result = train_stage(replace(job, task=Judged(job.task, [0.5, 0.7])))
    assert result.best_step == (2 if whole else 8)
    assert result.metrics == {"psnr": 1.0 if whole else 0.7}
    assert (tmp_path / "model.safetensors").is_file()
