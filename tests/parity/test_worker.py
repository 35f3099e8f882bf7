"""Candidates in worker processes: whatever a runner does, its row says so and the others go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmprod.bundle import Bundle
from mmprod.errors import ConfigError, EnvironmentMissing, IntegrityError, ParityFailed
from mmprod.graphs.runner import Runner, example_inputs
from mmprod.manifest import FileEntry, write_json
from mmprod.parity import candidates, openers
from mmprod.parity.candidates import Candidate
from mmprod.parity.cases import Case
from mmprod.parity.check import check_graph
from mmprod.parity.report import Row, Subject
from mmprod.parity.run import Comparison
from mmprod.parity.worker import Job, WorkerRunner, Workers, environment
from mmprod.runners.cuda import Probe
from tests.parity import fake_device
from tests.parity.toy import SPECS, decode, embed

SPEC = SPECS["codec_decode"]
TARGET = "rtx-sm89"


def open_worker(opener: Any, path: Path, timeout_s: float = 60) -> WorkerRunner:
    with Workers(timeout_s, preload=()) as workers:
        runner = workers.open(Job.of(partial(opener, SPEC, path), path.parent, ()), more=False)
    assert isinstance(runner, WorkerRunner)
    return runner


def add_engine(bundle: Bundle, version: str = "9.9") -> Path:
    """A made-up engine of codec_decode for sm89 with the JSON beside it."""
    path = bundle.root / "engines" / TARGET / "codec_decode.fp32.plan"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"plan")
    about = {
        "format": 1,
        "graph": "codec_decode",
        "flavour": "rtx",
        "version": version,
        "target": "sm89",
        "plan": FileEntry.of(path.parent, path).as_dict(),
    }
    write_json(path.with_suffix(".json"), about)
    bundle.add(path, role="engine", graph="codec_decode", precision="fp32")
    bundle.add(
        path.with_suffix(".json"), role="engine-info", graph="codec_decode", precision="fp32"
    )
    bundle.save()
    return path


def compare(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, opener: Any, timeout_s: float = 60
) -> tuple[Row, list[Row]]:
    """The engine's row and those of the graphs."""
    monkeypatch.setattr("mmprod.runners.cuda.find_device", lambda: Probe("sm89", "RTX 4090"))
    monkeypatch.setattr(candidates, "open_engine", opener)
    add_engine(bundle)
    report = Comparison(bundle, timeout_s=timeout_s).compare()
    (engine,) = [r for r in report.select(leg="torch-engine") if r.subject.files]
    return engine, [r for r in report.select(leg="torch-ort") if r.status != "not run"]


def alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_the_worker_answers_as_this_process_does(bundle: Bundle) -> None:
    graphs = bundle.artefacts(role="onnx", graph="codec_decode")
    call = partial(openers.open_onnx, SPEC, bundle.path(graphs[0]), "fp32")
    here = call()
    with Workers(60) as workers:
        runner = workers.open(Job.of(call, bundle.root, [graphs[0].entry]), more=False)
    for batch in (1, 3):
        inputs = example_inputs(SPEC, batch, seed=batch)
        found, wanted = runner(inputs), here(inputs)
        assert found["pixels"].dtype == np.uint8 and (found["pixels"] == wanted["pixels"]).all()
    assert runner.backend.startswith(here.backend + ", worker: ")
    with pytest.raises(ConfigError, match="outside 0"):
        runner({"codes": np.full((1, 4), 999, np.int32)})
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner(inputs)


FAULTS = {
    fake_device.honest: "",
    fake_device.crash: "b1: crashed: signal 11 (SIGSEGV) after 'device: illegal memory access'",
    fake_device.crash_when_opened: "cannot be opened: signal 6 (SIGABRT)",
    fake_device.killed: "cannot be opened: signal 9 (SIGKILL)",
    fake_device.leave: "cannot be opened: it ended with exit code 7",
    fake_device.bug: "b1: crashed: ZeroDivisionError: ",
    fake_device.wrong_output: "embedding ",
    fake_device.nan: "b1: ",
    fake_device.wrong_shape: "b1: ",
}


def test_each_fault_is_a_failure_of_its_own_row(tmp_path: Path) -> None:
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    spec = SPECS["embed_text"]
    inputs = example_inputs(spec, 2, seed=1)
    case = Case("b1", inputs, embed(inputs), {"batch": 2})
    with Workers(60, preload=()) as workers:
        offered = [
            Candidate(
                Subject("torch-engine", spec.name, "fp32", opener.__name__),
                partial(workers.open, Job.of(partial(opener, spec, path), tmp_path, ())),
            )
            for opener in FAULTS
        ]
        rows = check_graph(spec, [case], None, offered)
    for row, reason in zip(rows, FAULTS.values(), strict=True):
        assert row.status == ("fail" if reason else "pass"), row
        assert row.reason.startswith(reason) and (row.advice or not reason)
    assert "NaN in 10 of 10" in rows[list(FAULTS).index(fake_device.nan)].reason


