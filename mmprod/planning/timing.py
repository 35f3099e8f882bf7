"""How long a step takes on a described cluster: a model of four terms, each stated.

    compute   model FLOPs of a rank's share / (peak * MFU); a third more where activations are
              computed anew
    network   bytes sent / (link * link_share) + calls * 2 log2(N) * latency of a hop
    host      offload: gradients and weights over the bus, AdamW on the node's CPU
    step      compute + network + host at stages 0 to 2 (DeepSpeed reduces without overlap there);
              max(compute, network) + host at stage 3, which overlaps

The MFU is an assumption until `--measure`, or a run's own log line, gives it. Data loading,
evaluation and saving are not part of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmprod.planning.cluster import GIGA, Cluster
from mmprod.planning.memory import BYTES, FP32, Layout
from mmprod.planning.sizes import Sizes
from mmprod.planning.traffic import traffic_of

RECOMPUTE = 4 / 3
"""forward, forward again and backward (twice a forward) over forward and backward"""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step and of its terms."""

    compute_s: float
    network_s: float
    host_s: float
    step_s: float

    @property
    def efficiency(self) -> float:
        """Share of the step in which the device computes."""
        return self.compute_s / self.step_s

    @property
    def bottleneck(self) -> str:
        """The largest term."""
        terms = {"compute": self.compute_s, "network": self.network_s, "host": self.host_s}
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True)
class Work:
    """What a step is made of: model FLOPs of a global batch, in which precision."""

    flops: float
    precision: str
    checkpointing: bool = False


def step_time(sizes: Sizes, layout: Layout, work: Work, cluster: Cluster) -> StepTime:
    """The projection for one layout."""
    world = layout.world
    peak = cluster.tflops(work.precision) * 1e12
    compute = work.flops * (RECOMPUTE if work.checkpointing else 1) / world / (peak * cluster.mfu)
    traffic = traffic_of(sizes, layout)
    speed, hop = cluster.link(world)
    network = traffic.sent(world) / speed + traffic.calls * 2 * math.log2(max(1, world)) * hop
    host = _host(sizes, layout, cluster)
    body = max(compute, network) if layout.stage == 3 else compute + network
    return StepTime(compute, network, host, body + host)


def _host(sizes: Sizes, layout: Layout, cluster: Cluster) -> float:
    if layout.offload == "none":
        return 0.0
    part = sizes.trained / layout.world
    width = BYTES[layout.weights]
    moved = part * (FP32 + width)
    if layout.offload == "optimizer+param":
        moved += part * width * layout.accumulation
    on_node = part * min(layout.world, cluster.gpus_per_node)
    return moved / (cluster.host_gb_s * GIGA * cluster.link_share) + on_node / (
        cluster.host_adam * GIGA
    )
