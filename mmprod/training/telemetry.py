"""How fast training is and what it takes, out of what the loop measured since the last log line.

Throughput counts the time of steps alone, without evaluations and saves. TFLOP/s are model FLOPs
(models/flops.py: forward and backward, nothing that is computed twice); MFU divides them by the
peak of all devices (peak.py), and is absent where that is unknown. Of several ranks the slowest and
the largest count for waiting and memory: they are what limits a job.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmprod.config.schema import Config, TrainConfig
from mmprod.models.flops import training_flops
from mmprod.training.distributed import World, add_over_ranks
from mmprod.training.peak import peak_of

logger = logging.getLogger(__name__)

STEP_SECONDS, DATA_SECONDS = "step_seconds", "data_seconds"
"""what the loop adds to its meter in each step: its whole time, the time it waited for data"""
TIMING = frozenset(
    {
        *("seconds", "images_per_s", STEP_SECONDS, "data_wait", "tokens_per_s", "tflops", "mfu"),
        *("peak_tflops", "memory_bytes", "eta_s"),
    }
)
"""figures of a log line that differ between equal trainings"""
STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Monitoring:
    """What is known of a stage before it runs, and where its figures go.

    tokens, flops: of one training sample, 0: unknown; peak_tflops: of all ranks together, 0:
    unknown; to: see sinks.py; name, config: what trackers call the run and keep with it.
    """

    tokens: int = 0
    flops: int = 0
    peak_tflops: float = 0.0
    to: tuple[str, ...] = ("tensorboard",)
    name: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def monitoring_of(config: Config, stage: str, root: Path, world: World) -> Monitoring:
    """Count and measure what `Monitoring` says. Collective."""
    cfg: TrainConfig = getattr(config, f"{stage}_train")
    dims = config.dims(config.data.vocabulary)
    peak = peak_of(world.device, cfg.precision, config.log.peak_tflops)
    total, known = add_over_ranks(world, [peak.tflops if peak else 0.0, float(peak is not None)])
    flops = training_flops(config, stage).total
    if peak is not None and world.is_main:
        logger.info(
            "%s: %.3g GFLOP a sample; MFU against %.4g TFLOP/s a device (%s)",
            stage,
            flops / 1e9,
            peak.tflops,
            peak.source,
        )
    return Monitoring(
        tokens=dims.positions + (dims.text_length if stage == "fusion" else 0),
        flops=flops,
        peak_tflops=total if known == world.size else 0.0,
        to=config.log.to,
        name=f"{root.resolve().name}/{stage}",
        config=config.model_dump(mode="json"),
    )


class Telemetry:
    """Turns means between two log lines into figures of a line."""

    def __init__(self, monitoring: Monitoring, world: World, cfg: TrainConfig, step: int) -> None:
        """step: optimizer steps done before this process began."""
        self._known, self._world, self._cfg = monitoring, world, cfg
        self._first, self._started = step, time.perf_counter()

    def figures(self, means: Mapping[str, float], step: int) -> dict[str, float]:
        """`means` of the steps since the last line, after `step` steps -> what the line says:

        the means without the two times of the loop; step_seconds, data_wait (share of it),
        images_per_s, tokens_per_s, tflops, mfu, peak_tflops, memory_bytes, eta_s. Collective.
        """
        found = dict(means)
        seconds = found.pop(STEP_SECONDS)
        waited = found.pop(DATA_SECONDS, 0.0)
        share, memory = _largest(self._world, [waited / seconds, float(memory_bytes(self._world))])
        rate = self._cfg.batch / seconds
        found |= {"images_per_s": rate, STEP_SECONDS: seconds, "data_wait": share}
        if self._known.tokens:
            found["tokens_per_s"] = rate * self._known.tokens
        if self._known.flops:
            found["tflops"] = rate * self._known.flops / 1e12
        if self._known.flops and self._known.peak_tflops:
            found["mfu"] = found["tflops"] / self._known.peak_tflops
            found["peak_tflops"] = self._known.peak_tflops
        return found | {"memory_bytes": memory, "eta_s": self._left(step)}

    def _left(self, step: int) -> float:
        """Seconds to the last step, at the pace of this process with its evaluations and saves."""
        pace = (time.perf_counter() - self._started) / max(1, step - self._first)
        return pace * (self._cfg.steps - step)


def memory_bytes(world: World) -> int:
    """CUDA: the most that was allocated on this device since the last call; CPU: what is resident
    of this process now.
    """
    if world.device.type == "cuda":
        most = torch.cuda.max_memory_allocated(world.device)
        torch.cuda.reset_peak_memory_stats(world.device)
        return most
    if STATM.is_file():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _largest(world: World, values: list[float]) -> list[float]:
    """Element-wise maximum over ranks. One collective."""
    if world.size == 1:
        return values
    most = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return [float(v) for v in most]
