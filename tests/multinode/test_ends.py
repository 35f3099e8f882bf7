"""How jobs end on one node and on two: a dead rank, signals, ranks that never come."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multinode.jobs import (
    PORT,
    How,
    Nodes,
    output,
    own_c10d,
    own_static,
    start_deepspeed,
    start_on_both,
    static,
    train,
)
from tests.multinode.nodes import PYTHON, Node, finish

pytestmark = pytest.mark.slow

ENDLESS = ("--model", "codec", "-o", "codec_train.steps=1000000")
WITHIN_S = 10.0
"""A dead rank ends the job on every node within this time."""


@pytest.fixture(autouse=True)
def nothing_left(nodes: Nodes) -> Iterator[None]:
    """No test leaves ranks behind."""
    yield
    left = [pid for node in nodes for pid in node.pids() if b"train" in words(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def words(pid: int) -> list[bytes]:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def rank_process(node: Node, rank: int) -> int:
    """The process that is this rank."""
    for pid in node.pids():
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in variables and b"train" in words(pid):
            return pid
    raise AssertionError(f"no rank {rank} on {node.host}")


def wait_for_steps(nodes: Nodes, name: str, started: list[subprocess.Popen[bytes]]) -> None:
    """Until training has begun."""
    deadline = time.monotonic() + 60
    while '"event": "log"' not in output(nodes, name):
        assert time.monotonic() < deadline and any(p.poll() is None for p in started), output(
            nodes, name
        )
        time.sleep(0.1)


def start_one_node(nodes: Nodes, name: str, *more: str) -> list[subprocess.Popen[bytes]]:
    command = [PYTHON, "-m", "mmprod", *train(name), *more, "--nproc", "2"]
    return [nodes[0].start(*command, log=f"{name}-node0.log")]


def kill_and_time(
    nodes: Nodes, name: str, started: list[subprocess.Popen[bytes]], victim: tuple[Node, int]
) -> tuple[list[int], float]:
    """SIGKILL a rank in the middle of training -> (exit codes, seconds until all had ended)."""
    wait_for_steps(nodes, name, started)
    os.kill(rank_process(*victim), signal.SIGKILL)
    begun = time.monotonic()
    codes = finish(started, 60)
    while any(b"train" in words(pid) for node in nodes for pid in node.pids()):
        assert time.monotonic() - begun < 60
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    print(f"{name}: all ended after {seconds:.1f} s with {codes}")
    return codes, seconds


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_a_job_on_one_node(nodes: Nodes, rank: int) -> None:
    name = f"dead-one-{rank}"
    started = start_one_node(nodes, name, *ENDLESS)
    codes, seconds = kill_and_time(nodes, name, started, (nodes[0], rank))
    assert codes == [128 + signal.SIGKILL]
    assert seconds < WITHIN_S
    said = output(nodes, name)
    assert f"rank {rank} on node0 was ended by SIGKILL" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", [static, own_static], ids=["torchrun", "own"])
def test_a_dead_rank_ends_a_job_on_both_nodes(nodes: Nodes, how: How, rank: int) -> None:
    name = f"dead-{how.__name__}-{rank}"
    started = start_on_both(nodes, how, [*train(name), *ENDLESS])
    codes, seconds = kill_and_time(nodes, name, started, (nodes[rank], rank))
    assert seconds < WITHIN_S
    said = output(nodes, name)
    assert f"rank {rank} on node{rank} died" in said
    if how is own_static:
        assert codes[rank] == 128 + signal.SIGKILL
        assert codes[1 - rank] == 3
        assert "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_a_job_of_the_deepspeed_launcher(
    nodes: Nodes, ssh: dict[str, str], rank: int
) -> None:
    name = f"dead-pdsh-{rank}"
    started = start_deepspeed(nodes, ssh, [*train(name), *ENDLESS])
    codes, seconds = kill_and_time(nodes, name, started, (nodes[rank], rank))
    assert codes[0] != 0
    assert seconds < WITHIN_S
    assert f"rank {rank} on node{rank} died" in output(nodes, name)


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        (own_static, signal.SIGTERM, 75),
        (own_c10d, signal.SIGTERM, 75),
        (own_static, signal.SIGINT, 130),
    ],
    ids=["static", "c10d", "ctrl-c"],
)
def test_own_launcher_on_two_nodes_saves_when_one_of_them_is_told_to_stop(
    nodes: Nodes, how: How, number: int, code: int
) -> None:
    name = f"stop-{how.__name__}-{code}"
    started = start_on_both(nodes, how, [*train(name), *ENDLESS])
    wait_for_steps(nodes, name, started)
    launcher = next(pid for pid in nodes[1].pids() if b"--nnodes" in words(pid))
    os.kill(launcher, number)
    assert finish(started, 60) == [code, code], output(nodes, name)
    assert "saved at step" in output(nodes, name)
    assert (nodes[0].folder / name / "codec" / "checkpoints" / "latest").is_file()


def test_an_error_of_one_node_is_the_exit_code_of_both(nodes: Nodes) -> None:
    """Only node 1 has a command line that is wrong."""
    name = "one-sided"
    commands = [[*train(name), *ENDLESS], [*train(name), *ENDLESS, "--resume", "nowhere"]]
    started = [
        node.start(*own_static(i, commands[i]), log=f"{name}-{node.host}.log")
        for i, node in enumerate(nodes)
    ]
    begun = time.monotonic()
    assert finish(started, 60) == [2, 2], output(nodes, name)
    assert time.monotonic() - begun < 30
    said = output(nodes, name)
    assert "nowhere" in said
    assert "Traceback" not in said


def test_ranks_that_do_not_come_are_named(nodes: Nodes) -> None:
    name = "absent"
    command = [PYTHON, "-m", "mmprod", *train(name), "--rendezvous-timeout", "5"]
    place = {"WORLD_SIZE": "3", "MASTER_ADDR": "node0", "MASTER_PORT": PORT, "LOCAL_RANK": "0"}
    started = [
        node.start(*command, log=f"{name}-{node.host}.log", RANK=str(i), **place)
        for i, node in enumerate(nodes)
    ]
    begun = time.monotonic()
    assert finish(started, 60) == [3, 3]
    assert time.monotonic() - begun < 30
    said = output(nodes, name)
    assert "rank 2 of 3 did not come to node0:" in said
    assert "there are ranks 0, 1 on node0, node1" in said
    assert "Traceback" not in said


def test_a_node_that_does_not_come_ends_the_launcher(nodes: Nodes) -> None:
    name = "half"
    command = [*train(name), "--rendezvous-timeout", "5"]
    started = [nodes[0].start(*own_static(0, command), log=f"{name}-node0.log")]
    assert finish(started, 60) == [3]
    assert "2 nodes did not meet at node0:" in output(nodes, name)
    assert "Traceback" not in output(nodes, name)


def test_host_names_that_are_loopback_are_overcome(nodes: Nodes) -> None:
    """Both nodes have the same name, which is 127.0.0.1 in each: gloo alone would hang."""
    name = "loopback"
    command = [*train(name), "--model", "codec"]
    where = nodes[0].address
    started = []
    for i, node in enumerate(nodes):
        same = Node(node.namespace, "localhost", node.address, node.folder, node.started)
        ours = [PYTHON, "-m", "mmprod", *command, "--nnodes", "2", "--node-rank", str(i)]
        ours += ["--master", f"{where}:{PORT}"]
        started.append(same.start(*ours, log=f"{name}-{node.host}.log"))
    codes = finish(started, 60)
    said = output(nodes, name)
    assert codes == [0, 0], said
    assert re.search(r"localhost resolves to (127.0.0.1|::1) here", said)
    assert "using eth0, which leads to" in said


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[0-1]",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize("launcher", ["slurm", "openmpi"])
def test_tasks_of_slurm_and_openmpi_find_each_other(nodes: Nodes, launcher: str) -> None:
    name = f"as-{launcher}"
    command = [PYTHON, "-m", "mmprod", *train(name), "--model", "codec"]
    started = []
    for i, node in enumerate(nodes):
        variables = SLURM | {"SLURM_PROCID": str(i)}
        if launcher == "openmpi":
            numbers = {"RANK": i, "SIZE": 2, "LOCAL_RANK": 0, "LOCAL_SIZE": 1}
            variables = {f"OMPI_COMM_WORLD_{k}": str(v) for k, v in numbers.items()}
            variables |= {"MASTER_ADDR": "node0", "MASTER_PORT": PORT}
        started.append(node.start(*command, log=f"{name}-{node.host}.log", **variables))
    codes = finish(started, 60)
    said = output(nodes, name)
    assert codes == [0, 0], said
    assert f"2 ranks on 2 nodes ({launcher})" in said


def one_node(launcher: str) -> list[str]:
    if launcher == "torchrun":
        return ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mmprod"]
    return ["deepspeed.launcher.runner", "--num_accelerators", "2", "--module", "mmprod"]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_launchers_on_one_node(nodes: Nodes, launcher: str) -> None:
    name = f"one-{launcher}"
    command = [PYTHON, "-m", *one_node(launcher), *train(name), "--model", "codec"]
    started = [nodes[0].start(*command, log=f"{name}-node0.log")]
    codes = finish(started, 60)
    assert codes == [0], output(nodes, name)
    assert f"2 ranks on 1 node ({launcher})" in output(nodes, name)
