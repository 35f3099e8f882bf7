"""Rate-distortion of our codecs beside the classic ones: plots and a page. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprod.evaluation.rate import RatePoint, front
from mmprod.manifest import write_text
from mmprod.report.page import DemoPage, Grid, Section, write_demo_page
from mmprod.report.plot import Line, Plot, render_plot

ABOVE = 6.0
"""dB above our best point: how far the plots follow the classic codecs."""
FEWEST = 4
"""Points of a classic codec that are shown in any case, from its smallest file on."""


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
    """Write rate-psnr.svg, rate-ms-ssim.svg and rate.html; what was written."""
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
    target = folder / "rate.html"
    write_demo_page(target, DemoPage("Rate and distortion", page.lead, (), tuple(sections)))
    return [*written, target]


def _plot(page: RatePage, title: str, label: str, value: Callable[[RatePoint], float]) -> Plot:
    """Ours by codec, one marker a prior; theirs as their fronts, as far as they are near ours."""
    high = max(p.psnr for p in page.ours) + ABOVE
    lines = []
    for name in dict.fromkeys(p.codec for p in page.ours):
        points = sorted((p for p in page.ours if p.codec == name), key=lambda p: -p.bytes)
        lines.append(Line(name, [(p.bpp, value(p)) for p in points], [p.setting for p in points]))
    for name, theirs in page.theirs.items():
        curve = front(theirs)
        near = [p for i, p in enumerate(curve) if i < FEWEST or p.psnr <= high]
        words = [f"{near[0].bytes:.0f} bytes"]
        lines.append(Line(name, [(p.bpp, value(p)) for p in near], words))
    return Plot(
        title,
        "bits per pixel of whole files",
        f"{label}, mean over pictures",
        lines,
        log_x=True,
        top=("bytes per picture", page.area / 8),
    )
