"""Run one graph's candidates beside the reference, case by case, and judge what was measured.

The reference runs once per case for all candidates. A candidate that crashes or gives an output
that cannot be compared is out: its row fails with that reason, the others go on. Only sums and
small maps are kept, never outputs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from mmprod.errors import EnvironmentMissing, MmprodError
from mmprod.graphs.runner import Array, Ranked, Rivals, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.parity.candidates import Candidate, Parting, Sample
from mmprod.parity.cases import Case
from mmprod.parity.compare import FIRST_STEP, MARGIN, Place, Stats
from mmprod.parity.heat import Heat
from mmprod.parity.limits import tie_of
from mmprod.parity.measure import (
    IDS,
    defect_of,
    heat_case,
    judge_outputs,
    measure_case,
    measure_shown,
    unjudged,
)
from mmprod.parity.report import Output, Row, Status, Subject

logger = logging.getLogger(__name__)

_NO_CASES = "mmprod parity run BUNDLE --against RUN"
_NO_REFERENCE = "is the run the one this bundle was exported from?"


@dataclass(frozen=True)
class _Parted:
    """The first sample whose ids differ, to be followed once all cases have run."""

    case: str
    index: int
    inputs: Sample
    expected: Sample
    got: Sample


@dataclass
class _Trial:
    """One candidate on its way through the cases. `trouble`: what ended it early."""

    candidate: Candidate
    runner: Runner | None = None
    status: Status | None = None
    trouble: str = ""
    advice: str = ""
    cases: int = 0
    samples: int = 0
    seconds: float = 0.0
    stats: dict[str, Stats] = field(default_factory=dict)
    heats: dict[str, Heat] = field(default_factory=dict)
    parted: _Parted | None = None

    @property
    def subject(self) -> Subject:
        return self.candidate.subject

    def end(self, status: Status, trouble: str, advice: str = "") -> None:
        self.status, self.trouble, self.advice = status, trouble, advice


@dataclass(frozen=True)
class _Expected:
    """What the outputs of a case should be, and what was nearly chosen instead; or `trouble`."""

    outputs: Mapping[str, Array]
    rivals: Mapping[str, Rivals]
    trouble: str = ""


def check_graph(
    spec: GraphSpec,
    cases: Iterable[Case],
    reference: Runner | None,
    candidates: Sequence[Candidate],
    on_case: Callable[[Case], None] = lambda case: None,
) -> list[Row]:
    """One row per candidate. `reference` None: cases carry the outputs to compare with.

    Closes the candidates' runners, not the reference.
    """
    trials = [_Trial(candidate) for candidate in candidates]
    with ExitStack() as stack:
        for trial in trials:
            _open(trial, stack)
        for case in cases:
            running = [trial for trial in trials if trial.status is None]
            if not running:
                break
            expected = _expected(reference, case)
            for trial in running:
                if expected.trouble:
                    reason = f"{case.name}: the reference failed: {expected.trouble}"
                    trial.end("fail", reason, _NO_REFERENCE)
                else:
                    _step(spec, trial, case, expected)
            on_case(case)
    return [_judge(spec, trial) for trial in trials]


def _open(trial: _Trial, stack: ExitStack) -> None:
    """Open the runner: absent devices and packages leave the row "not run", anything else fails
    it.
    """
    try:
        trial.runner = trial.candidate.open()
    except EnvironmentMissing as error:
        trial.end("not run", _why_not_run(trial.subject, error), error.hint)
    except Exception as error:  # noqa: BLE001 - a runner is foreign code, and its crash is a finding
        _crash(trial, "cannot be opened", error)
    else:
        stack.callback(trial.runner.close)


def _why_not_run(subject: Subject, error: EnvironmentMissing) -> str:
    """The runner's reason; for an engine, after the device it was built for."""
    text = error.message.removeprefix("not run: ")
    target = subject.target.rpartition("-")[2]
    known = subject.leg != "torch-engine" or not target or text.startswith("built ")
    return text if known else f"built for {target}, not run: {text}"


def _expected(reference: Runner | None, case: Case) -> _Expected:
    """What the outputs should be, or why that is not known."""
    if reference is None:
        trouble = "" if case.outputs else "the case has no stored outputs"
        return _Expected(case.outputs or {}, case.rivals, trouble)
    try:
        outputs = reference(case.inputs)
        rivals = reference.rivals(case.inputs) if isinstance(reference, Ranked) else {}
    except Exception as error:  # noqa: BLE001 - as above
        return _Expected({}, {}, _describe(case.name, error))
    return _Expected(outputs, rivals)


