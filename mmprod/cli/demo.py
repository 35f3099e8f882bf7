"""`mmprod demo`: the whole line on generated faces, from nothing to checked engines and a page.

    train codec -> train fusion -> export -> engines -> parity -> scores -> page

A plain sequence over the same functions that the other commands call. Running it again goes on
where it stopped; the bundle and the page are made anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import Overrides, some
from mmprod.cli.gate import check, gate
from mmprod.cli.output import Fields, Output, Table, Text, shown
from mmprod.cli.paths import check_file_target
from mmprod.cli.progress import TrainingTicks, progress
from mmprod.cli.ship import (
    EngineRequest,
    Target,
    build,
    check_place,
    check_request,
    export_bundle,
)
from mmprod.cli.verdicts import require_ok

if TYPE_CHECKING:
    from mmprod.bundle import Bundle
    from mmprod.checkpoint import Run
    from mmprod.cli.demo_page import Results, Scores
    from mmprod.config.schema import Config
    from mmprod.engines.record import EngineRecord

HELD_OUT = 100
"""Held-out faces that the scores are taken over."""
PRECISIONS = ("fp32", "fp16")
ENGINES = ("fp16",)
"""Precisions of the engines: what is shipped. `mmprod build` makes those in fp32, too."""
BATCHES, SEEDS = (1, 3), 1
"""What is compared live; `mmprod parity run` takes more."""


@dataclass
class Steps:
    """The list of steps: what and how long, told on stderr as it happens."""

    out: Output
    done: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        self.out.note(f"[{len(self.done) + 1}] {what} ...")
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.done.append((what, seconds))
        self.out.note(f"[{len(self.done)}] {what}: {seconds:.0f} s")


def demo(
    out: Output,
    target: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where everything goes.")
    ] = Path("demo"),
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="NAME|PATH", help="What to train.")
    ] = "tiny",
    override: Overrides = None,
    targets: Target = "sm89",
) -> None:
    """Train, export, build engines and check them on generated faces; no GPU, no network."""
    from mmprod.bundle import Place
    from mmprod.checkpoint import open_run
    from mmprod.cli.demo_page import Results, write_page
    from mmprod.config.load import load_config

    resolved = load_config(config, override or ())
    request = EngineRequest(ENGINES, some(targets, "--target"), "rtx")
    check_request(request)
    place = Place(target / "bundle", replace=True)
    check_place(place)
    check_file_target(target / "report.html")
    steps = Steps(out)
    _train(steps, resolved, target / "run")
    run = open_run(target / "run")
    with steps.step("export to ONNX, fp32 and fp16"):
        bundle = export_bundle(out, run, place, PRECISIONS)
    records, engines = _engines(steps, bundle, request)
    with steps.step("compare every graph with PyTorch"):
        report = check(out, bundle, run, batches=BATCHES, seeds=SEEDS)
    with steps.step("measure on held-out faces"):
        scores = _scores(bundle, run)
    results = Results(run, report, tuple(records), engines, scores, tuple(steps.done))
    write_page(target / "report.html", results)
    _conclude(out, target, results)
    require_ok(report, bundle.root)


def _train(steps: Steps, config: Config, folder: Path) -> None:
    from mmprod.training.run import train

    for stage, what in (
        ("codec", "draw faces and train the codec"),
        ("fusion", "train the fusion transformer"),
    ):
        with steps.step(what), progress(steps.out, TrainingTicks()) as on_event:
            train(config, folder, stages=(stage,), on_event=on_event)


def _engines(
    steps: Steps, bundle: Bundle, request: EngineRequest
) -> tuple[list[EngineRecord], str]:
    """The engines, or none and the reason why."""
    from mmprod.engines.flavours import probe_flavour

    flavour = probe_flavour("rtx")
    if not flavour.usable:
        steps.out.note(f"no engines: {flavour.reason} ({flavour.hint})")
        return [], f"not built: {flavour.reason}"
    what = f"{', '.join(request.precisions)} engines for {', '.join(request.targets)}"
    with steps.step(f"build TensorRT {what}"):
        gate(steps.out, bundle, request.precisions)
        records = build(steps.out, bundle, request)
    return records, f"{len(records)} built with TensorRT for RTX {flavour.version}"


def _scores(bundle: Bundle, run: Run) -> Scores:
    """Figures of the bundle's fp32 graphs, which is what would be shipped, on the test split."""
    from mmprod.cli import scores
    from mmprod.cli.demo_page import Scores
    from mmprod.cli.source import open_source
    from mmprod.data.store import open_split
    from mmprod.evaluation.agreement import caption_agreement, chance, picture_agreement
    from mmprod.evaluation.pictures import psnr

    source = open_source(bundle.root, "ort")
    faces = scores.sample(
        open_split(run.data_root, "test"), HELD_OUT, run.config.data.languages[:1]
    )
    restored = scores.reconstruct(source, faces.pictures)
    captions = scores.describe(source, faces.pictures, seed=0)
    drawn = scores.draw(source, faces.captions, seed=0)
    judge = scores.train_judge(open_split(run.data_root, "train"), seed=0)
    return Scores(
        faces=faces,
        restored=restored,
        captions=tuple(captions),
        drawn=drawn,
        psnr=float(psnr(faces.pictures, restored).mean()),
        caption_agreement=caption_agreement(faces.attributes, captions),
        face_agreement=picture_agreement(judge, faces.attributes, drawn),
        chance=chance(faces.attributes)["overall"],
    )


def _conclude(out: Output, target: Path, results: Results) -> None:
    from mmprod.cli.demo_page import headline, next_steps

    folder = shown(target)
    seconds = sum(taken for _, taken in results.steps)
    places = {
        f"{folder}/report.html": "everything on one page: open it in a browser",
        f"{folder}/run": "weights, metrics, samples, checkpoints",
        f"{folder}/bundle": "graphs, engines, reference cases, parity report",
    }
    commands = "\n".join(f"  {command}\n      {what}" for command, what in next_steps(folder))
    data: dict[str, Any] = {
        "report": target / "report.html",
        "run": target / "run",
        "bundle": target / "bundle",
        "psnr": results.scores.psnr,
        "captions": results.scores.caption_agreement,
        "faces": results.scores.face_agreement,
        "chance": results.scores.chance,
        "parity": results.report.summary(),
        "engines": [record.as_dict() for record in results.records],
        "steps": [{"what": what, "seconds": taken} for what, taken in results.steps],
        "seconds": seconds,
    }
    out.result(
        data,
        Fields("Result", dict(headline(results))),
        Table("Where it is", ("path", "what"), list(places.items())),
        Text(f"What to type next:\n{commands}"),
    )
