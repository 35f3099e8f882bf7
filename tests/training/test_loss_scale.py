"""The loss scale of fp16: the same rule as DeepSpeed's, which is asked for every step."""

from __future__ import annotations

import random

import pytest

from mmprod.errors import NumericsError
from mmprod.training.loss_scale import LossScale


def test_the_rule_is_that_of_deepspeed():
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    from mmprod.training.deepspeed_fragments import scale_of, set_scale

    theirs = DynamicLossScaler(2.0**16, 1000, 1.0, 2, False, raise_error_at_min_scale=False)
    theirs.dtype = None  # the message would need a process group
    ours, dice, seen = LossScale(), random.Random(0), set()
    for step in range(5000):
        overflow = dice.random() < (0.01 if step < 300 else 0.0005)
        ours.update(overflow=overflow)
        if overflow:
            halve_without_a_message(theirs)
        else:
            theirs.update_scale(False)
        assert scale_of(theirs) == ours, step
        seen.add(ours.value)
    assert len(seen) > 2  # it fell and rose
    again = DynamicLossScaler(2.0**16, 1000, 1.0, 2, False)
    set_scale(again, ours.scalars())
    assert scale_of(again) == ours == LossScale.of(ours.scalars())


def halve_without_a_message(scaler):
    """`update_scale(True)` asks a process group for its rank before it logs."""
    from unittest.mock import patch

    with patch("deepspeed.runtime.fp16.loss_scaler.dist.get_rank", return_value=1):
        scaler.update_scale(True)


def test_overflow_at_the_smallest_scale_is_an_error():
    scale = LossScale(value=2.0, hysteresis=1)
    scale.update(overflow=True)
    assert scale.value == 1.0
    with pytest.raises(NumericsError, match="smallest loss scale, 1"):
        scale.update(overflow=True)


def test_scalars_of_another_precision_leave_the_defaults():
    assert LossScale.of({"adamw.step": 7.0}) == LossScale()
