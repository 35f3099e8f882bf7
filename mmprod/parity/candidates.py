"""What a bundle offers to be compared: each ONNX graph and each engine, and a word for each that
is absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmprod.bundle import Artefact, Bundle
from mmprod.errors import EnvironmentMissing, IntegrityError
from mmprod.graphs.runner import Runner
from mmprod.graphs.spec import GraphSpec
from mmprod.manifest import FileEntry
from mmprod.parity.limits import PRECISIONS
from mmprod.parity.report import Row, Subject

_ENGINE = re.compile(r"engines/([^/]+)/[^/]+\.plan")


@dataclass(frozen=True)
class Candidate:
    """Something that can be compared, once `open` gives a runner. EnvironmentMissing from it means
    "not run".
    """

    subject: Subject
    open: Callable[[], Runner]


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
            *(_offer_engine(bundle, spec, precision, target) for target in _targets(bundle)),
        )
    ]
    return Offer(
        tuple(item for item in found if isinstance(item, Candidate)),
        tuple(item for item in found if isinstance(item, Row)),
    )


def open_onnx(spec: GraphSpec, path: Path, precision: str) -> Runner:
    """ONNX Runtime on an ONNX file of this precision; imported here, so that a device without it
    can still check its engines.
    """
    try:
        from mmprod.runners.ort import OrtRunner
    except ModuleNotFoundError as error:
        raise EnvironmentMissing(
            f"{error.name} is not installed", hint="pip install 'mmprod[export]'"
        ) from error
    return OrtRunner(spec, path, precision=precision)


def open_engine(spec: GraphSpec, path: Path) -> Runner:
    """TensorRT on a plan."""
    from mmprod.runners.trt import TrtRunner

    return TrtRunner(spec, path)


def _offer_onnx(bundle: Bundle, spec: GraphSpec, precision: str) -> Candidate | Row:
    subject = Subject("torch-ort", spec.name, precision)
    graphs = bundle.artefacts(role="onnx", graph=spec.name, precision=precision)
    if not graphs:
        advice = f"mmprod export RUN --precision {precision}"
        return Row(subject, "not run", "not exported", advice)
    if precision not in PRECISIONS:
        return _without_limits(subject)
    weights = bundle.artefacts(role="onnx-data", graph=spec.name, precision=precision)
    subject = replace(subject, files=_verified(bundle, [graphs[0], *weights]))
    return Candidate(subject, partial(open_onnx, spec, bundle.path(graphs[0]), precision))


def _offer_engine(bundle: Bundle, spec: GraphSpec, precision: str, target: str) -> Candidate | Row:
    subject = Subject("torch-engine", spec.name, precision, target)
    engines = bundle.artefacts(role="engine", graph=spec.name, precision=precision)
    chosen = [engine for engine in engines if target_of(engine) == target]
    if not chosen:
        flavour, _, device = target.rpartition("-")
        options = f" --flavour {flavour} --target {device}" if target else ""
        advice = f"mmprod build BUNDLE --trt --precision {precision}{options}"
        return Row(subject, "not run", "no engine was built", advice)
    if precision not in PRECISIONS:
        return _without_limits(subject)
    notes = bundle.artefacts(role="engine-info", graph=spec.name, precision=precision)
    bundle.verify(notes)  # the runner reads the one beside the engine
    subject = replace(subject, files=_verified(bundle, chosen))
    return Candidate(subject, partial(open_engine, spec, bundle.path(chosen[0])))


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
