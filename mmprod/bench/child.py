"""The process of one subject: `python -m mmprod.bench.child`, started by `process.py`.

Reads JSON lines from stdin: first the `Task`, then requests; answers each with one line. So what
one subject needs of memory is the peak of its process, and no library meets the threads of another.

    {"check": PATH, "batch": B}             -> outputs written to PATH as npz
    {"batch": B, "warmup": W, "runs": N, "end_to_end": bool} -> {"seconds": [...]}
    {"peak": true}                          -> {"bytes": N}
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmprod.bundle import Bundle, open_bundle
from mmprod.errors import IntegrityError, MmprodError
from mmprod.graphs.runner import Runner, example_inputs
from mmprod.manifest import sha256_file

SEED = 1


@dataclass(frozen=True)
class Task:
    """What a process is to run. `paths`: files by graph; `files`: SHA-256 of all that is read, by
    path below the bundle, or below the run for PyTorch; `run`: of PyTorch, "" for none; `order`:
    ranks and bounds of a host loop; `batch`: the first one, that `torch compile` is ready for.
    """

    bundle: str
    kind: str
    graph: str
    precision: str
    paths: Mapping[str, str]
    files: Mapping[str, str]
    run: str
    threads: int
    order: tuple[tuple[int, ...], tuple[int, ...]]
    batch: int = 1

    def line(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    """Answer until stdin ends. A failure is answered and ends the process."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever a library prints must not get between the answers

        def say(content: Mapping[str, Any]) -> None:
            print(json.dumps(content), file=answers, flush=True)

        try:
            _serve(Task(**json.loads(sys.stdin.readline())), say)
        except MmprodError as error:
            kind = type(error).__name__
            say({"error": kind, "message": error.message, "hint": error.hint})
        except Exception as error:  # noqa: BLE001 - told to the process that asked, which raises
            traceback.print_exc()
            said = (str(error).strip().splitlines() or [""])[0]
            say({"error": type(error).__name__, "message": said, "hint": ""})


def _serve(task: Task, say: Callable[[Mapping[str, Any]], None]) -> None:
    from mmprod.bench.edges import Edges

    start = time.perf_counter()
    bundle = open_bundle(task.bundle, verify=False)
    _verify(task)
    runner = _runner(task, bundle)
    tokenizers = [bundle.path(a) for a in bundle.artefacts(role="tokenizer")]
    edges = Edges.load(runner.spec, bundle.dims.vocabulary, next(iter(tokenizers), None))
    if task.kind == "torch compile":
        runner(example_inputs(runner.spec, task.batch, SEED))  # compiles at the first call
    ready = time.perf_counter() - start
    say({"backend": runner.backend, "ready_s": ready, "edges": edges.exist})
    try:
        for line in sys.stdin:
            say(_answer(json.loads(line), runner, edges))
    finally:
        runner.close()


def _verify(task: Task) -> None:
    """What is opened next is what the verdict was about. Raises IntegrityError."""
    root = Path(task.run if task.kind.startswith("torch") else task.bundle)
    for path, wanted in task.files.items():
        if sha256_file(root / path) != wanted:
            raise IntegrityError(
                f"{root / path} changed while it was being opened",
                hint="measure again when nothing else writes there",
            )


def _answer(asked: Mapping[str, Any], runner: Runner, edges: Any) -> dict[str, Any]:
    if "peak" in asked:
        return {"bytes": peak_bytes()}
    batch = asked["batch"]
    if "check" in asked:
        outputs = runner(example_inputs(runner.spec, batch, SEED))
        np.savez(asked["check"], allow_pickle=False, **outputs)
        return {}
    if asked["end_to_end"]:
        held = edges.given(batch, SEED)

        def once() -> None:
            edges(runner, held, SEED)
    else:
        inputs = example_inputs(runner.spec, batch, SEED)

        def once() -> None:
            runner(inputs)

    for _ in range(asked["warmup"]):
        once()
    return {"seconds": [_timed(once) for _ in range(asked["runs"])]}


def _timed(once: Callable[[], None]) -> float:
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """Largest resident set of this process so far; 0 where the system does not tell."""
    path = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s*(\d+) kB", path.read_text() if path.exists() else "", re.M)
    return int(found.group(1)) * 1024 if found else 0


def _runner(task: Task, bundle: Bundle) -> Runner:
    spec = bundle.specs[task.graph]
    paths = {graph: Path(path) for graph, path in task.paths.items()}
    if task.kind == "engine":
        from mmprod.runners.trt import TrtRunner

        return TrtRunner(spec, paths[task.graph])
    if task.kind.startswith("torch"):
        return _torch(task)
    from mmprod.runners.ort import OrtRunner

    def ort(graph: str) -> Runner:
        return OrtRunner(
            bundle.specs[graph], paths[graph], threads=task.threads, precision=task.precision
        )

    if task.kind == "host loop":
        from mmprod.bench.host_loop import HostLoop, Order
        from mmprod.bench.subjects import PARTS

        step, decode = (ort(graph) for graph in PARTS)
        order = Order(*(tuple(part) for part in task.order))
        return HostLoop(spec, (step, decode), bundle.sampler, order)
    return ort(task.graph)


def _torch(task: Task) -> Runner:
    """PyTorch on the weights of a run. Compiled: the parts of a sampler each for itself, so that
    its step is compiled once and not once per step.
    """
    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.models import load_models
    from mmprod.graphs.catalog import build_catalog
    from mmprod.graphs.modules import LoopModule, build_module
    from mmprod.runners.torch import TorchRunner, compile_each

    run = open_run(task.run)
    models = load_models(run)
    module = build_module(
        task.graph,
        codec=models.codec,
        fusion=models.fusion,
        dims=run.dims,
        sampler=run.config.sampler,
    )
    if task.kind == "torch compile":
        compile_each(module.children() if isinstance(module, LoopModule) else [module])
    runner = TorchRunner(build_catalog(run.dims, run.config.sampler)[task.graph], module)
    if task.kind == "torch compile":
        runner.backend += " compiled"
    return runner


if __name__ == "__main__":
    main()