def test_a_crash_stops_no_other_row(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, graphs = compare(bundle, monkeypatch, fake_device.crash)
    assert engine.status == "fail" and "signal 11 (SIGSEGV)" in engine.reason
    assert [row.status for row in graphs] == ["pass", "pass"]


def test_silence_is_a_failure_and_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    runner = open_worker(fake_device.hang_with_a_child, path)
    runner.timeout_s = 0.5
    with pytest.raises(ParityFailed, match=r"no answer within 0\.5 s") as caught:
        runner(example_inputs(SPEC, 1, seed=0))
    assert "--timeout" in caught.value.hint
    child = int((tmp_path / "child.pid").read_text())
    assert gone(child), "the worker's own child was left behind"
    with pytest.raises(ValueError, match="closed"):
        runner(example_inputs(SPEC, 1, seed=0))


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (fake_device.no_device, "not run: no CUDA device"),
        (fake_device.other_device, "not run: built for sm89, this device is sm86 (RTX 3090)"),
        (
            fake_device.other_version,
            "not run: built with tensorrt_fake 9.9, 9.8 is installed, and plans fit one version "
            "only",
        ),
    ],
)
def test_a_machine_that_cannot_run_it_is_no_failure(
    bundle: Bundle, opener: Any, reason: str
) -> None:
    with pytest.raises(EnvironmentMissing) as caught:
        open_worker(opener, add_engine(bundle))
    assert caught.value.message == reason


def test_an_honest_device_passes_even_if_it_prints(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = compare(bundle, monkeypatch, fake_device.noisy)
    assert engine.status == "pass" and engine.cases == 2
    assert engine.backend.startswith(fake_device.BACKEND)


def test_a_file_that_changes_after_its_check_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    entry = FileEntry.of(tmp_path, path)
    path.write_bytes(b"evil")
    job = Job.of(partial(fake_device.honest, SPEC, path), tmp_path, [entry])
    with Workers(60, preload=()) as workers, pytest.raises(IntegrityError, match="changed while"):
        workers.open(job, more=False)


@pytest.mark.skipif(sys.platform != "linux", reason="the means are those of Linux")
def test_what_a_worker_gives_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMPROD_KEY_PASSPHRASE", "secret")
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    runner = open_worker(fake_device.nosy, path)
    runner.close()
    said = runner.backend
    assert "saw a secret" not in said and "wrote a large file" not in said
    assert "NoNewPrivs: 1" in said and "no new privileges" in runner.confined
    if "no network" in runner.confined:
        assert "1 interfaces" in said, "more than its own loopback"
    if {"no capabilities", "user nobody"} & set(runner.confined):
        assert "CapEff: 0000000000000000" in said
    if os.geteuid() == 0:
        assert {"no capabilities", "user nobody"} & set(runner.confined)


def test_the_environment_of_a_worker_is_a_short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = environment()
    assert "HF_TOKEN" not in found and found["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="the means are those of Linux")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    code = """if True:
        import os, signal, sys
        from functools import partial
        from pathlib import Path
        from mmprod.graphs.spec import GraphSpec
        from mmprod.parity.worker import Job, Workers
        from tests.parity import fake_device

        spec = GraphSpec("codec_decode", (), (), "")
        workers = Workers(60, preload=())
        runner = workers.open(Job.of(partial(fake_device.honest, spec, Path(sys.argv[1]))))
        print(runner._process._child.pid, workers._spare._child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    at_work, spare = done.stdout.split()
    assert gone(int(at_work)) and gone(int(spare))


@pytest.mark.skipif(sys.platform != "linux", reason="the means are those of Linux")
def test_a_worker_that_hangs_while_opening_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "toy.plan").write_bytes(b"plan")
    code = """if True:
        import os, signal, sys, threading, time
        from functools import partial
        from pathlib import Path
        from mmprod.graphs.spec import GraphSpec
        from mmprod.parity.worker import Job, Workers
        from tests.parity import fake_device

        def end():
            while not path.with_name("opening").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

        path, spec = Path(sys.argv[1]), GraphSpec("codec_decode", (), (), "")
        workers = Workers(60, preload=())
        print(workers._spare._child.pid, flush=True)
        threading.Thread(target=end, daemon=True).start()
        workers.open(Job.of(partial(fake_device.hang_when_opened, spec, path)), more=False)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "toy.plan")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert gone(int(done.stdout))


def test_a_spare_process_is_ended_with_the_others() -> None:
    with Workers(60, preload=()) as workers:
        assert workers._spare
        pid = workers._spare._child.pid
        assert alive(pid)
    assert gone(pid)


def test_answers_are_the_reference_s(tmp_path: Path) -> None:
    path = tmp_path / "toy.plan"
    path.write_bytes(b"plan")
    runner = open_worker(fake_device.honest, path)
    inputs = example_inputs(SPEC, 2, seed=0)
    assert (runner(inputs)["pixels"] == decode(inputs)["pixels"]).all()
    runner.close()


def test_no_process_is_started_for_engines_without_a_device(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def watched(workers: Workers, job: Job) -> Runner:
        opened.append(job.opener)
        return plain(workers, job)

    plain = Workers.open
    for module in ("cuda", "trt"):
        monkeypatch.setattr(
            f"mmprod.runners.{module}.find_device", lambda: Probe(reason="no driver")
        )
    monkeypatch.setattr(Workers, "open", watched)
    add_engine(bundle)
    report = Comparison(bundle, timeout_s=60).compare()
    (engine,) = [r for r in report.select(leg="torch-engine") if r.subject.files]
    assert engine.reason == "built for sm89, not run: no CUDA device"
    assert opened == ["mmprod.parity.openers:open_onnx"] * 2
