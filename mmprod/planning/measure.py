"""A few real steps on this machine, to hold against the plan."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mmprod.config.schema import Config
from mmprod.models.example import Example
from mmprod.models.flops import training_flops
from mmprod.planning.activations import AUTOCAST, activations, fill, measure_pass
from mmprod.planning.sizes import train_section

STEPS = 3


@dataclass(frozen=True)
class Measured:
    """One stage at one micro-batch: bytes and seconds, planned and found."""

    stage: str
    batch: int
    activation_planned: int
    activation_found: int
    step_planned_s: float
    step_found_s: float
    tflops: float
    """reached, at the micro-batch measured"""
    threads: int

    @property
    def activation_error(self) -> float:
        """Share by which the plan is off; positive: the plan says more."""
        return self.activation_planned / self.activation_found - 1

    @property
    def step_error(self) -> float:
        """The same of the step time."""
        return self.step_planned_s / self.step_found_s - 1


def measure_stage(config: Config, stage: str, batch: int) -> Measured:
    """Steps of plain PyTorch on the CPU at half of `batch`, whose speed plans those at `batch`."""
    half = batch // 2
    flops = training_flops(config, stage).total
    speed = flops * half / _seconds(config, stage, half)
    found_s = _seconds(config, stage, batch)
    planned = activations(config, stage, processor=True).of(batch)
    found = real_pass(config, stage, batch)
    reached = flops * batch / found_s / 1e12
    return Measured(
        stage, batch, planned, found, flops * batch / speed, found_s, reached,
        torch.get_num_threads(),
    )  # fmt: skip


def real_pass(config: Config, stage: str, batch: int) -> int:
    """Peak bytes of a pass, counted on real tensors of this machine."""
    precision: str = train_section(config, stage).precision
    return measure_pass(_real(config, stage, batch), precision)


def _real(config: Config, stage: str, batch: int) -> Example:
    example = Example.of(config, stage, batch)
    for tensor in example.tensors():
        fill(tensor)
    return example


def _seconds(config: Config, stage: str, batch: int) -> float:
    """The quickest of a few steps."""
    precision: str = train_section(config, stage).precision
    example = _real(config, stage, batch)
    parameters = [p for p in example.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    dtype, enabled = AUTOCAST.get(precision, torch.bfloat16), precision in AUTOCAST
    spent = []
    for _ in range(STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = example.forward()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent.append(time.perf_counter() - started)
    return min(spent)
