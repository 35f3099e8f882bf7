"""Frozen parts keep their bits, the others move; nothing is left of them in the optimizer."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

from mmprod.config.load import configs_dir, load_config
from mmprod.config.parts import PARTS, part_of
from mmprod.errors import ConfigError
from mmprod.training.freezing import count, freeze_parts, hold_codebook
from mmprod.training.loop import train_stage
from mmprod.training.optimizers import build_optimizers
from tests.models.kinds import KINDS, MOVING, latents, trained
from tests.training.frozen import frozen_config, train_frozen, weights_for
from tests.training.ranks import launch
from tests.training.tiny import ALONE, codec_task, fusion_task, make_job, tiny_config

COUNTERS = {"quantizer.rate", "quantizer.seen", "quantizer.tokens", "quantizer.updates"}
"""what a frozen quantizer goes on counting"""
CASES = [
    ("codec", ("encoder", "quantizer")),
    ("fusion", ("text_encoder", "connector")),
    pytest.param("codec", ("decoder",), marks=pytest.mark.slow),
]


def check(result, stage, freeze):
    """Bits of the frozen parts stayed, something moved in every other part."""
    for run in ("straight", "resumed"):
        moved = [n for n in result[run]["changed"]["moved"] if n not in COUNTERS]
        assert moved
        assert {part_of(stage, n) for n in moved} == set(PARTS[stage]) - set(freeze)
    assert result["straight"] == result["resumed"]


@pytest.mark.parametrize(("stage", "task"), [("codec", codec_task), ("fusion", fusion_task)])
def test_every_parameter_belongs_to_one_part_and_no_part_is_empty(stage, task):
    built = task(tiny_config())
    names = [name for name, _ in built.core(built.model).named_parameters()]
    assert all(
        sum(name.startswith(starts) for starts in PARTS[stage].values()) == 1 for name in names
    )
    found = {part_of(stage, name) for name in names}
    assert found | {"quantizer"} >= set(PARTS[stage])  # a codebook may have no parameter


@pytest.mark.parametrize(("stage", "freeze"), CASES)
def test_frozen_bits_stay_and_resume_is_equal_to_the_bit(tmp_path, stage, freeze):
    order = {"stage": stage, "freeze": freeze, "train": {"optimizer": "auto"}}
    check(train_frozen(tmp_path, ALONE, None, order), stage, freeze)


def test_a_frozen_quantizer_keeps_its_codes_and_goes_on_counting(tmp_path):
    seen = []
    config = frozen_config("codec", ("encoder", "quantizer"))
    job = make_job(
        config,
        tmp_path,
        given=weights_for(config),
        on_event=lambda event: seen.append(event) if event.kind == "log" else None,
    )
    before = {n: b.clone() for n, b in job.task.model.named_buffers()}
    train_stage(job)
    after = dict(job.task.model.named_buffers())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == COUNTERS
    assert {"usage", "perplexity", "snr"} <= set(seen[-1].metrics)
    assert {event.metrics["restarts"] for event in seen} == {0.0}
    assert seen[-1].metrics["loss"] < seen[0].metrics["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_quantizer_can_be_held(kind):
    """Also its restarts: the codebook is much larger than what the latents need."""
    for held in (True, False):
        made = trained(kind)
        if held:
            hold_codebook(made)
        before, rate = made.table().clone(), made.rate.clone()
        for step in range(40):
            made(latents(made, step % 2, batch=1))
            readout = made.update()
        moved = not torch.equal(made.table(), before)
        assert moved == (kind.removesuffix("-rotation") in MOVING and not held)
        assert not torch.equal(made.rate, rate)
        assert readout["usage"] > 0


def test_a_frozen_weight_has_no_gradient_and_no_optimizer_state(tmp_path):
    config = frozen_config("codec", ("encoder",), weight_decay=0.5)
    job = make_job(config, tmp_path, given=weights_for(config))
    owned = {
        id(p)
        for optimizer in build_optimizers(job.task.model, job.cfg)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    model = job.task.model
    assert owned == {id(p) for p in model.parameters()} - {
        id(p) for p in model.encoder.parameters()
    }
    train_stage(job)
    assert all(p.grad is None for p in model.encoder.parameters())
    saved = load_file(tmp_path / "checkpoints" / "step-00000008" / "frozen.safetensors")
    assert saved.keys() == {f"encoder.{n}" for n, _ in model.encoder.named_parameters()}
    final = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(final[name], tensor) for name, tensor in saved.items())


def test_parameters_are_counted(caplog):
    caplog.set_level(logging.INFO)
    task = codec_task(tiny_config())
    every = count(task.model)
    sizes = freeze_parts(task, frozen_config("codec", ("encoder",)).codec_train)
    assert every.frozen == 0
    assert sizes.trained + sizes.frozen == every.trained
    assert sizes.frozen == sum(p.numel() for p in task.model.encoder.parameters())
    assert (
        f"{sizes.trained:,} parameters train, {sizes.frozen:,} are frozen (encoder)" in caplog.text
    )


def test_a_codebook_alone_cannot_be_trained():
    config = frozen_config("codec", ("encoder", "decoder"))
    with pytest.raises(ConfigError, match="leaves nothing to train: quantizer"):
        freeze_parts(codec_task(config), config.codec_train)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ('["encodr"]', "did you mean encoder"),
        ('["text_encoder"]', "its parts are encoder, quantizer, decoder"),
        ('["encoder", "quantizer", "decoder"]', "names every part"),
    ],
)
def test_what_cannot_be_frozen_is_refused_in_the_configuration(freeze, message):
    overrides = [f"codec_train.freeze={freeze}", "codec_train.init_from=x"]
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)


def test_freezing_needs_weights_to_keep():
    with pytest.raises(ConfigError, match=r"say which in fusion_train\.init_from"):
        load_config("tiny", ['fusion_train.freeze=["text_encoder"]'])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("stage", "freeze"), CASES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_keeps_frozen_bits_too(tmp_path, stage, freeze, world, precision):
    """Under every ZeRO stage, also where it rounds the live weights to bf16.

    The losses are then compared over the first half of the steps: after that a rounding that
    tips one code to its neighbour has parted the runs by up to 0.03, more on some processors.
    """
    files = {f"zero{n}": str(configs_dir() / "deepspeed" / f"zero{n}.json") for n in range(4)}
    order = {
        "files": files,
        "stage": stage,
        "freeze": freeze,
        "train": {"precision": precision, "weight_decay": 0.1},
    }
    ranks = launch(tmp_path, order, world)
    plain = train_frozen(tmp_path / "plain", ALONE, None, order)["straight"]["losses"]
    for name in files:
        check(ranks[0][name], stage, freeze)
        for rank in ranks:
            assert rank[name]["straight"] == rank[name]["resumed"], name
        losses = ranks[0][name]["straight"]["losses"]
        if precision == "fp32":
            assert losses == pytest.approx(plain, abs=1e-6), name
        else:
            half = len(plain) // 2
            assert losses[:half] == pytest.approx(plain[:half], abs=2e-2), name
