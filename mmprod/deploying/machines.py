"""Files for machines without a container orchestrator: Slurm's batch script, systemd's unit."""

from __future__ import annotations

import shlex

from mmprod.deploying.containers import filled
from mmprod.deploying.facts import Facts
from mmprod.deploying.files import Files
from mmprod.deploying.options import Options
from mmprod.deploying.server import memory_mib, on_engines, serve_arguments
from mmprod.deploying.training import train_arguments

UNIT = "mmprod-serve.service"
CORES = 8
"""A rank's share of a node, as the cluster presets have it."""
DEVICES = """\
# The GPU's device nodes and nothing else.
DevicePolicy=closed
DeviceAllow=char-nvidia rw
DeviceAllow=char-nvidia-uvm rw
DeviceAllow=char-nvidia-caps rw
"""


SELFTEST = (
    "/opt/mmprod/bin/mmprod parity selftest /srv/mmprod/bundle "
    "--output ${STATE_DIRECTORY}/selftest.json"
)
SELFTEST_ON_CPU = f"/bin/sh -c '{SELFTEST} || [ $$? -eq 3 ]'"
"""A wrong answer (5) stops the server; that no engine was run (3) is as expected without a GPU."""


def render_slurm(facts: Facts, options: Options) -> Files:
    """`slurm/train.sbatch`."""
    training = options.training
    train = ["mmprod", *train_arguments(options, "runs", "")]
    values = {
        "name": options.name,
        "partition": training.partition,
        "nodes": str(training.nodes),
        "ranks": str(training.ranks),
        "gpus": str(training.gpus),
        "cpus": str(CORES),
        "hours": f"{training.hours:02d}",
        "grace": str(training.grace_s),
        "train": shlex.join(train),
    }
    return {"slurm/train.sbatch": filled("train.sbatch", values)}


def render_systemd(facts: Facts, options: Options) -> Files:
    """`systemd/mmprod-serve.service`: one server, confined, after a self-test."""
    serving = options.serving
    with_key = serving.bind != "127.0.0.1"
    key_file = "${CREDENTIALS_DIRECTORY}/key" if with_key else None
    command = serve_arguments(options, "/srv/mmprod/bundle", serving.bind, key_file)
    gpu = on_engines(options)
    if gpu:
        # No report in the bundle vouches for engines on this device: the self-test before does.
        command.append("--serve-unproven")
    values = {
        "name": facts.name,
        "digest": facts.digest,
        "unit": UNIT,
        "serve": " ".join(["/opt/mmprod/bin/mmprod", *command]),
        "credential": "LoadCredential=key:/etc/mmprod/key\n" if with_key else "",
        "trusted": (
            "Environment=MMPROD_TRUSTED_KEYS=/etc/mmprod/trusted\n"
            if serving.demand_signature
            else ""
        ),
        "selftest": SELFTEST if gpu else SELFTEST_ON_CPU,
        "memory": str(memory_mib(facts, options)),
        "devices": DEVICES if gpu else "PrivateDevices=yes\n",
    }
    return {f"systemd/{UNIT}": filled(UNIT, values)}
