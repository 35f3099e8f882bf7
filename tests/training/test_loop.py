"""The loop against a loop written out by hand; resume, stop, NaN, patience."""

from __future__ import annotations

import copy
import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmprod.errors import NumericsError, Preempted
from mmprod.training.loop import train_stage
from mmprod.training.metrics import read_metrics
from mmprod.training.schedule import ema_decay, learning_rate
from mmprod.training.shares import Shares
from mmprod.training.telemetry import TIMING
from mmprod.training.torch_backend import TorchBackend
from tests.training.ranks import train_and_report
from tests.training.tiny import ALONE, codec_task, make_job, tiny_config


def by_hand(config, steps):
    """The same training in plain torch. Returns losses, averaged weights and the task."""
    cfg, task = config.codec_train, codec_task(config)
    model = task.model.train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas)
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for step in range(steps):
        (share,) = Shares(cfg.seed, cfg.batch, 0, 1).of(step, task.size, None)
        loss = model(*task.batch(share))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg, step)
        optimizer.step()
        model.quantizer.update()
        decay = ema_decay(cfg.ema, step + 1)
        for name, p in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
        losses.append(loss.item())
    return losses, average, task


def test_the_loop_equals_one_written_by_hand(tmp_path):
    config = tiny_config(eval_every=8)
    train_stage(make_job(config, tmp_path))
    losses, average, task = by_hand(config, 8)
    lines = [line for line in read_metrics(tmp_path) if line["kind"] == "log"]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-6)
    saved = load_file(tmp_path / "model.safetensors")
    for name, tensor in average.items():
        torch.testing.assert_close(saved[name], tensor, atol=2e-6, rtol=1e-5)
    for name, buffer in task.model.named_buffers():
        torch.testing.assert_close(saved[name], buffer, atol=5e-6, rtol=1e-5)
    assert set(saved) == set(task.model.state_dict())


@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_resume_is_equal_to_the_bit(tmp_path, stage):
    """Stopped by a signal half-way and resumed in a new backend, against straight through."""
    result = train_and_report(tmp_path, ALONE, None, stage, {})
    assert result["straight"] == result["resumed"]
    assert len(result["straight"]["losses"]) == 8


def test_a_resumed_run_writes_the_same_metrics(tmp_path):
    train_and_report(tmp_path, ALONE, None, "codec", {"log_every": 3})
    straight, resumed = (
        [{k: v for k, v in line.items() if k not in TIMING} for line in read_metrics(tmp_path / n)]
        for n in ("straight", "resumed")
    )
    assert straight == resumed
    assert [line["step"] for line in straight if line["kind"] == "log"] == [3, 6, 8]


def test_training_learns_and_leaves_pictures(tmp_path):
    events = []
    config = tiny_config(steps=24, eval_every=12, save_every=12)
    result = train_stage(make_job(config, tmp_path, on_event=events.append))
    logged = [e.metrics["loss"] for e in events if e.kind == "log"]
    assert np.mean(logged[-4:]) < 0.9 * np.mean(logged[:4])
    assert [(e.kind, e.step) for e in events if e.kind in ("eval", "save")] == [
        ("eval", 12),
        ("save", 12),
        ("eval", 24),
        ("save", 24),
    ]
    assert result.metrics["psnr"] == pytest.approx(
        max(e.metrics["psnr"] for e in events if e.kind == "eval")
    )
    grid = np.asarray(Image.open(tmp_path / "samples" / "step-000012.png"))
    assert grid.shape == (2 * 18 + 2, 8 * 18 + 2, 3)


def test_a_bf16_run_trains_with_fp32_weights_and_codebook(tmp_path):
    job = make_job(tiny_config(precision="bf16"), tmp_path)
    result = train_stage(job)
    assert all(
        t.dtype == torch.float32
        for t in load_file(tmp_path / "model.safetensors").values()
        if t.is_floating_point()
    )
    full = train_stage(make_job(tiny_config(), tmp_path / "fp32"))
    difference = abs(result.metrics["loss"] - full.metrics["loss"])
    assert 0 < difference < 0.05


