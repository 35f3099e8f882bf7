"""A save is whole or absent, in the foreground or not; what is kept, and what a full disk does."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading

import pytest
import torch

from mmprod.checkpoint import list_steps, verify_step
from mmprod.checkpoint.retention import prune, sweep
from mmprod.errors import EnvironmentMissing
from mmprod.training import saving
from mmprod.training.checkpointing import find_checkpoint, load_checkpoint
from mmprod.training.ema import Ema
from mmprod.training.progress import Progress
from mmprod.training.saving import Saver
from mmprod.training.snapshot import Trained
from tests.training.ranks import stored
from tests.training.tiny import ALONE, make_job, tiny_config


class Bench:
    """A job whose steps are saved by hand."""

    def __init__(self, folder, **cfg):
        self.job = make_job(tiny_config(**cfg), folder)
        average = Ema(self.job.backend.weights(), 0.9)
        self.trained = Trained(self.job.backend, average, ALONE, self.job.task)
        self.folder, self.root = folder, folder / "checkpoints"
        self.saver = self.anew()

    def anew(self):
        return Saver(self.trained, self.folder, self.job.identity, self.job.cfg)

    def save(self, step, best_step=0, **progress):
        self.saver.save(Progress(step=step, best_step=best_step, **progress))

    def steps(self):
        return [s.step for s in list_steps(self.folder) if s.complete]

    def load(self):
        found = find_checkpoint(ALONE, self.folder, self.job.identity, "auto")
        return load_checkpoint(self.trained, found)

    @property
    def weight(self):
        return next(iter(self.job.backend.weights().values()))


@pytest.fixture(params=[False, True], ids=["foreground", "background"])
def bench(request, tmp_path):
    return Bench(tmp_path, async_save=request.param)


def test_a_step_folder_holds_what_its_manifest_lists(bench):
    bench.save(1)
    bench.saver.finish()
    path = bench.root / "step-00000001"
    manifest = verify_step(path)
    listed = {entry["path"] for entry in manifest["files"]}
    assert listed == {"state-00000.safetensors", "buffers.safetensors"}
    assert {child.name for child in path.iterdir()} == listed | {"manifest.json"}
    assert manifest["world"] == 1
    assert manifest["placement"] == "torch"
    assert bench.saver.last_good == path


def test_the_newest_the_best_and_the_milestones_are_kept(tmp_path):
    bench = Bench(tmp_path, keep=2, keep_every=4)
    for step in range(1, 11):
        bench.save(step, best_step=3 if step >= 3 else 0)
    assert bench.steps() == [3, 4, 8, 9, 10]
    marks = [(s.step, s.latest, s.best) for s in list_steps(tmp_path) if s.latest or s.best]
    assert marks == [(3, False, True), (10, True, False)]


def test_newer_steps_than_the_one_just_saved_do_not_count_as_kept(bench):
    """Training went on from an older step."""
    for step in (10, 20, 30):
        bench.save(step)
    bench.save(11)
    bench.save(12)
    bench.saver.finish()
    assert bench.steps() == [11, 12]
    assert bench.load().step == 12


def test_the_last_good_step_is_the_one_gone_on_from_until_another_is_committed(tmp_path):
    bench = Bench(tmp_path)
    bench.save(1)
    bench.save(2)
    start = bench.root / "step-00000001"
    saver = Saver(bench.trained, tmp_path, bench.job.identity, bench.job.cfg, start)
    assert saver.last_good == start, "step 2 may be the damaged one"
    saver.save(Progress(step=3))
    assert saver.last_good == bench.root / "step-00000003"


def test_pruning_never_removes_what_a_pointer_names(tmp_path):
    bench = Bench(tmp_path, keep=9)
    for step in (1, 2, 3):
        bench.save(step, best_step=1)
    (bench.root / "latest").write_text("step-00000002\n")
    prune(tmp_path, bench.root / "step-00000003", keep=1, keep_every=0)
    assert bench.steps() == [1, 2, 3]


def test_training_goes_on_while_a_thread_writes(tmp_path, monkeypatch):
    """What is written is the state at the call, and nothing is found before the commit."""
    bench = Bench(tmp_path, async_save=True)
    gate, write = threading.Event(), saving.write_tensors
    monkeypatch.setattr(saving, "write_tensors", lambda *a: gate.wait(10) and write(*a))
    before = bench.weight.clone()
    bench.save(1)
    assert bench.saver.pending
    assert not bench.saver.ready
    bench.weight.add_(1)
    assert bench.steps() == []
    gate.set()
    bench.saver._pending.entries.result()
    assert bench.saver.ready
    assert bench.steps() == [], "only a commit completes it"
    bench.saver.commit()
    assert bench.steps() == [1]
    assert not bench.saver.pending
    bench.load()
    assert torch.equal(bench.weight, before)


def test_the_next_save_commits_the_one_before(tmp_path):
    bench = Bench(tmp_path, async_save=True)
    for step in (1, 2):
        bench.save(step)
    assert bench.steps() == [1]
    bench.saver.finish()
    bench.saver.finish()
    assert bench.steps() == [1, 2]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_clear_error_and_what_was_saved_stays(bench, monkeypatch):
    bench.save(1)
    bench.saver.finish()
    monkeypatch.setattr(saving, "write_tensors", full)
    with pytest.raises(OSError, match=r"No space left on device: .*step-00000002/state") as caught:
        bench.save(2)
        bench.saver.finish()
    assert caught.value.errno == errno.ENOSPC
    assert not bench.saver.pending
    assert [p.name for p in bench.root.iterdir() if p.name.startswith((".", "step"))] == [
        "step-00000001"
    ]
    monkeypatch.undo()
    assert bench.load().step == 1
    bench.save(2)
    bench.saver.finish()
    assert bench.steps() == [1, 2]


@pytest.mark.parametrize("step", [1, 2])
def test_a_disk_that_fills_up_at_the_manifest_keeps_nothing_of_the_save(bench, monkeypatch, step):
    bench.save(1, stale=1)
    bench.saver.finish()
    before = sorted(bench.root.rglob("*"))
    monkeypatch.setattr(saving, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        bench.save(step)
        bench.saver.finish()
    monkeypatch.undo()
    assert sorted(bench.root.rglob("*")) == before
    assert bench.load().stale == 1


def test_a_manifest_that_was_renamed_keeps_its_files(bench, monkeypatch):
    real = saving.write_json

    def flush_fails(path, value):
        real(path, value)
        full()

    monkeypatch.setattr(saving, "write_json", flush_fails)
    with pytest.raises(OSError, match="No space left"):
        bench.save(2, stale=3)
        bench.saver.finish()
    assert bench.load().stale == 3


def test_a_disk_without_room_is_refused_before_a_byte_is_written(bench, monkeypatch, caplog):
    usage = shutil.disk_usage(bench.folder)
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EnvironmentMissing, match="a checkpoint takes 1 MB, the disk has 0 MB left"):
        bench.save(1)
    assert list(bench.root.iterdir()) == []
    with caplog.at_level(logging.WARNING):
        bench.anew()
    assert "has room for 0 checkpoints of 1 MB; keep = 2 needs 4" in caplog.text


class Killed(BaseException):
    """The process ends here."""


def dies_at(monkeypatch, name, call=1):
    """The process is killed in the call-th call of a function of saving.py."""
    calls, real = [], getattr(saving, name)

    def die(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(saving, name, die)


PLACES = [("write_tensors", 1), ("write_tensors", 2), ("flush_folder", 1), ("write_json", 1)]


@pytest.mark.parametrize(("name", "call"), PLACES)
def test_a_save_that_was_interrupted_counts_for_nothing(bench, monkeypatch, name, call):
    bench.save(3)
    bench.saver.finish()
    monkeypatch.setattr(saving, "_drop", lambda *_: None)  # a killed process does not tidy up
    dies_at(monkeypatch, name, call)
    with pytest.raises(Killed):
        bench.save(4)
        bench.saver.finish()
    monkeypatch.undo()
    assert list_steps(bench.folder)[-1].step == 4
    assert bench.steps() == [3]
    assert bench.load().step == 3
    bench.saver = bench.anew()
    assert [s.step for s in list_steps(bench.folder)] == [3]
    bench.save(4)
    bench.saver.finish()
    assert bench.load().step == 4


@pytest.mark.parametrize(("name", "call"), [*PLACES, ("write_text", 1), ("prune", 1)])
def test_saving_a_step_again_never_loses_it(bench, monkeypatch, name, call):
    """It was saved when asked to stop, is evaluated in the next life, and saved with the result."""
    bench.save(4, stale=1)
    bench.saver.finish()
    monkeypatch.setattr(saving, "_drop", lambda *_: None)
    dies_at(monkeypatch, name, call)
    with pytest.raises(Killed):
        bench.save(4, stale=2)
        bench.saver.finish()
    monkeypatch.undo()
    committed = name in ("write_text", "prune")
    assert bench.load().stale == (2 if committed else 1)
    bench.saver = bench.anew()
    bench.save(4, stale=3)
    bench.saver.finish()
    assert bench.load().stale == 3
    path = bench.root / "step-00000004"
    folder = json.loads((path / "manifest.json").read_text())["folder"]
    assert {child.name for child in path.iterdir()} == {"manifest.json", folder}
    assert stored(path, "weight").keys() == bench.job.backend.fragments().keys()


def test_what_an_interrupted_deletion_left_is_swept_away(bench):
    bench.save(1)
    bench.saver.finish()
    shutil.copytree(bench.root / "step-00000001", bench.root / ".trash-step-00000007-0")
    (bench.root / ".unfinished-abc").write_text("half")
    assert bench.load().step == 1
    sweep(bench.folder)
    assert sorted(p.name for p in bench.root.iterdir()) == ["latest", "step-00000001"]
