"""Floating-point operations of training, counted on tensors without content.

A multiplication and an addition are two operations. Counted are matrix products, convolutions and
attention, by PyTorch's own formulas, in the forward and in the backward pass as it really runs (the
first layer needs no gradient to the picture, so backward is a little under twice forward). Not
counted: everything per element, the optimizer, and what is computed a second time to save memory:
the model FLOPs of the literature (PaLM, Chowdhery et al. 2022, appendix B), which MFU divides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmprod.config.schema import Config
from mmprod.models.contrast import CONTRAST_GROUP
from mmprod.models.example import Example
from mmprod.models.head import in_one_portion
from mmprod.models.processor import as_elsewhere


@dataclass(frozen=True)
class Flops:
    """Operations for one sample of a stage: forward, backward; `samples` are added up linearly.

    `codec` counts the networks beside it (the discriminator's own pass, the perceptual features)
    from the step on where all take part.
    """

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """What one training sample takes."""
        return self.forward + self.backward


@lru_cache(maxsize=8)
def training_flops(config: Config, stage: str) -> Flops:
    """Count one stage. About a second for the larger presets; nothing is allocated."""
    samples = CONTRAST_GROUP
    section = config.codec_train if stage == "codec" else config.fusion_train
    plain = config
    if section.activation_checkpointing:
        once = section.model_copy(update={"activation_checkpointing": False})
        plain = config.model_copy(update={f"{stage}_train": once})
    with FakeTensorMode(), in_one_portion(), as_elsewhere():
        example = Example.of(plain, stage, samples)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            loss = example.forward()
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            torch.autograd.backward(loss)
    return Flops(forward // samples, counter.get_total_flops() // samples)


def _attention(query: Sequence[int], key: Sequence[int], *rest: Any, **more: Any) -> int:
    """softmax(q k^T) v for shapes q (..., S, E), k (..., T, E): two matrix products."""
    return 2 * 2 * math.prod(query) * key[-2]


def _attention_backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], *rest: Any, **more: Any
) -> int:
    """Four matrix products; the scores that it computes anew are not counted."""
    return 2 * _attention(query, key)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""the CPU's fused attention, which PyTorch has no formula for"""
