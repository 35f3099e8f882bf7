"""Which file of the bundle answers for each graph, and how it is opened.

A file is served if the bundle's parity report has a pass for its hash, as `mmprod bench` demands
it, too; the others are left out, and it is said which and why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmprod.bundle import Artefact, Bundle
from mmprod.bundle.assignment import resolve
from mmprod.bundle.proof import Verdict, why_unproven
from mmprod.errors import ConfigError, EnvironmentMissing, ParityFailed
from mmprod.graphs.runner import Runner
from mmprod.parity.standing import standing_rows
from mmprod.serving.settings import Settings

logger = logging.getLogger(__name__)
AT_ONCE = 4
LEGS = {"onnx": "torch-ort", "engine": "torch-engine"}


@dataclass(frozen=True)
class Opened:
    """A runner that is ready, and the file behind it."""

    runner: Runner
    precision: str
    sha256: str


def open_runners(bundle: Bundle, settings: Settings) -> dict[str, Opened]:
    """By graph, in the order of the catalog. What has no parity pass is left out and logged.

    Raises ConfigError when the bundle holds no such files, ParityFailed when none of them has a
    pass, EnvironmentMissing when this machine cannot run an engine.
    """
    role = "onnx" if settings.backend == "ort" else "engine"
    chosen: dict[str, list[Artefact]] = {}
    missing: list[str] = []
    verdicts = standing_rows(bundle)
    for graph in bundle.specs:
        if not bundle.artefacts(role="onnx", graph=graph):
            continue
        precision = resolve(bundle, graph, settings.precision)
        files = bundle.artefacts(role=role, graph=graph, precision=precision)
        reasons = {file.path: _unproven(bundle, verdicts, file) for file in files}
        if proven := [file for file in files if settings.unproven or not reasons[file.path]]:
            chosen[graph] = proven
        missing += [f"{path}: {reason}" for path, reason in reasons.items() if reason]
    if not chosen and not missing:
        raise _nothing(bundle, role, settings)
    for text in missing:
        logger.warning("%s %s", "served unproven:" if settings.unproven else "not served:", text)
    if not chosen:
        raise ParityFailed(
            f"no file of {bundle.root} has a parity pass, first {missing[0]}",
            hint="mmprod parity run BUNDLE, or --serve-unproven",
        )
    return _open_all(bundle, chosen, settings)


def _open_all(
    bundle: Bundle, chosen: Mapping[str, Sequence[Artefact]], settings: Settings
) -> dict[str, Opened]:
    """Several at a time, because a session takes longer than all else; all or none stay open."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = {name: pool.submit(_open, bundle, chosen[name], settings) for name in chosen}
    failed = [error for future in found.values() if (error := future.exception())]
    if failed:
        for future in found.values():
            if not future.exception():
                future.result().runner.close()
        raise failed[0]
    return {name: future.result() for name, future in found.items()}


def _unproven(bundle: Bundle, verdicts: Sequence[Verdict], file: Artefact) -> str:
    files = {file.path: file.sha256}
    if file.role == "onnx":
        weights = bundle.artefacts(role="onnx-data", graph=file.graph, precision=file.precision)
        files |= {a.path: a.sha256 for a in weights}
    return why_unproven(verdicts, LEGS[file.role], file.graph, file.precision, files)


def _open(bundle: Bundle, files: Sequence[Artefact], settings: Settings) -> Opened:
    """The first that this machine can run. Raises EnvironmentMissing when there is none."""
    first: EnvironmentMissing | None = None
    for file in files:
        try:
            return Opened(_runner(bundle, file, settings.threads), file.precision, file.sha256)
        except EnvironmentMissing as error:
            first = first or error
    assert first is not None
    raise first


def _runner(bundle: Bundle, file: Artefact, threads: int) -> Runner:
    spec = bundle.specs[file.graph]
    if file.role == "engine":
        from mmprod.runners.trt import TrtRunner

        return TrtRunner(spec, bundle.path(file))
    from mmprod.runners.ort import OrtRunner

    return OrtRunner(spec, bundle.path(file), threads=threads, precision=file.precision)


def _nothing(bundle: Bundle, role: str, settings: Settings) -> ConfigError:
    held = ", ".join(_held(bundle, role)) or "none"
    what = "graphs" if role == "onnx" else "engines"
    return ConfigError(
        f"{bundle.root} holds no {what} in {settings.precision}, but {held}",
        hint="give another --precision, or export again: mmprod export RUN --precision ...",
    )


def _held(bundle: Bundle, role: str) -> Iterator[str]:
    return iter(sorted({artefact.precision for artefact in bundle.artefacts(role=role)}))
