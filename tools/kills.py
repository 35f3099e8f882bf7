"""Kill a tiny job of two ranks again and again, and compare it with one that was left alone.

    python tools/kills.py --out FOLDER [--kills 15] [--zero 1 --zero 3]

The same plan and ranks as `mmprod train --chaos`, for each ZeRO stage with saves in the foreground
and in the background: 4 x 15 kills of codec and fusion model. A launcher would spend nearly all of
the time on imports, so here the ranks are forked from one process that has imported everything.
Run it again to go on after an interruption. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NoReturn

import deepspeed  # noqa: F401  # before the forks

from mmprod.config.schema import Config
from mmprod.errors import MmprodError, Preempted
from mmprod.log import configure_logging
from mmprod.training.chaos import ChaosPlan, chaos_folder, kill_records
from mmprod.training.compare import compare_runs
from mmprod.training.distributed import leave
from mmprod.training.run import Order, train_order

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("codec", "fusion")
RANKS = 2


def job(in_background: bool) -> Config:
    """Seconds long: 32 pixels, 64 pictures, 40 steps of each stage, a save every other step."""
    train = {"steps": 40, "batch": 16, "warmup": 2, "precision": "fp32", "log_every": 4}
    train |= {"eval_every": 8, "save_every": 2, "async_save": in_background}
    small = {"width": 16, "heads": 2, "image_encoder": 1, "text_encoder": 1, "joint": 1}
    return Config.model_validate(
        {
            "name": "kills",
            "data": {"count": 64, "image_size": 32, "text_length": 24, "vocabulary": 300},
            "codec": {"patch": 2, "channels": 8, "multipliers": (1, 2), "codebook_size": 32},
            "codec_train": train,
            "fusion": {**small, "shared": 1, "embedding": 8},
            "fusion_train": train,
            "sampler": {"image_steps": 2, "text_steps": 2},
        }
    )


def rank(number: int, port: int, config: Config, root: Path, order: Order, log: Path) -> NoReturn:
    """One rank, from here to its end."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    places = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "LOCAL_SIZE": RANKS}
    places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    configure_logging(0)
    try:
        train_order(config, root, order)
    except MmprodError as error:
        print(f"error: {error.message}", flush=True)
        leave(error.exit_code, error.message)
    leave(0)


def life(config: Config, root: Path, order: Order, log: Path) -> list[int]:
    """Fork the ranks and wait for all of them. Negative codes: ended by that signal."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for number in range(RANKS):
        child = os.fork()
        if child == 0:
            try:
                rank(number, port, config, root, order, log)
            finally:  # an unexpected error must not go on as a second parent
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(1)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def series(plan: ChaosPlan, zero: int, in_background: bool, folder: Path) -> bool:
    """All kills of one setting, the uninterrupted run, the comparison."""
    name = f"zero{zero}-{'background' if in_background else 'foreground'}"
    root, config, log = folder / name, job(in_background), folder / f"{name}.log"
    deepspeed_file = ROOT / "configs" / "deepspeed" / f"zero{zero}.json"
    order = Order(STAGES, deepspeed_file, chaos=plan)
    codes, started = [0], time.monotonic()
    while True:
        known = len(kill_records(chaos_folder(root)))
        codes = life(config, root, order, log)
        records = kill_records(chaos_folder(root))[known:]
        fine = bool(records) or codes == [0] * RANKS
        if any(r["signal"] == "SIGTERM" for r in records):
            fine = codes in ([0] * RANKS, [Preempted.exit_code] * RANKS)
        for record in records:
            keys = ("number", "signal", "rank", "phase", "step", "after_s")
            print(name, json.dumps({k: record[k] for k in keys}), "->", codes, flush=True)
        if not fine:
            print(f"{name}: ended with {codes}, see {log}")
            return False
        if not records:
            break
    records = kill_records(chaos_folder(root))
    straight = chaos_folder(root) / "straight"
    if life(config, straight, Order(STAGES, deepspeed_file), log) != [0] * RANKS:
        print(f"{name}: the uninterrupted run failed, see {log}")
        return False
    unlike = [m for m in compare_runs(root, straight, STAGES) if not m.equal]
    counts = Counter(f"{r['signal']} in {r['place']}" for r in records)
    verdict = "every bit equal" if not unlike else f"DIFFERS: {unlike}"
    print(f"{name}: {len(records)} of {plan.kills} kills in {time.monotonic() - started:.0f} s")
    print(f"  {dict(counts)}: {verdict}", flush=True)
    return not unlike and len(records) == plan.kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--zero", type=int, action="append")
    parser.add_argument("--saves", choices=("foreground", "background", "both"), default="both")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ways = {"foreground": [False], "background": [True], "both": [False, True]}[options.saves]
    done = [
        series(ChaosPlan(options.kills, zero), zero, way, options.out)
        for zero in options.zero or [1, 3]
        for way in ways
    ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
