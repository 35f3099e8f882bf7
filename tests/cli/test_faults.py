"""What can break under a job: each fault ends with its code and one message, leaves what was good
as it was, and the same command goes on once the fault is mended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmprod.manifest import sha256_file
from tests.training.faults import JOB, Disk, flip, interrupt, mounted

from .conftest import Mmprod, Result


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "faulty.toml"
    path.write_text(JOB, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def begun(job_file: Path) -> Path:
    """A run that was stopped after 4 of 6 steps, with the checkpoints 2 and 4."""
    run = job_file.parent / "begun"
    interrupt(job_file, run)
    return run


@pytest.fixture(scope="module")
def straight(begun: Path, job_file: Path) -> dict[str, str]:
    """What the run becomes when nothing happens to it."""
    from mmprod.config.load import load_config
    from mmprod.training.run import train

    run = shutil.copytree(begun, begun.parent / "straight")
    train(load_config(str(job_file)), run, stages=("codec",))
    return outcome(run)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def outcome(run: Path) -> dict[str, str]:
    """Hashes of the kept weights and of the last checkpoint's state."""
    last = run / "codec" / "checkpoints" / "step-00000006"
    files = [run / "codec" / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    return {file.name: sha256_file(file) for file in files}


def ends(result: Result, code: int, *words: str) -> None:
    assert result.code == code, result.err
    assert result.err.count("error:") == 1 and result.err.count("hint:") == 1, result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err


def train(mmprod: Mmprod, job: Path, run: Path, *more: object) -> Result:
    return mmprod("train", "-c", job, "--model", "codec", "--out", run, *more)


@pytest.mark.parametrize("left", [0, 8192, 300_000])
def test_a_full_disk(
    mmprod: Mmprod, job_file: Path, begun: Path, straight: dict[str, str], disk: Disk, left: int
) -> None:
    run = shutil.copytree(begun, disk.path / "run")
    disk.fill(left)
    ends(train(mmprod, job_file, run), 3, str(disk.path))
    assert mmprod("ckpt", "verify", run).code == 0
    disk.free()
    assert mmprod("ckpt", "verify", run).code == 0
    assert train(mmprod, job_file, run).code == 0
    assert outcome(run) == straight


def test_a_disk_that_is_full_from_the_start(mmprod: Mmprod, job_file: Path, disk: Disk) -> None:
    disk.fill(16384)
    ends(train(mmprod, job_file, disk.path / "run"), 3, "No space left on device")
    disk.free()
    assert train(mmprod, job_file, disk.path / "run").code == 0


def test_a_read_only_run_folder(
    mmprod: Mmprod, job_file: Path, begun: Path, straight: dict[str, str], disk: Disk
) -> None:
    run = shutil.copytree(begun, disk.path / "run")
    disk.protect(True)
    ends(train(mmprod, job_file, run), 3, "Read-only file system", str(run))
    ends(train(mmprod, job_file, disk.path / "other"), 3, "Read-only file system")
    disk.protect(False)
    assert train(mmprod, job_file, run).code == 0
    assert outcome(run) == straight


@pytest.mark.parametrize("fault", ["missing", "damaged", "cut"])
def test_a_bad_data_shard(
    mmprod: Mmprod,
    job_file: Path,
    begun: Path,
    straight: dict[str, str],
    tmp_path: Path,
    fault: str,
) -> None:
    """Also one bit of one picture is noticed, before the first step."""
    run = shutil.copytree(begun, tmp_path / "run")
    shard = run / "data" / "train" / "data.arrow"
    good = shard.read_bytes()
    if fault == "missing":
        shard.unlink()
    elif fault == "damaged":
        flip(shard)
    else:
        shard.write_bytes(good[:-100])
    ends(train(mmprod, job_file, run), 4, str(shard))
    assert mmprod("ckpt", "verify", run).code == 0
    shard.write_bytes(good)
    assert train(mmprod, job_file, run).code == 0
    assert outcome(run) == straight


def test_a_damaged_picture_in_a_folder_is_left_out_and_named(
    mmprod: Mmprod, job_file: Path, tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    cut = pictures / "7.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (pictures / "8.png").write_bytes(b"no picture")
    folder = ("-o", "data.source=folder", "-o", f"data.path={pictures}")
    result = train(mmprod, job_file, tmp_path / "run", *folder)
    assert result.code == 0, result.err
    skipped = json.loads((tmp_path / "run" / "data" / "data.json").read_text())["skipped"]
    assert {entry["file"] for entry in skipped} == {"7.png", "8.png"}
    assert "7.png" in result.err and "8.png" in result.err


def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(
    mmprod: Mmprod, job_file: Path, begun: Path, straight: dict[str, str], tmp_path: Path
) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    flip(run / "codec" / "checkpoints" / "step-00000004" / "state-00000.safetensors")
    result = train(mmprod, job_file, run)
    assert result.code == 0 and "damaged, trying an older one" in result.err
    assert outcome(run) == straight


def test_only_damaged_checkpoints(
    mmprod: Mmprod, job_file: Path, begun: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    for state in run.rglob("state-00000.safetensors"):
        flip(state)
    before = {path: path.stat().st_size for path in run.rglob("*.safetensors")}
    ends(train(mmprod, job_file, run), 4, "damaged", "--resume never")
    assert {path: path.stat().st_size for path in run.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"zero_optimization": {"stgae": 1}}, ("ds.json:1", "stgae", "did you mean stage?")),
        ({"train_micro_batch_size_per_gpu": 3}, ("batch 4 is not", "micro-batch 3")),
        ({"scheduler": {"params": {"total_num_steps": 7}}}, ("steps = 6",)),
    ],
)
@pytest.mark.parametrize("start", [(), ("--nproc", 2)], ids=["alone", "before-ranks-start"])
def test_a_bad_deepspeed_file(
    mmprod: Mmprod,
    job_file: Path,
    tmp_path: Path,
    raw: dict[str, object],
    words: tuple[str, ...],
    start: tuple[object, ...],
) -> None:
    if "scheduler" in raw:
        raw = {"scheduler": {"type": "WarmupDecayLR", **raw["scheduler"]}}  # type: ignore[dict-item]
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(raw))
    result = train(mmprod, job_file, tmp_path / "run", "--deepspeed", path, *start)
    ends(result, 2, *words)
    assert not (tmp_path / "run").exists()


def test_a_table_shows_what_becomes_of_a_deepspeed_file(mmprod: Mmprod, job_file: Path) -> None:
    file = "configs/deepspeed/huggingface.json"
    shown = mmprod("config", "show", job_file, "--deepspeed", file, "--nproc", 2)
    assert shown.code == 0
    assert "steps_per_print" in shown.out and "DeepSpeed gets" in shown.out
    data = mmprod("config", "show", job_file, "--deepspeed", file, "--nproc", 2, "--json").json()
    codec = data["deepspeed"]["stages"]["codec"]
    assert codec["config"]["train_micro_batch_size_per_gpu"] == 2
    lines = {line["key"]: line for line in codec["table"]}
    assert lines["steps_per_print"]["changed"] and not lines["gradient_clipping"]["changed"]
