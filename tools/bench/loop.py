"""Our training loop beside a bare DeepSpeed loop: same model, data in memory, optimizer, ds.json.

The real loop runs (`train_stage`: prefetch, checks on every rank, averaged weights, log lines); at
the end of every block of steps it is held while the bare loop makes as many, in the same processes.
So both meet the same load, and the figure is the median of the ratios of neighbouring blocks. The
bare loop is what a user would write: forward, backward, step, move the codebook. Evaluation and
saving stay outside.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmprod.config.load import configs_dir
from mmprod.config.schema import Config
from mmprod.training.backend import parameter_groups
from mmprod.training.checkpointing import Identity
from mmprod.training.deepspeed_config import Json, read_deepspeed, resolve
from mmprod.training.distributed import World, join, leave
from mmprod.training.loop import StageJob, train_stage
from mmprod.training.run import build_backend
from mmprod.training.shares import Shares
from mmprod.training.task import Task
from tools.bench.measure import Row
from tools.bench.tasks import build_task, job_config

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
"""of a block"""
MOST = 1.03
"""ours against bare"""
CASES = [(stage, zero) for stage in ("codec", "fusion") for zero in (1, 2)]
LIMIT_S = 3600


class Mixed(nn.Module):
    """The model under autocast, where an engine cannot switch it off."""

    def __init__(self, inner: nn.Module, device: str, bf16: bool) -> None:
        super().__init__()
        self.inner, self._device, self._bf16 = inner, device, bf16

    def forward(self, *batch: Tensor) -> Any:
        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            return self.inner(*batch)


class Bare:
    """What a user of DeepSpeed writes."""

    def __init__(self, config: Config, stage: str, raw: Json, world: World) -> None:
        import deepspeed

        cfg = config.codec_train if stage == "codec" else config.fusion_train
        self._task = build_task(config, stage, world.device)
        resolved = resolve(json.loads(json.dumps(raw)), cfg, world.size)
        model = Mixed(self._task.model, world.device.type, cfg.precision == "bf16")
        self._engine, *_ = deepspeed.initialize(
            model=model.train(),
            model_parameters=parameter_groups(self._task.model, cfg),
            config=resolved.config,
            dist_init_required=False,
        )
        shares = Shares(cfg.seed, cfg.batch, world.rank, world.size)
        epoch = range(self._task.size // cfg.batch)  # fewer batches would be learnt by heart
        batches = [self._task.batch(shares.of(n, self._task.size, None)[0]) for n in epoch]
        self._batches: Iterator[tuple[Tensor, ...]] = cycle(batches)

    def run(self) -> None:
        """One block."""
        for batch in islice(self._batches, STEPS):
            loss = self._engine(*batch)["loss"]
            self._engine.backward(loss)
            self._engine.step()
            self._task.after_step()


@dataclass
class Clock:
    """Seconds of the blocks of both loops: (wall, processor) of each."""

    ours: list[tuple[float, float]]
    bare: list[tuple[float, float]]

    @property
    def ratio(self) -> float:
        return self._median(0)

    @property
    def processor_ratio(self) -> float:
        return self._median(1)

    def _median(self, kind: int) -> float:
        pairs = zip(self.ours, self.bare, strict=True)
        return statistics.median(a[kind] / b[kind] for a, b in pairs)

    def step_ms(self, which: str) -> float:
        return 1e3 * statistics.median(t[0] for t in getattr(self, which)) / STEPS


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    end = now()
    return end[0] - start[0], end[1] - start[1]


def hold_after_blocks(task: Task, bare: Bare) -> Clock:
    """From now on `task` runs a bare block after each block of its own. The first pair warms up."""
    clock, state = Clock([], []), {"steps": 0, "start": now()}
    inner = task.after_step

    def after_step(*, learn: bool = True) -> dict[str, float]:
        readouts = inner(learn=learn)
        state["steps"] += 1
        if state["steps"] % STEPS == 0:
            ours = since(state["start"])
            start = now()
            bare.run()
            if state["steps"] > STEPS:
                clock.ours.append(ours)
                clock.bare.append(since(start))
            state["start"] = now()
        return readouts

    task.after_step = after_step  # type: ignore[method-assign]
    return clock


def compare(config: Config, stage: str, zero: int, world: World, folder: Path) -> Clock:
    """Both loops, in turn."""
    raw = read_deepspeed(configs_dir() / "deepspeed" / f"zero{zero}.json")
    job = stage_job(config, stage, world, folder, raw)
    bare = Bare(config, stage, raw, world)
    clock = hold_after_blocks(job.task, bare)
    train_stage(job)
    return clock


def stage_job(config: Config, stage: str, world: World, folder: Path, raw: Json | None) -> StageJob:
    """A job on data in memory."""
    cfg = config.codec_train if stage == "codec" else config.fusion_train
    task = build_task(config, stage, world.device)
    whole = build_task(config, stage, world.device).model.eval() if world.is_main else None
    backend = build_backend(task, cfg, raw, world)
    identity = Identity(stage, "", "", "", backend.identity)
    return StageJob(task, backend, world, cfg, folder, identity, whole)


def on_rank(order: Json) -> Json:
    """What one rank measures."""
    world = join(group=True)
    config = job_config(STEPS * (order["rounds"] + 1) + 1)
    found: Json = {}
    for stage, zero in CASES:
        folder = Path(order["out"]).parent / f"{stage}-{zero}"
        found[f"{stage} zero-{zero}"] = vars(compare(config, stage, zero, world, folder))
    return found


def launch(world: int, order: Json) -> list[Clock]:
    """Run `world` ranks here; the clocks of rank 0, in the order of CASES."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        text = json.dumps({**order, "out": str(out)})
        shared = os.environ | {
            "WORLD_SIZE": str(world), "LOCAL_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tools.bench.loop", text],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                cwd=ROOT,
                stdout=sys.stderr,
            )
            for rank in range(world)
        ]
        try:
            codes = [rank.wait(LIMIT_S) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(codes):
            raise RuntimeError(f"the ranks of the loop bench ended with {codes}")
        found = json.loads(out.read_text())
    return [Clock(**found[f"{stage} zero-{zero}"]) for stage, zero in CASES]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows(rounds: int, worlds: tuple[int, ...] = (1, 2)) -> list[Row]:
    """Both stages, ZeRO 1 and 2, on one process and on two."""
    found = []
    for world in worlds:
        order = {"rounds": rounds}
        for (stage, zero), clock in zip(CASES, launch(world, order), strict=True):
            what = f"loop, {stage}, ZeRO {zero}, {world} rank{'s' if world > 1 else ''}"
            found.append(
                Row(
                    f"{what} (processor time {clock.processor_ratio:.3f} x)",
                    clock.step_ms("ours"),
                    "bare DeepSpeed",
                    clock.step_ms("ours") / clock.ratio,
                    "ms",
                    f"<= {MOST:g} x of its time",
                    clock.ratio <= MOST,
                )
            )
    return found


def main() -> None:
    order = json.loads(sys.argv[1])
    found = on_rank(order)
    if os.environ["RANK"] == "0":
        Path(order["out"]).write_text(json.dumps(found))
    leave(0)


if __name__ == "__main__":
    main()
