"""Rate-distortion of our codecs beside the classic ones: plots and a page. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprod.evaluation.rate import RatePoint, front
from mmprod.manifest import write_text
from mmprod.report.markdown import markdown_table
from mmprod.report.page import DemoPage, Grid, Section, write_demo_page
from mmprod.report.plot import Line, Plot, render_plot

ABOVE = 6.0
"""dB above our best point: how far the plots follow the classic codecs."""
FEWEST = 4
"""Points of a classic codec that are shown in any case, from its smallest file on ..."""
LOSSY = 60.0
"""... if their PSNR is below this: a lossless file would squeeze all others into a corner."""


@dataclass(frozen=True)
class RatePage:
    """`ours`: all points; `theirs`: by codec; `tables`: (title, table) in order."""

    lead: str
    area: int
    ours: Sequence[RatePoint]
    theirs: Mapping[str, Sequence[RatePoint]]
    sentences: Sequence[str]
    tables: Sequence[tuple[str, Grid]]


def write_rate_page(folder: Path, page: RatePage) -> list[Path]:
    """Write rate-psnr.svg, rate-ms-ssim.svg, rate.md (sentences and tables) and rate.html; what was
    written.
    """
    plots = (
        _plot(page, "PSNR over bits per pixel", "PSNR in dB", lambda p: p.psnr),
        _plot(page, "MS-SSIM over bits per pixel", "MS-SSIM", lambda p: p.ms_ssim),
    )
    written = []
    for name, plot in zip(("rate-psnr.svg", "rate-ms-ssim.svg"), plots, strict=True):
        write_text(folder / name, render_plot(plot))
        written.append(folder / name)
    sections = [
        Section("Where each is better", points=tuple(page.sentences)),
        Section("Rate and distortion", plots=plots),
        *(Section(title, grid=grid) for title, grid in page.tables),
    ]
    parts = ["".join(f"- {words}\n" for words in page.sentences)]
    parts += [f"**{title}**\n\n{markdown_table(grid)}" for title, grid in page.tables]
    write_text(folder / "rate.md", f"{page.lead}\n\n" + "\n".join(parts))
    target = folder / "rate.html"
    write_demo_page(target, DemoPage("Rate and distortion", page.lead, (), tuple(sections)))
    return [*written, folder / "rate.md", target]


def _plot(page: RatePage, title: str, label: str, value: Callable[[RatePoint], float]) -> Plot:
    """Ours by codec, one marker a prior; theirs as their fronts, as far as they are near ours. The
    priors are named once where all codecs have the same, at every marker where they differ.
    """
    high = max(p.psnr for p in page.ours) + ABOVE
    codecs = {
        name: sorted((p for p in page.ours if p.codec == name), key=lambda p: -p.bytes)
        for name in dict.fromkeys(p.codec for p in page.ours)
    }
    orders = {tuple(p.setting for p in points) for points in codecs.values()}
    order = orders.pop() if len(orders) == 1 else ()
    lines = []
    for name, points in codecs.items():
        labels = () if order else [p.setting for p in points]
        lines.append(Line(name, [(p.bpp, value(p)) for p in points], labels))
    for name, theirs in page.theirs.items():
        first, *more = front(theirs)
        near = [p for i, p in enumerate(more, 1) if p.psnr <= (LOSSY if i < FEWEST else high)]
        places = [(p.bpp, value(p)) for p in (first, *near)]
        lines.append(Line(name, places, [f"{first.bytes:.0f} bytes"]))
    return Plot(
        title,
        f"bits per pixel of whole files{'; ours from the right: ' if order else ''}"
        f"{', '.join(order)}",
        f"{label}, mean over pictures",
        lines,
        log_x=True,
        top=("bytes per picture", page.area / 8),
    )
