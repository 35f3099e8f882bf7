"""Checkpoints are whole or absent; a resume finds the newest whole one of the same job."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, replace

import pytest

from mmprod.checkpoint import list_steps, verify_step
from mmprod.errors import ConfigError, IntegrityError
from mmprod.training.checkpointing import (
    Checkpoint,
    Progress,
    Trained,
    check_identity,
    find_checkpoint,
    load_checkpoint,
    rewind,
    save_checkpoint,
)
from mmprod.training.ema import Ema
from tests.training.tiny import ALONE, make_job, tiny_config


@pytest.fixture
def saved(tmp_path):
    """A job with steps 1, 2, 3 saved; the best is step 1, two newest are kept."""
    job = make_job(tiny_config(), tmp_path)
    trained = Trained(job.backend, Ema(job.backend.weights(), 0.9), ALONE)
    for step in (1, 2, 3):
        progress = Progress(step=step, best=0.5, best_step=1)
        save_checkpoint(trained, tmp_path, progress, job.identity, keep=2)
    return job, trained, tmp_path


def load(saved, resume="auto", **changes):
    job, trained, folder = saved
    found = find_checkpoint(ALONE, folder, replace(job.identity, **changes), resume)
    return load_checkpoint(trained, found) if found is not None else None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_nothing_to_resume(tmp_path):
    job = make_job(tiny_config(), tmp_path)
    assert find_checkpoint(ALONE, tmp_path, job.identity, "auto") is None


def test_the_newest_and_the_best_are_kept(saved):
    shutil.rmtree(saved[2] / "checkpoints" / "step-00000002")
    job, trained, folder = saved
    save_checkpoint(trained, folder, Progress(step=4, best=0.5, best_step=1), job.identity, keep=1)
    steps = list_steps(folder)
    assert [(s.step, s.complete, s.latest, s.best) for s in steps] == [
        (1, True, False, True),
        (4, True, True, False),
    ]


def test_resume_takes_the_newest(saved):
    assert load(saved).step == 3
    assert load(saved, "never") is None


def test_resume_from_a_named_step(saved):
    folder = saved[2] / "checkpoints" / "step-00000002"
    assert load(saved, str(folder)).step == 2
    flip_a_bit(folder / "torch.pt")
    with pytest.raises(IntegrityError):
        load(saved, str(folder))


@pytest.mark.parametrize("name", ["torch.pt", "ema.safetensors", "manifest.json"])
def test_a_damaged_step_is_passed_over_and_said_so(saved, caplog, name):
    path = saved[2] / "checkpoints" / "step-00000003" / name
    path.write_text("{") if name == "manifest.json" else flip_a_bit(path)
    with caplog.at_level(logging.WARNING):
        assert load(saved).step == 2
    assert "damaged" in caplog.text
    assert "step-00000003" in caplog.text


@pytest.mark.parametrize("name", ["manifest.json"])
def test_an_unfinished_step_counts_for_nothing(saved, name):
    (saved[2] / "checkpoints" / "step-00000003" / name).unlink()
    assert load(saved).step == 2


def test_a_missing_pointer_is_no_loss(saved):
    (saved[2] / "checkpoints" / "latest").unlink()
    assert load(saved).step == 3


def test_the_pointer_can_be_moved_back_by_hand(saved):
    (saved[2] / "checkpoints" / "latest").write_text("step-00000002\n")
    assert load(saved).step == 2


def test_when_all_steps_are_damaged_training_does_not_start_afresh(saved):
    for step in list_steps(saved[2]):
        flip_a_bit(step.path / "torch.pt")
    with pytest.raises(IntegrityError, match="every checkpoint") as caught:
        load(saved)
    assert "--resume never" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world": 4}, "saved by 1 processes; there are 4 now"),
        ({"config": "other"}, "config"),
        ({"data": "other"}, "data"),
        ({"tokenizer": "other"}, "tokenizer: saved"),
        ({"backend": "deepspeed zero-3 fp32"}, "backend: saved 'torch'"),
    ],
)
def test_another_job_is_refused(saved, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(saved, **change)
    assert caught.value.hint


def test_another_world_size_names_the_one_it_needs(saved):
    with pytest.raises(ConfigError) as caught:
        load(saved, world=2)
    assert "--nproc 1" in caught.value.hint


def test_an_interrupted_save_leaves_nothing_that_is_read(saved, monkeypatch):
    job, trained, folder = saved

    def die(path):
        (path / "torch.pt").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(job.backend, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(trained, folder, Progress(step=4), job.identity, keep=2)
    assert [(s.step, s.complete) for s in list_steps(folder)][-1] == (4, False)
    assert load(saved).step == 3
    monkeypatch.undo()
    save_checkpoint(trained, folder, Progress(step=4), job.identity, keep=2)
    assert load(saved).step == 4


def test_an_unknown_format_is_refused(saved):
    path = saved[2] / "checkpoints" / "step-00000003"
    text = (path / "manifest.json").read_text()
    for other in (1, 9):
        (path / "manifest.json").write_text(text.replace('"format": 2', f'"format": {other}'))
        with pytest.raises(IntegrityError, match=f"format {other}, this version reads 2") as caught:
            verify_step(path)
        assert "version of mmprod" in caught.value.hint


def test_other_files_to_learn_with_are_refused_by_what_they_hold(saved):
    assert load(saved, files={}).step == 3
    with pytest.raises(ConfigError, match="trained with other perceptual weights"):
        load(saved, files={"perceptual": "0" * 64})


def test_a_whole_state_goes_on_with_any_number_of_processes(saved):
    """Others are refused with the number, and with the way there."""
    path = saved[2] / "checkpoints" / "step-00000003"
    wanted = replace(saved[0].identity, world=2, backend="deepspeed zero-0 fp32")
    manifest = {"identity": asdict(replace(wanted, world=1))}
    check_identity(Checkpoint(path, manifest), wanted)
    with pytest.raises(ConfigError, match="config"):
        check_identity(Checkpoint(path, manifest), replace(wanted, config="other"))
    for backend in ("deepspeed zero-0 bf16", "deepspeed zero-1 fp32"):
        divided = {"identity": asdict(replace(wanted, world=1, backend=backend))}
        with pytest.raises(ConfigError, match="saved by 1 processes; there are 2 now") as caught:
            check_identity(Checkpoint(path, divided), replace(wanted, backend=backend))
        assert f"init_from={saved[2] / 'model.safetensors'}" in caught.value.hint


def test_the_step_just_saved_is_kept_beside_newer_ones(saved):
    job, trained, folder = saved
    shutil.rmtree(folder / "checkpoints" / "step-00000001")
    (folder / "checkpoints" / "best").unlink()
    progress = Progress(step=1)
    path = save_checkpoint(trained, folder, progress, job.identity, keep=2)
    assert verify_step(path)["progress"]["step"] == 1
    assert load(saved).step == 1


def test_going_on_from_a_named_step_drops_the_newer_ones(saved):
    job, trained, folder = saved
    progress = Progress(step=4, best=0.9, best_step=4)
    save_checkpoint(trained, folder, progress, job.identity, keep=9)
    named = str(folder / "checkpoints" / "step-00000002")
    found = find_checkpoint(ALONE, folder, job.identity, named)
    assert [s.step for s in list_steps(folder)] == [1, 2, 3, 4], "finding must change nothing"
    rewind(folder, found)
    assert [(s.step, s.latest, s.best) for s in list_steps(folder)] == [
        (1, False, True),
        (2, True, False),
    ]
    assert load(saved).step == 2
