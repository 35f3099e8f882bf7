"""A checkpoint goes on at any number of ranks, under any ZeRO stage and under plain torch."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmprod.checkpoint import verify_step
from mmprod.checkpoint.consolidate import open_step
from mmprod.config.load import configs_dir
from mmprod.data.order import global_batch
from tests.training import elastic_ranks
from tests.training.elastic_ranks import BATCH, train_leg
from tests.training.ranks import launch, stored
from tests.training.tiny import ALONE

PROGRAM = Path(elastic_ranks.__file__)
STEPS = range(8)


def zero(folder, stage):
    """The shipped file of a ZeRO stage, changed so that tiny weights are divided too."""
    if not stage:
        return ""
    raw = json.loads((configs_dir() / "deepspeed" / f"zero{stage}.json").read_text())
    if stage == 3:
        raw["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(raw))
    return str(path)


def run(folder, world, legs):
    return launch(folder, {"legs": legs}, world, program=PROGRAM)


def leg(folder, stage, zero_file, part):
    return {"stage": stage, "folder": str(folder), "deepspeed": zero_file, "part": part}


def check_leg(straight, first, ranks, name, *, batch):
    """Losses, codebook and samples are those of the run that was never stopped."""
    second = [rank[name] for rank in ranks]
    losses = first[0]["losses"] + second[0]["losses"]
    assert losses == pytest.approx(straight["losses"], abs=1e-6), name
    assert len({rank["buffers"] for rank in second}) == 1, name
    for step in STEPS:
        halves = [half for half in (first, second) if str(step) in half[0]["consumed"]]
        assert len(halves) == 1, (name, step)
        taken = Counter(i for rank in halves[0] for i in rank["consumed"][str(step)])
        assert taken == Counter(global_batch(0, step, batch, 64).tolist()), (name, step)


def check_codebook(straight_folder, folder):
    expected = load_file(straight_folder / "buffers.safetensors")
    found = load_file(folder / "buffers.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["codec", "fusion"])
def test_saved_by_two_ranks_goes_on_at_one_three_and_four_under_other_stages(tmp_path, stage):
    straight = train_leg(ALONE, leg(tmp_path / "straight", stage, "", "all"))
    files = {number: zero(tmp_path, number) for number in (1, 2, 3)}
    at = {number: tmp_path / f"two-zero{number}" for number in files}
    first = run(
        tmp_path / "first",
        2,
        {str(n): leg(at[n], stage, files[n], "first") for n in files},
    )
    moves = {1: [(1, 2), (3, 1)], 3: [(1, 3), (2, 1)], 4: [(2, 3), (3, 2)]}
    for world, pairs in moves.items():
        legs = {}
        for before, after in pairs:
            name = f"{world}-zero{before}-zero{after}"
            shutil.copytree(at[before], tmp_path / name)
            legs[name] = leg(tmp_path / name, stage, files[after], "second")
        ranks = run(tmp_path / f"at-{world}", world, legs)
        for name, (before, _) in zip(legs, pairs, strict=True):
            halves = [rank[str(before)] for rank in first]
            check_leg(straight, halves, ranks, name, batch=BATCH[stage])
            check_codebook(tmp_path / "straight", tmp_path / name)
    shutil.copytree(at[3], tmp_path / "alone")
    alone = [{"alone": train_leg(ALONE, leg(tmp_path / "alone", stage, "", "second"))}]
    check_leg(straight, [rank["3"] for rank in first], alone, "alone", batch=BATCH[stage])
    check_codebook(tmp_path / "straight", tmp_path / "alone")


@pytest.mark.slow
def test_saved_by_plain_torch_goes_on_under_every_stage(tmp_path):
    straight = train_leg(ALONE, leg(tmp_path / "straight", "codec", "", "all"))
    first = train_leg(ALONE, leg(tmp_path / "torch", "codec", "", "first"))
    legs = {}
    for number in (1, 2, 3):
        shutil.copytree(tmp_path / "torch", tmp_path / f"zero{number}")
        file = zero(tmp_path, number)
        legs[f"zero{number}"] = leg(tmp_path / f"zero{number}", "codec", file, "second")
    ranks = run(tmp_path / "second", 2, legs)
    for name in legs:
        check_leg(straight, [first], ranks, name, batch=BATCH["codec"])
        check_codebook(tmp_path / "straight", tmp_path / name)


@pytest.mark.slow
def test_saves_in_the_background_on_two_ranks(tmp_path):
    """They resume like the others; a full disk of one rank stops all with the same words."""
    straight = train_leg(ALONE, leg(tmp_path / "straight", "codec", "", "all"))
    legs = {"job": leg(tmp_path / "job", "codec", zero(tmp_path, 3), "first")}
    legs["job"]["train"] = {"async_save": True, "save_every": 2}
    first = [rank["job"] for rank in run(tmp_path / "first", 2, legs)]
    legs["job"]["part"] = "second"
    failing = {**legs["job"], "folder": str(tmp_path / "failing"), "part": "full"}
    ranks = run(tmp_path / "second", 2, legs | {"failing": failing})
    check_leg(straight, first, ranks, "job", batch=BATCH["codec"])
    check_codebook(tmp_path / "straight", tmp_path / "job")
    said = {rank["failing"]["error"] for rank in ranks}
    assert len(said) == 1
    assert "No space left on device: " in said.pop()
    assert list((tmp_path / "failing" / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_what_three_ranks_read_of_two_is_the_same_to_the_bit(tmp_path):
    """Saved by 2 under ZeRO 3, read by 3 under ZeRO 1 and written again before a step: equal."""
    at = tmp_path / "job"
    run(tmp_path / "first", 2, {"a": leg(at, "codec", zero(tmp_path, 3), "first")})
    step = at / "checkpoints" / "step-00000004"
    shutil.copytree(step, tmp_path / "before")
    order = leg(at, "codec", zero(tmp_path, 1), "again")
    run(tmp_path / "second", 3, {"a": order})
    before, after = verify_step(tmp_path / "before"), verify_step(step)
    assert (before["world"], before["placement"]) == (2, "zero-3")
    assert (after["world"], after["placement"]) == (3, "zero-1")
    assert before["scalars"] == after["scalars"]
    opened = open_step(step)
    fields = opened.fields(next(iter(opened.index.values())))
    assert fields == ["average", "exp_avg", "exp_avg_sq", "weight"]
    for field in fields:
        one, other = stored(tmp_path / "before", field), stored(step, field)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), (field, name)
