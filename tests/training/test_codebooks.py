"""Codebooks are equal to the bit on all ranks: every quantizer, ZeRO 0 to 3, 2 and 4 processes,
over restarts, after a resume with as many processes, after a resume with another number of them,
and after starting from saved weights and codebooks there (as `init_from` does; the optimizer begins
anew).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprod.config.load import configs_dir
from tests.models.kinds import MOVING
from tests.training.ranks import launch

PROGRAM = Path(__file__).with_name("codebook_ranks.py")
STEPS, SAVED, ON = 500, 400, 60


def check(ranks: list[dict[str, Any]], steps: int, *, sharded: bool) -> None:
    for name, main in ranks[0].items():
        assert all(rank[name]["buffers"] == main["buffers"] for rank in ranks), name
        assert main["finite"] and main["sharded"] == sharded, name
    straight, resumed = ranks[0]["straight"], ranks[0]["resumed"]
    assert straight["buffers"] == resumed["buffers"]
    assert straight["weights"] == resumed["weights"]
    assert set(straight["updates"].values()) == set(resumed["updates"].values()) == {steps}
    for kind, restarts in straight["restarts"].items():
        assert (restarts > 0) == (kind in MOVING), kind


@pytest.mark.slow
@pytest.mark.parametrize("stage", range(4))
def test_codebooks_are_equal_on_all_ranks(tmp_path: Path, stage: int) -> None:
    file = str(configs_dir() / "deepspeed" / f"zero{stage}.json")
    order = {"file": file, "steps": STEPS, "saved": SAVED, "on": ON}
    two = launch(tmp_path / "2", order, 2, program=PROGRAM)
    check(two, STEPS, sharded=stage >= 1)
    order["start"] = str(tmp_path / "2" / "whole.pt")
    order["state"] = str(tmp_path / "2" / "saved")
    four = launch(tmp_path / "4", order, 4, program=PROGRAM)
    check(four, STEPS, sharded=stage >= 1)
    assert set(four[0]["elsewhere"]["updates"].values()) == {STEPS}
    assert set(four[0]["moved"]["updates"].values()) == {STEPS + ON}
