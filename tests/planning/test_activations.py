"""The estimate of activations against real passes, and what changes it."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from mmprod.config.load import load_config
from mmprod.planning.activations import LiveBytes, activations
from mmprod.planning.measure import real_pass

TOLERANCE = 0.05


@pytest.mark.parametrize(
    ("stage", "precision"), [("codec", "fp32"), ("codec", "bf16"), ("fusion", "bf16")]
)
def test_the_estimate_is_what_a_real_pass_takes(stage: str, precision: str) -> None:
    config = load_config("tiny", [f"{stage}_train.precision={precision}"])
    batch = 24  # not one of the two sizes that the line was drawn through
    real = real_pass(config, stage, batch)
    assert activations(config, stage, processor=True).of(batch) == pytest.approx(
        real, rel=TOLERANCE
    )


@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_checkpointing_takes_less_and_as_planned(stage: str) -> None:
    config = load_config("tiny", [f"{stage}_train.activation_checkpointing=true"])
    plain = activations(config, stage, processor=True)
    again = activations(config, stage, processor=True, checkpointing=True)
    assert again.per_sample < 0.75 * plain.per_sample
    assert again.of(24) == pytest.approx(real_pass(config, stage, 24), rel=TOLERANCE)


def test_fused_attention_keeps_no_scores() -> None:
    config = load_config("tiny")
    fused, plain = (activations(config, "fusion", fused=fused) for fused in (True, False))
    assert fused.per_sample < plain.per_sample


def test_another_device_keeps_what_a_processor_does_not() -> None:
    """Norms and blocks of the fusion model are written by hand for a processor only."""
    config = load_config("tiny")
    here = activations(config, "fusion", processor=True)
    assert here.per_sample < 0.9 * activations(config, "fusion").per_sample


def test_live_bytes_are_those_of_a_net_by_hand() -> None:
    """Linear, ReLU: y (B, 8) and its ReLU are alive at the end of forward, 4 bytes each."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.ones(2, 4)
    live = LiveBytes([*net.parameters(), x])
    with live:
        out = net(x)
        gc.collect()
        assert live.now == 2 * 8 * 4  # the product is let go once its ReLU is there
        assert live.peak == 2 * 2 * 8 * 4
    del out
    assert live.now == 0
