"""The peers of the fusion bench are the same model, and the loops it times draw the same codes."""

from __future__ import annotations

import pytest
import torch

from mmprod.config.load import load_config
from mmprod.config.schema import Dims, FusionConfig
from mmprod.models.fusion import build_fusion
from tools.bench import fusion, sampler

CFG = FusionConfig(
    width=32, heads=2, image_encoder=1, text_encoder=1, joint=1, shared=1, registers=2, embedding=16
)
DIMS = Dims(16, 4, 23, 6, 19, 16)


def multiply_adds(model: torch.nn.Module) -> int:
    """Of the weights of all blocks, each used once a place."""
    inside = ("tower", "decoder", "connector")
    weights = {id(p): p for n, p in model.named_parameters() if any(i in n for i in inside)}
    return sum(p.numel() for p in weights.values() if p.ndim == 2)


@pytest.mark.parametrize("preset", fusion.PRESETS)
def test_the_plain_model_has_blocks_of_the_same_size(preset: str) -> None:
    config = load_config(preset)
    cfg, dims = config.fusion, config.dims(config.data.vocabulary)
    ours, plain = build_fusion(cfg, dims), fusion.PlainFusion(cfg, dims)
    # A block of ours with weights per modality holds two sets, each used by its own places.
    twice = sum(p.numel() for p in ours.connector[0].text_attention.parameters() if p.ndim == 2)
    twice += sum(p.numel() for p in ours.connector[0].text_feed_forward.parameters() if p.ndim == 2)
    assert multiply_adds(plain) == pytest.approx(multiply_adds(ours) - cfg.joint * twice, rel=0.03)


@pytest.mark.parametrize("build", [build_fusion, fusion.PlainFusion])
def test_every_weight_of_both_learns(build: type) -> None:
    torch.manual_seed(0)
    model = build(CFG, DIMS)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step = fusion.step_of(model, CFG, DIMS, 16, bf16=False)
    step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not [name for name in still if "bias" not in name and "gain" not in name], still


def test_the_text_encoded_once_draws_the_same_bits() -> None:
    """At batch 1 and at the largest of the bench, on both presets."""
    for preset in sampler.PRESETS:
        for batch in sampler.BATCHES:
            once, each = (loop() for loop in sampler.works(preset, batch).values())
            assert torch.equal(once, each), (preset, batch)
            assert int(once.max()) < 1024 and len(once.unique()) > 30  # drawn, none masked


def test_loops_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = {"once": lambda: torch.zeros(2), "each step": lambda: torch.ones(2)}
    monkeypatch.setattr(sampler, "works", lambda preset, batch: pair)
    with pytest.raises(RuntimeError, match="different codes"):
        sampler.rows(1)
