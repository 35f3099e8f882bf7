"""`mmprod export` and `mmprod build`: from a run to a bundle, from its graphs to engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmprod.cli.auto import candidates, narrow, option_table
from mmprod.cli.command import BundleArg, RunArg, some
from mmprod.cli.gate import check, gate
from mmprod.cli.output import Output, Table, Text, View, megabytes, shown
from mmprod.cli.paths import check_folder_target
from mmprod.cli.progress import engine_tick, export_tick, progress
from mmprod.cli.verdicts import parity_data, parity_views, require_ok
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.bundle import Bundle, Place
    from mmprod.checkpoint import Run
    from mmprod.engines.record import EngineRecord

SAMPLES = 20
"""Real pictures and captions: 4 for the references, 16 to calibrate on."""

FlavourName = Literal["auto", "rtx", "tensorrt"]

TrtFlag = Annotated[bool, typer.Option("--trt", help="Build TensorRT engines too.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="P,...",
        help="fp32 fp16 bf16 mixed int8 fp8, or auto: of each graph the smallest that passes.",
    ),
]
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
        bool, typer.Option("--replace", help="Take the place of the bundle at --out.")
    ] = False,
) -> None:
    """Write a run as a bundle of ONNX graphs, check them against PyTorch, build engines."""
    from mmprod.bundle import Place
    from mmprod.checkpoint import open_run
    from mmprod.engines.flavours import choose_flavour

    asked = some(target, "--target")
    precisions, auto = chosen_precisions(precision, asked, flavour)
    targets = asked if trt else ()
    request = EngineRequest(precisions, targets, flavour) if trt else None
    if request and not auto:
        check_request(request)
    opened = open_run(run)
    place = Place(target_folder or Path("bundles") / opened.name, replace)
    check_place(place)
    if request:
        choose_flavour(request.flavour, request.targets)
    bundle = export_bundle(out, opened, place, precisions)
    options = narrow(out, bundle, opened) if auto else []
    records: list[EngineRecord] = []
    if request:
        if auto:
            request = EngineRequest(("auto",), targets, flavour)
        gate(out, bundle, request.precisions)
        records = build(out, bundle, request)
    report = check(out, bundle, opened)
    views: list[View] = [*([option_table(options)] if auto else []), *parity_views(report)]
    if records:
        views.append(engine_table(records))
    path = shown(bundle.root)
    views.append(Text(f'bundle: {path}\nnext: mmprod generate {path} "CAPTION"'))
    out.result(
        {
            "bundle": bundle.root,
            "precisions": [option.as_dict() for option in options],
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
    precisions, targets = some(precision, "--precision"), some(target, "--target")
    request = EngineRequest(precisions, targets, flavour)
    if precisions != ("auto",):  # else build_engines checks what the bundle assigned
        check_request(request)
    opened = open_bundle(bundle)
    gate(out, opened, precisions, foreign=True)
    records = build(out, opened, request)
    data = {"bundle": opened.root, "engines": [record.as_dict() for record in records]}
    path = shown(opened.root)
    note = f"next, on the device: mmprod parity run {path} --require-engines"
    out.result(data, engine_table(records), Text(note))


def check_request(request: EngineRequest) -> None:
    """Raise ConfigError for engines that nobody could build, before any work."""
    from mmprod.engines import targets

    flavour = flavour_for(request.flavour, request.targets)
    for precision in request.precisions:
        for target in request.targets:
            targets.check_request(precision, target, flavour)


def flavour_for(asked: FlavourName, targets: tuple[str, ...]) -> Literal["rtx", "tensorrt"]:
    """The flavour that `auto` stands for, as far as targets tell."""
    from mmprod.runners.cuda import find_device

    if asked != "auto":
        return asked
    return "tensorrt" if set(targets) == {find_device().target} else "rtx"


def chosen_precisions(
    text: str, targets: tuple[str, ...], flavour: FlavourName
) -> tuple[tuple[str, ...], bool]:
    """The precisions to export, and whether `auto` is to choose among them."""
    from mmprod.engines import targets as known
    from mmprod.export.precision import check_precision_name

    asked = some(text, "--precision")
    if "auto" in asked:
        kind = flavour_for(flavour, targets)
        return candidates(asked, targets, lambda p, t: known.check_request(p, t, kind)), True
    for name in asked:
        check_precision_name(name)
    return asked, False


def check_place(place: Place) -> None:
    """Raise an error, before any work, when no bundle can be put there."""
    place.check()
    check_folder_target(place.root.absolute().parent)


def export_bundle(out: Output, run: Run, place: Place, precisions: tuple[str, ...]) -> Bundle:
    """All graphs of a run in these precisions, with reference inputs and outputs."""
    from mmprod.checkpoint.models import load_models
    from mmprod.export.pipeline import export_run

    models, samples = load_models(run), real_samples(run)
    with progress(out, export_tick) as on_event:
        return export_run(
            run, models, place, precisions=precisions, samples=samples, on_event=on_event
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
