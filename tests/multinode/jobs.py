"""The job that two nodes train, and every way to start it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tests.multinode.nodes import PYTHON, Node

JOB = """
name = "nodes"
[data]
count = 64
image_size = 16
vocabulary = 300
text_length = 48
[codec]
patch = 2
channels = 8
multipliers = [1, 2]
codebook_size = 16
code_dim = 4
[codec_train]
steps = 3
batch = 32
warmup = 1
log_every = 1
eval_every = 3
save_every = 3
precision = "fp32"
optimizer = "adamw"
[fusion]
width = 16
heads = 2
image_encoder = 1
text_encoder = 1
joint = 1
shared = 1
registers = 1
embedding = 8
[fusion_train]
steps = 3
batch = 32
warmup = 1
log_every = 1
eval_every = 3
save_every = 3
precision = "fp32"
optimizer = "adamw"
[sampler]
image_steps = 2
text_steps = 2
"""
Nodes = tuple[Node, Node]
How = Callable[[int, list[str]], list[str]]
PORT = "29511"


def train(run: str, zero: int = 1, *more: str) -> list[str]:
    return [
        *("train", "-c", "job.toml", "--out", run, "--deepspeed", f"zero{zero}.json", *more)
    ]  # fmt: skip


def torchrun(*options: str) -> list[str]:
    return [PYTHON, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *options]


def static(node: int, command: list[str]) -> list[str]:
    where = (f"--node-rank={node}", "--master-addr=node0", f"--master-port={PORT}")
    return [*torchrun(*where), "-m", "mmprod", *command]


def c10d(node: int, command: list[str]) -> list[str]:
    where = ("--rdzv-backend=c10d", f"--rdzv-endpoint=node0:{PORT}", "--rdzv-id=job")
    return [*torchrun(*where), "-m", "mmprod", *command]


def own_static(node: int, command: list[str]) -> list[str]:
    return [
        *(PYTHON, "-m", "mmprod", *command, "--nnodes", "2"),
        *("--node-rank", str(node), "--master", f"node0:{PORT}"),
    ]


def own_c10d(node: int, command: list[str]) -> list[str]:
    return [PYTHON, "-m", "mmprod", *command, "--nnodes", "2", "--rdzv", f"node0:{PORT}"]


def start_on_both(nodes: Nodes, how: How, command: list[str]) -> list[subprocess.Popen[bytes]]:
    name = command[4]
    return [
        node.start(*how(i, command), log=f"{name}-{node.host}.log") for i, node in enumerate(nodes)
    ]


def start_deepspeed(
    nodes: Nodes, ssh: dict[str, str], command: list[str]
) -> list[subprocess.Popen[bytes]]:
    hostfile = nodes[0].folder / "hostfile"
    hostfile.write_text("".join(f"{node.host} slots=1\n" for node in nodes))
    launcher = ["deepspeed.launcher.runner", "--hostfile", "hostfile", "--no_ssh_check"]
    launcher += ["--master_addr", "node0", "--master_port", PORT, "--module", "mmprod"]
    log = f"{command[4]}-node0.log"
    return [nodes[0].start(PYTHON, "-m", *launcher, *command, log=log, **ssh)]


def output(nodes: Nodes, name: str) -> str:
    logs = sorted(nodes[0].folder.glob(f"{name}-node*.log"))
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in logs)
