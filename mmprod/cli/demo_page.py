"""What the demo found, laid out as a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmprod.cli.output import megabytes
from mmprod.report.metrics import read_curve
from mmprod.report.page import Card, DemoPage, Grid, Section, write_demo_page

if TYPE_CHECKING:
    from mmprod.checkpoint import Run
    from mmprod.cli.scores import Pixels, Sample
    from mmprod.engines.record import EngineRecord
    from mmprod.parity.report import ParityReport
    from mmprod.report.chart import Curve

PAIRS, CARDS = 12, 12
"""Pictures shown per section."""


@dataclass(frozen=True)
class Scores:
    """What came out for the held-out faces, and how good it is.

    restored, drawn (B, H, W, 3) uint8; captions of the real pictures; agreement by attribute, and
    the overall agreement of answers that belong to other faces.
    """

    faces: Sample
    restored: Pixels
    captions: tuple[str, ...]
    drawn: Pixels
    psnr: float
    caption_agreement: dict[str, float]
    face_agreement: dict[str, float]
    chance: float


@dataclass(frozen=True)
class Results:
    """All that the page tells. `engines`: what was built, or why not. `steps`: what, seconds."""

    run: Run
    report: ParityReport
    records: tuple[EngineRecord, ...]
    engines: str
    scores: Scores
    steps: tuple[tuple[str, float], ...]


def write_page(path: Path, results: Results) -> None:
    """Write the page of a finished demo."""
    write_demo_page(
        path,
        DemoPage(
            title="mmprod demo: from pictures to checked engines",
            lead=f"A codec and a fusion transformer ({results.run.name}), trained on generated "
            "faces on this machine, exported to ONNX and compared with PyTorch.",
            facts=headline(results),
            sections=(
                _curves(results.run),
                _reconstructions(results.scores),
                _drawn(results.scores),
                _captions(results.scores),
                _parity(results.report),
                _engines(results),
                _timings(results.steps),
                Section(
                    "What to type next",
                    commands=next_steps(str(path.parent)),
                ),
            ),
        ),
    )


def headline(results: Results) -> tuple[tuple[str, str], ...]:
    """The figures that matter most, in words."""
    scores, report = results.scores, results.report
    run = sum(row.status != "not run" for row in report.select(leg="torch-engine"))
    minutes, seconds = divmod(round(sum(taken for _, taken in results.steps)), 60)
    counts = ", ".join(f"{report.count(status)} {status}" for status in ("pass", "fail", "not run"))
    return (
        ("reconstruction of held-out faces", f"{scores.psnr:.1f} dB PSNR"),
        ("generated faces follow the caption", f"{scores.face_agreement['overall']:.0%}"),
        ("captions state the face rightly", f"{scores.caption_agreement['overall']:.0%}"),
        ("parity", counts),
        ("engines", f"{len(results.records)} built, {run} run"),
        ("time", f"{minutes} min {seconds} s"),
    )


def next_steps(folder: str) -> tuple[tuple[str, str], ...]:
    """Commands worth typing after a demo in `folder`, with what they do."""
    return (
        (
            f'mmprod generate {folder}/bundle "a smiling face with long red hair, glasses"',
            "draw four faces with the exported graphs",
        ),
        (f"mmprod caption {folder}/bundle PICTURE", "describe a picture"),
        (
            f'mmprod edit {folder}/bundle PICTURE "what it shall show"',
            "change a picture in words; docs/editing.md",
        ),
        (f"mmprod parity sabotage {folder}/bundle", "damage the graphs and see parity notice"),
        (
            f"mmprod parity selftest {folder}/bundle",
            "on a machine with the device: prove the engines",
        ),
        ("mmprod train --config small", "train the larger preset, for real use"),
        ("mmprod doctor", "see what else this machine can do"),
    )


def _curves(run: Run) -> Section:
    def of(stage: str, title: str, kind: str, names: dict[str, str]) -> Curve:
        return read_curve(run.stage_folder(stage) / "metrics.jsonl", title, kind, names)

    losses = {"loss": "loss", "encoder": "encoder", "reconstruction": "reconstruction"}
    return Section(
        "Training",
        curves=(
            of("codec", "Codec: losses", "log", losses),
            of("codec", "Codec: PSNR on the val split (dB)", "eval", {"psnr": "PSNR"}),
            of("fusion", "Fusion: losses", "log", losses | {"cross_modal": "cross-modal"}),
            of("fusion", "Fusion: loss on the val split", "eval", {"loss": "loss"}),
        ),
    )


def _reconstructions(scores: Scores) -> Section:
    pairs = zip(scores.faces.pictures[:PAIRS], scores.restored[:PAIRS], strict=True)
    return Section(
        "Reconstructions",
        "Left a held-out face, right what its codes keep of it.",
        pairs=tuple(pairs),
    )


def _drawn(scores: Scores) -> Section:
    cards = [
        Card(picture, lines=(caption,))
        for picture, caption in zip(
            scores.drawn[:CARDS], scores.faces.captions[:CARDS], strict=True
        )
    ]
    text = "Each face was drawn for the caption below it. A classifier that learnt from real faces "
    text += f"only agrees with the caption on {_shares(scores.face_agreement)} "
    text += _basis(scores)
    return Section("Faces for captions", text, cards=tuple(cards))


def _captions(scores: Scores) -> Section:
    cards = [
        Card(picture, lines=(caption,))
        for picture, caption in zip(
            scores.faces.pictures[:CARDS], scores.captions[:CARDS], strict=True
        )
    ]
    text = "Each caption was written for the held-out face above it. "
    text += f"Stated rightly: {_shares(scores.caption_agreement)} "
    text += _basis(scores)
    return Section("Captions for faces", text, cards=tuple(cards))


def _parity(report: ParityReport) -> Section:
    rows = tuple(
        (
            row.subject.graph,
            row.subject.precision,
            row.subject.target or "ONNX Runtime",
            row.status,
            row.cases,
            row.reason,
        )
        for row in report.rows
    )
    text = f"Every graph and engine against {report.reference}, same inputs, same noise."
    columns = ("graph", "precision", "runs in", "verdict", "cases", "why")
    return Section("Parity", text, grid=Grid(columns, rows))


def _engines(results: Results) -> Section:
    rows = tuple(
        (
            r.graph,
            r.precision,
            f"{r.flavour}-{r.target}",
            megabytes(r.bytes),
            round(r.seconds, 1),
            r.kernels,
            r.state,
        )
        for r in results.records
    )
    columns = ("graph", "precision", "target", "size", "build seconds", "kernels", "state")
    return Section("Engines", results.engines, grid=Grid(columns, rows) if rows else None)


def _timings(steps: tuple[tuple[str, float], ...]) -> Section:
    rows = tuple((what, round(seconds, 1)) for what, seconds in steps)
    return Section("Time", grid=Grid(("step", "seconds"), rows))


def _basis(scores: Scores) -> str:
    """How many samples a share is over, and what chance would give."""
    return f"({len(scores.drawn)} faces; answers for other faces: {scores.chance:.0%} overall)."


def _shares(agreement: dict[str, float]) -> str:
    """`hair color 81%, glasses 90%`, without the overall share."""
    return ", ".join(
        f"{name.replace('_', ' ')} {share:.0%}"
        for name, share in agreement.items()
        if name != "overall"
    )
