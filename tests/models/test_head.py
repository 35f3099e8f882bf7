"""The head in portions: the same losses and gradients, and less memory."""

from __future__ import annotations

import pytest
import torch

from mmprod.config.load import load_config
from mmprod.models import head
from mmprod.models.distill import DistillObjective, Lesson
from mmprod.models.fusion_loss import FusionObjective
from mmprod.planning.activations import activations
from tests.models.test_fusion import CFG, DIMS, batch, fusion


def learned(objective: FusionObjective, *lesson: torch.Tensor) -> list[torch.Tensor]:
    objective.zero_grad()
    losses = objective(*batch(), *lesson)
    losses["loss"].backward()
    return [losses["loss"].detach(), *(p.grad.clone() for p in objective.parameters())]


def lesson() -> Lesson:
    codes = batch()[0]
    state = torch.where(torch.arange(16) < 7, codes, 20)
    target = torch.rand(16, 16, 20, generator=torch.Generator().manual_seed(3)).softmax(-1)
    return Lesson(state, target * (state == 20)[..., None])


@pytest.mark.parametrize("portion", [20 * 7, 20 * 255, 1])
def test_portions_change_neither_loss_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, portion: int
) -> None:
    """Of 256 places: 7 at a time with a rest, one left over, one by one."""
    shown = lesson()
    for objective, given in (
        (FusionObjective(fusion(), CFG, DIMS), ()),
        (DistillObjective(fusion(), CFG, DIMS, 4), (shown.state, shown.target)),
    ):
        whole = learned(objective, *given)
        with monkeypatch.context() as patch:
            patch.setattr(head, "PORTION", portion)
            for a, b in zip(whole, learned(objective, *given), strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_portions_save_memory_where_vocabularies_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`base` with activation checkpointing, 16 samples, counted on tensors without content: without
    portions the activations take more than 1.5 times as much.
    """
    config = load_config("base", ["data.path=none"])
    now = activations(config, "fusion", checkpointing=True).of(16)
    activations.cache_clear()
    monkeypatch.setattr(head, "PORTION", 2**60)
    before = activations(config, "fusion", checkpointing=True).of(16)
    activations.cache_clear()
    assert before > 1.5 * now
