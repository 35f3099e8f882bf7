"""Learning rate and averaging decay."""

from __future__ import annotations

import pytest

from mmprod.config.schema import TrainConfig
from mmprod.training.schedule import ema_decay, learning_rate


def test_the_rate_warms_up_peaks_and_falls_to_its_final_share():
    cfg = TrainConfig(steps=100, lr=2.0, warmup=10, lr_final=0.1)
    rates = [learning_rate(cfg, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 5), (3, 3), (2, 0)])
def test_short_schedules_have_no_zero_division_and_stay_positive(steps, warmup):
    cfg = TrainConfig(steps=steps, lr=1.0, warmup=warmup, lr_final=0.5)
    assert all(0 < learning_rate(cfg, step) <= 1 for step in range(steps))


def test_the_decay_grows_to_its_limit():
    assert ema_decay(0.999, 1) == 2 / 11
    assert ema_decay(0.5, 1000) == 0.5
    assert ema_decay(0.0, 5) == 0.0
