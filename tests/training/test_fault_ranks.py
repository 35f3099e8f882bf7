"""Faults under two ranks: the documented code on both, one message, within half a minute, and what
was good stays good.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmprod.checkpoint.steps import list_steps, verify_step
from tests.training.faults import JOB, Disk, flip, interrupt, mounted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
ZERO2 = ROOT / "configs" / "deepspeed" / "zero2.json"


@dataclass(frozen=True)
class Ranks:
    """How two ranks are started: common arguments, those of rank 1, and its package's folder."""

    job: Path
    run: Path
    deepspeed: Path = ZERO2
    more: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    package: Path = ROOT

    def end(self, timeout_s: float = LIMIT_S) -> tuple[list[int], list[str], float]:
        """Exit codes, what each wrote, and the seconds until both had ended."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        logs = [self.run.parent / f"rank-{rank}.log" for rank in range(2)]
        started = time.monotonic()
        processes = [self._start(rank, port, log) for rank, log in enumerate(logs)]
        try:
            deadline = started + timeout_s
            codes = [p.wait(max(0.1, deadline - time.monotonic())) for p in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return codes, [log.read_text() for log in logs], time.monotonic() - started

    def _start(self, rank: int, port: int, log: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mmprod", "train", "-c", str(self.job)]
        command += ["--model", "codec", "--out", str(self.run), "--deepspeed", str(self.deepspeed)]
        command += [*self.more, *(self.other if rank else ())]
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
            "PYTHONPATH": self.package if rank else ROOT,
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        with log.open("w") as stream:
            return subprocess.Popen(
                command, env=environment, cwd=log.parent, stdout=stream, stderr=stream
            )


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that was stopped after 4 of 6 steps: two ranks go on with it."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "job.toml").write_text(JOB)
    interrupt(folder / "job.toml", folder / "run")
    return folder


@pytest.fixture
def ranks(begun: Path, tmp_path: Path) -> Ranks:
    return Ranks(begun / "job.toml", shutil.copytree(begun / "run", tmp_path / "run"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def both_end(ranks: Ranks, code: int, *words: str) -> None:
    codes, logs, seconds = ranks.end()
    text = "\n".join(logs)
    assert codes == [code, code], text
    assert text.count("error:") == 1, text
    assert "Traceback" not in text, text
    assert "hint:" in text
    for word in words:
        assert word in text, text
    print(f"both ended after {seconds:.1f} s with {code}")
    assert seconds < LIMIT_S


def goes_on(ranks: Ranks) -> None:
    """Both checkpoints are whole, and the command without the fault finishes the job."""
    steps = [step for step in list_steps(ranks.run / "codec") if step.complete]
    assert {2, 4} <= {step.step for step in steps}
    for step in steps:
        verify_step(step.path)
    codes, logs, _ = ranks.end(120)
    assert codes == [0, 0], "\n".join(logs)
    assert (ranks.run / "codec" / "config.json").is_file()


def changed(ranks: Ranks, **values: object) -> Ranks:
    return Ranks(**{**vars(ranks), **values})  # type: ignore[arg-type]


def test_one_rank_with_another_configuration(ranks: Ranks) -> None:
    other = changed(ranks, other=("-o", "codec_train.lr=0.1"))
    both_end(other, 2, "rank 1 on", "codec_train.lr 0.1 (rank 0: 0.0004)")
    goes_on(ranks)


def test_one_rank_with_another_deepspeed_file(ranks: Ranks, tmp_path: Path) -> None:
    raw = json.loads(ZERO2.read_text())
    raw["zero_optimization"]["stage"] = 1
    (tmp_path / "one.json").write_text(json.dumps(raw))
    other = changed(ranks, other=("--deepspeed", str(tmp_path / "one.json")))
    both_end(other, 2, "ds.json zero_optimization.stage 1 (rank 0: 2)")


def test_one_rank_with_another_resume(ranks: Ranks) -> None:
    both_end(changed(ranks, other=("--resume", "never")), 2, "--resume never (rank 0: auto)")


def test_one_rank_with_another_code_version(ranks: Ranks, tmp_path: Path) -> None:
    package = tmp_path / "older"
    shutil.copytree(ROOT / "mmprod", package / "mmprod")
    shutil.copytree(ROOT / "configs", package / "configs")
    with (package / "mmprod" / "training" / "loop.py").open("a") as stream:
        stream.write("# one line more\n")
    both_end(changed(ranks, package=package), 3, "rank 1 on", "its source")


@pytest.mark.parametrize(
    "mistake",
    [
        ("-o", "codec_train.lrr=1"),
        ("-c", "absent.toml"),
        ("--deepspeed", "absent.json"),
    ],
    ids=["option", "configuration", "deepspeed"],
)
def test_a_mistake_on_one_rank_ends_both(ranks: Ranks, mistake: tuple[str, ...]) -> None:
    both_end(changed(ranks, other=mistake), 2, "rank 1 on")


def test_a_mistake_in_the_command_of_all_is_said_once(ranks: Ranks) -> None:
    both_end(changed(ranks, more=("-o", "codec_train.lrr=1")), 2, "did you mean codec_train.lr?")


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({"zero_optimization": {"stgae": 2}}, "ds.json:1: unknown key 'zero_optimization.stgae'"),
        ({"train_micro_batch_size_per_gpu": 3}, "is not 2 processes x micro-batch 3"),
    ],
    ids=["misspelt", "triple"],
)
def test_a_bad_deepspeed_file(
    ranks: Ranks, tmp_path: Path, raw: dict[str, object], word: str
) -> None:
    (tmp_path / "ds.json").write_text(json.dumps(raw))
    both_end(changed(ranks, deepspeed=tmp_path / "ds.json"), 2, word)


def _lose(shard: Path) -> None:
    shard.unlink()


@pytest.mark.parametrize("damage", [_lose, flip], ids=["missing", "damaged"])
def test_a_bad_data_shard(ranks: Ranks, damage: Callable[[Path], None]) -> None:
    shard = ranks.run / "data" / "train" / "data.arrow"
    good = shard.read_bytes()
    damage(shard)
    both_end(ranks, 4, str(shard))
    shard.write_bytes(good)
    goes_on(ranks)


def test_damaged_checkpoints(ranks: Ranks) -> None:
    """The newest one: the older one is taken. Both: exit 4."""
    root = ranks.run / "codec" / "checkpoints"
    good = {path: path.read_bytes() for path in root.rglob("state-00000.safetensors")}
    for state in good:
        flip(state)
    both_end(ranks, 4, "damaged", "--resume never")
    older = root / "step-00000002" / "state-00000.safetensors"
    older.write_bytes(good[older])
    codes, logs, _ = ranks.end(120)
    assert codes == [0, 0] and "damaged, trying an older one" in logs[0]


@pytest.mark.parametrize("left", [0, 40_000, 400_000])
def test_a_full_disk(ranks: Ranks, disk: Disk, left: int) -> None:
    run = shutil.copytree(ranks.run, disk.path / "run")
    disk.fill(left)
    at = changed(ranks, run=_link(ranks, run))
    both_end(at, 3, f"error: {at.run}")
    disk.free()
    goes_on(at)


def test_a_read_only_run_folder(ranks: Ranks, disk: Disk) -> None:
    run = shutil.copytree(ranks.run, disk.path / "run")
    at = changed(ranks, run=_link(ranks, run))
    disk.protect(True)
    both_end(at, 3, "Read-only file system")
    disk.protect(False)
    goes_on(at)


def _link(ranks: Ranks, run: Path) -> Path:
    """A name for `run` beside which there is room for the logs."""
    link = ranks.run.parent / "link"
    if not link.is_symlink():
        link.symlink_to(run)
    return link
