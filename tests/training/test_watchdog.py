"""A hang ends with stacks; one hanging rank of two ends both."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmprod.training.distributed import World
from mmprod.training.watchdog import ALLOWANCE, Watchdog, summary, where

ROOT = Path(__file__).resolve().parents[2]
ALONE = World(0, 1, torch.device("cpu"))

HANG = """
import sys, time
from pathlib import Path
import torch
from mmprod.log import configure_logging
from mmprod.training.distributed import World
from mmprod.training.watchdog import Watchdog

def wait_for_nothing():
    time.sleep(60)

configure_logging(0)
with Watchdog(World(0, 1, torch.device("cpu")), Path(sys.argv[1]), 0.3) as watchdog:
    watchdog.saved = sys.argv[2] == "saved"
    watchdog.beat("step", 7)
    wait_for_nothing()
"""

STUCK = """
import sys, time
import torch
torch.ops  # imported before the clock starts
from pathlib import Path
from mmprod.log import configure_logging
from mmprod.training.deepspeed_config import read_deepspeed
from mmprod.training.distributed import join, leave
from mmprod.training.loop import train_stage
from tests.training.tiny import make_job, tiny_config

def sleep_for_ever():
    time.sleep(600)

configure_logging(0)
world = join(group=True)
job = make_job(
    tiny_config(hang_s=2, save_every=2, eval_every=8),
    Path(sys.argv[1]), world=world, deepspeed=read_deepspeed(Path("configs/deepspeed/zero1.json")),
)
after_step, steps = job.task.after_step, []

def stuck(**options):
    steps.append(1)
    if world.rank == 1 and len(steps) == 4:
        sleep_for_ever()
    return after_step(**options)

job.task.after_step = stuck
train_stage(job)
leave(0)
"""


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("saved", "code"), [("saved", 75), ("nothing", 3)])
def test_a_hang_leaves_stacks_and_the_code_that_fits(tmp_path, saved, code):
    command = [sys.executable, "-c", HANG, str(tmp_path), saved]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=50)
    assert done.returncode == code, done.stderr
    stacks = (tmp_path / "hang-rank-0.txt").read_text()
    assert "in step after step 7, in wait_for_nothing (<string>" in stacks.splitlines()[0]
    assert "wait_for_nothing" in stacks.partition("\n\n")[2]
    assert "no progress for" in done.stderr and "rank 0 in wait_for_nothing" in done.stderr


def test_progress_is_no_hang_and_long_phases_have_their_own_limit(tmp_path):
    with Watchdog(ALONE, tmp_path, 0.4) as watchdog:
        for step in range(6):
            watchdog.beat("step", step)
            time.sleep(0.12)
        watchdog.beat("evaluation", 6)
        time.sleep(0.8)
        assert ALLOWANCE["evaluation"] * 0.4 > 0.8
    assert list(tmp_path.iterdir()) == []


def test_zero_means_no_watch(tmp_path):
    with Watchdog(ALONE, tmp_path, 0) as watchdog:
        assert watchdog._thread is None


def test_the_summary_groups_ranks_and_names_the_odd_one_first():
    places = {0: "all_reduce (d.py:1)", 1: "read (t.py:9)", 2: "all_reduce (d.py:1)"}
    assert summary(places) == "rank 1 in read (t.py:9); ranks 0 2 in all_reduce (d.py:1)"
    many = summary(dict.fromkeys(range(100), "f (a.py:1)"))
    assert many == "ranks 0 1 2 3 4 5 6 7 ... in f (a.py:1)"
    assert where(None) == "no Python code"
    assert where(sys._getframe()).startswith("test_the_summary")


@pytest.mark.slow
def test_one_rank_that_sleeps_ends_both_within_the_limit(tmp_path):
    from tests.training.hung import start_ranks

    codes, output, seconds = start_ranks(["-c", STUCK, str(tmp_path / "codec")], tmp_path)
    assert codes == [75, 75], output
    first = (tmp_path / "codec" / "hang-rank-1.txt").read_text()
    assert "sleep_for_ever" in first.splitlines()[0]
    assert "in sleep_for_ever" in first and "time.sleep" not in first.splitlines()[0]
    assert "all_reduce" in (tmp_path / "codec" / "hang-rank-0.txt").read_text()
    assert "rank 1 in sleep_for_ever" in output and "rank 0 in all_reduce" in output
    assert seconds < 60