def _step(spec: GraphSpec, trial: _Trial, case: Case, expected: _Expected) -> None:
    """Run one case and add its measurements, or end the trial."""
    assert trial.runner is not None
    started = time.perf_counter()
    try:
        got = trial.runner(case.inputs)
    except Exception as error:  # noqa: BLE001 - as above
        _crash(trial, f"{case.name}: crashed", error)
        return
    trial.seconds += time.perf_counter() - started
    trial.cases += 1
    trial.samples += case.samples
    defect = defect_of(spec, case, expected.outputs, got)
    if defect:
        trial.end("fail", f"{case.name}: {defect}", _advice(trial.subject))
        return
    decode = trial.candidate.decode
    try:
        shown = decode(got["codes"]) if decode else None
    except Exception as error:  # noqa: BLE001 - as above
        reason = f"{case.name}: the reference failed: {_describe(case.name, error)}"
        trial.end("fail", reason, _NO_REFERENCE)
        return
    if trial.candidate.follow and trial.parted is None:
        trial.parted = _parted(spec, case, expected.outputs, got)
    tie = tie_of(trial.subject.precision)
    found = measure_case(spec, case, expected.outputs, got, expected.rivals, tie)
    if shown is not None:
        found |= measure_shown(spec, case, shown, got)
    for name, stats in found.items():
        before = trial.stats.get(name)
        trial.stats[name] = before.merge(stats) if before else stats
    for name, heat in heat_case(spec, expected.outputs, got).items():
        known = trial.heats.get(name)
        trial.heats[name] = known.merge(heat) if known else heat


def _parted(
    spec: GraphSpec, case: Case, expected: Mapping[str, Array], got: Mapping[str, Array]
) -> _Parted | None:
    """The first sample of a case whose ids differ, or None."""
    names = [tensor.name for tensor in spec.outputs if tensor.role in IDS]
    differs = np.logical_or.reduce([(expected[n] != got[n]).any(axis=1) for n in names])
    if not differs.any():
        return None
    index = int(differs.argmax())
    sample = [
        {name: array[index : index + 1] for name, array in arrays.items()}
        for arrays in (case.inputs, expected, got)
    ]
    return _Parted(case.name, index, *sample)


def _with_parting(trial: _Trial, outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """The outputs; the ids that parted first say where, in which step, and by how little."""
    parted, follow = trial.parted, trial.candidate.follow
    found = follow(parted.inputs, parted.expected, parted.got) if follow and parted else None
    if found is None or parted is None:
        return outputs
    return tuple(
        _parting(output, found, parted) if output.name == found.name else output
        for output in outputs
    )


def _parting(output: Output, found: Parting, parted: _Parted) -> Output:
    margin = {} if found.margin is None else {MARGIN: found.margin}
    sides = (float(ids[found.name][0, found.place]) for ids in (parted.expected, parted.got))
    first = Place(parted.case, (parted.index, found.place), *sides)
    figures = {**output.figures, FIRST_STEP: float(found.step), **margin}
    return replace(output, figures=figures, first=first)


def _judge(spec: GraphSpec, trial: _Trial) -> Row:
    """The verdict of a trial that went through all cases or ended early."""
    precision = trial.subject.precision
    outputs = judge_outputs(spec, trial.stats, precision, trial.samples, trial.heats, _own(trial))
    outputs = _with_parting(trial, outputs)
    if trial.status is None:
        _apply_limits(spec, trial, outputs)
    assert trial.status is not None
    return Row(
        trial.subject,
        trial.status,
        trial.trouble,
        trial.advice,
        trial.runner.backend if trial.runner else "",
        trial.cases,
        trial.samples,
        trial.seconds,
        outputs,
    )


def _apply_limits(spec: GraphSpec, trial: _Trial, outputs: Sequence[Output]) -> None:
    """End a trial that nothing ended early."""
    pairs = [(output, check) for output in outputs for check in output.checks]
    over = [(output, check) for output, check in pairs if not check.ok]
    if not pairs:
        trial.end("not run", "no stored cases to compare on", _NO_CASES)
    elif over or unjudged(spec, trial.stats, _own(trial)):
        broken = [f"{output.name} {check} is not met" for output, check in over]
        reason = "; ".join([*broken, *unjudged(spec, trial.stats, _own(trial))])
        worst = over[0][0].worst if over else None
        trial.end("fail", f"{reason}; worst at {worst}" if worst else reason)
    else:
        output, closest = max(pairs, key=lambda pair: pair[1].used or 0.0)
        trial.end("pass", f"closest to its limit: {output.name} {closest}")
    if trial.status == "fail":
        trial.advice = _advice(trial.subject)


def _own(trial: _Trial) -> bool:
    """Whether the pictures of a sampler are held against the reference's of the same codes."""
    return trial.candidate.decode is not None


def _crash(trial: _Trial, what: str, error: Exception) -> None:
    hint = error.hint if isinstance(error, MmprodError) else ""
    trial.end("fail", f"{what}: {_describe(trial.subject, error)}", hint or _advice(trial.subject))


def _describe(where: object, error: Exception) -> str:
    """One line for the report. The traceback of what is not an expected error goes to the log."""
    if isinstance(error, MmprodError):
        return " ".join(error.message.split())
    logger.error("%s: unexpected error", where, exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _advice(subject: Subject) -> str:
    if subject.leg == "torch-engine":
        return "do not serve this engine; mmprod build BUNDLE --trt builds it anew"
    if subject.precision == "fp32":
        return "do not use this file; mmprod export RUN writes it anew"
    return f"use fp32, or export again: mmprod export RUN --precision {subject.precision}"
