"""What numbers of replicas, nodes, GPUs and ranks make impossible together."""

from __future__ import annotations

from mmprod.config.load import load_config
from mmprod.deploying.rule import CLUSTER, TRAINING, Asked, Found, Rule

SAVE_S = 60
"""One step and two saves (docs/faults.md) fit into no less, once the model is of any size."""


def _replicas(asked: Asked) -> Found:
    least, most = asked.serving.replicas, asked.serving.max_replicas
    if 1 <= least <= most:
        return None
    return (
        f"--replicas {least} and --max-replicas {most}: there must be one, and no more than most",
        f"--replicas {max(least, 1)} --max-replicas {max(least, most, 1)}",
    )


def _nodes(asked: Asked) -> Found:
    training = asked.training
    if training.nodes >= 1 and training.ranks >= 1 and training.gpus >= 0:
        return None
    return (
        f"--nodes {training.nodes} with {training.ranks} ranks each is no job",
        "--nodes 1 --gpus 1, or --gpus 0 --nproc 2 on processors",
    )


def _ranks(asked: Asked) -> Found:
    training = asked.training
    if not training.gpus or training.ranks == training.gpus:
        return None
    return (
        f"--nproc {training.ranks} on {training.gpus} GPUs: each rank has a GPU of its own",
        f"--nproc {training.gpus}, or leave it out",
    )


def _batch(asked: Asked) -> Found:
    """The configuration is read here; one that does not exist raises its own ConfigError."""
    training = asked.training
    world, config = training.nodes * training.ranks, load_config(training.config)
    for stage in ("codec_train", "fusion_train"):
        batch = getattr(config, stage).batch
        if batch % world:
            even = -(-batch // world) * world
            return (
                f"{stage}.batch {batch} of {training.config} cannot be shared by {world} ranks",
                f"other --nodes or --gpus, or {stage}.batch = {even} in your own configuration",
            )
    return None


def _grace(asked: Asked) -> Found:
    training = asked.training
    if SAVE_S <= training.grace_s < training.hours * 3600:
        return None
    return (
        f"--grace-s {training.grace_s}: one step and two saves must fit into it, and it into the "
        f"{training.hours} h of the job",
        "--grace-s 300",
    )


RULES = (
    Rule("replica-bounds", CLUSTER, _replicas),
    Rule("no-ranks", TRAINING, _nodes),
    Rule("ranks-not-gpus", TRAINING, _ranks),
    Rule("batch-not-divisible", TRAINING, _batch),
    Rule("grace-too-short", TRAINING, _grace),
)
