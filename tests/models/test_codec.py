"""The codec: shapes, pixel conventions, losses, and that every part learns."""

from __future__ import annotations

import pytest
import torch

from mmprod.config.schema import CodecConfig
from mmprod.models import losses
from mmprod.models.codec import build_codec, to_pixels, to_signal


def tiny(**changes: object) -> CodecConfig:
    values = {"patch": 2, "channels": 8, "multipliers": (1, 2), "codebook_size": 32, "code_dim": 4}
    return CodecConfig.model_validate({**values, **changes})


def pixels(batch: int = 2, size: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)


def test_pixels_survive_the_round_trip_exactly() -> None:
    every_level = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_pixels(to_signal(every_level)), every_level)


def test_out_of_range_signals_are_clipped() -> None:
    x = torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert to_pixels(x).unique().tolist() == [0, 255]


@pytest.mark.parametrize(
    "changes", [{}, {"patch": 1}, {"patch": 4}, {"attention": True}, {"multipliers": (1, 2, 2)}]
)
def test_shapes(changes: dict[str, object]) -> None:
    cfg = tiny(**changes)
    codec = build_codec(cfg).eval()
    side = 16 // cfg.factor
    codes = codec.encode(pixels())
    assert codes.shape == (2, side * side) and codes.dtype == torch.int32
    restored = codec.decode(codes, (side, side))
    assert restored.shape == (2, 16, 16, 3) and restored.dtype == torch.uint8


def test_every_parameter_gets_a_gradient() -> None:
    codec = build_codec(tiny())
    codec(pixels())["loss"].backward()
    assert [n for n, p in codec.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_loss_is_the_sum_of_its_two_terms() -> None:
    losses = build_codec(tiny())(pixels())
    torch.testing.assert_close(losses["loss"], losses["encoder"] + losses["reconstruction"])


def test_each_loss_preset_is_the_sum_of_its_own_terms() -> None:
    for preset, terms in (("archive", losses.ARCHIVE), ("natural", losses.NATURAL)):
        outputs = build_codec(tiny(loss=preset))(pixels())
        total = sum(weight * outputs[name] for name, weight in terms.items())
        assert torch.allclose(outputs["reconstruction"], total)
        assert not (losses.TERMS.keys() - terms.keys()) & outputs.keys()


def test_a_picture_does_not_depend_on_its_batch() -> None:
    codec = build_codec(tiny()).eval()
    both = codec.encode(pixels())
    assert torch.equal(both[1:], codec.encode(pixels()[1:]))


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    codec = build_codec(tiny()).train()
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3)
    smooth = (pixels(8) // 64 * 8 + torch.arange(16, dtype=torch.uint8)[:, None, None] * 12).clamp(
        0, 255
    )
    losses = []
    for _ in range(60):
        loss = codec(smooth)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        codec.quantizer.update()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
