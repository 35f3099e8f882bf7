"""The measurement: all subjects of a graph side by side, in rounds, so that drift meets all."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from mmprod.bench.agree import disagreement
from mmprod.bench.child import Task
from mmprod.bench.figures import BenchReport, Row, Timing
from mmprod.bench.host_loop import Order
from mmprod.bench.machine import describe_machine
from mmprod.bench.process import SubjectFailed, SubjectProcess
from mmprod.bench.subjects import Subject
from mmprod.bundle import Bundle
from mmprod.bundle.proof import NO_PASS
from mmprod.errors import ConfigError, EnvironmentMissing, MmprodError
from mmprod.graphs.runner import Array
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import sha256_file

logger = logging.getLogger(__name__)

Out = tuple[Literal["void", "not run"], str]
Part = Literal["graph", "end to end"]
PARTS: tuple[Part, ...] = ("graph", "end to end")


@dataclass(frozen=True)
class Settings:
    """How much is measured. batches (): smallest, typical and largest of the graph table."""

    batches: tuple[int, ...] = ()
    warmup: int = 3
    runs: int = 30
    rounds: int = 5
    threads: int = 1
    timeout_s: float = 600.0

    def sizes(self, spec: GraphSpec) -> tuple[int, ...]:
        """Ascending, as the peak of memory needs it. Raises ConfigError outside the range."""
        (batch,) = spec.dims
        asked = self.batches or (batch.min, batch.typical, batch.max)
        wrong = [size for size in asked if not batch.min <= size <= batch.max]
        if wrong:
            raise ConfigError(
                f"{spec.name} takes batches of {batch.min} to {batch.max}, not {wrong[0]}",
                hint=f"--batch {batch.min},{batch.max}",
            )
        return tuple(sorted(set(asked)))


@dataclass(frozen=True)
class Live:
    """What the comparison with PyTorch and a host loop needs: the run, and the sampler's order."""

    run: Path
    order: Order


@dataclass
class _Lane:
    """A subject on its way through the rounds. `out`: why it runs no more."""

    subject: Subject
    process: SubjectProcess | None = None
    out: Out | None = None
    seconds: dict[Part, list[float]] = field(default_factory=dict)
    peak_bytes: int = 0

    def attempt(self, work: Callable[[SubjectProcess], None]) -> None:
        """Do something with the process; if that fails, the subject is out, with the reason."""
        if self.out or self.process is None:
            return
        try:
            work(self.process)
        except MmprodError as error:
            self.out = ("not run", error.message)

    def read_peak(self, process: SubjectProcess) -> None:
        self.peak_bytes = process.ask(peak=True)["bytes"]

    def row(self, batch: int) -> Row:
        process = self.process
        if self.out or process is None:
            status, reason = self.out or ("not run", "it was never started")
            return Row(self.subject, batch, status, reason)
        timings = {part: Timing.of(found, batch) for part, found in self.seconds.items() if found}
        return Row(
            self.subject,
            batch,
            "measured",
            backend=process.backend,
            ready_s=process.ready_s,
            graph=timings.get("graph"),
            end_to_end=timings.get("end to end"),
            peak_bytes=self.peak_bytes,
        )


