"""The work of `mmprod codec sweep`: train each member on one data set, measure it, keep the result.

    OUT/data/                     the data set, when none was given
    OUT/data-from.json            the folder of pictures that it was made from, if any
    OUT/members/NAME/             an ordinary run, of which only the codec is trained
    OUT/results/NAME.json         what was measured
Each of these is taken as it is when it is there already, after a comparison of configurations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprod.cli.members import Grid, Member, members
from mmprod.cli.output import Output, shown
from mmprod.cli.progress import TrainingTicks, progress
from mmprod.config.keys import flatten
from mmprod.config.load import load_config
from mmprod.errors import ConfigError, IntegrityError, NumericsError
from mmprod.manifest import read_json, sha256_bytes, write_json

if TYPE_CHECKING:
    from mmprod.config.schema import Config

Record = dict[str, Any]
READOUTS = ("usage", "perplexity", "restarts", "snr")
"""Of the last logging interval of training, over the last 65,536 tokens."""
PREPARED = ("source", "image_size")
"""keys of the data section that speak of a prepared data set too"""


@dataclass(frozen=True)
class SweepJob:
    """`pictures`: of the val split, measured at most."""

    name: str
    overrides: tuple[str, ...]
    grid: Grid
    out: Path
    data: Path | None
    pictures: int


def plan(job: SweepJob) -> list[Member]:
    """The members as far as they are known before there is data. Raises ConfigError, also for an
    override that says something else than the data set given.
    """
    if job.data:
        asked = {part.partition("=")[0].strip() for part in job.overrides}
        data = load_config(job.name, job.overrides).data
        keys = [key for key in PREPARED if f"data.{key}" in asked]
        check_prepared(job.data, {key: getattr(data, key) for key in keys})
    overrides = [*job.overrides, *(data_overrides(job.data) if job.data else ())]
    return members(job.name, overrides, job.grid)


def data_overrides(root: Path) -> list[str]:
    """The configuration's keys that say "this prepared data set". Raises IntegrityError."""
    from mmprod.data.store import read_manifest

    manifest = read_manifest(root)
    return [
        f"data.path={root.resolve()}",
        f"data.source={manifest['source']}",
        f"data.image_size={manifest['size']}",
    ]


def run(out: Output, job: SweepJob) -> list[Record]:
    """Train and measure every member; their records, failed ones included."""
    plan(job)  # nothing is prepared for a sweep that will be refused
    data = job.data or _shared_data(out, job)
    found = members(job.name, [*job.overrides, *data_overrides(data)], job.grid)
    for member in found:
        _check_folder(member, job.out)
    records = []
    for number, member in enumerate(found, start=1):
        out.note(f"member {number} of {len(found)}: {member.name}")
        records.append(_one(out, job, member))
    return records


def _shared_data(out: Output, job: SweepJob) -> Path:
    """The data set that the base configuration names, or one made from it, once."""
    from mmprod.data.store import MANIFEST
    from mmprod.training.prepare import prepare_data

    base = load_config(job.name, job.overrides)
    source = Path(base.data.path) if base.data.path else None
    if source is not None and (source / MANIFEST).is_file():
        check_prepared(source, {key: getattr(base.data, key) for key in PREPARED})
        return source
    own, record = job.out / "data", job.out / "data-from.json"
    wanted = {key: getattr(base.data, key) for key in (*PREPARED, "seed")}
    if base.data.source == "avatars":
        wanted["count"] = base.data.count  # of the others all there are
    folder = {"path": str(source.resolve())} if source else {}
    if (own / MANIFEST).is_file():
        hint = f"remove {own}: it is made again"
        known = read_json(record, hint=hint) if folder else {}
        check_prepared(own, wanted | folder, known)
        return own
    if folder:
        write_json(record, folder)
    out.note(f"preparing the data set ({base.data.source}) in {shown(own)}")
    prepare_data(base, source, own)
    return own


