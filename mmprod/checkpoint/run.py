"""A run folder as one checked object. Torch-free.

`run.json` is written last by training, so a folder with it is whole; it lists the final files
with their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmprod.checkpoint import layout
from mmprod.checkpoint.steps import parse_entries
from mmprod.config.load import load_config
from mmprod.config.schema import Config, Dims
from mmprod.errors import IntegrityError
from mmprod.manifest import FileEntry, read_json, verify_files, write_json

FORMAT = 2
STAGES = ("codec", "fusion")
_KEYS = {"kind", "format", "name", "stages", "dims", "data", "versions", "files"}


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: steps done, the step whose weights were kept, and its evaluation."""

    steps: int
    best_step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """A finished run. `stages`: the trained ones; `dims`: sizes with the real vocabulary."""

    root: Path
    config: Config
    dims: Dims
    stages: Mapping[str, StageRecord]
    data: str
    """folder of the prepared data set: absolute, or relative to `root`"""
    data_fingerprint: str
    versions: Mapping[str, str]
    files: tuple[FileEntry, ...]

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def data_root(self) -> Path:
        return self.root / self.data

    @property
    def tokenizer_path(self) -> Path:
        return self.root / layout.TOKENIZER

    @property
    def config_path(self) -> Path:
        return self.root / layout.CONFIG

    def stage_folder(self, stage: str) -> Path:
        return self.root / stage

    def weights_path(self, stage: str) -> Path:
        """The stage's model.safetensors. Raises IntegrityError when the stage was not trained."""
        if stage not in self.stages:
            raise IntegrityError(
                f"{self.root} holds no trained {stage} model",
                hint=f"mmprod train --model {stage} --config {self.config_path} --out {self.root}",
            )
        return self.root / stage / layout.WEIGHTS

    def provenance(self) -> dict[str, Any]:
        """What a bundle records about where it came from."""
        return {
            "run": self.name,
            "data": self.data_fingerprint,
            "stages": {name: asdict(record) for name, record in self.stages.items()},
            "versions": dict(self.versions),
            "files": [entry.as_dict() for entry in self.files],
        }


def open_run(path: Path | str) -> Run:
    """Open a run and check the hashes of all files that run.json lists. Raises IntegrityError."""
    root = Path(path)
    hint = f"is this a run folder? mmprod train --out {root} makes or finishes one"
    record = read_json(root / layout.RUN, hint=hint)
    if not isinstance(record, dict) or not set(record) >= _KEYS or record["kind"] != "run":
        raise IntegrityError(f"{root / layout.RUN} does not describe a run", hint=hint)
    if record["format"] != FORMAT:
        raise IntegrityError(
            f"{root} has run format {record['format']}, this version reads {FORMAT}",
            hint="use the version of mmprod that wrote it",
        )
    files = tuple(parse_entries(record["files"], root / layout.RUN))
    verify_files(root, files, hint="take the run from a good copy, or train again")
    try:
        return Run(
            root=root,
            config=load_config(str(root / layout.CONFIG)),
            dims=Dims(**record["dims"]),
            stages={name: StageRecord(**stage) for name, stage in record["stages"].items()},
            data=record["data"]["path"],
            data_fingerprint=record["data"]["fingerprint"],
            versions=record["versions"],
            files=files,
        )
    except (TypeError, KeyError) as error:
        raise IntegrityError(f"{root / layout.RUN} lacks something: {error}", hint=hint) from error


def write_run(run: Run) -> None:
    """Write run.json, atomically. Its files must exist already."""
    write_json(
        run.root / layout.RUN,
        {
            "kind": "run",
            "format": FORMAT,
            "name": run.name,
            "stages": {name: asdict(record) for name, record in run.stages.items()},
            "dims": asdict(run.dims),
            "data": {"path": run.data, "fingerprint": run.data_fingerprint},
            "versions": dict(run.versions),
            "files": [entry.as_dict() for entry in run.files],
        },
    )
