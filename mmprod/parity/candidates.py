"""What a bundle offers to be compared: each ONNX graph and each engine, and a word for each that
is absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mmprod.bundle import Artefact, Bundle
from mmprod.bundle.signing import require_signature
from mmprod.errors import ConfigError, IntegrityError, MmprodError
from mmprod.graphs.runner import Array, Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry
from mmprod.parity.limits import PRECISIONS
from mmprod.parity.openers import open_engine, open_onnx
from mmprod.parity.report import Row, Subject
from mmprod.runners import cuda

Sample = Mapping[str, Array]
"""Arrays of one sample by name, the batch of 1 included."""
_ENGINE = re.compile(r"engines/([^/]+)/[^/]+\.plan")


@dataclass(frozen=True)
class Parting:
    """The first id that was drawn otherwise: of output `name`, at `place` (0..S-1), in `step`.

    `step` counts from 1; 0: a place that was given from the start (what an edit keeps). `margin`:
    how far the draw had to move for the candidate's id, in [0, 1]; None where nothing was drawn.
    """

    name: str
    place: int
    step: int
    margin: float | None


@dataclass(frozen=True)
class Candidate:
    """Something that can be compared, once `open` gives a runner. EnvironmentMissing from it means
    "not run". As a `partial` of a module's function it can be opened in a worker process, too.
    """

    subject: Subject
    open: Callable[[], Runner]
    decode: Callable[[Array], Mapping[str, Array]] | None = None
    """codes -> {"pixels"} by the reference: what a sampler should show for the codes it drew."""
    follow: Callable[[Sample, Sample, Sample], Parting | None] | None = None
    """Inputs, the reference's and the candidate's outputs of one sample of a sampler -> the step
    in which they part (trajectory.py)."""


@dataclass(frozen=True)
class Offer:
    """The candidates of one graph, and the rows of those that do not exist."""

    candidates: tuple[Candidate, ...]
    absent: tuple[Row, ...]


def exported_precisions(bundle: Bundle) -> tuple[str, ...]:
    """Precisions of the ONNX graphs, those with limits first, in the order of the limits."""
    found = {artefact.precision for artefact in bundle.artefacts(role="onnx")}
    known = [precision for precision in PRECISIONS if precision in found]
    return (*known, *sorted(found - set(known)))


def offer(bundle: Bundle, spec: GraphSpec, precisions: Sequence[str]) -> Offer:
    """Everything to say about one graph. Raises IntegrityError when a file differs from the
    bundle's manifest.
    """
    found = [
        item
        for precision in precisions
        for item in (
            _offer_onnx(bundle, spec, precision),
            *_offer_providers(bundle, spec, precision),
            *(_offer_engine(bundle, spec, precision, target) for target in _targets(bundle)),
        )
    ]
    return Offer(
        tuple(item for item in found if isinstance(item, Candidate)),
        tuple(item for item in found if isinstance(item, Row)),
    )


def open_own(bundle: Bundle, spec: GraphSpec, apart: Callable[[Candidate], Candidate]) -> Runner:
    """The bundle's first graph in fp32 that runs here, by ONNX Runtime or as an engine. Raises
    MmprodError when there is none. `apart` puts a candidate where it is to run.
    """
    last: MmprodError = ConfigError(
        f"the bundle has no {spec.name} in fp32", hint="mmprod export RUN --precision fp32,fp16"
    )
    for candidate in offer(bundle, spec, ("fp32",)).candidates:
        try:
            return apart(candidate).open()
        except MmprodError as error:
            last = error
    raise last


def _offer_onnx(bundle: Bundle, spec: GraphSpec, precision: str) -> Candidate | Row:
    subject = Subject("torch-ort", spec.name, precision)
    graphs = bundle.artefacts(role="onnx", graph=spec.name, precision=precision)
    _require_one(graphs, "graph", subject)
    if not graphs:
        advice = f"mmprod export RUN --precision {precision}"
        return Row(subject, "not run", "not exported", advice)
    if precision not in PRECISIONS:
        return _without_limits(subject)
    weights = bundle.artefacts(role="onnx-data", graph=spec.name, precision=precision)
    subject = replace(subject, files=_verified(bundle, [graphs[0], *weights]))
    return Candidate(subject, partial(open_onnx, spec, bundle.path(graphs[0]), precision))


def _offer_providers(bundle: Bundle, spec: GraphSpec, precision: str) -> Iterator[Candidate]:
    """The graph on each device provider of ONNX Runtime, where there is a device."""
    if not cuda.find_device().found:
        return
    try:
        from mmprod.runners.ort import gpu_providers
    except ModuleNotFoundError:
        return  # the plain row says so
    plain = _offer_onnx(bundle, spec, precision) if gpu_providers() else None
    if not isinstance(plain, Candidate):
        return
    path = bundle.root / plain.subject.files[0].path
    for name in gpu_providers():
        subject = replace(plain.subject, target=f"ort-{name}")
        yield Candidate(subject, partial(open_onnx, spec, path, precision, name))


def _offer_engine(bundle: Bundle, spec: GraphSpec, precision: str, target: str) -> Candidate | Row:
    subject = Subject("torch-engine", spec.name, precision, target)
    engines = bundle.artefacts(role="engine", graph=spec.name, precision=precision)
    chosen = [engine for engine in engines if target_of(engine) == target]
    _require_one(chosen, "engine", subject)
    if not chosen:
        flavour, _, device = target.rpartition("-")
        options = f" --flavour {flavour} --target {device}" if target else ""
        advice = f"mmprod build BUNDLE --trt --precision {precision}{options}"
        return Row(subject, "not run", "no engine was built", advice)
    if precision not in PRECISIONS:
        return _without_limits(subject)
    require_signature(bundle)  # no byte of an engine reaches its library before hash and signature
    notes = bundle.artefacts(role="engine-info", graph=spec.name, precision=precision)
    bundle.verify(notes)  # the runner reads the one beside the engine
    subject = replace(subject, files=_verified(bundle, chosen))
    return Candidate(subject, partial(open_engine, spec, bundle.path(chosen[0])))


def _require_one(artefacts: Sequence[Artefact], what: str, subject: Subject) -> None:
    """One file is run, so a second one would be given a verdict that is not about it."""
    if len(artefacts) > 1:
        raise IntegrityError(
            f"{artefacts[1].path} is a second {what} of {subject}",
            hint="take one of them out of the bundle, or export and build anew",
        )


def _without_limits(subject: Subject) -> Row:
    reason = f"no parity limits are set for {subject.precision}"
    return Row(subject, "not run", reason, f"use {' or '.join(PRECISIONS)}")


def _targets(bundle: Bundle) -> list[str]:
    """All targets of the bundle's engines; `[""]`, one row without a target, when it has none."""
    return sorted({target_of(engine) for engine in bundle.artefacts(role="engine")}) or [""]


def target_of(engine: Artefact) -> str:
    """Flavour and device of an engine, from its folder: `rtx-sm86`."""
    match = _ENGINE.fullmatch(engine.path)
    if match is None:
        raise IntegrityError(
            f"{engine.path} is no place for an engine", hint="expected engines/FLAVOUR-TARGET/"
        )
    return match[1]


def _verified(bundle: Bundle, artefacts: Sequence[Artefact]) -> tuple[FileEntry, ...]:
    """Hash the files anew, just before they are opened."""
    bundle.verify(artefacts)
    return tuple(artefact.entry for artefact in artefacts)
