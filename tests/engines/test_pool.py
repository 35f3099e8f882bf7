"""Workers that die, hang, swell or refuse: each fails its own build only."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from mmprod.engines.job import BuildJob, BuildResult
from mmprod.engines.pool import Limits, Outcome, Worker, run_jobs, worker_command
from mmprod.errors import BudgetMissed, ConfigError, EnvironmentMissing, PrecisionMismatch
from tests.engines import small_graphs

RESULT = BuildResult("1.0", 0.5, {}, {}, {}, ())
FAKE = textwrap.dedent(
    f"""
    import json, os, signal, sys, time
    print(json.dumps({{"version": "1.0"}}), flush=True)
    for line in sys.stdin:
        what = json.loads(line)["graph"]
        if what == "crash":
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "hang":
            time.sleep(60)
        if what == "swell":
            hoard = b"x" * 300_000_000
            time.sleep(60)
        if what == "refuse":
            print(json.dumps({{"error": "PrecisionMismatch", "message": "no", "hint": "h"}}))
        else:
            print(json.dumps({{"result": {RESULT.as_dict()!r}}}))
        sys.stdout.flush()
    """
)


def jobs(tmp_path: Path, *graphs: str) -> list[BuildJob]:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"onnx")
    return [BuildJob(name, "fp16", "rtx", "sm86", str(path), "plan", (), (), ()) for name in graphs]


def run(tmp_path: Path, limits: Limits, *graphs: str) -> dict[str, Outcome]:
    command = [sys.executable, "-c", FAKE]
    found = run_jobs(jobs(tmp_path, *graphs), limits=limits, command=command)
    return {job.graph: outcome for job, outcome in found}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_is_named_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    found = run(tmp_path, Limits(workers=workers), "a", "crash", "b", "refuse", "c")
    assert [found[name] for name in "abc"] == [RESULT] * 3
    crash = found["crash"]
    assert isinstance(crash, EnvironmentMissing)
    assert "crash fp16 sm86: the builder died (SIGSEGV)" in crash.message
    assert "last words" in crash.message
    refused = found["refuse"]
    assert isinstance(refused, PrecisionMismatch)
    assert (refused.message, refused.hint) == ("no", "h")


def test_a_build_that_hangs_is_stopped(tmp_path: Path) -> None:
    found = run(tmp_path, Limits(workers=1, seconds=0.5), "hang", "a")
    assert isinstance(found["hang"], BudgetMissed)
    assert "not done after 0.5 s" in found["hang"].message
    assert found["a"] == RESULT


def test_a_build_that_swells_is_stopped(tmp_path: Path) -> None:
    limits = Limits(workers=1, seconds=30, memory_bytes=200 << 20)
    found = run(tmp_path, limits, "swell", "a")
    assert isinstance(found["swell"], BudgetMissed)
    assert "200 are allowed" in found["swell"].message
    assert found["a"] == RESULT


def test_a_worker_that_cannot_start_fails_every_job(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such library')"]
    found = dict(run_jobs(jobs(tmp_path, "a", "b"), limits=Limits(workers=1), command=command))
    assert len(found) == 2
    for outcome in found.values():
        assert isinstance(outcome, EnvironmentMissing)
        assert "no such library" in outcome.message


def test_a_worker_reports_a_library_that_is_not_there() -> None:
    error = {"error": "EnvironmentMissing", "message": "tensorrt: none", "hint": "pip install"}
    command = [sys.executable, "-c", f"print({json.dumps(json.dumps(error))})"]
    with pytest.raises(EnvironmentMissing, match="tensorrt: none"):
        Worker(command)


def test_leaving_early_ends_the_workers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAKE]
    found = run_jobs(jobs(tmp_path, "a", "hang"), limits=Limits(workers=2), command=command)
    job, outcome = next(found)
    assert (job.graph, outcome) == ("a", RESULT)
    found.close()  # returns at once, or the test would take the minute that the other job sleeps


def test_the_real_worker_builds_refuses_and_is_stopped_in_time(tmp_path: Path) -> None:
    good, bad, slow = (tmp_path / name / "graph.onnx" for name in ("good", "bad", "slow"))
    todo = [
        small_graphs.job(small_graphs.matmul(good, "fp16"), good, "fp16", "sm89"),
        small_graphs.job(small_graphs.multinomial(bad), bad, "fp32", "sm89"),
    ]
    found = {job.graph: outcome for job, outcome in run_jobs(todo, limits=Limits(workers=1))}
    assert isinstance(found["matmul"], BuildResult)
    assert found["matmul"].precision["share"] == 1.0
    assert (good.parent / "out.plan").stat().st_size > 10_000
    assert isinstance(found["multinomial"], ConfigError)
    assert "draw_tokens" in found["multinomial"].message
    worker = Worker(worker_command("rtx"))
    try:
        job = small_graphs.job(small_graphs.chain(slow, 200), slow, "fp32", "sm89")
        outcome = worker.build(job, Limits(seconds=0.2))
        assert isinstance(outcome, BudgetMissed)
        assert "chain fp32 sm89: not done after 0.2 s" in outcome.message
        assert not worker.alive
    finally:
        worker.close()
