"""The plan against what training really holds and sends: ZeRO 0 to 3, 1, 2 and 4 ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmprod.planning.memory import Layout, memory_of
from mmprod.planning.sizes import sizes_of
from mmprod.planning.traffic import traffic_of
from tests.planning.measured import config_of, file_of, layout_of
from tests.training.ranks import launch

RANKS = Path(__file__).with_name("measured_ranks.py")
WITHIN = 0.05
SMALL = 1000
"""bytes that do not matter: flags, padding"""
CASES = [
    (zero, weights)
    for zero in range(4)
    for weights in ("fp32", "bf16")
    if zero or weights == "fp32"
]


def cases(world: int) -> dict[str, Any]:
    return {
        f"{stage}-{zero}-{weights}": {
            "stage": stage,
            "precision": weights,
            "file": file_of(layout_of(zero, weights, world)),
        }
        for stage in ("codec", "fusion")
        for zero, weights in CASES
    }


def planned(stage: str, zero: int, weights: str, world: int) -> tuple[Any, Layout]:
    layout = layout_of(zero, weights, world)
    sizes = sizes_of(config_of(weights), stage)
    return sizes, layout


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_bytes_per_rank_and_bytes_sent_are_the_plan(tmp_path: Path, world: int) -> None:
    reports = launch(tmp_path, {"cases": cases(world)}, world, 400, RANKS)
    errors = []
    for name in reports[0]:
        stage, zero, weights = name.split("-")
        sizes, layout = planned(stage, int(zero), weights, world)
        wanted = expected(sizes, layout)
        for rank, report in enumerate(reports):
            for what, found in measured(report[name]).items():
                error = wanted[what] / found - 1 if found else float(wanted[what] > SMALL)
                line = f"{name} x{world} rank {rank}: {what}: {wanted[what]} for {found}"
                print(f"{error:+.1%} {line}")
                if abs(error) > WITHIN and abs(wanted[what] - found) > SMALL:
                    errors.append(line)
    assert not errors, "\n".join(errors)


def expected(sizes: Any, layout: Layout) -> dict[str, int]:
    """The plan's figures: at rest, with the gradients before the update, at the peak of the update
    (two temporaries of AdamW beyond the gradients), and what goes through collectives.
    """
    memory, traffic = memory_of(sizes, layout), traffic_of(sizes, layout)
    part = -(-sizes.trained // layout.world)
    width = 2 if layout.weights == "bf16" else 4
    gradients = {0: width * sizes.trained, 3: 0}.get(layout.stage or 0, width * part)
    return {
        "rest": memory.rest,
        "before_step": memory.rest + gradients,
        "update": memory.peak(-(10**12)),
        "all_reduce": traffic.all_reduce + traffic.codebook + traffic.discriminator,
        "all_gather": traffic.all_gather,
        "reduce_scatter": traffic.reduce_scatter,
    }


def measured(report: dict[str, Any]) -> dict[str, int]:
    sent = report["collectives"]
    gathered = sent.get("all_gather", 0) + sent.get("all_gather_into_tensor", 0)
    before = sum(report["before_step"].values())
    found = {
        "rest": sum(report["rest"].values()),
        "before_step": before,
        "update": before + report["update"],
    }
    if gathered:  # one rank sends nothing, though DeepSpeed calls the collectives
        found |= {
            "all_reduce": sent.get("all_reduce", 0),
            "all_gather": gathered,
            "reduce_scatter": sent.get("reduce_scatter_tensor", 0),
        }
    return found
