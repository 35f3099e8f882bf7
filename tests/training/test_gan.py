"""The discriminator beside the codec: one process, DeepSpeed, two ranks, after a resume."""

from __future__ import annotations

import pytest

from tests.training.ranks import launch, train_and_report
from tests.training.test_zero import ZERO, write
from tests.training.tiny import ALONE

GAN = {"loss": "natural", "gan_weight": 0.1, "gan_start": 0.25}
TRAIN = {"lr": 5e-4}
"""slow enough that rounding does not tip over signs of L1 and of the discriminator's activations"""


def check(folder, files, *, world, train=None, tolerance=1e-5):
    """Losses near one process of plain torch; the discriminator equal to the bit on all ranks and
    after a resume.
    """
    train = TRAIN | (train or {})
    order = {"files": files, "stage": "codec", "train": train, "codec": GAN}
    ranks = launch(folder, order, world)
    plain = train_and_report(folder / "plain", ALONE, None, "codec", train, GAN)
    losses = plain["straight"]["losses"]
    for name in files:
        assert ranks[0][name]["straight"]["losses"] == pytest.approx(losses, abs=tolerance), name
        assert len({rank[name][run]["beside"] for rank in ranks for run in rank[name]}) == 1, name
        for rank in ranks:
            assert rank[name]["straight"] == rank[name]["resumed"], name


def test_resume_with_a_discriminator_is_equal_to_the_bit(tmp_path):
    found = train_and_report(tmp_path, ALONE, None, "codec", {}, GAN)
    assert found["straight"] == found["resumed"]
    without = train_and_report(tmp_path / "none", ALONE, None, "codec", {}, {"loss": "natural"})
    assert found["straight"]["losses"][:2] == without["straight"]["losses"][:2]
    assert found["straight"]["losses"][2] != without["straight"]["losses"][2]
    assert found["straight"]["beside"] != without["straight"]["beside"]


def test_zero_3_on_two_ranks_equals_plain_torch(tmp_path):
    check(tmp_path, {"zero3": ZERO["zero3"]}, world=2)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_every_zero_stage_equals_plain_torch(tmp_path, world):
    check(tmp_path, ZERO, world=world)


@pytest.mark.slow
def test_gradient_accumulation_changes_nothing_but_memory(tmp_path):
    files = {
        name: write(tmp_path, name, gradient_accumulation_steps=2)
        for name in ("zero0", "zero2", "zero3")
    }
    check(tmp_path, files, world=2)


@pytest.mark.slow
def test_bf16_stays_near_plain_torch(tmp_path):
    files = {"zero1": ZERO["zero1"], "bf16": write(tmp_path, "zero3", bf16={"enabled": True})}
    check(tmp_path, files, world=2, train={"precision": "bf16"}, tolerance=0.05)
