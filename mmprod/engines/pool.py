"""Runs build jobs in worker processes, several at a time, and outlives whatever they do.

A worker is started once and builds many engines. One that crashes, hangs or takes too much memory
fails the build it was on, by name; the next job gets a new worker.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod import errors
from mmprod.engines.job import BuildJob, BuildResult
from mmprod.errors import BudgetMissed, EnvironmentMissing, MmprodError
from mmprod.runners.cuda import child_environment

START_SECONDS = 120.0
_POLL_SECONDS = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BYTES_PER_ONNX_BYTE = 6
"""Memory of a builder over the size of its graph; measured 4 on 97 M parameters in fp32."""
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Limits:
    """What builds may take. `workers` 0: as many as processors and memory allow, at most 8.

    `seconds` and `memory_bytes` are for one build; `memory_bytes` 0: nine tenths of the machine.
    """

    workers: int = 0
    seconds: float = 1800.0
    memory_bytes: int = 0


Outcome = BuildResult | MmprodError


def worker_command(flavour: str) -> list[str]:
    return [sys.executable, "-P", "-X", "faulthandler", "-m", "mmprod.engines.worker", flavour]


class Worker:
    """One worker process. `version`: of the library it loaded.

    Raises EnvironmentMissing when it cannot start, BudgetMissed when that takes too long.
    """

    def __init__(self, command: Sequence[str], stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._buffer = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
            env=child_environment(),
        )
        try:
            answer = self._receive("starting the builder", Limits(seconds=START_SECONDS))
            if "error" in answer:
                raise _as_error(answer)
        except MmprodError:
            self.close()
            raise
        self.version = str(answer["version"])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def build(self, job: BuildJob, limits: Limits) -> Outcome:
        """The result of a job, or why there is none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job.as_dict()).encode() + b"\n")
            answer = self._receive(job.label, limits)
        except BrokenPipeError:
            return self._died(job.label)
        except MmprodError as error:
            return error
        return _as_error(answer) if "error" in answer else BuildResult.parse(answer["result"])

    def close(self) -> None:
        """End the process and wait for it."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _receive(self, label: str, limits: Limits) -> dict[str, Any]:
        """The next line, within the limits."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        deadline = time.monotonic() + limits.seconds
        allowed = limits.memory_bytes or int(_physical_memory() * 0.9)
        while b"\n" not in self._buffer:
            if select.select([pipe], [], [], _POLL_SECONDS)[0]:
                chunk = os.read(pipe, 1 << 20)
                if not chunk:
                    raise self._died(label)
                self._buffer += chunk
                continue
            if self._stop.is_set():
                raise self._end(EnvironmentMissing(f"{label}: stopped"))
            if time.monotonic() > deadline:
                text = f"{label}: not done after {limits.seconds:g} s, so it was stopped"
                raise self._end(BudgetMissed(text, hint="give it more time (Limits.seconds)"))
            used = self._resident()
            if used > allowed:
                text = f"{label}: took {used >> 20} MiB of memory where {allowed >> 20} are allowed"
                raise self._end(
                    BudgetMissed(text, hint="build fewer at a time or on a larger machine")
                )
        line, self._buffer = self._buffer.split(b"\n", 1)
        content: dict[str, Any] = json.loads(line)
        return content

    def _end(self, error: MmprodError) -> MmprodError:
        self.close()
        return error

    def _died(self, label: str) -> MmprodError:
        """The worker ended by itself in the middle of something."""
        code = self._process.wait()
        cause = f"exit code {code}"
        if code < 0:
            cause = signal.Signals(-code).name
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        said = f"; its last words: {lines[-1].strip()}" if lines else ""
        killed = " SIGKILL mostly means that the machine ran out of memory." if code == -9 else ""
        return EnvironmentMissing(
            f"{label}: the builder died ({cause}){said}",
            hint=f"the other builds went on.{killed} Try again, then mmprod doctor",
        )

    def _resident(self) -> int:
        """Bytes of memory the process holds; 0 once it has ended."""
        try:
            fields = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return int(fields[1]) * _PAGE


def run_jobs(
    jobs: Sequence[BuildJob], *, limits: Limits, command: Sequence[str] = ()
) -> Iterator[tuple[BuildJob, Outcome]]:
    """Build all jobs, largest graph first, and yield each as it is done. Jobs are of one flavour.

    `command`: what to start as a worker; by default this package's own.
    """
    if not jobs:
        return
    start = list(command) or worker_command(jobs[0].flavour)
    stop = threading.Event()
    idle: deque[Worker] = deque()

    def build(job: BuildJob) -> Outcome:
        try:
            worker = idle.pop()
        except IndexError:
            try:
                worker = Worker(start, stop)
            except MmprodError as error:
                return error
        outcome = worker.build(job, limits)
        if worker.alive:
            idle.append(worker)
        return outcome

    ordered = sorted(jobs, key=lambda job: -Path(job.onnx).stat().st_size)
    executor = ThreadPoolExecutor(limits.workers or _fitting_workers(ordered))
    futures = {executor.submit(build, job): job for job in ordered}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)
        for worker in idle:
            worker.close()


def _fitting_workers(jobs: Sequence[BuildJob]) -> int:
    """How many builds run side by side without waiting for a processor or for memory."""
    need = max(Path(jobs[0].onnx).stat().st_size, 1) * _BYTES_PER_ONNX_BYTE
    room = _physical_memory() // 2 // need
    return max(1, min(len(jobs), len(os.sched_getaffinity(0)), room, _MOST_WORKERS))


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * _PAGE


def _as_error(answer: dict[str, Any]) -> MmprodError:
    """The error a worker reported, as the class it had there."""
    kind: type[MmprodError] = getattr(errors, answer["error"])
    return kind(answer["message"], hint=answer["hint"])
