"""Fragments: live, complete, and enough to go on from, under torch and every ZeRO stage."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mmprod.config.load import configs_dir
from mmprod.training.fragments import Fragment, Layout
from mmprod.training.loss_scale import LossScale
from tests.training import fragment_ranks
from tests.training.ranks import launch
from tests.training.test_zero import ZERO, write
from tests.training.tiny import ALONE

PROGRAM = Path(fragment_ranks.__file__)


def run(folder, files, *, world, train=None, exact=True):
    """Every file on `world` ranks: state taken over is trained on to the same bits."""
    order = {"files": files, "train": train or {}, "gathered": 10_000}
    ranks = launch(folder, order, world, program=PROGRAM)
    for name in files:
        for rank in ranks:
            check(name, rank[name], exact=exact)
        covered = cover([rank[name]["places"] for rank in ranks])
        for found, (shape, parts) in covered.items():
            assert_covers(found, shape, parts, copies=world if name.startswith("zero0") else 1)
        assert ranks[0][name]["shapes"] == {n: list(shape) for n, (shape, _) in covered.items()}
        assert ranks[0][name]["scalars"] == {**ranks[-1][name]["scalars"]}
        assert all(rank[name]["shapes"] == {} for rank in ranks[1:])
    return ranks


def check(name, found, *, exact):
    steps = sum(math.isfinite(norm) for norm in found["first"][1::2])
    assert found["scalars"]["adamw.step"] == steps > 0, name
    assert found["fresh"] != found["state"], name
    if exact:
        assert found["going_on"] == found["taken_over"], name
        assert found["state"] == found["state_taken_over"], name
    else:
        assert found["going_on"] == pytest.approx(found["taken_over"], abs=1e-6), name
    assert found["skipped"]["same"] and found["skipped"]["moves"], name


def cover(places):
    """Per parameter: its shape and the ranges that all ranks hold."""
    ranges = defaultdict(list)
    shapes = {}
    for rank in places:
        for name, shape, start, numel in rank:
            shapes[name] = tuple(shape)
            ranges[name].append((start, numel))
    return {name: (shapes[name], sorted(parts)) for name, parts in ranges.items()}


def assert_covers(name, shape, parts, *, copies):
    """Every element is held exactly `copies` times and no fragment is empty."""
    count = torch.zeros(math.prod(shape), dtype=torch.int64)
    for start, numel in parts:
        assert numel > 0, name
        count[start : start + numel] += 1
    assert (count == copies).all(), name


def test_state_taken_over_goes_on_to_the_bit_on_two_ranks(tmp_path):
    bf16 = write(tmp_path, "zero3", bf16={"enabled": True})
    ranks = run(tmp_path, ZERO, world=2)
    whole = {ranks[0][name]["whole"] for name in ("zero1", "zero2")}
    assert len(whole) == 1  # the same arithmetic, divided otherwise
    # ZeRO 3 builds the model in shards: the same initial weights.
    assert len({ranks[0][name]["start"] for name in ZERO}) == 1
    run(tmp_path / "bf16", {"zero3-bf16": bf16}, world=2, train={"precision": "bf16"})


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 4])
def test_state_taken_over_goes_on_to_the_bit(tmp_path, world):
    run(tmp_path, ZERO, world=world)
    bf16 = {f"zero{n}-bf16": write(tmp_path, f"zero{n}", bf16={"enabled": True}) for n in (1, 2, 3)}
    run(tmp_path / "bf16", bf16, world=world, train={"precision": "bf16"})


def test_fp16_skips_overflowed_steps_and_goes_on_to_the_bit(tmp_path):
    """The loss scale starts so high that the first steps overflow; it is a part of the state."""
    fp16 = {"enabled": True, "initial_scale_power": 16, "hysteresis": 1}
    files = {f"zero{n}-fp16": write(tmp_path, f"zero{n}", fp16=fp16) for n in (1, 2, 3)}
    ranks = run(tmp_path, files, world=2, train={"precision": "fp16"})
    for name in files:
        first, scalars = ranks[0][name]["first"], ranks[0][name]["scalars"]
        skipped = sum(not math.isfinite(norm) for norm in first[1::2])
        assert 0 < skipped < fragment_ranks.STEPS, (name, first)
        assert scalars["scale.value"] == 2.0 ** (16 - skipped)
        assert scalars["scale.steps"] == fragment_ranks.STEPS
        assert ranks[1][name]["scalars"] == scalars
        assert all("smallest loss scale, 1" in rank[name]["smallest"] for rank in ranks)


@pytest.mark.slow
def test_offloaded_state_is_taken_over(tmp_path):
    """DeepSpeed's CPU Adam multiplies powers of beta up step by step and takes them by `pow` after
    a load: equal to rounding only.
    """
    cpu = {"device": "cpu"}
    two = {"stage": 2, "offload_optimizer": cpu, "overlap_comm": False}
    files = {
        "zero3-offload": str(configs_dir() / "deepspeed" / "zero3-offload.json"),
        "zero2-offload": write(tmp_path, "zero2", zero_optimization=two),
    }
    run(tmp_path, files, world=2, exact=False)


@dataclass
class Low(LossScale):
    """A loss scale under which some of the first steps of a tiny fusion model overflow."""

    value: float = 2.0**14
    hysteresis: int = 1


def test_torch_state_is_taken_over(tmp_path, monkeypatch):
    """AdamW and Muon, in one process."""
    monkeypatch.setattr("mmprod.training.torch_backend.LossScale", Low)
    for optimizer, precision in (("adamw", "fp32"), ("adamw", "fp16"), ("muon", "fp32")):
        train = {"optimizer": optimizer, "precision": precision}
        found = fragment_ranks.take_over(
            tmp_path / f"{optimizer}-{precision}",
            ALONE,
            None,
            {"train": train, "stage": "fusion", "width": 32},
        )
        check(optimizer, found, exact=True)


def test_layout_puts_whole_tensors_together_piece_by_piece(monkeypatch):
    monkeypatch.setattr("mmprod.training.fragments.GATHERED", 7)
    whole = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5.0), "c": torch.tensor([9.0])}
    parts = {
        name: Fragment(name, tuple(t.shape), 0, {"weight": t.flatten()})
        for name, t in whole.items()
    }
    layout = Layout(parts, ALONE)
    found = layout.gather({name: tensor.flatten() for name, tensor in whole.items()})
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
