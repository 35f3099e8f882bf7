"""Starting the process of a subject, and talking to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from mmprod import errors
from mmprod.bench.child import Task
from mmprod.errors import EnvironmentMissing, MmprodError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class SubjectFailed(MmprodError):
    """A subject could not run; its row says why, and the others go on."""


class SubjectProcess:
    """One subject in a process of its own. A context manager: leaving it ends the process.

    Each request waits at most `timeout_s` for its answer. Raises what the subject raised, if it is
    of our own tree, else SubjectFailed.
    """

    backend: str
    ready_s: float
    edges: bool

    def __init__(self, task: Task, timeout_s: float) -> None:
        self._task, self._timeout_s = task, timeout_s
        self._late = False

    def __enter__(self) -> Self:
        paths = os.pathsep.join(path for path in sys.path if path)
        threads = dict.fromkeys(THREADS, str(self._task.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmprod.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            ready = self._exchange(self._task.line())
        except BaseException:
            self._end()
            raise
        self.backend, self.ready_s, self.edges = ready["backend"], ready["ready_s"], ready["edges"]
        return self

    def ask(self, **request: Any) -> Mapping[str, Any]:
        """The answer to a request (see child.py)."""
        return self._exchange(json.dumps(request))

    def _exchange(self, line: str) -> Mapping[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the subject was started without pipes")
        watch = threading.Timer(self._timeout_s, self._give_up)
        watch.start()
        try:
            print(line, file=stdin, flush=True)
            said = stdout.readline()
        except BrokenPipeError:
            said = ""
        finally:
            watch.cancel()
        if self._late:
            raise SubjectFailed(f"no answer within {self._timeout_s:g} s")
        if not said:
            raise SubjectFailed(f"its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(said)
        if "error" in answer:
            _raise(answer)
        return answer

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _raise(answer: Mapping[str, Any]) -> None:
    known = getattr(errors, answer["error"], None)
    if known is EnvironmentMissing:
        raise EnvironmentMissing(answer["message"], hint=answer["hint"])
    if isinstance(known, type) and issubclass(known, MmprodError):
        raise known(answer["message"], hint=answer["hint"])
    raise SubjectFailed(f"{answer['error']}: {answer['message']}")
