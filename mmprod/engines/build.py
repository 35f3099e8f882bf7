"""Engines of a bundle: for every graph, precision and target one plan and one JSON about it.

A plan is taken again only when its graph, library, options and target are the same and its bytes
are those the bundle lists. Each engine enters the bundle whole, as soon as it is built; the
failures of a run are raised together at its end.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmprod.bundle import Artefact, Bundle
from mmprod.bundle.assignment import resolve
from mmprod.engines.flavours import Flavour, choose_flavour
from mmprod.engines.job import BuildJob, BuildResult
from mmprod.engines.pool import Limits, run_jobs
from mmprod.engines.record import SAME, EngineRecord, engine_info, identity
from mmprod.engines.targets import check_precision, check_request
from mmprod.errors import (
    BudgetMissed,
    ConfigError,
    EnvironmentMissing,
    IntegrityError,
    MmprodError,
    PrecisionMismatch,
)
from mmprod.manifest import FileEntry, read_json, write_json
from mmprod.runners.cuda import find_device

_GRAVEST = (IntegrityError, PrecisionMismatch, ConfigError, BudgetMissed, EnvironmentMissing)
"""Several failures end in one error, of the first class here that occurred."""


@dataclass(frozen=True)
class BuildEvent:
    """Progress: `done` of `total` engines are there (or have failed), this one being the last."""

    graph: str
    precision: str
    target: str
    kind: Literal["cached", "built", "failed"]
    done: int
    total: int
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class _Wanted:
    """An engine to have: its job, all it depends on, and where it goes in the bundle."""

    job: BuildJob
    known: dict[str, Any]
    path: str


def build_engines(
    bundle: Bundle,
    *,
    precisions: Sequence[str],
    targets: Sequence[str],
    flavour: Literal["auto", "rtx", "tensorrt"] = "auto",
    limits: Limits | None = None,
    on_event: Callable[[BuildEvent], None] | None = None,
) -> list[EngineRecord]:
    """Build what is missing, list it in the bundle and save the bundle. Records in catalog order.
    `precisions`: `auto` stands for the one that the export assigned to each graph.

    Raises ConfigError before anything is built for a request that no target or graph can meet;
    after the last build one error that lists all that failed.
    """
    if not precisions or not targets:
        raise ConfigError(
            "no precision or no target was given", hint="--precision fp16 --target sm89"
        )
    asked = dict.fromkeys(resolve(bundle, g, p) for p in precisions for g in bundle.specs)
    for precision in asked:
        check_precision(precision)
    chosen = choose_flavour(flavour, targets)
    for precision in asked:
        for target in targets:
            check_request(precision, target, chosen.name)
    graphs = _graphs(bundle, precisions)
    with _scratch(bundle) as scratch:
        wanted = [
            _want(bundle, files, chosen, target, scratch)
            for files in graphs
            for target in dict.fromkeys(targets)
        ]
        return _Build(bundle, wanted, on_event).run(limits or Limits())


class _Build:
    """One run over the wanted engines: what is there, what was built, what failed."""

    def __init__(
        self, bundle: Bundle, wanted: list[_Wanted], on_event: Callable[[BuildEvent], None] | None
    ) -> None:
        self.bundle = bundle
        self.wanted = wanted
        self.on_event = on_event
        self.records: dict[str, EngineRecord] = {}
        self.failures: dict[str, MmprodError] = {}

    def run(self, limits: Limits) -> list[EngineRecord]:
        missing = {}
        for want in self.wanted:
            record = _present(self.bundle, want)
            if record is None:
                missing[want.job] = want
            else:
                self.records[want.path] = record
                self._report(want, "cached")
        for job, outcome in run_jobs(list(missing), limits=limits):
            want = missing[job]
            if isinstance(outcome, BuildResult):
                self.records[want.path] = _commit(self.bundle, want, outcome)
                self._report(want, "built", seconds=outcome.seconds)
            else:
                _drop(self.bundle, want)
                self.failures[want.path] = outcome
                self._report(want, "failed", message=outcome.message)
        self.bundle.put_summary("engines", _summary(self.bundle))
        self.bundle.save()
        if self.failures:
            raise self._failure()
        return [self.records[want.path] for want in self.wanted]

    def _report(
        self,
        want: _Wanted,
        kind: Literal["cached", "built", "failed"],
        *,
        seconds: float = 0.0,
        message: str = "",
    ) -> None:
        if self.on_event is None:
            return
        done = len(self.records) + len(self.failures)
        about = (want.job.graph, want.job.precision, want.job.target)
        self.on_event(BuildEvent(*about, kind, done, len(self.wanted), seconds, message))

    def _failure(self) -> MmprodError:
        """All failures as one error, in catalog order."""
        found = [self.failures[w.path] for w in self.wanted if w.path in self.failures]
        first = min(found, key=lambda error: [isinstance(error, k) for k in _GRAVEST].index(True))
        if len(found) == 1:
            return found[0]
        lines = "\n  ".join(error.message for error in found)
        text = f"{len(found)} of {len(self.wanted)} engines were not built:\n  {lines}"
        return type(first)(text, hint=first.hint)


@contextlib.contextmanager
def _scratch(bundle: Bundle) -> Iterator[Path]:
    """A folder for unfinished plans beside the bundle: on its file system, so that a finished one
    is moved in at once, and outside of it, so that an interrupted run leaves no stranger inside."""
    root = bundle.root.resolve()
    try:
        folder = tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.")
    except OSError as error:
        raise EnvironmentMissing(
            f"no room for unfinished engines beside {root}: {error.strerror}",
            hint="move the bundle into a folder that you may write to",
        ) from error
    with folder:
        yield Path(folder.name)


def _graphs(bundle: Bundle, precisions: Sequence[str]) -> list[list[Artefact]]:
    """For each graph and precision its ONNX file and the weight files beside it, all verified."""
    found = []
    for graph in bundle.specs:
        if not bundle.artefacts(role="onnx", graph=graph):
            continue
        for precision in dict.fromkeys(resolve(bundle, graph, asked) for asked in precisions):
            onnx = bundle.artefacts(role="onnx", graph=graph, precision=precision)
            if len(onnx) != 1:
                has = ", ".join(a.precision for a in bundle.artefacts(role="onnx", graph=graph))
                raise ConfigError(
                    f"{bundle.root} has no {graph} in {precision}; it has {has}",
                    hint=f"mmprod export RUN --precision {precision}",
                )
            weights = bundle.artefacts(role="onnx-data", graph=graph, precision=precision)
            found.append([*onnx, *weights])
    if not found:
        raise ConfigError(f"{bundle.root} holds no graphs", hint="mmprod export RUN")
    bundle.verify([artefact for files in found for artefact in files])
    return found


def _want(
    bundle: Bundle, files: Sequence[Artefact], flavour: Flavour, target: str, scratch: Path
) -> _Wanted:
    onnx = files[0]
    stem = f"{flavour.name}-{target}/{onnx.graph}.{onnx.precision}"
    job = BuildJob.of(
        bundle.specs[onnx.graph],
        onnx=bundle.path(onnx).resolve(),
        plan=scratch / (stem.replace("/", ".") + ".plan"),
        precision=onnx.precision,
        target=(flavour.name, target),
        files=[(Path(artefact.path).name, artefact.sha256) for artefact in files],
    )
    known = identity(job, flavour.version, [artefact.entry for artefact in files])
    return _Wanted(job, known, f"engines/{stem}.plan")


def _present(bundle: Bundle, want: _Wanted) -> EngineRecord | None:
    """The engine in the bundle, if it is the wanted one. Raises IntegrityError when damaged."""
    plan, info = _listed(bundle, want)
    if plan is None or info is None:
        return None
    bundle.verify([plan, info])
    content = read_json(bundle.path(info))
    if any(content.get(key) != want.known[key] for key in SAME):
        return None
    if content["plan"] != plan.entry.as_dict():
        return None
    return EngineRecord.of(content, cached=True)


def _commit(bundle: Bundle, want: _Wanted, result: BuildResult) -> EngineRecord:
    """Move a finished plan into the bundle, write its JSON beside it, list and save both."""
    bundle.check_current()
    plan = bundle.root / want.path
    plan.parent.mkdir(parents=True, exist_ok=True)
    Path(want.job.plan).replace(plan)
    entry = FileEntry.of(bundle.root, plan)
    content = engine_info(want.known, want.job, result, entry, find_device().target)
    write_json(plan.with_suffix(".json"), content)
    about = {"graph": want.job.graph, "precision": want.job.precision}
    meta = {"flavour": want.job.flavour, "target": want.job.target, "state": content["state"]}
    bundle.add(plan, role="engine", **about, meta=meta)
    bundle.add(plan.with_suffix(".json"), role="engine-info", **about, meta=meta)
    bundle.save()
    return EngineRecord.of(content, cached=False)


def _drop(bundle: Bundle, want: _Wanted) -> None:
    """Remove an engine that is no longer that of its graph, after its successor failed."""
    for artefact in _listed(bundle, want):
        if artefact is not None:
            bundle.remove(bundle.path(artefact))


def _listed(bundle: Bundle, want: _Wanted) -> tuple[Artefact | None, Artefact | None]:
    """The plan and its JSON as the bundle lists them."""
    about = {"graph": want.job.graph, "precision": want.job.precision}
    plan = {a.path: a for a in bundle.artefacts(role="engine", **about)}
    info = {a.path: a for a in bundle.artefacts(role="engine-info", **about)}
    return plan.get(want.path), info.get(want.path.removesuffix(".plan") + ".json")


def _summary(bundle: Bundle) -> list[dict[str, Any]]:
    """Records of all engines of the bundle, also of earlier runs, in catalog order."""
    order = list(bundle.specs)
    infos = bundle.artefacts(role="engine-info")
    bundle.verify(infos)
    records = [EngineRecord.of(read_json(bundle.path(info)), cached=False) for info in infos]
    records.sort(key=lambda r: (order.index(r.graph), r.precision, r.flavour, r.target))
    return [{k: v for k, v in r.as_dict().items() if k != "cached"} for r in records]
