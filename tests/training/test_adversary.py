"""The discriminator's own training: what moves what, when it starts, and its state."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmprod.config.schema import CodecConfig, TrainConfig
from mmprod.errors import ConfigError, IntegrityError, NumericsError
from mmprod.manifest import sha256_file
from mmprod.models.discriminator import Discriminator, hinge_loss, lecam_loss
from mmprod.training.adversary import BETAS, LECAM_WEIGHT, RATE, Adversary
from mmprod.training.loop import train_stage
from mmprod.training.metrics import Meter, read_metrics
from mmprod.training.schedule import learning_rate
from mmprod.training.shares import Shares
from mmprod.training.task import Evaluation
from tests.models.test_perceptual import vgg16
from tests.training.tiny import ALONE, codec_task, make_job, tiny_config, with_codec

CFG = CodecConfig(loss="natural", gan_weight=0.1, gan_start=0.25)
TRAIN = TrainConfig(steps=100, warmup=2, precision="fp32", lr=1e-3, clip=1.0)


def build(train: TrainConfig = TRAIN) -> Adversary:
    torch.manual_seed(0)
    return Adversary(CFG, train, 16, ALONE.device)


def pictures(seed: int, count: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_one_start_step_and_a_ramp() -> None:
    adversary = build()
    weights = [adversary.weight(step) for step in range(100)]
    assert weights[:25] == [0] * 25
    assert weights[25:30] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert set(weights[30:]) == {0.1}
    assert adversary.losses(pictures(0), pictures(1), 24) == {}
    assert adversary.update() == {}
    assert set(adversary.losses(pictures(0), pictures(1), 25)) == {
        "generator",
        "discriminator",
        "lecam",
    }


def test_the_generator_pass_leaves_the_discriminator_alone() -> None:
    adversary = build()
    restored = pictures(0).requires_grad_()
    terms = adversary.losses(restored, pictures(1), 30)
    assert restored.grad is None, "the discriminator's own pass must not reach the codec"
    before = {n: p.grad.clone() for n, p in adversary.discriminator.named_parameters()}
    terms["generator"].backward()
    assert restored.grad.abs().sum() > 0
    for name, p in adversary.discriminator.named_parameters():
        assert torch.equal(p.grad, before[name]), name


def test_updates_equal_ones_written_by_hand() -> None:
    adversary = build()
    torch.manual_seed(0)
    net = Discriminator()
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, betas=BETAS, weight_decay=0)
    anchors = torch.zeros(2)
    for number, step in enumerate((25, 26, 27)):
        x, restored = pictures(step), pictures(100 + step)
        for part in (slice(0, 4), slice(4, 8)):
            adversary.losses(restored[part], x[part], step)
        readout = adversary.update()
        real, fake = net(x), net(restored)
        loss = hinge_loss(real, fake) + LECAM_WEIGHT * lecam_loss(real, fake, anchors)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = RATE * learning_rate(TRAIN, step) / TRAIN.lr
        optimizer.step()
        decay = min(0.99, (2 + number) / (11 + number))
        means = torch.stack([real.detach().mean(), fake.detach().mean()])
        anchors = decay * anchors + (1 - decay) * means
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        expected = {"real_logit": means[0], "fake_logit": means[1], "accuracy": right}
        assert readout == pytest.approx({k: float(v) for k, v in expected.items()}, abs=1e-5)
    torch.testing.assert_close(adversary.state()["anchors"], anchors)
    for (name, mine), theirs in zip(
        adversary.discriminator.named_parameters(), net.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4, msg=name)


def test_state_goes_on_to_the_bit_and_a_foreign_one_is_refused() -> None:
    straight, resumed = build(), build()
    for step in (25, 26):
        straight.losses(pictures(step), pictures(50 + step), step)
        straight.update()
    saved = {name: tensor.clone() for name, tensor in straight.state().items()}
    resumed.load_state(saved)
    for adversary in (straight, resumed):
        adversary.losses(pictures(9), pictures(10), 27)
        adversary.update()
    one, two = straight.state(), resumed.state()
    assert one.keys() == two.keys() == saved.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], saved[name]) for name in one)
    with pytest.raises(IntegrityError, match="does not fit"):
        build().load_state({})


def test_a_broken_gradient_moves_nothing() -> None:
    adversary = build()
    adversary.losses(pictures(0) * torch.nan, pictures(1), 30)
    before = {n: p.detach().clone() for n, p in adversary.discriminator.named_parameters()}
    with pytest.raises(NumericsError, match="gradient of the discriminator is NaN"):
        adversary.update()
    for name, p in adversary.discriminator.named_parameters():
        assert torch.equal(p, before[name]), name


def test_a_batch_that_was_not_learned_from_moves_neither_discriminator_nor_codebook() -> None:
    config = with_codec(tiny_config(), loss="natural", gan_weight=0.1, gan_start=0.0)
    task = codec_task(config)
    task.model.train()

    def batch(number: int, *, learn: bool) -> dict[str, float]:
        (share,) = Shares(0, 16, 0, 1).of(number, task.size, None)
        given = task.batch(share)
        task.losses(task.model(*given), given, number)
        return task.after_step(learn=learn)

    def state() -> dict[str, torch.Tensor]:
        found = dict(task.model.named_buffers()) | task.state()
        return {name: tensor.clone() for name, tensor in found.items()}

    assert batch(0, learn=True)
    before = state()
    assert batch(1, learn=False) == {}
    assert task.after_step() == {}, "nothing of it is left for the next step"
    after = state()
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert {"usage", "accuracy"} <= batch(2, learn=True).keys()
    assert not torch.equal(before["quantizer.rate"], state()["quantizer.rate"])


def test_a_broken_gradient_of_the_discriminator_names_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_codec(tiny_config(), loss="natural", gan_weight=0.1, gan_start=0.0)
    job = make_job(config, tmp_path)
    parameter = next(job.task._adversary.discriminator.parameters())
    calls = itertools.count(1)
    parameter.register_hook(lambda g: g * torch.nan if next(calls) == 6 else g)
    with pytest.raises(NumericsError, match=r"discriminator is NaN .* at step 6; samples: m"):
        train_stage(job)
    assert json.loads((tmp_path / "bad-batch.json").read_text())["last_good"].endswith("00000004")


def test_bf16_stays_near_fp32() -> None:
    exact, rough = build(), build(TRAIN.model_copy(update={"precision": "bf16"}))
    found = [a.losses(pictures(0), pictures(1), 30) for a in (exact, rough)]
    for name, value in found[0].items():
        assert found[1][name].dtype == torch.float32
        torch.testing.assert_close(found[1][name], value, atol=0.03, rtol=0.03)


def test_pictures_too_small_to_judge_are_refused() -> None:
    with pytest.raises(ConfigError, match="too small"):
        Adversary(CFG, TRAIN, 4, ALONE.device)


def test_terms_are_logged_and_the_loss_is_their_weighted_sum(tmp_path: Path) -> None:
    """With a perceptual net and a discriminator; neither is in the codec or its weights."""
    torch.save(vgg16(), tmp_path / "vgg16.pth")
    config = tiny_config(steps=4, eval_every=4, save_every=4)
    changes = {"perceptual": str(tmp_path / "vgg16.pth"), "gan_weight": 0.2, "gan_start": 0.25}
    config = with_codec(config, loss="natural", **changes)
    train_stage(make_job(config, tmp_path / "run"))
    *lines, last = read_metrics(tmp_path / "run")
    assert last["kind"] == "eval" and last["loss"] > 0
    for line in lines:
        assert line["loss"] == pytest.approx(line["encoder"] + line["reconstruction"], abs=1e-5)
        added = 0.2 * line["generator"] if line["step"] > 1 else 0.0
        total = line["l1"] + line["perceptual"] + added
        assert line["reconstruction"] == pytest.approx(total, abs=1e-5)
    assert "generator" not in lines[0] and "accuracy" not in lines[0]
    assert {"discriminator", "lecam", "real_logit", "fake_logit", "accuracy"} <= lines[1].keys()
    plain = make_job(tiny_config(), tmp_path / "plain").task.model.state_dict()
    assert load_file(tmp_path / "run" / "model.safetensors").keys() == plain.keys()
    step = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert any(name.startswith("discriminator.") for name in load_file(step / "task.safetensors"))


def test_figures_that_start_late_have_the_mean_of_their_own_steps() -> None:
    meter = Meter()
    meter.add({"loss": 1.0})
    meter.add({"loss": 3.0, "generator": 5.0})
    assert Meter(**vars(meter)).take() == meter.take() == {"loss": 2.0, "generator": 5.0}
    assert Meter({"loss": 4.0}, 2).take() == {"loss": 2.0}


def test_with_a_discriminator_the_last_averaged_weights_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though every figure of the evaluations is best before the discriminator's start."""
    config = tiny_config(steps=8, eval_every=2, save_every=8, lr=1e-3)
    config = with_codec(config, loss="natural", gan_weight=0.1, gan_start=0.5)
    job, count = make_job(config, tmp_path), itertools.count(1)
    evaluate = job.task.evaluate

    def worse_every_time(model: nn.Module) -> Evaluation:
        found, number = evaluate(model), next(count)
        metrics = found.metrics | {"loss": float(number), "psnr": 20.0 - number}
        return Evaluation(metrics, found.picture)

    monkeypatch.setattr(job.task, "evaluate", worse_every_time)
    result = train_stage(job)
    assert (result.best_step, result.metrics["loss"]) == (8, 4.0)
    whole = job.eval_model.state_dict()
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], whole[name]) for name in whole)


def test_natural_weights_are_chosen_by_their_loss() -> None:
    archive = codec_task(tiny_config())
    natural = codec_task(with_codec(tiny_config(), loss="natural"))
    sharp, smooth = {"psnr": 20.0, "loss": 0.5}, {"psnr": 25.0, "loss": 0.7}
    assert natural.better(sharp, 1) > natural.better(smooth, 2)
    assert archive.better(sharp, 1) < archive.better(smooth, 2)


def test_pictures_too_small_for_the_perceptual_network_are_refused_at_once(tmp_path: Path) -> None:
    torch.save(vgg16(), tmp_path / "vgg16.pth")
    config = with_codec(tiny_config(), loss="natural", perceptual=str(tmp_path / "vgg16.pth"))
    assert codec_task(config).files == {"perceptual": sha256_file(tmp_path / "vgg16.pth")}
    small = config.model_copy(update={"data": config.data.model_copy(update={"image_size": 8})})
    with pytest.raises(ConfigError, match="8 pixels are too small for VGG16"):
        codec_task(small)
