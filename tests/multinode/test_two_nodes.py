"""Every launcher on two nodes, under ZeRO 1, 2 and 3: the losses of one process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.multinode.jobs import (
    How,
    Nodes,
    c10d,
    output,
    start_deepspeed,
    start_on_both,
    static,
    train,
)
from tests.multinode.nodes import PYTHON, environment, finish

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(nodes: Nodes) -> Path:
    """The run of one process without DeepSpeed, which all others must equal."""
    command = [PYTHON, "-m", "mmprod", "train", "-c", "job.toml", "--out", "alone"]
    subprocess.run(command, cwd=nodes[0].folder, env=environment(), check=True, capture_output=True)
    return nodes[0].folder / "alone"


def losses(run: Path) -> dict[str, list[float]]:
    """The loss of every step of both stages."""
    found = {}
    for stage in ("codec", "fusion"):
        lines = (run / stage / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        found[stage] = [r["loss"] for r in records if r.get("kind", r.get("event")) == "log"]
    return found


def check(nodes: Nodes, alone: Path, name: str, codes: list[int]) -> None:
    said = output(nodes, name)
    assert set(codes) == {0}, f"{codes}\n{said}"
    assert "2 ranks on 2 nodes" in said
    expected, found = losses(alone), losses(nodes[0].folder / name)
    for stage, values in expected.items():
        assert len(values) == 3
        assert found[stage] == pytest.approx(values, rel=0, abs=1e-6), stage


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("how", [static, c10d], ids=["static", "c10d"])
def test_torchrun_on_two_nodes_gives_the_losses_of_one_process(
    nodes: Nodes, alone: Path, how: How, zero: int
) -> None:
    name = f"{how.__name__}-{zero}"
    started = start_on_both(nodes, how, train(name, zero))
    check(nodes, alone, name, finish(started, 120))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_deepspeed_over_ssh_gives_the_losses_of_one_process(
    nodes: Nodes, ssh: dict[str, str], alone: Path, zero: int
) -> None:
    name = f"pdsh-{zero}"
    started = start_deepspeed(nodes, ssh, train(name, zero))
    check(nodes, alone, name, finish(started, 120))
