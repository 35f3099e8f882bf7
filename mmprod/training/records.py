"""The records that say what is finished: config.json of a stage, run.json of the run."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmprod.checkpoint import STAGES, Run, StageRecord, layout
from mmprod.checkpoint.run import write_run
from mmprod.errors import ConfigError, IntegrityError
from mmprod.manifest import FileEntry, read_json, sha256_bytes, verify_files, write_json
from mmprod.training.events import StageResult
from mmprod.training.prepare import Prepared
from mmprod.training.trackers import IDS

FORMAT = 1
_HINT = "train this stage anew with --resume never"
_KEYS = {"format", "steps", "best_step", "metrics", "config_sha256", "source", "weights"}


def read_stage(folder: Path) -> dict[str, Any] | None:
    """config.json of a finished stage, its weights checked; None when the stage is not finished.
    Raises IntegrityError.
    """
    path = folder / layout.STAGE
    if not path.is_file():
        return None
    record = read_json(path, hint=_HINT)
    if not isinstance(record, dict) or not set(record) >= _KEYS or record["format"] != FORMAT:
        raise IntegrityError(f"{path} is of another format", hint=_HINT)
    verify_files(folder, [FileEntry(**record["weights"])], hint=_HINT)
    return record


def stage_source(prepared: Prepared, stage: str) -> str:
    """What the stage learns from, as one hash: the data set; for the fusion stage also the codec's
    weights and the tokenizer.
    """
    if stage == "codec":
        return prepared.fingerprint
    record = read_stage(prepared.root / "codec")
    if record is None:
        raise ConfigError(
            f"{prepared.root} holds no trained codec, which the fusion stage needs",
            hint="train it first: --model codec, or --model all",
        )
    parts = (prepared.fingerprint, record["weights"]["sha256"], prepared.tokenizer_sha256)
    return sha256_bytes("/".join(parts).encode())


def finish_stage(prepared: Prepared, result: StageResult, files: Mapping[str, str]) -> None:
    """config.json beside the weights: written last, it says that the stage is finished. `files`:
    hashes of what it learned with beside the data set.
    """
    folder = prepared.root / result.stage
    section = getattr(prepared.config, result.stage)
    write_json(
        folder / layout.STAGE,
        {
            "kind": "stage",
            "format": FORMAT,
            "stage": result.stage,
            "steps": result.steps,
            "best_step": result.best_step,
            "metrics": result.metrics,
            "model": section.model_dump(mode="json"),
            "dims": asdict(prepared.dims),
            "config_sha256": prepared.config_sha256,
            "source": stage_source(prepared, result.stage),
            "learned_with": dict(files),
            "weights": FileEntry.of(folder, folder / layout.WEIGHTS).as_dict(),
        },
    )


def clear_stage(folder: Path) -> None:
    """Remove what an earlier training of this stage left (files of this program only)."""
    for name in (layout.CHECKPOINTS, "tensorboard", "samples"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    files = (layout.METRICS, layout.WEIGHTS, layout.STAGE, layout.INIT, layout.CURVES, IDS)
    for name in files:
        (folder / name).unlink(missing_ok=True)


def unfinish_stage(root: Path, stage: str) -> None:
    """A run with run.json is whole, a stage with config.json is finished: neither is true from now
    on.
    """
    (root / layout.RUN).unlink(missing_ok=True)
    (root / stage / layout.STAGE).unlink(missing_ok=True)


def finish_run(prepared: Prepared) -> None:
    root = prepared.root
    records = {name: record for name in STAGES if (record := _current(prepared, name)) is not None}
    names = [layout.CONFIG, layout.TOKENIZER]
    names += [f"{s}/{f}" for s in records for f in (layout.WEIGHTS, layout.STAGE, layout.METRICS)]
    names += [f"{s}/{layout.INIT}" for s in records if (root / s / layout.INIT).is_file()]
    write_run(
        Run(
            root=root,
            config=prepared.config,
            dims=prepared.dims,
            stages={
                n: StageRecord(r["steps"], r["best_step"], r["metrics"]) for n, r in records.items()
            },
            data=prepared.data,
            data_fingerprint=prepared.fingerprint,
            versions=_versions(),
            files=tuple(FileEntry.of(root, root / name) for name in names),
        )
    )


def _current(prepared: Prepared, stage: str) -> dict[str, Any] | None:
    """A stage's record unless it is unfinished or stems from another codec (trained anew since)."""
    record = read_stage(prepared.root / stage)
    if record is None or record["source"] != stage_source(prepared, stage):
        return None
    return record


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("mmprod", "torch", "deepspeed", "numpy", "tokenizers", "safetensors"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
