"""`mmprod export` and `mmprod build`: from a run to a bundle, from its graphs to engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import BundleArg, RunArg, choices
from mmprod.cli.output import Output, Table, Text, View, megabytes, shown
from mmprod.cli.progress import engine_tick, export_tick, parity_tick, progress
from mmprod.cli.source import torch_runners
from mmprod.cli.verdicts import parity_data, parity_views, require_ok
from mmprod.errors import ConfigError, ParityFailed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.engines.record import EngineRecord
    from mmprod.parity.report import ParityReport

SAMPLES = 8
"""Real pictures and captions among the stored reference inputs."""

BATCHES = (1, 3, 8)
SEEDS = 2

FlavourName = Literal["auto", "rtx", "tensorrt"]

TrtFlag = Annotated[bool, typer.Option("--trt", help="Build TensorRT engines too.")]
Precision = Annotated[str, typer.Option("--precision", metavar="P,...", help="fp32, fp16, bf16.")]
Target = Annotated[
    str,
    typer.Option(
        "--target", metavar="SM,...", help="Devices to build for: sm75 sm80 sm86 sm89 sm120."
    ),
]
FlavourOption = Annotated[
    FlavourName, typer.Option("--flavour", help="rtx builds anywhere; tensorrt on the device.")
]


@dataclass(frozen=True)
class EngineRequest:
    """Which engines to build."""

    precisions: tuple[str, ...]
    targets: tuple[str, ...]
    flavour: FlavourName


def export(
    out: Output,
    run: RunArg,
    target_folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="BUNDLE", help="Bundle; bundles/NAME if not given."),
    ] = None,
    trt: TrtFlag = False,
    precision: Precision = "fp32,fp16",
    target: Target = "sm86,sm89",
    flavour: FlavourOption = "auto",
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete the bundle that is at --out already.")
    ] = False,
) -> None:
    """Write a run as a bundle of ONNX graphs, check them against PyTorch, build engines."""
    from mmprod.bundle import remove_bundle
    from mmprod.checkpoint import open_run

    opened = open_run(run)
    folder = target_folder or Path("bundles") / opened.name
    if replace and folder.exists():
        remove_bundle(folder)
    precisions = choices(precision)
    bundle = export_bundle(out, opened, folder, precisions)
    records: list[EngineRecord] = []
    if trt:
        gate(out, bundle)
        records = build(out, bundle, EngineRequest(precisions, choices(target), flavour))
    report = check(out, bundle, opened)
    views: list[View] = [*parity_views(report)]
    if records:
        views.append(engine_table(records))
    path = shown(bundle.root)
    views.append(Text(f'bundle: {path}\nnext: mmprod generate {path} "CAPTION"'))
    out.result(
        {
            "bundle": bundle.root,
            "parity": parity_data(report),
            "engines": [record.as_dict() for record in records],
        },
        *views,
    )
    require_ok(report, bundle.root)


def build_command(
    out: Output,
    bundle: BundleArg,
    trt: TrtFlag = False,
    precision: Precision = "fp16",
    target: Target = "sm86,sm89",
    flavour: FlavourOption = "auto",
) -> None:
    """Build engines from the graphs of a bundle; needs no torch."""
    from mmprod.bundle import open_bundle

    if not trt:
        raise ConfigError("nothing to build", hint="add --trt: TensorRT is what can be built")
    opened = open_bundle(bundle)
    gate(out, opened)
    records = build(out, opened, EngineRequest(choices(precision), choices(target), flavour))
    data = {"bundle": opened.root, "engines": [record.as_dict() for record in records]}
    path = shown(opened.root)
    note = f"next, on the device: mmprod parity run {path} --require-engines"
    out.result(data, engine_table(records), Text(note))


def export_bundle(out: Output, run: Run, folder: Path, precisions: tuple[str, ...]) -> Bundle:
    """All graphs of a run in these precisions, with reference inputs and outputs."""
    from mmprod.checkpoint.models import load_models
    from mmprod.export.pipeline import export_run

    models, samples = load_models(run), real_samples(run)
    with progress(out, export_tick) as on_event:
        return export_run(
            run, models, folder, precisions=precisions, samples=samples, on_event=on_event
        )


def real_samples(run: Run) -> Mapping[str, npt.NDArray[np.generic]]:
    """Pictures (B, H, W, 3) uint8 and token ids (B, L) int32 of the first held-out samples."""
    import numpy as np

    from mmprod.data.store import open_split
    from mmprod.data.tokenizer import Tokenizer

    split = open_split(run.data_root, "val")
    indices = np.arange(min(SAMPLES, len(split)))
    captions = split.captions(indices, run.config.data.languages, 0)
    tokens = Tokenizer.load(run.tokenizer_path).encode(captions, run.dims.text_length)
    return {"pixels": split.images(indices), "tokens": tokens}


def check(out: Output, bundle: Bundle, run: Run | None) -> ParityReport:
    """The parity report of a bundle: live against a run, else against the stored outputs."""
    from mmprod.parity.run import run_parity

    runners = torch_runners(run) if run else None
    reference = (lambda spec: runners(spec.name)) if runners else None
    with progress(out, parity_tick) as on_event:
        return run_parity(
            bundle, reference=reference, batches=BATCHES, seeds=SEEDS, on_event=on_event
        )


def gate(out: Output, bundle: Bundle) -> None:
    """Raise ParityFailed when a graph disagrees with PyTorch: no engine is built from it.

    A verdict that the bundle holds is used if it is about the present files; else the graphs are
    compared with their stored outputs now.
    """
    summary = bundle.summaries.get("parity")
    if summary is None or not _covers(summary, bundle):
        out.note("checking the graphs against their stored outputs before building")
        check(out, bundle, None)
        summary = bundle.summaries["parity"]
    failed = [
        f"{row['graph']} {row['precision']}: {row['reason']}"
        for row in summary["rows"]
        if row["status"] == "fail" and row["leg"] == "torch-ort"
    ]
    if failed:
        raise ParityFailed(
            "no engines were built, these graphs failed parity:\n  " + "\n  ".join(failed),
            hint=f"see {shown(bundle.root / 'reports' / 'parity.md')}, then export the run again",
        )


def build(out: Output, bundle: Bundle, request: EngineRequest) -> list[EngineRecord]:
    """The asked engines, built or already there."""
    from mmprod.engines.build import build_engines

    with progress(out, engine_tick) as on_event:
        return build_engines(
            bundle,
            precisions=request.precisions,
            targets=request.targets,
            flavour=request.flavour,
            on_event=on_event,
        )


def engine_table(records: list[EngineRecord]) -> Table:
    """One line per engine."""
    rows = [
        (
            record.graph,
            record.precision,
            f"{record.flavour}-{record.target}",
            megabytes(record.bytes),
            "there already" if record.cached else f"{record.seconds:.1f} s",
            record.state,
        )
        for record in records
    ]
    return Table("Engines", ("graph", "precision", "target", "size", "built in", "state"), rows)


def _covers(summary: Mapping[str, Any], bundle: Bundle) -> bool:
    """Whether every ONNX graph has a verdict for exactly its present content."""
    judged = {
        (path, digest)
        for row in summary["rows"]
        if row["status"] != "not run"
        for path, digest in row["sha256"].items()
    }
    return all((a.path, a.sha256) in judged for a in bundle.artefacts(role="onnx"))
