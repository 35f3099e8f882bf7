"""The passes written by hand are those of the plain operations, and are in use in training only."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from mmprod.models import by_hand
from mmprod.models.attention import Block, JointBlock, Rotary, SwiGLU

HEADS, HEAD, PLACES = 2, 8, (6, 5)
WIDTH = HEADS * HEAD


def lively(module: nn.Module) -> nn.Module:
    """Gains that differ, and weights that matter."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.4)
    return module


def rotary(length: int) -> Rotary:
    return Rotary(HEAD, length - 1, registers=1)


def one(block: nn.Module, x: list[Tensor]) -> list[Tensor]:
    return [block(x[0], rotary(PLACES[0]))]


def two(block: nn.Module, x: list[Tensor]) -> list[Tensor]:
    return list(block(*x, rotary(PLACES[0]), rotary(PLACES[1])))


def gate(block: nn.Module, x: list[Tensor]) -> list[Tensor]:
    return [block(x[0])]


Run = Callable[[nn.Module, list[Tensor]], list[Tensor]]
CASES: dict[str, tuple[nn.Module, Run]] = {
    "block": (Block(WIDTH, HEADS), one),
    "joint": (JointBlock(WIDTH, HEADS, shared=False), two),
    "shared": (JointBlock(WIDTH, HEADS, shared=True), two),
    "swiglu": (SwiGLU(WIDTH), gate),
}


def passes(
    name: str, *, trains: bool, dtype: torch.dtype = torch.float32, autocast: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of inputs and weights for fixed gradients of the outputs."""
    block, run = CASES[name]
    block = lively(block).to(dtype).train(trains)
    torch.manual_seed(1)
    x = [torch.randn(3, length, WIDTH).to(dtype).requires_grad_() for length in PLACES]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = run(block, x)
    torch.manual_seed(2)
    towards = [torch.randn(out.shape).to(out.dtype) for out in outputs]
    wanted = [*x[: len(outputs)], *block.parameters()]
    found = torch.autograd.grad(outputs, wanted, towards)
    block.to(torch.float32)
    return [out.detach() for out in outputs], list(found)


def errors(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Relative, of each tensor."""
    return [
        float((one.float() - exact).norm() / exact.norm())
        for one, exact in zip(found, truth, strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_same_in_fp32(name: str) -> None:
    for mine, plain in zip(passes(name, trains=True), passes(name, trains=False), strict=True):
        assert max(errors(mine, plain)) < 2e-6


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize("name", CASES)
def test_in_bf16_as_near_to_the_truth_as_autograd(name: str, autocast: bool) -> None:
    """The truth: the plain operations in fp32. Types are those of the plain operations."""
    dtype = torch.float32 if autocast else torch.bfloat16
    _, truth = passes(name, trains=False)
    mine = passes(name, trains=True, dtype=dtype, autocast=autocast)
    plain = passes(name, trains=False, dtype=dtype, autocast=autocast)
    for found, expected in zip(mine, plain, strict=True):
        assert [one.dtype for one in found] == [one.dtype for one in expected]
    assert fmean(errors(mine[1], truth)) <= 1.1 * fmean(errors(plain[1], truth))


def test_the_gradient_of_attention_is_that_of_its_values() -> None:
    """Against differences, in fp64; gains differ from place to place."""
    torch.manual_seed(0)
    table = rotary(4)
    qkv = torch.randn(2, 4, 3 * WIDTH, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(4, 2, 1, HEAD, dtype=torch.float64, requires_grad=True)

    def run(qkv: Tensor, gain: Tensor) -> Tensor:
        return by_hand.attention(qkv, gain, table.cos.double(), table.sin.double(), HEADS)

    assert torch.autograd.gradcheck(run, (qkv, gain))


def test_the_gradient_of_swiglu_is_that_of_its_values() -> None:
    torch.manual_seed(0)
    x, up, down = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4), (12, 4), (4, 6))
    )
    assert torch.autograd.gradcheck(by_hand.swiglu, (x, up, down))


@pytest.mark.parametrize("name", CASES)
def test_in_use_in_training_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("by hand")

    monkeypatch.setattr(by_hand, "attention", refuse)
    monkeypatch.setattr(by_hand, "swiglu", refuse)
    passes(name, trains=False)
    with pytest.raises(AssertionError, match="by hand"):
        passes(name, trains=True)
