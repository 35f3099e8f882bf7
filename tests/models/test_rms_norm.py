"""The quick gradient of RMSNorm is that of the formula, and is in use in training only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmprod.models.rms_norm import RMSNorm


def layer() -> RMSNorm:
    torch.manual_seed(0)
    made = RMSNorm(16)
    torch.nn.init.normal_(made.gain)
    return made


def gradients(norm: RMSNorm, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = x.detach().requires_grad_()
    y = norm(x)
    torch.manual_seed(2)
    return y.detach(), torch.autograd.grad(y, (x, norm.gain), torch.randn(y.shape).to(y.dtype))


def features(dtype: torch.dtype) -> Tensor:
    """As queries lie in memory: heads moved before the positions."""
    torch.manual_seed(1)
    return (3 * torch.randn(2, 5, 4, 16)).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_evaluation_and_gradients_those_of_autograd(dtype: torch.dtype) -> None:
    norm, x = layer(), features(dtype)
    y, found = gradients(norm.train(), x)
    expected_y, expected = gradients(norm.eval(), x)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(y, expected_y, rtol=tolerance / 2, atol=0)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_bf16_gradient_is_as_near_to_the_truth_as_autograd() -> None:
    """The truth: autograd in fp32 on the same numbers."""
    norm, x = layer(), features(torch.bfloat16)
    _, truth = gradients(norm.eval(), x.float())
    quick = gradients(norm.train(), x)[1]
    plain = gradients(norm.eval(), x)[1]
    for mine, other, exact in zip(quick, plain, truth, strict=True):
        errors = [float((g.float() - exact).square().mean().sqrt()) for g in (mine, other)]
        assert errors[0] <= 1.1 * errors[1] + 1e-7


def test_weights_in_bf16_get_gradients_in_bf16() -> None:
    """As ZeRO keeps them."""
    norm, x = layer().bfloat16(), features(torch.bfloat16)
    y, found = gradients(norm.train(), x)
    expected_y, expected = gradients(norm.eval(), x)
    assert torch.equal(y, expected_y)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_other_types_and_evaluation_take_the_formula() -> None:
    norm = layer()
    assert type(norm(features(torch.float32).requires_grad_()).grad_fn).__name__ == (
        "_QuickGradientBackward"
    )
    norm.eval()
    assert "QuickGradient" not in str(norm(features(torch.float32).requires_grad_()).grad_fn)
