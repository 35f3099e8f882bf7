"""`mmprod train --chaos kills=20,seed=1`: the proof, on the user's machines, that a job survives.

The ranks send signals to themselves by a seeded plan (training/chaos.py). Here is what starts them
again, where no scheduler does, and what comes after the last kill: the same job once more without
any, and a comparison of the two to the bit.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from mmprod.cli.early import nothing_to_save
from mmprod.cli.launch import is_rank, record_exit
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.progress import TrainingTicks, progress
from mmprod.errors import IntegrityError, Preempted
from mmprod.log import own_rank

if TYPE_CHECKING:
    from mmprod.config.schema import Config
    from mmprod.training.chaos import ChaosPlan
    from mmprod.training.compare import Match

STRAIGHT, LIVES, REPORT = "straight", "lives.jsonl", "report.json"
"""beside the records of kills: the uninterrupted run, how each process ended, the verdict"""


def drive(out: Output, plan: ChaosPlan, run: Path, command: Sequence[str]) -> int:
    """Start `mmprod *command` until it ends without having been killed; returns its exit code."""
    from mmprod.training.chaos import chaos_folder, kill_records

    folder = chaos_folder(run)
    while True:
        known, started = len(kill_records(folder)), time.monotonic()
        code, said = _life(command)
        records = kill_records(folder)[known:]
        if not records or code == 0:
            sys.stdout.write(said)  # one document, of the last start
        if not records:
            return code
        seconds = round(time.monotonic() - started, 1)
        life = {"kills": [r["number"] for r in records], "code": code, "seconds": seconds}
        with (folder / LIVES).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(life) + "\n")
        for record in records:
            out.note(
                f"{record['number'] + 1} of {plan.kills}: {record['signal']} to rank "
                f"{record['rank']} in {record['phase']} ended the job with {code} after "
                f"{seconds} s"
            )
        if code == 0:
            return code


def _life(command: Sequence[str]) -> tuple[int, str]:
    """One start of the job: its exit code and results. SIGTERM to this process is passed on and
    ends the driving too.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "mmprod", *command], stdout=subprocess.PIPE, text=True
    )

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)
        raise Preempted("asked to stop", hint="start the same command again: it goes on from there")

    before = signal.signal(signal.SIGTERM, forward)
    try:
        said, _ = child.communicate()
    finally:
        child.wait()
        signal.signal(signal.SIGTERM, before)
    code = child.returncode
    return (code if code >= 0 else 128 - code), said


def train_under_chaos(
    out: Output,
    config: Config,
    run: Path,
    plan: ChaosPlan,
    how: tuple[Sequence[str], Path | None],
) -> None:
    """One life of the job; in the last one, the uninterrupted run and the verdict. `how`: stages,
    DeepSpeed file. Exits with 0, or with 4 when something differs.
    """
    with nothing_to_save():
        from mmprod.training.chaos import chaos_folder
        from mmprod.training.run import Order, train_order

    stages, deepspeed = how
    straight = chaos_folder(run) / STRAIGHT
    with progress(out, TrainingTicks()) as on_event:
        train_order(config, run, Order(stages, deepspeed, on_event=on_event, chaos=plan))
        train_order(config, straight, Order(stages, deepspeed, on_event=on_event))
    code = 0
    if own_rank() == 0 and not _verdict(out, plan, run, stages):
        code = IntegrityError.exit_code
    if is_rank():
        from mmprod.training.distributed import leave

        record_exit(code)
        leave(code, "the killed run differs from the uninterrupted one" if code else "")
    raise typer.Exit(code)


def _verdict(out: Output, plan: ChaosPlan, run: Path, stages: Sequence[str]) -> bool:
    """Compare, write the report, show it."""
    from mmprod.manifest import write_json
    from mmprod.training.chaos import chaos_folder, kill_records
    from mmprod.training.compare import compare_runs

    folder = chaos_folder(run)
    records, matches = kill_records(folder), compare_runs(run, folder / STRAIGHT, tuple(stages))
    wrong = _wrong_codes(folder, records)
    faults = [f"{match.stage}: {match.what}" for match in matches if not match.equal] + wrong
    if len(records) < plan.kills:
        faults.append(f"only {len(records)} of {plan.kills} kills found room before the end")
    data = {
        "run": str(run),
        "uninterrupted": str(folder / STRAIGHT),
        "kills": {"asked": plan.kills, "sent": len(records), **_counts(records)},
        "matches": [asdict(match) | {"equal": match.equal} for match in matches],
        "faults": faults,
        "verdict": "fail" if faults else "pass",
    }
    write_json(folder / REPORT, data)
    out.result(data, *_tables(plan, run, records, matches), Text(_sentence(faults, records)))
    return not faults


def _wrong_codes(folder: Path, records: Sequence[dict[str, Any]]) -> list[str]:
    """Lives that SIGTERM should have ended with 75. What started them knows, if we did."""
    path = folder / LIVES
    if not path.is_file():
        return []
    lives = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    asked = {r["number"] for r in records if r["signal"] == "SIGTERM"}
    fine = (0, Preempted.exit_code)
    return [
        f"kill {number + 1}: SIGTERM ended the job with {life['code']}"
        for life in lives
        for number in life["kills"]
        if number in asked and life["code"] not in fine
    ]


def _counts(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    keys = ("SIGKILL", "SIGTERM", "save", "step", "evaluation", "start")
    return {key: sum(key in (r["signal"], r["place"]) for r in records) for key in keys}


def _tables(
    plan: ChaosPlan, run: Path, records: Sequence[dict[str, Any]], matches: Sequence[Match]
) -> list[Table]:
    counts = _counts(records)
    places = ("save", "step", "evaluation", "start")
    sent = [
        (name, *(sum(r["signal"] == name and r["place"] == p for r in records) for p in places))
        for name in ("SIGKILL", "SIGTERM")
    ]
    compared = [
        (
            m.stage,
            m.what,
            f"{m.values:,}",
            "equal to the bit" if m.equal else f"differs: {m.differs}",
        )
        for m in matches
    ]
    total = f"{len(records)} of {plan.kills} kills sent, {counts['save']} of them inside saves"
    return [
        Table(total, ("signal", *(f"in {p}" for p in places)), sent),
        Table(
            f"{shown(run)} against the uninterrupted run",
            ("stage", "what", "numbers", "verdict"),
            compared,
        ),
    ]


def _sentence(faults: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    if faults:
        return "FAIL: " + "; ".join(faults)
    return f"PASS: after {len(records)} kills every number is the one of the uninterrupted run"
