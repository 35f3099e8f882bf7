"""Which layout of a job fits a cluster, and what it takes: from 1 to thousands of devices."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmprod.config.schema import Config, TrainConfig
from mmprod.models.flops import training_flops
from mmprod.planning.activations import Activations, activations
from mmprod.planning.asked import KINDS, Asked
from mmprod.planning.cluster import GIGA, Cluster
from mmprod.planning.memory import Layout, Memory, Offload, Weights, memory_of
from mmprod.planning.sizes import Sizes, batch_for, largest_share, sizes_of, train_section
from mmprod.planning.timing import StepTime, Work, step_time

HOUR = 3600
ORDER: tuple[tuple[int, Offload], ...] = (
    (0, "none"), (1, "none"), (2, "none"), (3, "none"),
    (1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "optimizer+param"),
)  # fmt: skip
"""from what costs least to what saves most"""


@dataclass(frozen=True)
class Fit:
    """One way to run a stage on `layout.world` devices. `batch` is the global batch, `micro` what a
    rank passes at once; hours and cost are those of all steps.
    """

    layout: Layout
    batch: int
    micro: int
    steps: int
    memory: Memory
    activation_bytes: int
    time: StepTime
    hours: float
    cost: float | None

    @property
    def peak_bytes(self) -> int:
        """On one device."""
        return self.memory.peak(self.activation_bytes)


@dataclass(frozen=True)
class Misfit:
    """Why a number of devices does not do, and what would."""

    world: int
    reason: str
    hint: str


def fit(config: Config, stage: str, world: int, cluster: Cluster, asked: Asked) -> Fit | Misfit:
    """The first layout of `ORDER` whose peak fits into a device, with the largest micro-batch that
    does.
    """
    cfg, sizes = train_section(config, stage), sizes_of(config, stage)
    batch = cfg.batch
    if not largest_share(cfg, sizes.group, world):
        wanted = batch_for(world, sizes.group, batch)
        if not asked.grow:
            unit = f" x {sizes.group}" if sizes.group > 1 else ""
            return Misfit(
                world,
                f"batch {batch} cannot be shared out over {world} ranks{unit}",
                f"-o {stage}_train.batch={wanted}",
            )
        batch = wanted
    choices = micro_batches(batch // world, sizes.group)
    if asked.micro is not None and asked.micro not in choices:
        return Misfit(
            world,
            f"micro-batch {asked.micro} does not divide a rank's {batch // world} samples"
            + (f" into whole groups of {sizes.group}" if sizes.group > 1 else ""),
            f"--micro-batch {min(choices, key=lambda m: abs(m - (asked.micro or 0)))}",
        )
    steps = max(1, round(cfg.steps * cfg.batch / batch))
    weights = asked.weights_for(cfg)
    tried = []
    for zero, offload in ORDER:
        if asked.stage not in (None, zero) or asked.offload not in (None, offload):
            continue
        layout = Layout(zero, weights, offload, world)
        if not layout.possible:
            continue
        found = _largest(config, stage, layout, (batch, steps), cluster, asked.micro)
        if found.peak_bytes <= cluster.memory_bytes and _host_holds(found, cluster):
            return found
        tried.append(found)
    if not tried:
        return Misfit(
            world,
            f"{weights} weights are not possible at stage {asked.stage} "
            f"with offload {asked.offload or 'none'}",
            "--stage 3",
        )
    return _too_large(cfg, stage, tried, cluster, asked)


def _too_large(
    cfg: TrainConfig, stage: str, tried: list[Fit], cluster: Cluster, asked: Asked
) -> Misfit:
    """What the layout that comes nearest lacks, and the next thing to try."""
    world = tried[0].layout.world
    hosted = [found for found in tried if found.peak_bytes <= cluster.memory_bytes]
    if hosted:
        need = min(_on_node(found, cluster) for found in hosted) / GIGA
        return Misfit(
            world,
            f"offload needs {need:,.1f} GB of a node's host memory, there are "
            f"{cluster.host_memory_gb:,.1f}",
            f"--gpus {2 * world} on more nodes, or host_memory_gb in the cluster's file",
        )
    least = min(tried, key=lambda found: found.peak_bytes)
    if not cfg.activation_checkpointing:
        hint = f"-o {stage}_train.activation_checkpointing=true"
    elif "bf16" in KINDS[cfg.precision] and least.layout.weights == "fp32":
        hint = "--weights bf16"
    elif asked.stage is not None or asked.offload is not None or asked.micro is not None:
        hint = "leave out --stage, --offload and --micro-batch"
    else:
        hint = f"--gpus {2 * world}, or a cluster with more memory per device"
    need, there = least.peak_bytes / GIGA, cluster.memory_bytes / GIGA
    return Misfit(
        world, f"needs {need:,.1f} GB per device at its least, there are {there:,.1f}", hint
    )


def _largest(
    config: Config,
    stage: str,
    layout: Layout,
    job: tuple[int, int],
    cluster: Cluster,
    fixed: int | None,
) -> Fit:
    """The layout with its largest micro-batch that fits; with the smallest one where none does."""
    batch, steps = job
    sizes, acts = sizes_of(config, stage), activations_of(config, stage, layout.weights, cluster)
    share = batch // layout.world
    choices = [fixed] if fixed else micro_batches(share, sizes.group)
    for micro in choices:
        tried = replace(layout, accumulation=share // micro)
        memory = memory_of(sizes, tried)
        if memory.peak(acts.of(micro)) <= cluster.memory_bytes:
            break
    cfg = train_section(config, stage)
    work = Work(
        training_flops(config, stage).total * batch,
        cfg.precision,
        cfg.activation_checkpointing,
    )
    time = step_time(sizes, tried, work, cluster)
    hours = time.step_s * steps / HOUR
    price = cluster.price_per_gpu_hour
    cost = hours * layout.world * price if price else None
    return Fit(tried, batch, micro, steps, memory, acts.of(micro), time, hours, cost)


def activations_of(config: Config, stage: str, weights: Weights, cluster: Cluster) -> Activations:
    """The estimate for a cluster's devices."""
    cfg = train_section(config, stage)
    checkpointing = cfg.activation_checkpointing
    return activations(
        config, stage, weights=weights, checkpointing=checkpointing, fused=cluster.fused
    )


def micro_batches(share: int, group: int) -> list[int]:
    """Micro-batches that divide a rank's share into whole groups, largest first."""
    unit = group if share % group == 0 else 1
    return [m for m in range(share, 0, -1) if share % m == 0 and m % unit == 0]


def _host_holds(found: Fit, cluster: Cluster) -> bool:
    if not cluster.host_memory_gb or found.layout.offload == "none":
        return True
    return _on_node(found, cluster) <= cluster.host_memory_gb * GIGA


def _on_node(found: Fit, cluster: Cluster) -> int:
    """Bytes in the memory of one node's host."""
    return found.memory.host_rest * min(found.layout.world, cluster.gpus_per_node)


__all__ = ["Asked", "Fit", "Misfit", "Sizes", "fit", "micro_batches"]
