"""Real signals on real processes: SIGTERM saves, SIGKILL loses at most the steps since a save."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.ranks import digest, stored

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
from pathlib import Path
from mmprod.errors import MmprodError
from mmprod.training.loop import train_stage
from tests.training.tiny import make_job, tiny_config

config = tiny_config(steps=40, eval_every=20, save_every=10)
try:
    job = make_job(config, Path(sys.argv[1]))
    with job.stop:
        train_stage(job)
except MmprodError as error:
    sys.exit(error.exit_code)
"""


def start(folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env=environment)


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None or condition(), f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def outcome(folder):
    """Hash of the last step's weights and averages."""
    last = folder / "checkpoints" / "step-00000040"
    fields = ("weight", "average", "exp_avg", "exp_avg_sq")
    return [digest(stored(last, field)) for field in fields]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, number):
    assert start(tmp_path / "straight").wait() == 0
    killed = start(tmp_path / "killed")
    saved = tmp_path / "killed" / "checkpoints" / "step-00000010" / "manifest.json"
    wait_for(saved.exists, killed)
    killed.send_signal(number)
    code = killed.wait()
    assert code == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert start(tmp_path / "killed").wait() == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")
