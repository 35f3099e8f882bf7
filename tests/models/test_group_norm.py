"""The quick gradient of GroupNorm is PyTorch's gradient, and is in use where it should be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmprod.config.schema import CodecConfig
from mmprod.models import group_norm
from mmprod.models.codec import build_codec
from mmprod.models.group_norm import GroupNorm


def pictures(channels: int, dtype: torch.dtype = torch.float32, side: int = 6) -> Tensor:
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(4, side, side, channels)
    return x.to(dtype).permute(0, 3, 1, 2)


def gradients(layer: nn.Module, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    dy = torch.randn(y.shape).to(y.dtype).contiguous(memory_format=torch.channels_last)
    return y.detach(), torch.autograd.grad(y, (x, *layer.parameters()), dy)


def layers(channels: int, groups: int) -> tuple[GroupNorm, nn.GroupNorm]:
    torch.manual_seed(2)
    ours, theirs = GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (32, 8), (6, 1)])
def test_values_and_gradients_in_fp32(channels: int, groups: int) -> None:
    ours, theirs = layers(channels, groups)
    y, found = gradients(ours, pictures(channels))
    expected_y, expected = gradients(theirs, pictures(channels))
    assert torch.equal(y, expected_y)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


def test_gradient_passes_the_check_by_differences() -> None:
    ours, _ = layers(8, 2)
    x = pictures(8, torch.float64, side=3).detach().requires_grad_()
    ours.double()
    assert type(ours(x).grad_fn).__name__ == "_QuickGradientBackward"
    # Its sums are float32, hence the wide steps.
    torch.autograd.gradcheck(ours, (x,), eps=1e-2, atol=1e-3, rtol=1e-3)


def test_bf16_is_as_near_to_the_truth_as_pytorch() -> None:
    """Against float64, the error is at most one and a half times that of PyTorch."""
    ours, theirs = layers(32, 8)
    x = pictures(32, torch.bfloat16)
    _, (truth, *_) = gradients(copy.deepcopy(theirs).double(), x.double())
    errors = []
    for layer in (ours, theirs):
        y, (dx, *_) = gradients(layer, x)
        assert y.dtype == dx.dtype == torch.bfloat16
        errors.append(float((dx.double() - truth).square().mean().sqrt()))
    assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("chunk", [1, 2**20])
def test_bf16_values_are_as_near_to_the_truth_as_pytorch(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also far from zero, where sums of squares about zero would lose all digits."""
    monkeypatch.setattr(group_norm, "CHUNK", chunk)
    ours, theirs = layers(32, 8)
    torch.manual_seed(3)
    x = (30 + torch.randn(4, 16, 16, 32)).to(torch.bfloat16).permute(0, 3, 1, 2)
    truth = copy.deepcopy(theirs).double()(x.double()).detach()
    errors = [
        float((layer(x).detach().double() - truth).square().mean().sqrt())
        for layer in (ours, theirs)
    ]
    assert errors[0] <= 1.1 * errors[1]
    y = ours(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_keeps_the_memory_format_of_the_gradient() -> None:
    ours, _ = layers(8, 2)
    _, (dx, *_) = gradients(ours, pictures(8))
    assert dx.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("case", ["eval", "channels first", "one pixel"])
def test_elsewhere_it_is_the_layer_of_pytorch(case: str) -> None:
    ours, theirs = layers(8, 2)
    x = pictures(8, side=1 if case == "one pixel" else 6)
    ours.train(case != "eval")
    if case == "channels first":
        x = x.contiguous()
    y = ours(x.requires_grad_())
    assert type(y.grad_fn).__name__ == "NativeGroupNormBackward0"
    assert torch.equal(y, theirs(x))


def test_every_norm_of_the_codec_sees_channels_last() -> None:
    """Which comes from the pixels (B, H, W, 3) and must not get lost on the way."""
    codec = build_codec(
        CodecConfig(patch=2, channels=8, multipliers=(1, 2), codebook_size=16, attention=True)
    ).train()
    kept: list[bool] = []

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    norms = [m for m in codec.modules() if isinstance(m, GroupNorm)]
    for module in norms:
        module.register_forward_pre_hook(look)
    codec(torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8))
    assert kept == [True] * len(norms)


@pytest.mark.parametrize("mean", [0, 10, 30])
@pytest.mark.parametrize("chunk", [1, 2**20])
def test_bf16_gradient_of_the_weight_far_from_zero(
    mean: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64 with a mean of up to 30 deviations: as near as PyTorch, to 1e-3 up to 10."""
    monkeypatch.setattr(group_norm, "CHUNK", chunk)
    ours, theirs = layers(32, 8)
    torch.manual_seed(3)
    x = (mean + torch.randn(4, 16, 16, 32)).to(torch.bfloat16).permute(0, 3, 1, 2)
    _, (true_dx, truth, _) = gradients(copy.deepcopy(theirs).double(), x.double())
    errors = []
    for layer in (ours, theirs):
        _, (dx, d_weight, _) = gradients(layer, x)
        pairs = ((d_weight, truth), (dx, true_dx))
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in pairs])
    assert errors[0][0] <= max(1.5 * errors[1][0], 1e-5)
    assert errors[0][1] <= 2 * errors[1][1]  # its last step is rounded to bf16 twice
    assert mean > 10 or errors[0][0] <= 1e-3
