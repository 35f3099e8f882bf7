"""Signals in every phase: what is given up, what is saved, which code, and an equal end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mmprod.errors import Interrupted, Preempted
from mmprod.training.distributed import World
from mmprod.training.loop import train_stage
from mmprod.training.stopping import SIGNALS, StopRequest, only_main_until_stopped, raise_if_stopped
from tests.training.asked import PHASES
from tests.training.hung import ROOT, ended, spawn
from tests.training.ranks import digest
from tests.training.tiny import ALONE, make_job, tiny_config


def send(number: signal.Signals, delay_s: float = 0.1) -> None:
    timer = threading.Timer(delay_s, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def wait_in_python(seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_long_phase_is_given_up_at_once(number):
    kind, code = (Interrupted, 130) if number == signal.SIGINT else (Preempted, 75)
    before = [signal.getsignal(n) for n in SIGNALS]
    started = time.monotonic()
    with StopRequest() as stop, pytest.raises(Preempted, match="what was done is kept") as caught:
        send(number)
        only_main_until_stopped(ALONE, stop, wait_in_python, "what was done is kept")
    assert type(caught.value) is kind and caught.value.exit_code == code
    assert time.monotonic() - started < 5
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_outside_such_a_phase_a_signal_only_sets_the_flag():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
        wait_in_python(0.2)
        assert stop.received == "SIGUSR1" and stop.flags == [1.0, 0.0]
        with pytest.raises(Preempted, match="asked to stop; all is well"):
            raise_if_stopped(ALONE, stop, "all is well")


def test_a_phase_that_begins_after_the_signal_does_not_begin():
    done = []
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Preempted):
            only_main_until_stopped(ALONE, stop, lambda: done.append(1), "nothing was begun")
    assert done == []


class Late(StopRequest):
    """A signal comes just before the flag is cleared."""

    def __setattr__(self, name, value):
        if name == "_giving_up" and not value and getattr(self, name, "") and not self.received:
            signal.raise_signal(signal.SIGTERM)
        super().__setattr__(name, value)


def test_a_signal_at_the_end_of_a_phase_leaves_no_flag():
    with Late() as stop:
        with pytest.raises(Preempted), stop.giving_up("done"):
            pass
        assert stop.received and stop._giving_up == ""


def test_an_error_of_helpers_that_got_the_signal_too_is_a_request():
    """Worker processes die by the same signal, and their pool then raises what it likes."""

    def broken_pool():
        wait_in_python(0.3)
        raise RuntimeError("a worker vanished")

    with StopRequest() as stop:
        with pytest.raises(RuntimeError, match="vanished"):
            only_main_until_stopped(ALONE, stop, broken_pool, "")
        stop.received, stop._raised = "SIGTERM", float("inf")  # as if the exception was swallowed
        stop._giving_up = ""
        with pytest.raises(Preempted), stop.giving_up("kept"):
            raise RuntimeError("a worker vanished")


def test_it_listens_to_nothing_outside_the_main_thread():
    found = []

    def other():
        with StopRequest() as stop:
            found.append(stop.flags)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [[0.0, 0.0]]


def test_the_first_interrupt_saves_and_ends_with_130(tmp_path):
    def stop(event):
        if event.kind == "log" and event.step == 2:
            signal.raise_signal(signal.SIGINT)

    job = make_job(tiny_config(), tmp_path, on_event=stop)
    with pytest.raises(Interrupted, match="saved at step 3"), job.stop:
        train_stage(job)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000003\n"


TWICE = """
import time
from mmprod.training.stopping import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.received:
        time.sleep(0.01)
    print("once", flush=True)
    time.sleep(60)
"""


def test_a_second_interrupt_leaves_at_once():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE], stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "once\n"
        process.send_signal(signal.SIGINT)  # terminal and launcher: the same Ctrl-C
        time.sleep(1.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


class SlowJudge:
    """A task whose first evaluation takes long, unless asked to stop meanwhile."""

    def __init__(self, task):
        self._task, self.calls = task, 0

    def __getattr__(self, name):
        return getattr(self._task, name)

    def evaluate(self, model):
        self.calls += 1
        if self.calls == 1:
            send(signal.SIGTERM)
            wait_in_python()
        return self._task.evaluate(model)


@pytest.mark.parametrize("at", [4, 8], ids=["half-way", "last"])
def test_an_evaluation_is_given_up_and_made_up_for(tmp_path, at):
    """The state is saved before it is evaluated; the next start evaluates first."""
    config = tiny_config(eval_every=at, save_every=3)
    straight = train_stage(make_job(config, tmp_path / "straight"))
    job = make_job(config, tmp_path / "stopped")
    with pytest.raises(Preempted, match=f"saved at step {at}"), job.stop:
        train_stage(replace(job, task=SlowJudge(job.task)))
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    events = []
    again = train_stage(make_job(config, tmp_path / "stopped", on_event=events.append))
    assert [(e.kind, e.step) for e in events][:2] == [("stage", at), ("eval", at)]
    assert again == straight
    one, other = (tmp_path / n / "model.safetensors" for n in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()


def weights_of(root: Path) -> list[str]:
    from safetensors.torch import load_file

    return [digest(load_file(root / s / "model.safetensors")) for s in ("codec", "fusion")]


PROGRAM = str(Path(__file__).with_name("asked.py"))
FILE = str(ROOT / "configs" / "deepspeed" / "zero1.json")


def one_life(root: Path, phase: str, number: signal.Signals) -> tuple[list[int], str, float]:
    """Two ranks; the signal goes to rank 1 alone, in `phase`. Seconds from there to the end."""
    ranks = spawn([PROGRAM, str(root), phase, FILE], root.parent)
    marker = root.with_name(f"{root.name}.{phase}")
    deadline = time.monotonic() + 90
    while phase in PHASES and not marker.exists():
        assert time.monotonic() < deadline and all(r.poll() is None for r in ranks), phase
        time.sleep(0.02)
    sent = time.monotonic()
    if phase in PHASES:
        ranks[1].send_signal(number)
    codes, output = ended(ranks, root.parent)
    return codes, output, time.monotonic() - sent


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_both_in_every_phase(tmp_path):
    """One job, stopped once in each phase, against one that was left alone."""
    for turn, phase in enumerate(PHASES):
        number = (signal.SIGTERM, signal.SIGUSR1)[turn % 2]
        codes, output, seconds = one_life(tmp_path / "run", phase, number)
        assert codes == [75, 75], (phase, output)
        assert "asked to stop" in output, phase
        assert seconds < 20, (phase, seconds)
    codes, output, _ = one_life(tmp_path / "run", "none", signal.SIGTERM)
    assert codes == [0, 0], output
    codes, output, _ = one_life(tmp_path / "straight", "none", signal.SIGTERM)
    assert codes == [0, 0], output
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "straight")


def test_the_world_of_one_has_no_store():
    stop = StopRequest()
    stop.share(World(0, 1, ALONE.device))
    assert stop._store is None
