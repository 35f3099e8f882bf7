"""A plan as plain data: what `mmprod plan --json` prints and the views draw."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmprod.config.schema import Config
from mmprod.models.flops import training_flops
from mmprod.planning.activations import activations
from mmprod.planning.asked import KINDS, Asked
from mmprod.planning.cluster import Cluster
from mmprod.planning.fit import Fit, Misfit, fit
from mmprod.planning.memory import STAGES as ZERO
from mmprod.planning.memory import Layout, Offload, Weights, memory_of
from mmprod.planning.sizes import Sizes, sizes_of, train_section
from mmprod.planning.storage import storage_of
from mmprod.planning.traffic import traffic_of

Data = dict[str, Any]
OFFLOADS: tuple[Offload, ...] = ("none", "optimizer", "optimizer+param")

EXACT = "parameters, steps, checkpoint bytes, bytes at rest and bytes sent (counted)"
ESTIMATED = "activations (counted on tensors without content), the two peaks of a step"


def training_samples(config: Config) -> tuple[int | None, str]:
    """Pictures in the train split, None where nobody can know yet; and where the number is from."""
    from mmprod.data.store import MANIFEST, read_manifest

    root = Path(config.data.path)
    if config.data.path and (root / MANIFEST).is_file():
        return int(read_manifest(root)["splits"]["train"]["count"]), f"counted in {root}"
    if config.data.source == "avatars":
        return config.data.count - 2 * (config.data.count // 20), "to be drawn"
    return None, "number of pictures unknown until `mmprod data prepare`"


def stage_data(config: Config, stage: str, samples: int | None) -> Data:
    """Sizes of one stage that no cluster changes."""
    cfg, sizes = train_section(config, stage), sizes_of(config, stage)
    flops = training_flops(config, stage)
    return {
        "stage": stage,
        "parameters": sizes.parameters,
        "trained": sizes.trained,
        "frozen": sizes.frozen,
        "discriminator": sizes.discriminator,
        "perceptual": sizes.perceptual,
        "steps": cfg.steps,
        "batch": cfg.batch,
        "tokens": cfg.batch * sizes.length,
        "steps_per_epoch": samples / cfg.batch if samples else None,
        "epochs": cfg.steps * cfg.batch / samples if samples else None,
        "flops_per_sample": flops.total,
        "flops_per_step": flops.total * cfg.batch,
        "flops_total": flops.total * cfg.batch * cfg.steps,
        "checkpoint_bytes": storage_of(sizes, None, 1).bytes,
        "checkpoint_bytes_deepspeed": storage_of(sizes, 0, 1).bytes,
        "activation_checkpointing": cfg.activation_checkpointing,
        "precision": cfg.precision,
    }


def activation_data(config: Config, stage: str, *, fused: bool, weights: Weights) -> Data:
    """Bytes per sample of a micro-batch, plain and with activation checkpointing."""
    found = {}
    for name, again in (("plain", False), ("checkpointing", True)):
        acts = activations(config, stage, weights=weights, checkpointing=again, fused=fused)
        found[name] = asdict(acts)
    return found


def memory_rows(config: Config, stage: str, worlds: tuple[int, ...], asked: Asked) -> list[Data]:
    """Bytes per rank under every layout that training takes and `asked` leaves, without
    activations; first the one without DeepSpeed, where one process is among `worlds`.
    """
    sizes, cfg = sizes_of(config, stage), train_section(config, stage)
    kinds = (asked.weights,) if asked.weights else KINDS[cfg.precision]
    offloads = (asked.offload,) if asked.offload else OFFLOADS
    plain = asked.stage is None and "fp32" in kinds and "none" in offloads and 1 in worlds
    rows = [memory_row(sizes, Layout(None))] if plain else []
    for zero in ZERO if asked.stage is None else (asked.stage,):
        for kind in kinds:
            for offload in offloads:
                if Layout(zero, kind, offload).possible:
                    rows += [memory_row(sizes, Layout(zero, kind, offload, w)) for w in worlds]
    return rows


def memory_row(sizes: Sizes, layout: Layout) -> Data:
    """One layout: what is there by kind, at rest and at both peaks; what the network carries."""
    memory, world = memory_of(sizes, layout), layout.world
    traffic, stored = traffic_of(sizes, layout), storage_of(sizes, layout.stage, world)
    return {
        "zero": layout.stage,
        "weights": layout.weights,
        "offload": layout.offload,
        "world": world,
        "accumulation": layout.accumulation,
        "device": memory.device,
        "host": memory.host,
        "backward": memory.backward,
        "update": memory.update,
        "rest": memory.rest,
        "host_rest": memory.host_rest,
        "peak": memory.peak(),
        "sent_bytes": traffic.sent(world),
        "collectives": asdict(traffic),
        "checkpoint_files": stored.files,
    }


def cluster_rows(
    config: Config, stage: str, worlds: tuple[int, ...], cluster: Cluster, asked: Asked
) -> list[Data]:
    """What each number of devices takes, or why it does not do."""
    return [_row(fit(config, stage, world, cluster, asked), config, stage) for world in worlds]


def _row(found: Fit | Misfit, config: Config, stage: str) -> Data:
    if isinstance(found, Misfit):
        return {"world": found.world, "fits": False, "reason": found.reason, "hint": found.hint}
    time, layout = found.time, found.layout
    return {
        "fits": True,
        **memory_row(sizes_of(config, stage), layout),
        "batch": found.batch,
        "micro_batch": found.micro,
        "steps": found.steps,
        "activation_bytes": found.activation_bytes,
        "peak": found.peak_bytes,
        **asdict(time),
        "samples_per_s": found.batch / time.step_s,
        "hours": found.hours,
        "gpu_hours": found.hours * layout.world,
        "cost": found.cost,
        "efficiency": time.efficiency,
        "bottleneck": time.bottleneck,
    }