def check_prepared(
    folder: Path, wanted: Mapping[str, object], record: Mapping[str, object] | None = None
) -> None:
    """Compare keys of the data section with a prepared data set: its manifest, and `record` for
    what that does not hold. Captions do not matter to a codec. Raises ConfigError naming the keys.
    """
    from mmprod.data.store import read_manifest

    manifest = read_manifest(folder)
    counts = {name: split["count"] for name, split in manifest["splits"].items()}
    found = {
        **(record or {}),
        "source": manifest["source"],
        "image_size": manifest["size"],
        "seed": manifest.get("seed"),
        "count": sum(counts.values()) - counts.get("test_combo", 0),
    }
    changed = [
        f"data.{key} (there {found.get(key)!r}, asked for {value!r})"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds another data set: {', '.join(changed)}",
            hint=f"--data {folder} to take it as it is, or another --out for a new one",
        )


def _check_folder(member: Member, out: Path) -> None:
    """What an earlier sweep left under this name is of the same configuration, or ConfigError."""
    path = out / "members" / member.name / "config.toml"
    if not path.is_file():
        return
    before, now = (dict(flatten(c)) for c in (load_config(str(path)), member.config))
    changed = [f"{k} (was {before[k]!r}, now {now[k]!r})" for k in now if before[k] != now[k]]
    if changed:
        raise ConfigError(
            f"{path.parent} was trained with another configuration: {', '.join(changed)}",
            hint="give the sweep another --out, or remove that folder and its file in results/",
        )


def _one(out: Output, job: SweepJob, member: Member) -> Record:
    path = job.out / "results" / f"{member.name}.json"
    identity = {"config_sha256": _sha256(member.config), "pictures_asked": job.pictures}
    if path.is_file():
        record: Record = read_json(path, hint="remove it to measure again")
        if not isinstance(record, dict) or "status" not in record:
            raise IntegrityError(f"{path} is no result", hint="remove it to measure again")
        if all(record.get(key) == value for key, value in identity.items()):
            again = f"; remove {shown(path)} and its run to try again"
            failed = record["status"] == "failed"
            out.note(f"{member.name}: {'failed' if failed else 'finished'} before{again * failed}")
            return record
    about = {
        "name": member.name,
        "curve": member.curve,
        "codes": member.codes,
        "image_size": member.config.data.image_size,
        **identity,
    }
    try:
        record = {**about, "status": "done", "error": "", **_measure(out, job, member)}
    except NumericsError as error:
        out.note(f"{member.name} failed: {error.message}")
        record = {**about, "status": "failed", "error": error.message}
    write_json(path, record)
    return record


def _measure(out: Output, job: SweepJob, member: Member) -> Record:
    """Train (or go on, or nothing when it is finished), then measure on val."""
    import numpy as np

    from mmprod.checkpoint import open_run
    from mmprod.checkpoint.models import load_codec
    from mmprod.data.store import open_split
    from mmprod.evaluation.codec_quality import measure_codec
    from mmprod.report.metrics import read_metrics
    from mmprod.training.run import train

    folder = job.out / "members" / member.name
    with progress(out, TrainingTicks()) as on_event:
        train(member.config, folder, stages=("codec",), on_event=on_event)
    run = open_run(folder)
    val = open_split(run.data_root, "val")
    pictures = val.images(np.arange(min(job.pictures, len(val))))
    quality = measure_codec(load_codec(run), pictures, run.dims.grid)
    logged = read_metrics(run.stage_folder("codec") / "metrics.jsonl")
    last: Record = next((r for r in reversed(logged) if r.get("kind") == "log"), {})
    if "seconds" not in last:
        raise IntegrityError(
            f"{folder} has no log of its training", hint="remove the folder to train it again"
        )
    return {
        "quantizer": member.config.codec.quantizer,
        "dim": member.config.codec.code_dim,
        "factor": member.config.codec.factor,
        **quality.as_dict(),
        **{name: last.get(name) for name in READOUTS},
        "parameters": quality.encoder_parameters + quality.decoder_parameters,
        "steps": run.stages["codec"].steps,
        "kept_step": run.stages["codec"].best_step,
        "seconds_per_step": last["seconds"] / last["step"],
    }


def _sha256(config: Config) -> str:
    return sha256_bytes(config.model_dump_json().encode())


def done(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of members that were trained and measured."""
    return [record for record in records if record["status"] == "done"]
