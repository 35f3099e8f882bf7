"""Runners in processes of their own: whatever a foreign library does, the check goes on.

    Workers.open(job) -> WorkerRunner     frames over pipes      worker_child: OrtRunner, TrtRunner
            spare process, started ahead  <--------------------> confined, one per candidate

A crash (signal, memory limit) or silence beyond the time-out becomes a ParityFailed that says so.
The process leads a group of its own, which is ended as a whole when the runner is closed; the
system ends it when this process dies first. One process per candidate, not per case; the next one
is started ahead, so that its imports run beside the comparison.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from mmprod import errors
from mmprod.errors import MmprodError, ParityFailed
from mmprod.graphs.runner import Array, Arrays, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry
from mmprod.parity.worker_wire import Closed, Frame, NoAnswer, Nonsense, Pipes, spec_to_json
from mmprod.runners.cuda import child_environment

logger = logging.getLogger(__name__)

TIMEOUT_S = 300.0
"""How long one answer may take unless the caller says otherwise."""
KEPT = (
    "PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
"""All that a worker sees of the environment: no key, no token, no proxy."""
_OPEN_HINT = "mmprod bundle verify BUNDLE tells whether the file was changed"
_KILL_WAIT_S = 10
WORKER = ", worker: "
"""between what executes a graph and the rights its process gave up, in `backend`"""


@dataclass(frozen=True)
class Job:
    """What a worker is to open: `opener(spec, path, *rest)`, a function of a module, by name.

    `files`: what it will read, with the hashes it must have, below `root`.
    """

    opener: str
    spec: GraphSpec
    path: Path
    rest: tuple[str, ...] = ()
    root: Path = Path()
    files: tuple[FileEntry, ...] = ()

    @classmethod
    def of(cls, call: partial[Runner], root: Path = Path(), files: Sequence[FileEntry] = ()) -> Job:
        """From a call that opens a runner in this process: `partial(function, spec, path, ...)`."""
        spec, path, *rest = call.args
        opener = f"{call.func.__module__}:{call.func.__qualname__}"
        return cls(opener, spec, path, tuple(rest), root, tuple(files))

    def frame(self) -> Frame:
        hashes = {str(self.root / entry.path): entry.sha256 for entry in self.files}
        values = {
            "opener": self.opener,
            "spec": spec_to_json(self.spec),
            "path": str(self.path),
            "rest": list(self.rest),
            "sha256": hashes,
        }
        return Frame("job", values)


class Workers:
    """Where worker processes come from. Close it, or use it as a context, to end the spare one."""

    def __init__(
        self, timeout_s: float = TIMEOUT_S, preload: tuple[str, ...] = ("mmprod.runners.ort",)
    ) -> None:
        """`preload`: modules that a process imports while it waits for its job, if installed."""
        self.timeout_s = timeout_s
        self._preload = preload
        self._spare: _Process | None = _Process(preload)

    def open(self, job: Job, *, more: bool = True) -> Runner:
        """A runner of this job. `more`: start the next process ahead. Raises what opening it here
        would raise, and ParityFailed for a crash or silence.
        """
        process = self._spare or _Process(self._preload)
        self._spare = _Process(self._preload) if more else None
        return WorkerRunner(job, process, self.timeout_s)

    def close(self) -> None:
        if self._spare:
            self._spare.end()
        self._spare = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WorkerRunner:
    """A Runner whose work is done by a worker. `backend` says which rights the worker gave up."""

    spec: GraphSpec
    backend: str

    def __init__(self, job: Job, process: _Process, timeout_s: float) -> None:
        self.spec = job.spec
        self.timeout_s = timeout_s
        self._process = process
        self._over = False
        try:
            ready = self._ask(job.frame(), "ready")
        except BaseException:
            self.close()
            raise
        self.confined = tuple(str(step) for step in ready.values.get("confined", ()))
        self.backend = f"{ready.values.get('backend')}{WORKER}{', '.join(self.confined)}"

    def __call__(self, inputs: Arrays) -> dict[str, Array]:
        """Outputs by name; see `graphs.runner.Runner`."""
        if self._over:
            raise ValueError(f"the runner of {self.spec.name} is closed")
        return self._ask(Frame("run", arrays=dict(inputs)), "outputs").arrays

    def close(self) -> None:
        self._over = True
        self._process.end()

    def _ask(self, question: Frame, kind: str) -> Frame:
        """Send and receive. Raises what the worker raised, ParityFailed when it is of no use."""
        try:
            self._process.pipes.send(question, self.timeout_s)
            answer = self._process.pipes.receive(self.timeout_s)
        except NoAnswer:
            self.close()
            raise ParityFailed(
                f"no answer within {self.timeout_s:g} s",
                hint="a slow machine may need a longer --timeout; else the file hangs its library",
            ) from None
        except Closed:
            why = self._process.epitaph()
            self.close()
            raise ParityFailed(why, hint=_OPEN_HINT) from None
        except Nonsense as error:
            self.close()
            raise ParityFailed(f"the worker answered with nonsense: {error}") from None
        if answer.kind == "error":
            raise _error(answer.values)
        if answer.kind != kind:
            self.close()
            raise ParityFailed(f"the worker answered with {answer.kind!r:.40}, not {kind}")
        return answer


class _Process:
    """A worker process and its two pipes. Until it gets a job it only imports."""

    def __init__(self, preload: tuple[str, ...]) -> None:
        command = [sys.executable, "-P", "-m", "mmprod.parity.worker_child", str(os.getpid())]
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._child = subprocess.Popen(
            [*command, *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=environment(),
            start_new_session=True,
            bufsize=0,
        )
        assert self._child.stdin and self._child.stdout
        self._streams = self._child.stdin, self._child.stdout
        self.pipes = Pipes(self._child.stdout.fileno(), self._child.stdin.fileno())

    def epitaph(self) -> str:
        """How a process that closed its pipes ended, and the last line it wrote."""
        try:
            code = self._child.wait(_KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection and went on"
        self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, self._words.tell() - 2000))
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        last = f" after {' '.join(lines[-1].split())[:160]!r}" if lines else ""
        if code < 0:
            return f"signal {-code} ({_signal_name(-code)}){last}"
        return f"it ended with exit code {code}{last}"

    def end(self) -> None:
        """End the group. Calling it twice is allowed."""
        if self._words.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for stream in (*self._streams, self._words):
            stream.close()


def environment() -> dict[str, str]:
    """What a worker gets of this process's environment, and what keeps it from writing."""
    whole = child_environment()
    kept = {name: whole[name] for name in KEPT if name in whole}
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_CACHE_DISABLE": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **quiet, "HOME": "/nonexistent"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _error(raw: dict[str, Any]) -> Exception:
    """The error a worker told of: one of our tree as itself, a bug as ParityFailed."""
    name, message = str(raw.get("type")), str(raw.get("message"))
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, MmprodError):
        return kind(message, hint=str(raw.get("hint", "")))
    logger.error("unexpected error in a worker:\n%s", raw.get("trace", ""))
    return ParityFailed(f"{name}: {message}"[:300])
