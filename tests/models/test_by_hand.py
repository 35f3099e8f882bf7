"""The passes written by hand are those of the plain operations, and are in use in training only."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmprod.models import by_hand
from mmprod.models.attention import Block, JointBlock, Rotary, SwiGLU
from mmprod.models.processor import as_elsewhere

HEADS, HEAD, PLACES = 2, 16, (40, 24)
WIDTH = HEADS * HEAD


def lively(module: nn.Module) -> nn.Module:
    """Gains that differ, and weights that matter; bf16 holds them all."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
        parameter.data = parameter.data.bfloat16().float()
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
    name: str,
    *,
    trains: bool,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of inputs and weights for fixed gradients of the outputs."""
    block, run = CASES[name]
    block = lively(block).to(dtype).train(trains)
    torch.manual_seed(1)
    x = [torch.randn(3, length, WIDTH).bfloat16().to(dtype).requires_grad_() for length in PLACES]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
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


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize("name", CASES)
def test_in_half_as_near_to_the_truth_as_autograd(
    name: str, autocast: bool, kind: torch.dtype
) -> None:
    """The truth: the plain operations in fp32 on the same numbers. Types are those of the plain
    operations.
    """
    half = {"autocast": kind} if autocast else {"dtype": kind}
    _, truth = passes(name, trains=False)
    mine, plain = (passes(name, trains=trains, **half) for trains in (True, False))
    for found, expected in zip(mine, plain, strict=True):
        assert [one.dtype for one in found] == [one.dtype for one in expected]
    ratios = [
        found / other
        for found, other in zip(errors(mine[1], truth), errors(plain[1], truth), strict=True)
    ]
    of_matrices = [ratio for ratio, exact in zip(ratios, truth, strict=True) if exact.ndim > 1]
    assert max(of_matrices) < 1.25
    assert max(ratios) < 2  # a gain's few numbers
    assert fmean(ratios) < 1.1


@pytest.mark.parametrize("name", CASES)
def test_frozen_weights_cost_nothing(name: str) -> None:
    """No product for the gradient of a weight that has none."""
    found = []
    for trains in (True, False):
        block, run = CASES[name]
        lively(block).train(trains).requires_grad_(False)
        x = [torch.randn(3, length, WIDTH, requires_grad=True) for length in PLACES]
        outputs = run(block, x)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(outputs, [torch.ones_like(out) for out in outputs])
        found.append(counter.get_total_flops())
        assert all(parameter.grad is None for parameter in block.parameters())
        block.requires_grad_(True)
    assert found[0] == found[1]


def test_an_input_without_a_gradient_is_left_alone() -> None:
    block = lively(SwiGLU(WIDTH)).train()
    block(torch.randn(3, 4, WIDTH)).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("name", CASES)
def test_a_compiler_and_other_devices_see_the_plain_operations(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "attention", None)
    monkeypatch.setattr(by_hand, "swiglu", None)
    with as_elsewhere():
        passes(name, trains=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    passes(name, trains=True)


@pytest.mark.parametrize("trains", [True, False])
def test_a_compiler_traces_a_block_whole(trains: bool) -> None:
    block, x = lively(Block(WIDTH, HEADS)).train(trains), torch.randn(2, PLACES[0], WIDTH)
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, rotary(PLACES[0])), block(x, rotary(PLACES[0])))


def test_nothing_to_do_is_nothing() -> None:
    block = lively(Block(WIDTH, HEADS)).train()
    x = torch.zeros(0, PLACES[0], WIDTH, requires_grad=True)
    block(x, rotary(PLACES[0])).sum().backward()
    assert x.grad is not None


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
