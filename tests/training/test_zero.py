"""DeepSpeed against plain torch, on real processes. One launch covers all stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprod.config.load import configs_dir
from mmprod.data.order import global_batch
from tests.training.ranks import launch, train_and_report
from tests.training.tiny import ALONE

ZERO = {
    f"zero{stage}": str(configs_dir() / "deepspeed" / f"zero{stage}.json") for stage in range(4)
}


def compare(folder, files, *, world, stage="codec", train=None, tolerance=1e-6, nan=""):
    """Run the files on `world` ranks. Codebooks equal on all ranks, losses near plain torch."""
    order = {"files": files, "stage": stage, "train": train or {}, "nan": nan}
    ranks = launch(folder, order, world)
    plain = train_and_report(folder / "plain", ALONE, None, stage, train or {})
    losses = plain["straight"]["losses"]
    for name in files:
        assert ranks[0][name]["straight"]["losses"] == pytest.approx(losses, abs=tolerance), name
        for run in ("straight", "resumed"):
            assert len({rank[name][run]["buffers"] for rank in ranks}) == 1, (name, run)
    return ranks


def check_resume_to_the_bit(ranks, files):
    for name in files:
        for rank in ranks:
            assert rank[name]["straight"] == rank[name]["resumed"], name


def write(folder, name, **changes):
    """A shipped file with changes."""
    raw = json.loads((configs_dir() / "deepspeed" / f"{name}.json").read_text()) | changes
    path = folder / f"{name}-changed.json"
    path.write_text(json.dumps(raw))
    return str(path)


def test_zero_0_to_3_on_two_ranks_equal_plain_torch(tmp_path):
    """Losses within 1e-6, codebooks equal to the bit on both ranks, resume equal to the bit."""
    ranks = compare(tmp_path, ZERO, world=2, nan="zero2")
    check_resume_to_the_bit(ranks, ZERO)
    # NaN on one rank: all ranks stop together, and the message names that rank's samples.
    assert {rank["nan"] for rank in ranks} == {ranks[0]["nan"]}
    indices = global_batch(0, 1, 16, 64)
    assert "the loss is NaN or infinite at step 2" in ranks[0]["nan"]
    assert f"samples: made-up-{indices[8]}, " in ranks[0]["nan"]
    assert not list((tmp_path / "nan").glob("checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_zero_0_resumes_on_another_number_of_processes(tmp_path, before, after):
    """Optimizer, averages and codebook go on: the losses are those of plain torch to the end."""
    order = {"files": {"zero0": ZERO["zero0"]}, "at": str(tmp_path / "run")}
    first = launch(tmp_path / "first", order | {"part": "first"}, before)[0]["zero0"]
    ranks = launch(tmp_path / "second", order | {"part": "second"}, after)
    second = ranks[0]["zero0"]
    plain = train_and_report(tmp_path / "plain", ALONE, None, "codec", {})["straight"]
    assert len(first["losses"]) == len(second["losses"]) == 4
    assert first["losses"] + second["losses"] == pytest.approx(plain["losses"], abs=1e-6)
    assert len({rank["zero0"]["buffers"] for rank in ranks}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("world", "stage"), [(1, "codec"), (1, "fusion"), (2, "fusion")])
def test_zero_0_to_3_equal_plain_torch(tmp_path, world, stage):
    check_resume_to_the_bit(compare(tmp_path, ZERO, world=world, stage=stage), ZERO)


@pytest.mark.slow
def test_a_head_in_portions_learns_the_same(tmp_path):
    order = {"files": ZERO, "stage": "fusion", "train": {}, "nan": ""}
    program = Path(__file__).with_name("portion_ranks.py")
    ranks = launch(tmp_path, order, 2, program=program)
    losses = train_and_report(tmp_path / "plain", ALONE, None, "fusion", {})["straight"]["losses"]
    for name in ZERO:
        assert ranks[0][name]["straight"]["losses"] == pytest.approx(losses, abs=1e-6), name
    check_resume_to_the_bit(ranks, ZERO)


@pytest.mark.slow
def test_gradient_accumulation_changes_nothing_but_memory(tmp_path):
    files = {name: write(tmp_path, name, gradient_accumulation_steps=2) for name in ZERO}
    ranks = compare(tmp_path, files, world=2, stage="fusion", train={"batch": 32})
    check_resume_to_the_bit(ranks, files)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_activation_checkpointing_changes_nothing_but_memory(tmp_path, stage):
    train = {"activation_checkpointing": True}
    ranks = compare(tmp_path, ZERO, world=2, stage=stage, train=train)
    check_resume_to_the_bit(ranks, ZERO)
    without = train_and_report(tmp_path / "without", ALONE, None, stage, {})
    losses = ranks[0]["zero3"]["straight"]["losses"]
    assert losses == pytest.approx(without["straight"]["losses"], abs=1e-6)


@pytest.mark.slow
def test_bf16_autocast_and_bf16_weights_stay_near_plain_torch(tmp_path):
    files = {"zero1": ZERO["zero1"], "zero3": ZERO["zero3"]}
    files |= {
        f"{name}-bf16": write(tmp_path, name, bf16={"enabled": True}) for name in ("zero2", "zero3")
    }
    ranks = compare(tmp_path, files, world=2, train={"precision": "bf16"}, tolerance=0.03)
    check_resume_to_the_bit(ranks, files)


@pytest.mark.slow
def test_offload_to_the_cpu_equals_plain_torch(tmp_path):
    """Compiles DeepSpeed's CPU Adam at first use.

    That Adam multiplies up the powers of beta step by step and takes them by `pow` after a load, so
    its resume is equal to rounding only.
    """
    files = {"offload": str(configs_dir() / "deepspeed" / "zero3-offload.json")}
    ranks = compare(tmp_path, files, world=2)
    main = ranks[0]["offload"]
    assert main["resumed"]["losses"] == pytest.approx(main["straight"]["losses"], abs=1e-6)