def run_bench(
    bundle: Bundle,
    subjects: Mapping[str, Sequence[Subject]],
    settings: Settings,
    live: Live | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> BenchReport:
    """Measure these subjects. A subject that cannot run, or whose figures would be void, gets a
    row that says why; so what comes back may hold no figure at all.

    Raises ConfigError for a batch no graph takes, and what a damaged file raises.
    """
    for graph in subjects:
        settings.sizes(bundle.specs[graph])
    machine = describe_machine()
    rows: list[Row] = []
    for graph, chosen in subjects.items():
        spec = bundle.specs[graph]
        found = _measure(bundle, spec, chosen, settings, live)
        for row in sorted(found, key=lambda row: chosen.index(row.subject)):
            rows.append(row)
            on_row(row)
    machine["load_after"] = describe_machine()["load"]
    return BenchReport(
        bundle.name,
        sha256_file(bundle.root / "bundle.json"),
        machine,
        dataclasses.asdict(settings),
        tuple(rows),
    )


def _measure(
    bundle: Bundle,
    spec: GraphSpec,
    subjects: Sequence[Subject],
    settings: Settings,
    live: Live | None,
) -> list[Row]:
    read = {path for subject in subjects for path in subject.files}
    bundle.verify(a for a in bundle.artefacts() if a.path in read)  # as late as can be
    lanes = [_Lane(subject) for subject in subjects]
    sizes = settings.sizes(spec)
    rows = []
    with ExitStack() as stack:
        for lane in lanes:
            logger.info("%s: starting %s", spec.name, lane.subject.name)
            task = _task(bundle, lane.subject, settings.threads, live, sizes[0])
            _start(stack, lane, task, settings)
        _check(spec, lanes, sizes[0])
        for batch in sizes:
            logger.info("%s: measuring batch %d", spec.name, batch)
            _rounds(lanes, batch, settings)
            rows += [lane.row(batch) for lane in lanes]
    return rows


def _start(stack: ExitStack, lane: _Lane, task: Task, settings: Settings) -> None:
    """Start the process. Void subjects are not started; an engine is, to learn whether this machine
    could run it at all.
    """
    if lane.subject.void and lane.subject.kind != "engine":
        lane.out = ("void", lane.subject.void)
        return
    try:
        lane.process = stack.enter_context(SubjectProcess(task, settings.timeout_s))
    except (EnvironmentMissing, SubjectFailed) as error:
        lane.out = ("not run", error.message)
    else:
        if lane.subject.void:
            lane.out = ("void", lane.subject.void)


def _task(bundle: Bundle, subject: Subject, threads: int, live: Live | None, batch: int) -> Task:
    return Task(
        bundle=str(bundle.root),
        kind=subject.kind,
        graph=subject.graph,
        precision=subject.precision,
        paths={graph: str(path) for graph, path in subject.paths.items()},
        files=dict(subject.files),
        run=str(live.run) if live else "",
        threads=threads,
        order=(live.order.ranks, live.order.bounds) if live else ((), ()),
        batch=batch,
    )


def _check(spec: GraphSpec, lanes: Sequence[_Lane], batch: int) -> None:
    """PyTorch must agree with a graph that passed parity, the host loop with that of its precision:
    those that do not are out, as void; those without one to hold against are out as that one is.
    """
    outsiders = ("torch eager", "torch compile", "host loop")
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, dict[str, Array]] = {}
        for index, lane in enumerate(lanes):
            logger.info("%s: first call of %s", spec.name, lane.subject.name)
            path = Path(folder, f"{index}.npz")
            lane.attempt(lambda process, p=path: _outputs(process, p, batch))  # type: ignore[misc]
            if path.exists():
                with np.load(path, allow_pickle=False) as arrays:
                    found[lane.subject.name] = dict(arrays)
    for lane in lanes:
        subject = lane.subject
        if subject.kind not in outsiders or lane.out:
            continue
        graph = found.get(f"onnxruntime {subject.precision}")
        if graph is None:
            lane.out = _why_alone(lanes, subject.precision)
            continue
        exact = subject.kind == "host loop"
        reason = disagreement(spec, found[subject.name], graph, exact=exact)
        if reason:
            lane.out = ("void", f"it does not compute what the graph computes: {reason}")


def _why_alone(lanes: Sequence[_Lane], precision: str) -> Out:
    """Why there are no outputs of the graph that an outsider must agree with."""
    own = (lane for lane in lanes if lane.subject.kind == "onnxruntime")
    graph = next((lane for lane in own if lane.subject.precision == precision), None)
    if graph is None:
        return "not run", f"the {precision} graph was not measured: add it to --precision"
    status, reason = graph.out or ("not run", "it gave no outputs")
    if status == "void":
        return "void", f"{NO_PASS} for the {precision} graph to hold it against"
    return "not run", f"the {precision} graph to hold it against did not run: {reason}"


def _outputs(process: SubjectProcess, path: Path, batch: int) -> None:
    process.ask(check=str(path), batch=batch)


def _rounds(lanes: Sequence[_Lane], batch: int, settings: Settings) -> None:
    """All runs of a batch into the lanes' `seconds`."""
    for lane in lanes:
        lane.seconds = {}
    for part in PARTS:
        order = deque(lanes)
        for index, runs in enumerate(_shares(settings.runs, settings.rounds)):
            warmup = settings.warmup if index == 0 else 1
            for lane in order:
                lane.attempt(_turn(lane, part, batch, warmup, runs))
            order.rotate(-1)
    for lane in lanes:
        lane.attempt(lane.read_peak)


def _turn(
    lane: _Lane, part: Part, batch: int, warmup: int, runs: int
) -> Callable[[SubjectProcess], None]:
    def turn(process: SubjectProcess) -> None:
        end_to_end = part == "end to end"
        if end_to_end and not process.edges:
            return
        asked = {"batch": batch, "warmup": warmup, "runs": runs, "end_to_end": end_to_end}
        lane.seconds.setdefault(part, []).extend(process.ask(**asked)["seconds"])

    return turn


def _shares(runs: int, rounds: int) -> list[int]:
    """Runs of each round, as even as can be, none empty."""
    count = min(runs, rounds)
    return [runs // count + (index < runs % count) for index in range(count)]