class Poisoned:
    """A task whose loss, or whose gradient, is NaN in one step."""

    def __init__(self, task, step, where):
        self._task, self._step, self._where = task, step, where

    def __getattr__(self, name):
        return getattr(self._task, name)

    def losses(self, outputs, batch, step):
        losses = self._task.losses(outputs, batch, step)
        if step != self._step:
            return losses
        named = dict(self._task.model.named_parameters())
        self.before = {name: p.detach().clone() for name, p in named.items()}
        if self._where == "loss":
            return {**losses, "loss": losses["loss"] * math.nan}
        next(iter(named.values())).register_hook(lambda gradient: gradient * math.nan)
        return losses


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_nan_stops_before_the_update_and_names_step_and_samples(tmp_path, where):
    job = make_job(tiny_config(), tmp_path)
    task = Poisoned(job.task, 5, where)
    job = replace(job, task=task)
    with pytest.raises(NumericsError, match=f"the {where} is NaN or infinite at step 6") as caught:
        train_stage(job)
    indices = Shares(0, 16, 0, 1).of(5, 64, None)[0].indices
    assert f"made-up-{indices[0]}" in caught.value.message
    assert caught.value.exit_code == 7
    assert "another --out" in caught.value.hint
    assert caught.value.message.endswith(
        f"last good checkpoint: {tmp_path}/checkpoints/step-00000004"
    )
    record = json.loads((tmp_path / "bad-batch.json").read_text())
    assert record["step"] == 6 and len(record["samples"]) == 16
    assert record["last_good"].endswith("step-00000004")
    for name, parameter in job.task.model.named_parameters():
        assert torch.equal(parameter, task.before[name]), name
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000004"]


def test_a_signal_saves_and_asks_to_come_back(tmp_path):
    def stop(event):
        if event.kind == "log" and event.step == 2:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    job = make_job(tiny_config(), tmp_path, on_event=stop)
    with pytest.raises(Preempted, match="saved at step 3") as caught, job.stop:
        train_stage(job)
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000003\n"


class Judged:
    """A task whose evaluations follow a script."""

    def __init__(self, task, values):
        self._task, self._values = task, iter(values)

    def __getattr__(self, name):
        return getattr(self._task, name)

    def evaluate(self, model):
        evaluation = self._task.evaluate(model)
        return replace(evaluation, metrics={"psnr": next(self._values)})


def test_patience_stops_early_and_the_best_weights_are_kept(tmp_path):
    config = tiny_config(steps=20, eval_every=2, save_every=100, patience=2, keep=1)
    job = make_job(config, tmp_path)
    kept = {}

    def note(event):
        if event.kind == "eval":
            kept[event.step] = (tmp_path / "model.safetensors").read_bytes()

    result = train_stage(replace(job, task=Judged(job.task, [1.0, 3.0, 2.0, 2.5]), on_event=note))
    assert (result.steps, result.best_step, result.metrics) == (8, 4, {"psnr": 3.0})
    assert kept[2] != kept[4] == kept[8] == (tmp_path / "model.safetensors").read_bytes()
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000004", "step-00000008"]
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000004\n"
    again = train_stage(make_job(config, tmp_path))
    assert again == result


def test_an_evaluation_that_is_not_finite_is_an_error(tmp_path):
    job = make_job(tiny_config(), tmp_path)
    with pytest.raises(NumericsError, match="psnr of the evaluation at step 4") as caught:
        train_stage(replace(job, task=Judged(job.task, [math.nan])))
    assert "another --out" in caught.value.hint


def test_the_averages_do_not_leak_into_the_live_weights(tmp_path):
    """Evaluating must change nothing: the same losses with and without evaluations."""
    losses = []
    for every in (1, 8):
        folder = tmp_path / str(every)
        train_stage(make_job(tiny_config(eval_every=every), folder))
        lines = [line["loss"] for line in read_metrics(folder) if line["kind"] == "log"]
        losses.append(lines)
    assert losses[0] == losses[1]


def test_the_torch_backend_leaves_weights_alone_at_an_infinite_gradient():
    config = tiny_config()
    task = codec_task(config)
    backend = TorchBackend(task.model, config.codec_train, ALONE)
    before = copy.deepcopy(task.model.state_dict())
    (share,) = Shares(0, 16, 0, 1).of(0, 64, None)
    backend.backward(backend.forward(*task.batch(share))["loss"] * math.inf)
    assert not math.isfinite(backend.step(1.0))
    assert all(torch.equal(before[k], v) for k, v in task.model.state_dict().items())


def test_manifests_are_json_that_other_programs_can_read(tmp_path):
    train_stage(make_job(tiny_config(), tmp_path))
    text = (tmp_path / "checkpoints" / "step-00000008" / "manifest.json").read_text()
    manifest = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert manifest["progress"]["step"] == 8
