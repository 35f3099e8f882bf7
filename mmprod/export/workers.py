"""Exports parts on several cores.

Tracing a model is single-threaded Python, so this process and some workers take parts from one
queue, costliest first. A worker is a plain subprocess; it gets its own copy of the weights.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import onnx

from mmprod.errors import EnvironmentMissing
from mmprod.export.onnx_export import Part, export_part

MOST_WORKERS = 4
LARGEST_COPY = 500_000_000
"""bytes of weights above which no second copy is made for a worker"""

Done = Callable[[str, float], None]


def process_count(weights: int) -> int:
    """How many processes to export with, this one included. `weights`: bytes of all models."""
    cores = len(os.sched_getaffinity(0))
    return 1 if weights > LARGEST_COPY else min(cores, MOST_WORKERS)


def export_parts(parts: Sequence[Part], processes: int, done: Done) -> dict[str, onnx.ModelProto]:
    """The fp32 graph of each part, by name. Give the costliest parts first.

    `done(name, seconds)` is called after each part, from any thread but never from two at once.
    """
    queue, models, lock = deque(range(len(parts))), dict[str, onnx.ModelProto](), threading.Lock()

    def drain(export: Callable[[int], onnx.ModelProto]) -> None:
        while True:
            with lock:
                if not queue:
                    return
                index = queue.popleft()
            start = time.perf_counter()
            model = export(index)
            with lock:
                models[parts[index].name] = model
                done(parts[index].name, time.perf_counter() - start)

    helpers = min(processes, len(parts)) - 1
    # Pickled before anything is traced: tracing swaps the tensors of the modules for others.
    pickled = pickle.dumps(list(parts)) if helpers > 0 else b""
    with ThreadPoolExecutor(max(helpers, 1)) as threads, ExitStack() as stack:
        workers = [stack.enter_context(ExportWorker(parts, pickled)) for _ in range(helpers)]
        running = [threads.submit(drain, worker.export) for worker in workers]
        drain(lambda index: export_part(parts[index]))
        for future in running:
            future.result()
    return models


class ExportWorker:
    """One worker process for these parts. A context manager: leaving it ends the process."""

    def __init__(self, parts: Sequence[Part], pickled: bytes) -> None:
        self._names = [part.name for part in parts]
        self._pickled = pickled

    def __enter__(self) -> Self:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mmprod.export.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        return self

    def export(self, index: int) -> onnx.ModelProto:
        """The graph of a part. Raises what the export raised; EnvironmentMissing if it died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the worker was started without pipes")
        try:
            stdin.write(self._pickled)
            self._pickled = b""
            pickle.dump(index, stdin)
            stdin.flush()
            answer = pickle.load(stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            ending = _ending(self._process.wait())
            raise EnvironmentMissing(
                f"the process that exported {self._names[index]} ended with {ending}",
                hint="is there enough memory? Exporting needs about 1 GB beside the weights",
            ) from error
        if isinstance(answer, Exception):
            raise answer
        model: onnx.ModelProto = onnx.ModelProto.FromString(answer)
        return model

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()


def _ending(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name
