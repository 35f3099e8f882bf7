"""Loss spikes: what counts as one, what is skipped, and that a resumed run decides alike."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmprod.errors import NumericsError
from mmprod.training.guard import FLOOR, IN_ROW, NEEDED, WINDOW, is_spike, remember
from mmprod.training.loop import train_stage
from mmprod.training.metrics import read_metrics
from tests.training.ranks import stop_after
from tests.training.tiny import make_job, tiny_config


def noisy(count, seed=0, scale=0.05):
    return list(1 + scale * np.random.default_rng(seed).standard_normal(count))


def test_only_what_is_far_above_is_a_spike():
    recent = noisy(WINDOW)
    assert not is_spike(recent, 1.3, 10)
    assert is_spike(recent, 1.7, 10)
    assert not is_spike(recent, -5.0, 10), "a low loss is good news"
    assert not is_spike(recent, 1e9, 0), "0 switches it off"


def test_nothing_is_judged_before_enough_was_seen():
    assert not is_spike(noisy(NEEDED - 1), 1e9, 10)
    assert is_spike(noisy(NEEDED), 1e9, 10)


def test_outliers_that_were_let_in_do_not_hide_the_next_one():
    recent = [*noisy(WINDOW - 20), *[50.0] * 20]
    assert is_spike(recent, 50.0, 10)


def test_a_steady_loss_has_a_floor():
    assert not is_spike([2.0] * NEEDED, 2.0 * (1 + 9 * FLOOR), 10)
    assert is_spike([2.0] * NEEDED, 2.0 * (1 + 11 * FLOOR), 10)


def test_the_window_forgets():
    recent = [9.0] * WINDOW
    for value in noisy(WINDOW):
        remember(recent, value)
    assert len(recent) == WINDOW and max(recent) < 2


def test_false_alarms_are_rare_even_with_heavy_tails():
    """Student's t with 5 degrees of freedom on a falling level: under 0.2 % at factor 10."""
    draws = np.random.default_rng(3).standard_t(5, 20_000)
    recent, alarms = [], 0
    for step, draw in enumerate(draws):
        loss = float(np.exp(-step / 10_000) + 0.05 * draw)
        if is_spike(recent, loss, 10):
            alarms += 1
        else:
            remember(recent, loss)
    assert alarms < 0.002 * len(draws)


class Spiky:
    """A task whose loss (and gradient) is a hundred times as large in some steps."""

    def __init__(self, task, steps):
        self._task, self._steps = task, steps

    def __getattr__(self, name):
        return getattr(self._task, name)

    def losses(self, outputs, batch, step):
        losses = self._task.losses(outputs, batch, step)
        return {**losses, "loss": losses["loss"] * 100} if step in self._steps else losses


SETTINGS = {"steps": 44, "eval_every": 44, "save_every": 40, "spike": 20.0}


def spiky_job(folder, steps, **changes):
    job = make_job(tiny_config(**(SETTINGS | changes)), folder)
    return replace(job, task=Spiky(job.task, steps))


def weights(job):
    return {name: w.clone() for name, w in job.backend.weights().items()}


def test_a_spike_changes_no_weight_and_is_counted(tmp_path, caplog):
    job = spiky_job(tmp_path, {36})
    seen, buffers = {}, {}

    def note(event):
        if event.kind == "log":
            seen[event.step] = weights(job)
            buffers[event.step] = {n: b.clone() for n, b in job.task.model.named_buffers()}

    train_stage(replace(job, on_event=note))
    assert all(torch.equal(buffers[36][name], buffers[37][name]) for name in buffers[36])
    assert not all(torch.equal(buffers[37][name], buffers[38][name]) for name in buffers[37])
    assert all(torch.equal(seen[36][name], seen[37][name]) for name in seen[36])
    assert not all(torch.equal(seen[37][name], seen[38][name]) for name in seen[37])
    lines = {line["step"]: line for line in read_metrics(tmp_path) if line["kind"] == "log"}
    assert [step for step, line in lines.items() if line["spikes"]] == [37]
    assert "grad_norm" not in lines[37]
    assert "not learned from step 37" in caplog.text and "made-up-" in caplog.text


def test_a_resumed_run_skips_the_same_batch(tmp_path):
    """Stopped between the losses that the guard remembers and the spike."""
    outcomes = []
    for name in ("straight", "resumed"):
        if name == "resumed":
            stop_after(spiky_job(tmp_path / name, {42}), 40)
        job = spiky_job(tmp_path / name, {42})
        train_stage(job)
        outcomes.append(weights(job))
        lines = {x["step"]: x for x in read_metrics(tmp_path / name) if x["kind"] == "log"}
        assert lines[43]["spikes"] == 1
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in outcomes[0])


def test_many_in_a_row_are_an_error_that_names_the_batch(tmp_path):
    job = spiky_job(tmp_path, set(range(35, 60)), save_every=10)
    with pytest.raises(NumericsError, match=f"spike for the {IN_ROW}th batch in a row") as caught:
        train_stage(job)
    step = 35 + IN_ROW
    assert f"at step {step}" in caught.value.message
    assert caught.value.message.endswith("checkpoints/step-00000040")
    assert json.loads((tmp_path / "bad-batch.json").read_text())["step"] == step
