"""`mmprod train` and `mmprod ckpt`, on one rank and on two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmprod.cli.launch import EXIT_FOLDER, record_exit
from mmprod.cli.output import Output
from mmprod.cli.train import _rank_command

from .conftest import ROOT, Mmprod, in_process_of_its_own


def test_training_reports_and_resumes(mmprod: Mmprod, job: Path, tmp_path: Path) -> None:
    first = mmprod(
        "train", "--config", job, "--out", tmp_path / "run", "--model", "codec", "--json"
    )
    assert first.json()["stages"]["codec"]["steps"] == 3
    events = [json.loads(line) for line in first.err.splitlines() if line.startswith("{")]
    assert {event["event"] for event in events} == {"stage", "log", "eval", "save"}
    again = mmprod("train", "--config", job, "--out", tmp_path / "run", "--model", "codec", "-q")
    assert "finished before" in again.out
    assert again.err == ""


def test_other_configuration_for_the_same_run_is_refused(
    mmprod: Mmprod, job: Path, run: Path
) -> None:
    result = mmprod("train", "--config", job, "--out", run, "-o", "codec.channels=16")
    assert result.code == 2
    assert "codec.channels (was 8, now 16)" in result.err


def test_checkpoints_are_listed_and_checked(mmprod: Mmprod, run: Path, tmp_path: Path) -> None:
    listed = mmprod("ckpt", "ls", run, "--json").json()["checkpoints"]
    assert [(c["stage"], c["step"]) for c in listed if c["latest"]] == [("codec", 3), ("fusion", 3)]
    assert all(c["bytes"] > 0 for c in listed)
    assert mmprod("ckpt", "verify", run).code == 0
    assert mmprod("ckpt", "ls", tmp_path).code == 2


def test_damaged_checkpoint_is_exit_4(mmprod: Mmprod, job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert mmprod("train", "--config", job, "--out", folder, "--model", "codec", "-q").code == 0
    weights = next((folder / "codec" / "checkpoints").rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    result = mmprod("ckpt", "verify", folder)
    assert result.code == 4
    assert weights.name in result.err


def test_command_of_a_rank_is_the_command_spelled_out() -> None:
    settings = ("codec", Path("runs/x"), Path("zero2.json"), "never")
    command = _rank_command(
        Output(as_json=True, verbosity=-1), "tiny", ["a.b=1", "c=d e"], settings
    )
    assert command == [
        "train", "--model", "codec", "--config", "tiny", "--out", "runs/x",
        "--deepspeed", "zero2.json", "--resume", "never",
        "--override", "a.b=1", "--override", "c=d e", "--json", "--quiet",
    ]  # fmt: skip


def test_rank_leaves_its_code_only_for_a_launcher_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(EXIT_FOLDER, raising=False)
    record_exit(75)
    monkeypatch.setenv(EXIT_FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    record_exit(75)
    assert (tmp_path / "rank-1").read_text(encoding="utf-8") == "75"


@pytest.mark.slow
def test_two_ranks_pass_on_the_exit_code_of_an_error(job: Path, run: Path) -> None:
    result = in_process_of_its_own(
        *("train", "-c", str(job), "--out", str(run), "--model", "codec", "--nproc", "2"),
        *("-o", "codec.channels=16"),
    )
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "several ranks without --deepspeed" in result.err
    assert result.err.count("hint: go on with") == 1


@pytest.mark.slow
def test_two_ranks_save_on_sigterm_and_end_with_75(job: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mmprod",
        "train",
        "-c",
        str(job),
        "--out",
        str(tmp_path / "run"),
    ]
    command += ["--nproc", "2", "--model", "codec", "-o", "codec_train.steps=1000000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, **pipes) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if '"event": "log"' in line:
                    process.send_signal(signal.SIGTERM)
                    break
            words = process.stderr.read()
            assert process.wait(timeout=120) == 75
        finally:
            process.kill()
    assert "saved at step" in words
    assert (tmp_path / "run" / "codec" / "checkpoints" / "latest").is_file()
