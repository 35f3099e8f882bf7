"""Checkpoints are whole or absent; a resume finds the newest whole one of the same job."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmprod.checkpoint import list_steps, verify_step
from mmprod.checkpoint.steps import seal
from mmprod.errors import ConfigError, IntegrityError, MmprodError
from mmprod.manifest import FileEntry
from mmprod.training import checkpointing
from mmprod.training.checkpointing import find_checkpoint, load_checkpoint, rewind, together
from mmprod.training.ema import Ema
from mmprod.training.progress import Progress
from mmprod.training.saving import Saver
from mmprod.training.snapshot import Trained
from tests.training.ranks import stored
from tests.training.tiny import ALONE, make_job, tiny_config

STATE = "state-00000.safetensors"


def saver_of(job, trained, folder, **changes):
    return Saver(trained, folder, job.identity, job.cfg.model_copy(update=changes))


@pytest.fixture
def saved(tmp_path):
    """A job with steps 1, 2, 3 saved; the best is step 1, two newest are kept."""
    job = make_job(tiny_config(), tmp_path)
    trained = Trained(job.backend, Ema(job.backend.weights(), 0.9), ALONE, job.task)
    saver = saver_of(job, trained, tmp_path)
    for step in (1, 2, 3):
        saver.save(Progress(step=step, best=0.5, best_step=1))
    return job, trained, tmp_path


def load(saved, resume="auto", **changes):
    job, trained, folder = saved
    found = find_checkpoint(ALONE, folder, replace(job.identity, **changes), resume)
    return load_checkpoint(trained, found) if found is not None else None


def step_folder(saved, step):
    return saved[2] / "checkpoints" / f"step-{step:08d}"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_nothing_to_resume(tmp_path):
    job = make_job(tiny_config(), tmp_path)
    assert find_checkpoint(ALONE, tmp_path, job.identity, "auto") is None


def test_resume_takes_the_newest(saved):
    assert load(saved).step == 3
    assert load(saved, "never") is None


def test_resume_from_a_named_step(saved):
    folder = step_folder(saved, 2)
    assert load(saved, str(folder)).step == 2
    flip_a_bit(folder / STATE)
    with pytest.raises(IntegrityError):
        load(saved, str(folder))


def test_everything_comes_back(saved):
    """Weights, moments, averages, buffers, step counts: overwritten, then restored to the bit."""
    job, trained, _ = saved
    places = [t for f in job.backend.fragments().values() for t in f.fields.values()]
    places += [*trained.ema.average.values(), *job.task.model.buffers()]
    for index, place in enumerate(places):
        place.fill_(index + 1)
    scalars = {name: 7.0 for name in job.backend.scalars()}
    job.backend.restored(scalars)
    before = [place.clone() for place in places]
    Saver(trained, saved[2], job.identity, job.cfg).save(Progress(step=4, best_step=1))
    for place in places:
        place.zero_()
    job.backend.restored(dict.fromkeys(scalars, 0.0))
    assert load(saved).step == 4
    for place, value in zip(places, before, strict=True):
        assert torch.equal(place, value)
    assert job.backend.scalars() == scalars
    assert "adamw.step" in scalars


@pytest.mark.parametrize("name", [STATE, "buffers.safetensors", "manifest.json"])
def test_a_damaged_step_is_passed_over_and_said_so(saved, caplog, name):
    path = step_folder(saved, 3) / name
    path.write_text("{") if name == "manifest.json" else flip_a_bit(path)
    with caplog.at_level(logging.WARNING):
        assert load(saved).step == 2
    assert "damaged" in caplog.text
    assert "step-00000003" in caplog.text


@pytest.mark.parametrize("name", ["progress", "scalars", "world"])
def test_a_changed_manifest_is_damage(saved, caplog, name):
    path = step_folder(saved, 3) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[name] = {**manifest[name], "step": 7} if name == "progress" else {}
    path.write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        assert load(saved).step == 2
    assert "manifest.json was changed" in caplog.text


def test_a_step_under_another_name_is_damage(saved):
    step_folder(saved, 3).rename(step_folder(saved, 4))
    (saved[2] / "checkpoints" / "latest").unlink()
    assert load(saved).step == 2


def test_an_unreadable_file_is_damage(saved, monkeypatch, caplog):
    real = checkpointing.verify_files

    def refuse(path, entries, **options):
        if path.name == "step-00000003":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path / STATE))
        real(path, entries, **options)

    monkeypatch.setattr(checkpointing, "verify_files", refuse)
    with caplog.at_level(logging.WARNING):
        assert load(saved).step == 2
    assert "Input/output error" in caplog.text


def test_an_unfinished_step_counts_for_nothing(saved):
    (step_folder(saved, 3) / "manifest.json").unlink()
    assert load(saved).step == 2


def test_a_missing_pointer_is_no_loss(saved):
    (saved[2] / "checkpoints" / "latest").unlink()
    assert load(saved).step == 3


def test_the_pointer_can_be_moved_back_by_hand(saved):
    (saved[2] / "checkpoints" / "latest").write_text("step-00000002\n")
    assert load(saved).step == 2


def test_when_all_steps_are_damaged_training_does_not_start_afresh(saved):
    for step in list_steps(saved[2]):
        flip_a_bit(step.path / STATE)
    with pytest.raises(IntegrityError, match="every checkpoint") as caught:
        load(saved)
    assert "--resume never" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "other"}, "config"),
        ({"data": "other"}, "data"),
        ({"tokenizer": "other"}, "tokenizer: saved"),
        ({"backend": "adamw bf16"}, "backend: saved 'adamw fp32'"),
    ],
)
def test_another_job_is_refused(saved, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(saved, **change)
    assert f"init_from={saved[2] / 'model.safetensors'}" in caught.value.hint


def test_an_unknown_format_is_refused(saved):
    path = step_folder(saved, 3)
    text = (path / "manifest.json").read_text()
    for other in (1, 2, 9):
        (path / "manifest.json").write_text(text.replace('"format": 3', f'"format": {other}'))
        with pytest.raises(IntegrityError, match=f"format {other}, this version reads 3") as caught:
            verify_step(path)
        assert "init_from=" in caught.value.hint


def test_other_files_to_learn_with_are_refused_by_what_they_hold(saved):
    assert load(saved, files={}).step == 3
    with pytest.raises(ConfigError, match="trained with other perceptual weights"):
        load(saved, files={"perceptual": "0" * 64})


def test_going_on_from_a_named_step_drops_the_newer_ones(saved):
    job, trained, folder = saved
    saver_of(job, trained, folder, keep=9).save(Progress(step=4, best=0.9, best_step=4))
    named = str(step_folder(saved, 2))
    found = find_checkpoint(ALONE, folder, job.identity, named)
    assert [s.step for s in list_steps(folder)] == [1, 2, 3, 4], "finding must change nothing"
    rewind(folder, found)
    assert [(s.step, s.latest, s.best) for s in list_steps(folder)] == [
        (1, False, True),
        (2, True, False),
    ]
    assert load(saved).step == 2


def forge(saved, change):
    """Change the tensors and fragments of step 3's state file, with hashes that fit."""
    path = step_folder(saved, 3)
    with safe_open(path / STATE, "pt") as file:
        fragments = json.loads(file.metadata()["fragments"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(fragments, tensors)
    save_file(tensors, path / STATE, metadata={"fragments": json.dumps(fragments)})
    manifest = json.loads((path / "manifest.json").read_text())
    entry = FileEntry.of(path, path / STATE).as_dict()
    manifest["files"] = [entry if e["path"] == STATE else e for e in manifest["files"]]
    (path / "manifest.json").write_text(json.dumps(seal(manifest)))


def first(fragments):
    return sorted(fragments)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: f[first(f)].__setitem__(0, 5), "elements 0 to 5 of .* are missing"),
        (lambda f, t: f[first(f)].__setitem__(1, 3), "the state files hold 3 elements of"),
        (lambda f, t: f.pop(first(f)), "other parameters than are trained now: "),
        (lambda f, t: t.pop("exp_avg/" + first(f)), "cannot be read: .*exp_avg/"),
    ],
    ids=["gap", "short", "absent", "moment"],
)
def test_state_that_does_not_cover_a_parameter_names_it(saved, change, message):
    name = sorted(saved[0].backend.fragments())[0]
    forge(saved, change)
    with pytest.raises(IntegrityError, match=message) as caught:
        load(saved)
    assert name in caught.value.message


def test_state_that_is_there_twice_names_the_parameter(saved):
    path = step_folder(saved, 3)
    shutil.copy(path / STATE, path / "state-00001.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"].append(FileEntry.of(path, path / "state-00001.safetensors").as_dict())
    (path / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(IntegrityError, match="are there twice"):
        load(saved)


def test_a_file_that_the_manifest_does_not_list_is_not_read(saved):
    path = step_folder(saved, 3)
    shutil.copy(path / STATE, path / "state-00001.safetensors")
    assert load(saved).step == 3
    assert stored(path, "weight")


def test_together_raises_what_went_wrong():
    assert together(ALONE, lambda: 3) == [3]
    for error in (OSError(28, "No space left on device", "x"), MmprodError("y")):
        with pytest.raises(type(error)) as caught:
            together(ALONE, lambda error=error: (_ for _ in ()).throw(error))
        assert caught.value is error
