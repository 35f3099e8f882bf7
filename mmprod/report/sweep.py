"""What a codec sweep found, for people: two plots as SVG files and a page. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprod.manifest import write_text
from mmprod.report.markdown import markdown_table
from mmprod.report.page import DemoPage, Grid, Section, write_demo_page
from mmprod.report.plot import Line, Plot, render_plot

Record = Mapping[str, Any]
"""One measured member, see cli/sweep.py"""


@dataclass(frozen=True)
class SweepPage:
    """`area`: pixels of a picture; `records`: the measured members; `failed`: (name, error)."""

    title: str
    lead: str
    area: int
    records: Sequence[Record]
    failed: Sequence[tuple[str, str]]
    recommended: str | None
    rule: str
    reasons: Sequence[str]
    table: Grid


def write_sweep_page(folder: Path, page: SweepPage) -> list[Path]:
    """Write rate-distortion.svg, usage.svg, sweep.md (reasons and table) and sweep.html; what was
    written. The plots are left out when nothing was measured.
    """
    plots = (_rate_distortion(page), _usage(page)) if page.records else ()
    written = []
    for name, plot in zip(("rate-distortion.svg", "usage.svg"), plots, strict=False):
        write_text(folder / name, render_plot(plot))
        written.append(folder / name)
    choice = page.recommended or "none"
    sections = [
        Section("Recommendation", f"{choice}: {page.rule}.", points=tuple(page.reasons)),
        Section("Rate and distortion", plots=plots[:1]),
        Section("Use of the codebook", plots=plots[1:]),
        Section("All members", grid=page.table),
    ]
    if page.failed:
        words = tuple(f"{name}: {error}" for name, error in page.failed)
        sections.append(Section("Failed", points=words))
    reasons = "".join(f"- {reason}\n" for reason in page.reasons)
    text = f"{page.lead}\n\nRecommended: {choice} ({page.rule}).\n\n{reasons}"
    write_text(folder / "sweep.md", f"{text}\n{markdown_table(page.table)}")
    target = folder / "sweep.html"
    facts = (("recommended", choice), ("members measured", str(len(page.records))))
    write_demo_page(target, DemoPage(page.title, page.lead, facts, tuple(sections)))
    return [*written, folder / "sweep.md", target]


def _rate_distortion(page: SweepPage) -> Plot:
    lines = []
    for curve, records in _curves(page.records).items():
        ordered = sorted(records, key=lambda r: float(r["coded_bpp"]))
        lines.append(
            Line(
                curve,
                [(r["coded_bpp"], r["psnr"]) for r in ordered],
                [_label(r, page.recommended) for r in ordered],
            )
        )
    return Plot(
        "PSNR over coded bits",
        "bits per pixel under the static table, without header",
        "PSNR in dB, mean over validation pictures",
        lines,
        log_x=True,
        top=("bytes per picture", page.area / 8),
    )


def _usage(page: SweepPage) -> Plot:
    lines = []
    for curve, records in _curves(page.records).items():
        ordered = sorted(records, key=lambda r: int(r["codes"]))
        used = [(r["codes"], 100 * r["usage"]) for r in ordered if r["usage"] is not None]
        even = [
            (r["codes"], 100 * r["perplexity"] / r["codes"])
            for r in ordered
            if r["perplexity"] is not None
        ]
        lines += [Line(f"{curve}: in use", used)] if used else []
        lines += [Line(f"{curve}: perplexity / K", even)] if even else []
    if not lines:  # quantizers that record neither: what was seen in the pictures
        lines = [Line("seen", [(r["codes"], 100 * r["seen"]) for r in page.records])]
    return Plot(
        "Use of the codebook at the end of training",
        "codes K",
        "% of K",
        lines,
        log_x=True,
        marks=sorted({x for line in lines for x, _ in line.points}),
    )


def _curves(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record["curve"]), []).append(record)
    return found


def _label(record: Record, recommended: str | None) -> str:
    label = f"K {record['codes']}"
    return f"{label}, recommended" if record["name"] == recommended else label
