"""`mmprod distill`: a student from a run, on one rank and on two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmprod.checkpoint import open_run
from mmprod.config.load import configs_dir
from mmprod.manifest import sha256_file
from mmprod.training.metrics import read_metrics

from .conftest import Mmprod, in_process_of_its_own


@pytest.fixture(scope="module")
def student(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of one step, of a teacher of two."""
    from mmprod.training.run import train
    from mmprod.training.student import prepare_student, student_config

    folder = tmp_path_factory.mktemp("students") / "one"
    teacher = open_run(run)
    config = student_config(teacher, 1, ())
    prepare_student(teacher, config, folder)
    train(config, folder, stages=("fusion",))
    return folder


def test_a_student_is_a_run_with_another_sampler(run: Path, student: Path) -> None:
    teacher, made = open_run(run), open_run(student)
    assert made.config.sampler.image_steps == 1
    assert made.config.sampler.guidance == 0
    assert made.config.sampler.text_steps == teacher.config.sampler.text_steps
    assert made.config.codec == teacher.config.codec
    record = json.loads((student / "fusion" / "config.json").read_text())
    assert record["learned_with"] == {"teacher": sha256_file(teacher.weights_path("fusion"))}
    for name in ("tokenizer.json", "codec/model.safetensors"):
        assert sha256_file(student / name) == sha256_file(run / name)
    assert sha256_file(student / "fusion/model.safetensors") != record["learned_with"]["teacher"]


def test_a_student_draws_without_its_teacher(
    mmprod: Mmprod, run: Path, student: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(student, tmp_path / "moved")
    result = mmprod(
        *("generate", moved, "a face", "-n", 2, "--out", tmp_path / "drawn.png", "--json")
    )
    assert result.code == 0, result.err
    assert result.json()["pictures"] == 2
    joint = mmprod("generate", moved, "--joint", "--out", tmp_path / "joint.png", "--json")
    assert joint.code == 0, joint.err


def test_the_same_command_goes_on(mmprod: Mmprod, run: Path, student: Path, tmp_path: Path) -> None:
    again = mmprod("distill", run, "--steps", 1, "--out", student)
    assert again.code == 0
    assert "finished before" in again.out
    assert "2 steps with guidance 2; student" in again.err
    trained = mmprod("train", "--config", student / "config.toml", "--out", student)
    assert trained.code == 0, trained.err  # both stages: the codec is that of this configuration
    torn = shutil.copytree(student, tmp_path / "torn")
    (torn / "run.json").unlink()
    shutil.rmtree(torn / "fusion")
    (torn / "tokenizer.json").unlink()
    resumed = mmprod("distill", run, "--steps", 1, "--out", torn, "-q")
    assert resumed.code == 0, resumed.err
    weights = "fusion/model.safetensors"
    assert sha256_file(torn / weights) == sha256_file(student / weights)


@pytest.mark.parametrize("steps", [2, 3])
def test_steps_that_do_not_divide_the_teachers_are_refused(
    mmprod: Mmprod, run: Path, tmp_path: Path, steps: int
) -> None:
    result = mmprod("distill", run, "--steps", steps, "--out", tmp_path / "student")
    assert result.code == 2
    assert f"a student of {steps} steps cannot learn from 2 steps" in result.err
    assert "for each of the student: 1" in result.err
    assert not (tmp_path / "student").exists()


def test_a_student_with_guidance_is_refused(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    wanted = ("--steps", 1, "-o", "sampler.guidance=1", "--out", tmp_path / "student")
    result = mmprod("distill", run, *wanted)
    assert result.code == 2
    assert "sampler.guidance is 1, and a student learns to do without" in result.err
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("changed", ["codec.channels=16", "data.text_length=64"])
def test_a_student_of_other_codes_or_tokens_is_refused(
    mmprod: Mmprod, run: Path, tmp_path: Path, changed: str
) -> None:
    wanted = ("--steps", 1, "-o", changed, "--out", tmp_path / "student")
    result = mmprod("distill", run, *wanted)
    assert result.code == 2
    assert f"not with {changed.replace('=', ' ')} (its teacher: " in result.err
    assert not (tmp_path / "student").exists()


def test_a_folder_of_something_else_is_left_alone(
    mmprod: Mmprod, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = mmprod("distill", run, "--steps", 1, "--out", tmp_path)
    assert result.code == 2
    assert "is not a run folder" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    into_itself = mmprod("distill", run, "--steps", 1, "--out", run)
    assert into_itself.code == 2
    assert "was made with another configuration" in into_itself.err


def test_a_teacher_of_other_codes_is_refused(
    mmprod: Mmprod, run: Path, student: Path, tmp_path: Path
) -> None:
    torn = shutil.copytree(student, tmp_path / "torn")
    (torn / "tokenizer.json").write_text((torn / "tokenizer.json").read_text() + "\n")
    result = mmprod("distill", run, "--steps", 1, "--out", torn, "--resume", "never")
    assert result.code == 2
    assert "has another tokenizer" in result.err


def test_ranks_of_a_launcher_are_sent_elsewhere(
    mmprod: Mmprod, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = mmprod("distill", run, "--steps", 1, "--out", tmp_path / "student")
    assert done.code == 2
    assert "--nproc" in done.err
    assert not (tmp_path / "student").exists()


@pytest.mark.slow
def test_two_ranks_under_zero_learn_what_one_learns(run: Path, tmp_path: Path) -> None:
    """Under stage 3, with the contrastive loss of a ring of ranks."""
    losses = {}
    for ranks in (1, 2):
        folder = tmp_path / f"ranks-{ranks}"
        ranked = ("--nproc", "2", "--deepspeed", str(configs_dir() / "deepspeed/zero3.json"))
        done = in_process_of_its_own(
            *("distill", str(run), "--steps", "1", "--out", str(folder)),
            *("-o", "fusion_train.batch=16", "-o", "fusion_train.steps=4"),
            *("-o", "fusion.contrast=batch"),
            *(ranked if ranks == 2 else ()),
        )
        assert done.code == 0, done.err
        lines = [line for line in read_metrics(folder / "fusion") if line["kind"] == "log"]
        losses[ranks] = [line["loss"] for line in lines]
    assert len(losses[1]) == 4
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)
