"""What each rank of the multi-process tests does: train with every DeepSpeed file, then report.

Started as a program: `ranks.py ORDER.json`, with the launcher's variables set. Rank r writes
<folder>/rank-r.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def variables(world: int) -> dict[str, str]:
    """The environment that `world` ranks on this machine share, with a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return os.environ | {
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def launch(
    folder: Path,
    order: dict[str, Any],
    world: int,
    timeout_s: int = 900,
    program: Path = Path(__file__),
) -> list[dict[str, Any]]:
    """Run `world` ranks on `order` and return what each reported. Fails with their output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "order.json").write_text(json.dumps({**order, "folder": str(folder)}))
    shared = variables(world)
    command = [sys.executable, str(program), str(folder / "order.json")]
    logs = [(folder / f"rank-{rank}.log").open("w") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [rank.wait(timeout_s) for rank in ranks]
    finally:
        for rank, log in zip(ranks, logs, strict=True):
            rank.kill()
            rank.wait()
            log.close()
    output = "\n".join((folder / f"rank-{rank}.log").read_text() for rank in range(world))
    assert codes == [0] * world, f"exit codes {codes}\n{output}"
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]


def digest(tensors: dict[str, Any]) -> str:
    """One hash over named tensors, bit for bit."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        tensor = tensors[name].detach().cpu().contiguous()
        exact = tensor.float() if tensor.is_floating_point() else tensor  # numpy has no bf16
        total.update(exact.numpy().tobytes())
    return total.hexdigest()


def stored(step: Path, field: str) -> dict[str, Any]:
    """One field of every parameter in a step folder, whole: weight, average or a moment."""
    import torch

    from mmprod.checkpoint.consolidate import open_step

    opened = open_step(step)
    return {
        name: torch.from_numpy(opened.field(whole, field)) for name, whole in opened.index.items()
    }


def report(job: Any, losses: list[float]) -> dict[str, Any]:
    """What is compared: losses, codebook, and weights and averages of the last step.

    Not model.safetensors, which is written only where an evaluation is the best so far. Whole
    weights on rank 0: a shard of ZeRO-3 ends in padding, which nobody initialises or reads.
    """
    last = sorted(job.folder.glob("checkpoints/step-*"))[-1]
    assert int(last.name.removeprefix("step-")) == job.cfg.steps
    return {
        "losses": losses,
        "buffers": digest(dict(job.task.model.named_buffers())),
        "weights": digest(job.backend.gather(job.backend.weights())),
        "averages": digest(stored(last, "average")),
        "beside": digest(job.task.state()),
    }


def train_and_report(
    folder: Path,
    world: Any,
    deepspeed: Any,
    stage: str,
    train: dict[str, Any],
    codec: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train straight through; then again stopping half-way and resuming in a new engine."""
    from mmprod.training.loop import train_stage
    from tests.training.tiny import make_job, tiny_config, with_codec

    config = with_codec(tiny_config(**train), **(codec or {}))
    out: dict[str, Any] = {}
    for name in ("straight", "resumed"):
        losses: list[float] = []

        def note(event: Any, losses: list[float] = losses) -> None:
            if event.kind == "log":
                losses.append(event.metrics["loss"])

        arguments = {"stage": stage, "world": world, "deepspeed": deepspeed, "on_event": note}
        if name == "resumed":
            half = make_job(config, folder / name, **arguments)
            stop_after(half, config.codec_train.save_every)
        job = make_job(config, folder / name, **arguments)
        train_stage(job)
        out[name] = report(job, losses)
    return out


def stop_after(job: Any, step: int) -> None:
    """Train like a process that is asked to stop during step `step`."""
    import signal

    from mmprod.errors import Preempted
    from mmprod.training.loop import train_stage

    def note(event: Any) -> None:
        if job.on_event is not None:
            job.on_event(event)
        if event.kind == "log" and event.step == step - 1:
            signal.raise_signal(signal.SIGUSR1)

    try:
        with job.stop:
            train_stage(replace(job, on_event=note))
    except Preempted:
        return
    raise AssertionError("the job did not stop")


def train_part(folder: Path, world: Any, deepspeed: Any, part: str) -> dict[str, Any]:
    """The first half of a codec's training in `folder`, or the second half of what is there."""
    from mmprod.training.loop import train_stage
    from tests.training.tiny import make_job, tiny_config

    config, losses = tiny_config(), []

    def note(event: Any) -> None:
        if event.kind == "log":
            losses.append(event.metrics["loss"])

    job = make_job(config, folder, world=world, deepspeed=deepspeed, on_event=note)
    if part == "first":
        stop_after(job, config.codec_train.save_every)
        return {"losses": losses}
    train_stage(job)
    return report(job, losses)


def nan_on_rank(job: Any, rank: int) -> str:
    """Train with a loss that is NaN on one rank in step 2. Returns the error that was raised."""
    import math

    from mmprod.errors import NumericsError
    from mmprod.training.loop import train_stage

    calls = []

    def poison(module: Any, inputs: Any, losses: dict[str, Any]) -> dict[str, Any]:
        calls.append(1)
        bad = job.world.rank == rank and len(calls) == 2
        return {**losses, "loss": losses["loss"] * math.nan} if bad else losses

    job.task.model.register_forward_hook(poison)
    try:
        train_stage(job)
    except NumericsError as error:
        return error.message
    return "no error"


def main(order_path: Path) -> None:
    from mmprod.training.deepspeed_config import read_deepspeed
    from mmprod.training.distributed import join, leave

    order = json.loads(order_path.read_text())
    world = join(group=True)
    results = {}
    for name, path in order["files"].items():
        raw = read_deepspeed(Path(path))
        folder = Path(order["folder"]) / name
        if order.get("part"):
            results[name] = train_part(Path(order["at"]), world, raw, order["part"])
            continue
        if order.get("freeze"):
            from tests.training.frozen import train_frozen

            results[name] = train_frozen(folder, world, raw, order)
            continue
        results[name] = train_and_report(
            folder, world, raw, order["stage"], order["train"], order.get("codec")
        )
    if order.get("nan"):
        from tests.training.tiny import make_job, tiny_config

        raw = read_deepspeed(Path(order["files"][order["nan"]]))
        folder = Path(order["folder"]) / "nan"
        job = make_job(tiny_config(), folder, world=world, deepspeed=raw)
        results["nan"] = nan_on_rank(job, rank=1)
    (order_path.parent / f"rank-{world.rank}.json").write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
