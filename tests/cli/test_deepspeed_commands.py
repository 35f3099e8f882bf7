"""`mmprod train` with DeepSpeed files: what reaches stdout, what is heard, what a dry run says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmprod.config.load import load_config
from mmprod.planning.activations import activations

from .conftest import Mmprod, in_process_of_its_own

PRINTS = {
    "wall_clock_breakdown": True,
    "memory_breakdown": True,
    "dump_state": True,
    "flops_profiler": {"enabled": True, "profile_step": 1},
    "comms_logger": {"enabled": True, "verbose": True},
}


def test_stdout_is_one_document_whatever_the_file_wants_printed(job: Path, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}, **PRINTS}), encoding="utf-8")
    command = ("train", "-c", str(job), "--model", "codec", "--deepspeed", str(file), "--json")
    result = in_process_of_its_own(
        *command, "--out", str(tmp_path / "run"), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"
    )
    assert result.code == 0, result.err
    assert result.json()["stages"]["codec"]["steps"] == 3
    assert "flops_profiler.enabled = true is left out: switched off: the loop" in result.err
    assert "is deprecated" not in result.err


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, ("--nproc", 4)),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, ()),
        ({"RANK": "0"}, ()),
    ],
)
def test_a_typo_is_heard_before_a_faulty_environment(
    mmprod: Mmprod,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    arguments: tuple[object, ...],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = mmprod("train", "-c", "tinny", *arguments)
    assert result.code == 2 and "tinny" in result.err and "Slurm" not in result.err


def test_a_dry_run_refuses_what_the_launch_would(mmprod: Mmprod, job: Path) -> None:
    result = mmprod("train", "--dry-run", "-c", job, "--nnodes", 2, "--node-rank", 9)
    assert result.code == 2 and "--master" in result.err


def test_a_dry_run_describes_the_given_file_alone(
    mmprod: Mmprod, job: Path, tmp_path: Path
) -> None:
    file = tmp_path / "ds.json"
    raw = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}}
    file.write_text(json.dumps(raw), encoding="utf-8")
    command = ("train", "--dry-run", "-c", job, "--model", "codec", "--deepspeed", file)
    bf16 = ("-o", "codec_train.precision=bf16")
    (codec,) = mmprod(*command, *bf16, "--json").json()["stages"]
    assert "memory" not in codec
    assert codec["job"]["weights"] == "bf16"
    config = load_config(str(job), ["codec_train.precision=bf16"])
    expected = activations(config, "codec", weights="bf16", fused=False)
    assert codec["activations"]["plain"]["per_sample"] == expected.per_sample
    assert expected != activations(config, "codec", weights="fp32", fused=False)
    assert "without activations" not in mmprod(*command, *bf16).out


def test_the_hint_for_a_batch_is_a_command(mmprod: Mmprod, job: Path) -> None:
    result = mmprod("train", "-c", job, "--nproc", 3, "-o", "codec_train.batch=16")
    assert result.code == 2 and "-o codec_train.batch=15" in result.err
