"""Rotation and gate in training: the values of evaluation, the gradients of autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmprod.models.rotary import Rotary
from mmprod.models.swiglu import SwiGLU


def rotation() -> tuple[nn.Module, Tensor]:
    """With queries as they lie in memory: heads moved before the positions."""
    torch.manual_seed(0)
    return Rotary(16, 9, registers=2, grid=3), torch.randn(2, 11, 3, 16).transpose(1, 2)


def feed_forward() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return SwiGLU(24), torch.randn(2, 5, 24)


def both_ways(layer: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    """Values, then gradients of the input and of every weight."""
    layer.train(training)
    x = x.detach().requires_grad_()
    y = layer(x)
    torch.manual_seed(1)
    given = torch.randn(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), given)]


@pytest.mark.parametrize("made", [rotation, feed_forward])
def test_values_to_the_bit_and_gradients_of_autograd(
    made: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    layer, x = made()
    quick, plain = (both_ways(layer, x, training=training) for training in (True, False))
    assert torch.equal(quick[0], plain[0])
    for one, other in zip(quick, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("made", [rotation, feed_forward])
def test_bf16_is_as_near_to_the_truth_as_plain_operations(
    made: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    layer, x = made()
    layer, x = layer.bfloat16(), x.bfloat16()
    quick, plain = (both_ways(layer, x, training=training) for training in (True, False))
    truth = both_ways(layer.float(), x.float(), training=False)
    for mine, other, exact in zip(quick, plain, truth, strict=True):
        assert mine.dtype == torch.bfloat16
        errors = [float((t.float() - exact).square().mean().sqrt()) for t in (mine, other)]
        assert errors[0] <= 1.1 * errors[1] + 1e-7


@pytest.mark.parametrize(
    ("made", "name"), [(rotation, "_QuickRotation"), (feed_forward, "_QuickGate")]
)
def test_in_training_only(made: Callable[[], tuple[nn.Module, Tensor]], name: str) -> None:
    layer, x = made()

    def operations() -> str:
        found, nodes = "", [layer(x.detach().requires_grad_()).grad_fn]
        while nodes:
            node = nodes.pop()
            found += str(node)
            nodes += [parent for parent, _ in node.next_functions if parent is not None]
        return found

    assert name in operations()
    layer.eval()
    assert name not in operations()
