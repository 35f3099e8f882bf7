"""One job at a time trains in a run folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmprod.errors import EnvironmentMissing
from mmprod.training import run, run_lock
from mmprod.training.run_lock import lock_run
from mmprod.training.stopping import StopRequest
from tests.training.mini import mini_config
from tests.training.tiny import ALONE

ROOT = Path(__file__).resolve().parents[2]

HOLDER = """
import sys, time
from pathlib import Path
import torch
from mmprod.training.distributed import World
from mmprod.training.run_lock import lock_run
from mmprod.training.stopping import StopRequest
with lock_run(Path(sys.argv[1]), World(0, 1, torch.device("cpu")), StopRequest()):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_job_is_refused_by_name_and_goes_on_after_the_first_one_died(
    tmp_path, holder, monkeypatch
):
    monkeypatch.setattr(run_lock, "WAIT_S", 0.3)
    owner = f"process {holder.pid} on .*, since 2"
    with (
        pytest.raises(EnvironmentMissing, match=owner) as caught,
        lock_run(tmp_path, ALONE, StopRequest()),
    ):
        raise AssertionError
    assert "--out" in caught.value.hint
    monkeypatch.setattr(run_lock, "WAIT_S", 20.0)
    holder.send_signal(signal.SIGKILL)  # it may still be dying
    with lock_run(tmp_path, ALONE, StopRequest()):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_train_takes_it_before_it_touches_a_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT_S", 0.0)
    monkeypatch.setattr(run, "prepare", lambda *_: None)
    monkeypatch.setattr(run, "_finished", lambda *_: pytest.fail("it went on"))
    with (
        lock_run(tmp_path, ALONE, StopRequest()),
        pytest.raises(EnvironmentMissing, match="another job trains in"),
    ):
        run.train(mini_config(), tmp_path)


def test_it_is_let_go_at_the_end_and_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT_S", 0.0)
    with pytest.raises(KeyError), lock_run(tmp_path, ALONE, StopRequest()):
        raise KeyError
    for _ in range(2):
        with lock_run(tmp_path, ALONE, StopRequest()):
            pass


def test_a_file_system_without_locks_is_said_so(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_run(tmp_path, ALONE, StopRequest()):
        pass
    assert "knows no locks" in caplog.text
