"""Each figure that a bundle carries, and where it came from: what measured it, how, on which files.

A figure holds for the files it was measured on. Where the bundle has others now, the figure says
nothing about them, and is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mmprod.bundle.artefact import Artefact
from mmprod.bundle.bundle import Bundle
from mmprod.errors import IntegrityError
from mmprod.manifest import read_json

State = Literal["current", "outdated", "of the run"]
"""The bundle holds exactly these files; it has others now; they are those of the run that was
exported, which the provenance lists."""


@dataclass(frozen=True)
class Figure:
    """files: what it was measured on or made from, path -> SHA-256 at that time."""

    name: str
    value: str
    source: str
    files: Mapping[str, str]
    state: State

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "files": dict(self.files)}


def figures(bundle: Bundle) -> list[Figure]:
    """All figures: of the training, of the last parity run, of the engines, of the last bench.

    Rows of parity that were not run hold no figure. Raises IntegrityError when the JSON beside an
    engine does not say which graph it was built from.
    """
    held = {artefact.path: artefact.sha256 for artefact in bundle.artefacts()}
    return [
        *_training(bundle.provenance),
        *_parity(bundle, held),
        *_engines(bundle, held),
        *_bench(bundle, held),
    ]


def in_words(value: object) -> str:
    """JSON data as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " ".join(in_words(part) for part in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def run_files(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The run's files and their hashes, as far as the provenance has them in the known form."""
    entries = provenance.get("files")
    return {
        entry["path"]: entry["sha256"]
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in ("path", "sha256"))
    }


def _training(provenance: Mapping[str, Any]) -> Iterator[Figure]:
    files = run_files(provenance)
    for stage, record in _items(provenance.get("stages")):
        steps = dict(_items(record))
        for metric, value in _items(steps.get("metrics")):
            source = (
                f"training of the run {_known(provenance, 'run')}, stage {stage}: weights of step "
                f"{_known(steps, 'best_step')} of {_known(steps, 'steps')}; "
                f"data {_known(provenance, 'data')[:16]}"
            )
            yield Figure(f"{stage} {metric}", in_words(value), source, files, "of the run")


def _parity(bundle: Bundle, held: Mapping[str, str]) -> Iterator[Figure]:
    summary = bundle.summaries.get("parity", {"rows": []})
    source = (
        f"parity run against {_known(summary, 'reference')}: "
        f"batches {_known(summary, 'batches')}, seeds {_known(summary, 'seeds')}"
    )
    for row in summary["rows"]:
        if row["status"] != "not run":
            keys = ("leg", "graph", "precision", "target")
            name = " ".join(row[key] for key in keys if row[key])
            files = row["sha256"]
            value = f"{row['status']}: {row['reason']}"
            yield Figure(f"parity {name}", value, source, files, _state(files, held))


def _engines(bundle: Bundle, held: Mapping[str, str]) -> Iterator[Figure]:
    infos = {artefact.path: artefact for artefact in bundle.artefacts(role="engine-info")}
    for record in bundle.summaries.get("engines", []):
        info = infos.get(record["path"].removesuffix(".plan") + ".json")
        files = {record["path"]: record["sha256"]}
        if info is not None:
            files |= _built_from(bundle, info)
        about = (record["graph"], record["precision"], f"{record['flavour']}-{record['target']}")
        yield Figure(
            f"engine {' '.join(about)}",
            f"{record['bytes']} bytes, {record['kernels']} kernels, {record['fused_attention']} "
            f"fused attention, built in {record['seconds']:.1f} s",
            f"build by {record['flavour']} {record['version']}; {record['state']}",
            files,
            _state(files, held) if info is not None else "outdated",
        )


def _built_from(bundle: Bundle, info: Artefact) -> dict[str, str]:
    bundle.verify([info])
    content = read_json(bundle.path(info), hint="build the engine again")
    entries = run_files({"files": content.get("onnx")} if isinstance(content, dict) else {})
    if not entries:
        raise IntegrityError(
            f"{info.path} does not say which graph the engine was built from",
            hint="build the engine again: mmprod build BUNDLE --trt",
        )
    return entries


def _bench(bundle: Bundle, held: Mapping[str, str]) -> Iterator[Figure]:
    summary = bundle.summaries.get("bench")
    if summary is None:
        return
    machine = summary["machine"]
    source = (
        f"bench run on {_known(machine, 'processor')}, {_known(machine, 'cores')} cores, "
        f"{in_words(machine.get('versions', {}))}; {in_words(summary['settings'])}"
    )
    of_run = run_files(bundle.provenance)
    for row in summary["rows"]:
        keys = ("subject", "graph", "precision", "target")
        name = " ".join(row[key] for key in keys if row[key])
        files = row["sha256"]
        state = _state(files, held)
        if state == "outdated" and _state(files, of_run) == "current":
            state = "of the run"  # PyTorch was measured, on the run itself
        yield Figure(
            f"bench {name}, batch {row['batch']}",
            f"p50 {in_words(row['p50_ms'])} ms, {row['samples_per_s']:.1f} samples/s, "
            f"peak {row['peak_bytes'] / 1e6:.0f} MB",
            source,
            files,
            state,
        )


def _state(files: Mapping[str, str], held: Mapping[str, str]) -> State:
    """Of no files there is nothing to be sure of: outdated."""
    same = bool(files) and all(held.get(path) == digest for path, digest in files.items())
    return "current" if same else "outdated"


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _known(about: Mapping[str, Any], key: str) -> str:
    return in_words(about[key]) if key in about else "(not recorded)"
